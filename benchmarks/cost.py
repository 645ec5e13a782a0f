"""What adaptation costs, and what a cheaper one is worth: seconds, memory and multiplications against quality.

    python benchmarks/cost.py [--jobs 2]

Each profile adapts to each domain of the scene's street 43, in a process of its own. Seconds are of the burst on one
thread; `to_90_s` are those after which 90 % of what the burst gains over its first step's beginning was reached;
memory is the process's peak less what it held before the burst; multiply-accumulates are those of convolutions and
matrix products, per frame that was given. Draws `results/pareto.png`. Run with --jobs 1 on a quiet machine for seconds
that mean something, or compare them within one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import resource
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import rows
import torch
from ablation import MODEL, finished
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.config import AdaptConfig
from edge_sfda.data.scene import DOMAINS
from edge_sfda.live.sensors import resident_mb
from edge_sfda.nets import load

PICTURE = rows.RESULTS / "pareto.png"
LOOKS = 10  # along a burst

# settings over the defaults, and every how many-th frame is given
PROFILES: dict[str, tuple[Mapping[str, Any], int]] = {
    "source": ({"method": "none"}, 1),
    "statistics": ({"method": "bn"}, 1),
    "full": ({}, 1),
    "half the sides": ({"burst": {"scale": 0.5}}, 1),
    "decoder and normalisation": ({"burst": {"frozen_stride": 32}}, 1),
    "every third frame": ({}, 3),
    "encoder left alone in consolidation": ({"consolidation": {"encoder_rate_scale": 0.0}}, 1),
    "no consolidation": ({"consolidation": {"share": 0.0}, "burst": {"steps": 100}}, 1),
    "40 steps": ({"burst": {"steps": 40}}, 1),
    "batches of two": ({"burst": {"batch": 2}}, 1),
    "cheap": (configs.EFFORTS["cheap"], 2),
    "TENT": ({"method": "tent"}, 1),
}


def config_of(profile: str) -> AdaptConfig:
    """Return the settings of a profile; a peer's are its own."""
    changes = PROFILES[profile][0]
    return configs.from_dict(changes, base=configs.preset(str(changes.get("method", "stvm"))))


@dataclasses.dataclass(frozen=True)
class Task:
    """One row."""

    profile: str
    domain: str
    street: int
    seed: int
    source: Path


def measure(task: Task) -> dict[str, Any]:
    """Adapt three times over the same frames: for time and memory, for the course, for the multiplications."""
    torch.set_num_threads(1)
    pair = pairs.scene(task.domain, task.street)
    net, manifest = load(task.source)
    learn = pair.learn(manifest)[:: PROFILES[task.profile][1]]
    config = dataclasses.replace(config_of(task.profile), seed=task.seed)
    with torch.inference_mode():  # what a process that infers holds anyway
        net(torch.zeros(1, 3, manifest.preprocessing.height, manifest.preprocessing.width))
    held = resident_mb()
    times: list[float] = []
    start = time.perf_counter()
    method = run.make(net, manifest, config)
    run.offline(method, learn, on_step=lambda step, report: times.append(time.perf_counter() - start))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    scores = pair.scores(pairs.judged(method.deployed, manifest, pair))
    return {
        "profile": task.profile,
        "domain": task.domain,
        "street": task.street,
        "seed": task.seed,
        "frames": len(learn),
        "steps": len(times),
        **scores,
        "seconds": round(seconds, 2),
        "to_90_s": round(_to_90(task, learn, config, times, seconds, scores["miou"]), 2),
        "memory_mb": round(max(0.0, peak - held), 1),  # the peak is read in whole pages of another counter
        "gmacs_per_frame": round(_macs(task, learn, config) / len(learn) / 1e9, 3),
    }


def _to_90(
    task: Task, learn: list[torch.Tensor], config: AdaptConfig, times: list[float], seconds: float, end: float
) -> float:
    """Return the seconds after which 90 % of the gain over what came before the first step was reached, for good."""
    if not times:
        return seconds
    net, manifest = load(task.source)
    pair, method = pairs.scene(task.domain, task.street), run.make(net, manifest, config)
    course: dict[int, float] = {}

    def look(step: int, report: object) -> None:
        if step % max(1, len(times) // LOOKS) == 0 and step < len(times):
            with finished(method) as deployed:
                course[step] = pairs.judged(deployed, manifest, pair).miou()

    run.offline(method, learn, on_step=look)
    course[len(times)] = end
    start = _before(task, config)
    enough = start + 0.9 * (end - start)
    below = [step for step, miou in course.items() if miou < enough]
    reached = min((step for step in course if step > max(below, default=0)), default=len(times))
    return times[reached - 1]


def _before(task: Task, config: AdaptConfig) -> float:
    """Return the mIoU of what is deployed without any step."""
    net, manifest = load(task.source)
    pair = pairs.scene(task.domain, task.street)
    method = run.make(net, manifest, dataclasses.replace(config, burst=dataclasses.replace(config.burst, steps=0)))
    run.offline(method, pair.learn(manifest)[:: PROFILES[task.profile][1]])
    return pairs.judged(method.deployed, manifest, pair).miou()


def multiplications() -> FlopCounterMode:
    """Return a counter of floating-point operations, two a multiply-accumulate.

    torch's own counts a weight's gradient in a convolution of groups as if there were none: a depthwise one, which half
    of these networks are made of, once for each of its channels.
    """
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _conv_backward})


