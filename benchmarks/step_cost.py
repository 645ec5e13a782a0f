"""Cost of one adaptation step in single-frame forwards, one thread, and what of it lies outside the networks.

    python benchmarks/step_cost.py [--source CHECKPOINT] [--steps 30]

A step and a forward of one frame run in turn; the figure is the median of the ratio. Networks' share: time inside the
teacher's and the student's forward and in `backward`, less the backward of the loss by itself, measured apart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
from torch import Tensor

from edge_sfda import config as configs
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.data.class_maps import resolve
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build, load
from edge_sfda.ops.weighted_cross_entropy import weighted_cross_entropy


class Stopwatch:
    """Adds up the time spent in wrapped calls."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.paused = False

    def without(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Count nothing inside `call`: the metric network's own backward is no network forward or backward."""

        def uncounted(*args: Any, **kwargs: Any) -> Any:
            self.paused = True
            try:
                return call(*args, **kwargs)
            finally:
                self.paused = False

        return uncounted

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds += 0.0 if self.paused else time.perf_counter() - start

        return timed


@contextmanager
def timed_backward(watch: Stopwatch) -> Iterator[None]:
    """Count every `Tensor.backward` in the body."""
    original = Tensor.backward
    Tensor.backward = watch.wrap(original)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.backward = original  # type: ignore[method-assign]


def loss_backward_seconds(batch: int, classes: int, height: int, width: int) -> float:
    """Return the median time of the loss's own backward at the student's logits' size."""
    logits = torch.randn(batch, classes, height, width, requires_grad=True)
    label = torch.randint(classes, (batch, height, width))
    weight = torch.rand(batch, height, width)
    times = []
    for _ in range(10):
        loss = weighted_cross_entropy(logits, label, weight)
        start = time.perf_counter()
        loss.backward()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def watch_parts(adapter: Adapter) -> dict[str, Stopwatch]:
    """Time the parts outside the networks, each by a watch of its own: where another kernel could pay."""
    parts = {name: Stopwatch() for name in ("reliability", "mixing", "view", "optimizer", "average")}
    if adapter.reliability is not None:
        adapter.reliability.score_then_learn = parts["reliability"].wrap(  # type: ignore[method-assign]
            adapter.reliability.score_then_learn
        )
    memory = adapter.memory
    memory.mix, memory.push = parts["mixing"].wrap(memory.mix), parts["mixing"].wrap(memory.push)  # type: ignore[method-assign]
    adapter.view = parts["view"].wrap(adapter.view)  # type: ignore[assignment]
    adapter.optimizer.step = parts["optimizer"].wrap(adapter.optimizer.step)  # type: ignore[method-assign]
    adapter.teacher.update = parts["average"].wrap(adapter.teacher.update)  # type: ignore[method-assign]
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="checkpoint; random weights of lite0 at 360x480 when absent")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=2, help="frames a step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.source is not None:
        net, manifest = load(arguments.source)
    else:
        classes = resolve("camvid").classes
        manifest = Manifest(NetSpec("lite0", 4), classes, Preprocessing(360, 480))
        net = build(manifest.net, len(classes))
    config = configs.from_dict({"burst": {"batch": arguments.batch}})
    adapter = Adapter(net, manifest, config)
    pre, batch = manifest.preprocessing, config.burst.batch
    frames = torch.randint(0, 256, (config.mixing.memory, 3, pre.height, pre.width), dtype=torch.uint8)
    adapter.begin(list(frames[:4]))
    reference, _ = (net, manifest) if arguments.source is None else load(arguments.source)
    reference.eval()
    x = adapter.normaliser(frames[:1])

    networks, step_seconds, forward_seconds = [], [], []
    parts = watch_parts(adapter)
    shares: list[dict[str, float]] = []
    watch = Stopwatch()
    if adapter.reliability is not None:
        adapter.reliability._learn = watch.without(adapter.reliability._learn)  # type: ignore[method-assign]
    student_forward, teacher_forward = adapter.net.forward, adapter.teacher.net.forward
    for index in range(arguments.steps + 3):
        adapter.net.forward, adapter.teacher.net.forward = student_forward, teacher_forward
        start = time.perf_counter()
        with torch.inference_mode():
            reference(x)
        forward = time.perf_counter() - start
        adapter.net.forward = watch.wrap(student_forward)
        adapter.teacher.net.forward = watch.wrap(teacher_forward)
        watch.seconds = 0.0
        for part in parts.values():
            part.seconds = 0.0
        picked = torch.arange(index * batch, (index + 1) * batch) % len(frames)
        with timed_backward(watch):
            start = time.perf_counter()
            adapter.step(frames[picked])
            total = time.perf_counter() - start
        if index >= 3:  # the first steps allocate
            forward_seconds.append(forward)
            step_seconds.append(total)
            networks.append(watch.seconds)
            shares.append({name: part.seconds / total for name, part in parts.items()})
    side = [round(s * config.view.crop / 32) * 32 // 4 for s in (pre.height, pre.width)]
    loss_part = loss_backward_seconds(batch, len(manifest.classes), side[0], side[1])
    ratio = np.array(step_seconds) / np.array(forward_seconds)
    outside = 1 - (np.array(networks) - loss_part) / np.array(step_seconds)
    row = {
        "parts": {name: round(float(np.median([share[name] for share in shares])), 4) for name in parts},
        "net": manifest.net.architecture,
        "size": [pre.height, pre.width],
        "batch": batch,
        "step_in_forwards": [round(float(q), 2) for q in np.percentile(ratio, (20, 50, 80))],
        "outside_networks": [round(float(q), 3) for q in np.percentile(outside, (20, 50, 80))],
        "forward_ms": round(1e3 * float(np.median(forward_seconds)), 1),
        "step_ms": round(1e3 * float(np.median(step_seconds)), 1),
    }
    print(row)
    print(rows.write("step_cost", [row]))


if __name__ == "__main__":
    main()
