"""Proxy similarity: the operator against eager and compiled torch, one frame, stride 8, time and peak memory.

    python benchmarks/bench_proxy_similarity.py [--device cpu] [--rounds 60] [--dtype float32]

Two passes: `score` (reliability only, no gradient, as each adaptation step needs it for all pixels) and `train` (all
results, then the gradients of the loss to embeddings and proxies). On a GPU the operator is its CUDA kernels, on a CPU
plain torch with its gradient written out. The alternatives take turns, call by call. Checked first: against float64 no
alternative errs more than twice as much as eager torch. Peak memory is what torch's allocator held at most during a
call beyond what it held before; time is of the wall, `cpu_ms` of the thread, which a busy machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.ops.proxy_similarity import proxy_similarity

KAPPA, SCALE, IGNORE = 10.0, 18.0, 255
CHANNELS, STRIDE = 64, 8
PICTURES = ((360, 480, 11), (512, 1024, 19), (1024, 2048, 19))  # height, width, classes
WARM_UP = 5


@dataclass(frozen=True)
class Inputs:
    embedding: Tensor  # [1, D, h, w], channels last, as the metric network makes them
    proxies: Tensor  # [C, D]
    label: Tensor  # int64 [1, h, w]
    weight: Tensor  # float32 [1, h, w]


Results = tuple[Tensor, ...]
Alternative = Callable[[Inputs], Results]


def make_inputs(height: int, width: int, classes: int, *, dtype: torch.dtype, device: torch.device) -> Inputs:
    rng = torch.Generator().manual_seed(0)
    size = (1, height // STRIDE, width // STRIDE)
    label = torch.randint(classes, size, generator=rng)
    proxies = torch.randn(classes, CHANNELS, generator=rng)
    embedding = proxies[label] + 3 * torch.randn(*size, CHANNELS, generator=rng)
    label[torch.rand(size, generator=rng) < 0.05] = IGNORE
    weight = torch.rand(size, generator=rng)
    return Inputs(
        embedding.to(device, dtype).permute(0, 3, 1, 2), proxies.to(device), label.to(device), weight.to(device)
    )


def plain(embedding: Tensor, proxies: Tensor, label: Tensor, weight: Tensor | None) -> Results:
    """The formulas in torch; without a weight only the reliability."""
    precision = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    unit = F.normalize(embedding.to(precision), dim=1)
    cosine = torch.einsum("bdhw,cd->bchw", unit, F.normalize(proxies.to(precision), dim=1))
    valid = label != IGNORE
    target = torch.where(valid, label, 0)
    r = (KAPPA * cosine.detach()).softmax(1).gather(1, target[:, None])[:, 0] * valid
    if weight is None:
        return (r,)
    classes, flat = len(proxies), target.flatten()
    zeros = torch.zeros(classes, dtype=precision, device=label.device)
    sums, counts = zeros.index_add(0, flat, r.flatten()), zeros.index_add(0, flat, valid.flatten().to(precision))
    entropy = F.cross_entropy(SCALE * cosine, label, ignore_index=IGNORE, reduction="none")
    w = (weight * valid).to(precision)
    mass, total = zeros.index_add(0, flat, w.flatten()), zeros.index_add(0, flat, (w * entropy).flatten())
    loss = (total / mass.clamp(min=1e-12)).sum() / (mass > 0).sum().clamp(min=1)
    return loss, r, cosine.detach().argmax(1), sums, counts


def score_with(call: Callable[..., Results]) -> Alternative:
    def score(inputs: Inputs) -> Results:
        with torch.no_grad():
            return call(inputs.embedding, inputs.proxies, inputs.label, None)

    return score


def train_with(call: Callable[..., Results]) -> Alternative:
    def train(inputs: Inputs) -> Results:
        embedding, proxies = inputs.embedding.detach().requires_grad_(), inputs.proxies.detach().requires_grad_()
        loss, r, _, sums, _ = call(embedding, proxies, inputs.label, inputs.weight)
        loss.backward()
        assert embedding.grad is not None
        assert proxies.grad is not None
        return loss.detach(), r, sums, embedding.grad, proxies.grad

    return train


def operator(embedding: Tensor, proxies: Tensor, label: Tensor, weight: Tensor | None) -> Results:
    if weight is None:
        scores = proxy_similarity(embedding, proxies, label, kappa=KAPPA, scale=None, with_nearest=False)
        assert scores.reliability is not None
        return (scores.reliability,)
    found = proxy_similarity(embedding, proxies, label, kappa=KAPPA, scale=SCALE, weight=weight)
    results = (found.loss, found.reliability, found.nearest, found.sums, found.counts)
    return tuple(t for t in results if t is not None)


def check(alternatives: dict[str, Alternative], inputs: Inputs) -> None:
    """Stop where an alternative errs more than twice as much as eager torch, beyond one rounding."""
    exact = alternatives["eager"](
        Inputs(inputs.embedding.double(), inputs.proxies.double(), inputs.label, inputs.weight.double())
    )
    usual = alternatives["eager"](inputs)
    for name, alternative in alternatives.items():
        for i, (got, want, plain_) in enumerate(zip(alternative(inputs), exact, usual, strict=True)):
            rounding = torch.finfo(got.dtype).eps * want.abs().max()
            error, allowed = (got - want).abs().max(), 2 * (plain_ - want).abs().max() + rounding
            assert error <= allowed, f"{name}, result {i}: error {error} above {allowed}"


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Return what torch's allocator holds at most during a call, less what it held before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with tempfile.TemporaryDirectory() as folder:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            call()
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: float(e["ts"]))
    return int(max(np.cumsum([e["args"]["Bytes"] for e in changes]), default=0))


def measure(
    alternatives: dict[str, Alternative], inputs: Inputs, *, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Return wall and CPU milliseconds of each call; on a GPU those between two events of its stream."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in alternatives}
    on_gpu = inputs.embedding.is_cuda
    for i in range(WARM_UP + rounds):
        for name, alternative in alternatives.items():
            if on_gpu:
                start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                start_event.record()
            start, cpu = time.perf_counter(), time.thread_time()
            alternative(inputs)
            cpu_ms, wall_ms = (time.thread_time() - cpu) * 1e3, (time.perf_counter() - start) * 1e3
            if on_gpu:
                end_event.record()
                end_event.synchronize()
                wall_ms = start_event.elapsed_time(end_event)
            if i >= WARM_UP:
                times[name][0].append(wall_ms)
                times[name][1].append(cpu_ms)
    return times


def compare(height: int, width: int, classes: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    inputs = make_inputs(height, width, classes, dtype=dtype, device=device)
    compiled = torch.compile(plain, dynamic=False)
    found = []
    for name, wrap in (("score", score_with), ("train", train_with)):
        alternatives = {"eager": wrap(plain), "compiled": wrap(compiled), "operator": wrap(operator)}
        check(alternatives, inputs)
        times = measure(alternatives, inputs, rounds=options.rounds)
        peaks = {k: peak_bytes(lambda call=v: call(inputs), device) for k, v in alternatives.items()}
        eager_ms, eager_cpu_ms = (float(np.median(t)) for t in times["eager"])
        for what, (wall, cpu) in times.items():
            p20, median, p80 = (float(v) for v in np.percentile(wall, (20, 50, 80)))
            found.append(
                {
                    "pass": name,
                    "what": what,
                    "backend": "cuda kernels" if device.type == "cuda" and what == "operator" else "torch",
                    "picture": f"{height}x{width}",
                    "grid": f"{height // STRIDE}x{width // STRIDE}",
                    "classes": classes,
                    "channels": CHANNELS,
                    "dtype": options.dtype,
                    "rounds": options.rounds,
                    "threads": torch.get_num_threads(),
                    "ms": round(median, 4),
                    "p20_ms": round(p20, 4),
                    "p80_ms": round(p80, 4),
                    "cpu_ms": round(float(np.median(cpu)), 4),
                    "of_eager": round(median / eager_ms, 3),
                    "cpu_of_eager": round(float(np.median(cpu)) / eager_cpu_ms, 3),
                    "peak_mib": round(peaks[what] / 2**20, 3),
                    "peak_of_eager": round(peaks[what] / peaks["eager"], 3),
                }
            )
            row = found[-1]
            print(
                f"{row['picture']:>9} C={classes:<3} {name:5} {what:8} {median:8.3f} ms ({p20:.3f} to {p80:.3f}), "
                f"{row['of_eager']:.2f} of eager; CPU {row['cpu_ms']:.3f} ms, {row['cpu_of_eager']:.2f} of eager; peak "
                f"{row['peak_mib']:.2f} MiB"
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = [row for picture in PICTURES for row in compare(*picture, options)]
    print(rows.write(f"proxy_similarity_{options.device}", results))


if __name__ == "__main__":
    main()