def _conv_backward(  # the operator's arguments, tensors as their shapes
    gradient: list[int], x: list[int], weight: list[int], bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, mask: list[bool], out_shape: Any = None,
) -> int:  # fmt: skip
    """Return the operations of a convolution's gradients: those of input and weight cost each what the forward did."""
    batch, _, *size = x if transposed else gradient
    return 2 * batch * math.prod(size) * math.prod(weight) * sum(mask[:2])


def _macs(task: Task, learn: list[torch.Tensor], config: AdaptConfig) -> float:
    """Return the multiply-accumulates of a burst: those of none, and of a step of each kind as often as it is taken."""

    def of(steps: int, share: float) -> float:
        net, manifest = load(task.source)
        burst = dataclasses.replace(config.burst, steps=steps)
        consolidation = dataclasses.replace(config.consolidation, share=share)
        method = run.make(net, manifest, dataclasses.replace(config, burst=burst, consolidation=consolidation))
        with multiplications() as counter:
            run.offline(method, learn)
        return counter.get_total_flops() / 2

    none, own = of(0, 0), config.own_steps
    late = (config.burst.steps - own) * (of(1, 1) - none)
    if own == 0:
        return none + late
    one = of(1, 0)  # with what settles after any step, and after none does not
    return one + (own - 1) * (of(2, 0) - one) + late


def table(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a profile, means over domains."""
    full = _mean(results, "full", "seconds") if any(r["profile"] == "full" for r in results) else float("nan")
    lines = ["| profile | mIoU | rare | seconds | of full | to 90 % | memory | GMAC a frame |", "|---" * 8 + "|"]
    for name in dict.fromkeys(r["profile"] for r in results):
        mean = {key: _mean(results, name, key) for key in ("miou", "rare", "seconds", "to_90_s", "memory_mb")}
        macs = _mean(results, name, "gmacs_per_frame")
        lines.append(
            f"| {name} | {mean['miou']:.3f} | {mean['rare']:.3f} | {mean['seconds']:.1f} | "
            f"{mean['seconds'] / full:.2f} | {mean['to_90_s']:.1f} s | {mean['memory_mb']:.0f} MB | {macs:.1f} |"
        )
    return "\n".join(lines)


def picture(results: list[dict[str, Any]], path: Path = PICTURE) -> None:
    """Draw quality against multiplications; what nothing else beats in both is joined by a line."""
    points = {
        name: (max(_mean(results, name, "gmacs_per_frame"), 1e-2), _mean(results, name, "miou"))
        for name in dict.fromkeys(r["profile"] for r in results)
        if name != "source"
    }
    front = [
        p for p in sorted(points.values()) if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points.values())
    ]
    figure = Figure(figsize=(8.4, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*front, strict=True), color="0.75", zorder=1)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.15)
    for name, (macs, miou) in points.items():
        axes.scatter([macs], [miou], color=_colour(name), zorder=2)
    bottom, top = axes.get_ylim()
    ordered = sorted(points.items(), key=lambda item: item[1][1])
    for index, (name, point) in enumerate(ordered):  # in a column beside the points, which lie too close for labels
        height = bottom + (top - bottom) * (index + 0.5) / len(ordered)
        axes.annotate(
            name, point, (1.03, height), textcoords=axes.get_yaxis_transform(), fontsize=9, color=_colour(name),
            va="center", arrowprops={"arrowstyle": "-", "color": "0.85", "linewidth": 0.8, "shrinkA": 0}, zorder=0,
        )  # fmt: skip
    axes.set_ylim(bottom, top)
    domains = ", ".join(dict.fromkeys(r["domain"] for r in results))
    if any(r["profile"] == "source" for r in results):
        axes.set_title(f"the source has {_mean(results, 'source', 'miou'):.3f}", fontsize=9, color="0.4", loc="left")
    axes.set_xlabel("multiply-accumulates of the burst, 10⁹ per frame given")
    axes.set_ylabel(f"mIoU, {domains}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _colour(profile: str) -> str:
    return "#c2571a" if profile == "TENT" else "#1f5fa8"


def _mean(results: list[dict[str, Any]], profile: str, key: str) -> float:
    return float(np.mean([r[key] for r in results if r["profile"] == profile]))


def main() -> None:
    """Measure what was asked for, write the rows and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=MODEL)
    parser.add_argument("--profiles", nargs="+", choices=PROFILES, default=list(PROFILES))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--street", type=int, default=43)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    wanted = [
        Task(profile, domain, args.street, seed, args.source)
        for domain in args.domains
        for seed in args.seeds
        for profile in args.profiles
    ]
    results = []
    # a new process for each: the peak of memory is of a process's whole life
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in [pool.submit(measure, task) for task in wanted]:
            results.append(future.result())
            print(results[-1], flush=True)
    print(rows.write("cost", results, append=args.append))
    print(table(results))
    picture(results)


if __name__ == "__main__":
    main()
