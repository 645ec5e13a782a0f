"""What each part of the method adds: one off (or on) at a time, all else as it is.

    python benchmarks/ablation.py [--streets 7] [--jobs 2]                       # the domains of the scene
    python benchmarks/ablation.py --pair drive --data DIR --sources CKPT [CKPT ...]
    python benchmarks/ablation.py --online --parts "full method" "no guard"      # on streams

A row for each part, pair, seed and source network: mIoU and rare classes on frames that were not learned from, and the
mIoU along the burst (`--every`), whose end less its peak tells how stable a part is. On a stream (`--online`) a frame
is predicted before it is learned from. Settings were chosen on street 7.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import rows
import torch

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.data.scene import DOMAINS
from edge_sfda.nets import SegmentationNet, load

MODEL = Path("edge_sfda/assets/scene_day_nano.safetensors")
FULL = "full method"
PARTS: dict[str, dict[str, Any]] = {
    FULL: {},
    "no statistics of the target": {"statistics": {"blend": 0.0}},
    "no prior undone": {"statistics": {"prior": 0.0}},
    "no reliability: w = confidence": {"reliability": {"enabled": False}},
    "no confidence: w = r": {"reliability": {"confidence": False}},
    "no weight: w = 1": {"reliability": {"enabled": False, "confidence": False}},
    "with mixing": {"mixing": {"enabled": True}},
    "no teacher: entropy alone": {"burst": {"entropy": 1.0}},
    "no entropy: labels alone": {"burst": {"entropy": 0.0}},
    "no average: the student deployed": {"teacher": {"average_max": 0.0}},
    "no guard": {"burst": {"guard": False}},
    "no statistics of batches": {"burst": {"batch_statistics": False}},
    "no floor under the classes": {"burst": {"class_floor": 0.0}},
    "layers up to stride 2 frozen": {"burst": {"frozen_stride": 2}},
    "no consolidation": {"consolidation": {"share": 0.0, "online_share": 0.0}, "burst": {"steps": 100}},
    "consolidation alone": {"consolidation": {"share": 1.0}, "burst": {"steps": 60}},
    "consolidation: not sharpened": {"consolidation": {"temperature": 1.0}},
    "consolidation: encoder left alone": {"consolidation": {"encoder_rate_scale": 0.0}},
    "all weights, at 3e-5": {"burst": {"affine_only": False, "rate": 3e-5}},
    "with colour, blur and crops": {"view": {"strength": 1.0, "crop": 0.65}},
    "with a flip-averaged teacher": {"teacher": {"flip": True}},
    "no burst at all": {"burst": {"steps": 0}},
}


@dataclasses.dataclass(frozen=True)
class Task:
    """One row."""

    part: str
    pair: str  # of CamVid, or a domain of the scene
    seed: int
    source: Path
    data: Path | None
    street: int
    every: int
    online: bool = False


def measure(task: Task) -> dict[str, Any]:
    """Run one burst, or one stream, on one thread and return its row."""
    torch.set_num_threads(1)
    pair = pairs.scene(task.pair, task.street) if task.data is None else pairs.camvid(task.pair, task.data)
    net, manifest = load(task.source)
    config = dataclasses.replace(configs.from_dict(PARTS[task.part]), seed=task.seed)
    method = run.make(net, manifest, config)
    along: dict[int, float] = {}

    def look(step: int, report: object) -> None:
        if task.every and step % task.every == 0 and step < config.burst.steps:
            with finished(method) as deployed:
                along[step] = round(pairs.judged(deployed, manifest, pair).miou(), 4)

    start = time.perf_counter()
    if task.online:
        confusion = pairs.online(method, manifest, pair)
        seconds = time.perf_counter() - start
    else:
        run.offline(method, pair.learn(manifest), on_step=look)
        seconds = time.perf_counter() - start
        confusion = pairs.judged(method.deployed, manifest, pair)
    scores = pair.scores(confusion)
    along[config.burst.steps] = scores["miou"]
    return {
        "part": task.part,
        "pair": task.pair,
        "street": task.street if task.data is None else None,
        "seed": task.seed,
        "source": task.source.stem,
        **scores,
        "along": along,
        "end_less_peak": round(scores["miou"] - max(along.values()), 4),
        "seconds": round(seconds, 1),
    }


@contextmanager
def finished(method: run.Method) -> Iterator[SegmentationNet]:
    """The network as it would be deployed if the burst ended here; the burst goes on as if nobody had looked."""
    net = method.deployed
    before = {name: value.clone() for name, value in net.state_dict().items()}
    method.finish()
    try:
        yield net
    finally:
        net.load_state_dict(before)


def table(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a part, its change in points of mIoU against the full method on the same pair and seed."""

    def place(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["pair"], row["street"], row["seed"], row["source"]

    full = {place(row): row for row in results if row["part"] == FULL}
    lines = ["| part | mean | worst | best | rare | end less peak | runs |", "|---" * 7 + "|"]
    for part in dict.fromkeys(row["part"] for row in results):
        mine = [row for row in results if row["part"] == part and place(row) in full]
        if not mine:
            continue
        change = [100 * (row["miou"] - full[place(row)]["miou"]) for row in mine]
        rare = [100 * (row["rare"] - full[place(row)]["rare"]) for row in mine]
        cells = [f"{v:+.1f}" for v in (np.mean(change), min(change), max(change), np.mean(rare))]
        if part == FULL:
            cells = [f"{np.mean([row['miou'] for row in mine]):.3f}", "", "", ""]
            cells[3] = f"{np.mean([row['rare'] for row in mine]):.3f}"
        peak = [100 * row["end_less_peak"] for row in mine if len(row["along"]) > 1]
        cells.append(f"{np.mean(peak):+.1f}" if peak else "")
        lines.append(f"| {part} | " + " | ".join(cells) + f" | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what was asked for and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("scene", *pairs.SEQUENCES), default="scene")
    parser.add_argument("--data", type=Path, help="folder of the CamVid sequences")
    parser.add_argument("--sources", nargs="+", type=Path, default=[MODEL])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--streets", nargs="+", type=int, default=[43])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--every", type=int, default=25, help="steps between two looks along the burst; 0: none")
    parser.add_argument("--online", action="store_true", help="streams in place of bursts")
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    if args.pair != "scene" and args.data is None:
        parser.error("--pair of CamVid needs --data")
    places = [(domain, street) for domain in args.domains for street in args.streets]
    places = places if args.pair == "scene" else [(args.pair, 0)]
    data = None if args.pair == "scene" else args.data
    wanted = [
        Task(part, pair, seed, source, data, street, args.every, args.online)
        for seed in args.seeds
        for source in args.sources
        for pair, street in places
        for part in args.parts
    ]
    results = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(measure, task) for task in wanted]:
            results.append(future.result())
            print(results[-1], flush=True)
    name = f"ablation_{args.pair.replace('-', '_')}{'_online' if args.online else ''}"
    print(rows.write(name, results, append=args.append))
    print(table(results))


if __name__ == "__main__":
    main()
