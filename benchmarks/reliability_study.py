"""Reliability as what it is: a detector of the teacher's errors, held against what a softmax says by itself.

    python benchmarks/reliability_study.py [--street 43] [--jobs 2]                    # the domains of the scene
    python benchmarks/reliability_study.py --pair dusk --data DIR --source CHECKPOINT
    python benchmarks/reliability_study.py --stream 400                                # its drift along a stream

On labelled frames that are not learned from, at points of the burst: the area under the ROC curve and under the
precision-recall curve (errors are what is looked for), over all pixels, and as the mean over classes of the area among
the pixels that the teacher gave that class: there, knowing which classes are often wrong helps nobody.

    r                    metric reliability
    weight               what a pixel weighs by default: confidence, its neighbours' support, a share of r
    confidence           the label's softmax; margin: over the second best; entropy: negative
    flip                 the label's softmax in the mirror image
    confidence * flip, r * confidence * flip
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pairs
import rows
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.losses import entropy_of
from edge_sfda.adapt.reliability import combined, levels
from edge_sfda.data.frames import to_input
from edge_sfda.data.scene import DOMAINS
from edge_sfda.manifest import Manifest
from edge_sfda.nets import load

F64 = npt.NDArray[np.float64]

PIXELS = 3000  # of a frame, drawn once for all detectors
LEAST = 50  # errors and right pixels that a class needs to be judged


def auroc(score: F64, wrong: npt.NDArray[np.bool_]) -> float:
    """Return the probability that an error scores below a right pixel, ties counted half; NaN without both."""
    errors, right = int(wrong.sum()), int((~wrong).sum())
    if errors == 0 or right == 0:
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # the mean rank of those that tie, from 1
    return 1 - float((rank[wrong].sum() - errors * (errors + 1) / 2) / (errors * right))


def aupr(score: F64, wrong: npt.NDArray[np.bool_]) -> float:
    """Return the average precision of finding errors by low scores; NaN without errors."""
    if not wrong.any():
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    hits = np.bincount(place, weights=wrong, minlength=len(count))
    precision = np.cumsum(hits) / np.cumsum(count)
    return float((precision * hits).sum() / hits.sum())


@torch.no_grad()
def looked_at(method: Adapter, manifest: Manifest, pair: pairs.Pair, frames: Sequence[int]) -> dict[str, F64]:
    """Return every detector, the teacher's label and whether it is wrong, at drawn pixels of labelled frames."""
    found: dict[str, list[Tensor]] = {}
    rng = torch.Generator().manual_seed(0)
    for index in frames:
        image, label = pair.drive[index]
        x = method.normaliser(torch.from_numpy(to_input(image, manifest.preprocessing))[None])
        view = method.teacher.predict(x)
        mirrored = method.teacher.net(x.flip(-1)).logits.flip(-1).softmax(1)
        size = view.label.shape[-2:]
        truth = F.interpolate(torch.from_numpy(label)[None, None].float(), size=size, mode="nearest-exact")[0, 0].long()
        known = (truth != manifest.classes.ignore_id).flatten().nonzero().flatten()
        picked = known[torch.randperm(len(known), generator=rng)[:PIXELS]]
        r = None if method.reliability is None else method.reliability.look(levels(view), view.label)
        assert r is not None, "the metric network has seen frames"
        top = view.probs.topk(2, dim=1).values
        flip = mirrored.gather(1, view.label[:, None])[:, 0]
        maps = {
            "r": r,
            "weight": combined(view, r),
            "confidence": view.confidence,
            "margin": top[:, 0] - top[:, 1],
            "entropy": -entropy_of(view.probs),
            "flip": flip,
            "confidence * flip": view.confidence * flip,
            "r * confidence * flip": r * view.confidence * flip,
            "label": view.label,
            "wrong": view.label != truth[None],
        }
        for name, value in maps.items():
            found.setdefault(name, []).append(value.flatten()[picked])
    return {name: torch.cat(parts).double().numpy() for name, parts in found.items()}


def judge(seen: dict[str, F64]) -> list[dict[str, Any]]:
    """Return a row for each detector."""
    label, wrong = seen["label"].astype(int), seen["wrong"].astype(bool)
    classes = [
        c for c in np.unique(label) if (wrong & (label == c)).sum() >= LEAST and (~wrong & (label == c)).sum() >= LEAST
    ]
    found = []
    for name, score in seen.items():
        if name in ("label", "wrong"):
            continue
        within = {int(c): auroc(score[label == c], wrong[label == c]) for c in classes}
        found.append(
            {
                "detector": name,
                "auroc": round(auroc(score, wrong), 4),
                "aupr": round(aupr(score, wrong), 4),
                "auroc_within": round(float(np.mean(list(within.values()))), 4) if within else None,
                "by_class": {str(c): round(value, 4) for c, value in within.items()},
                "mean_right": round(float(score[~wrong].mean()), 4),
                "mean_wrong": round(float(score[wrong].mean()), 4),
                "errors": round(float(wrong.mean()), 4),
            }
        )
    return found


@dataclasses.dataclass(frozen=True)
class Task:
    """One burst, or one stream of so many frames."""

    pair: str
    source: Path
    data: Path | None
    street: int
    seed: int
    frames: int
    stream: int


def measure(task: Task) -> list[dict[str, Any]]:
    """Run one task on one thread and return its rows."""
    torch.set_num_threads(1)
    pair = pairs.scene(task.pair, task.street) if task.data is None else pairs.camvid(task.pair, task.data)
    net, manifest = load(task.source)
    method = run.make(net, manifest, dataclasses.replace(configs.AdaptConfig(), seed=task.seed))
    assert isinstance(method, Adapter)
    half = len(pair.drive) // 2
    frames = np.linspace(half, len(pair.drive) - 1, min(task.frames, len(pair.drive) - half)).astype(int).tolist()
    found: list[dict[str, Any]] = []

    def look(at: str) -> None:
        head = {"pair": task.pair, "street": task.street if task.data is None else None, "seed": task.seed, "at": at}
        found.extend(head | row for row in judge(looked_at(method, manifest, pair, frames)))

    learn = pair.learn(manifest)
    if task.stream:
        method.begin(())
        for index in range(task.stream):
            run.learn_online(method, learn[index % len(learn)])
            if (index + 1) % max(1, task.stream // 4) == 0:
                look(f"frame {index + 1}")
        return found
    steps = method.config.burst.steps

    def after(step: int, report: object) -> None:
        if step in (1, steps // 4, steps // 2, steps):
            look(f"step {step}")

    run.offline(method, learn, on_step=after)
    return found


def table(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a detector, means over pairs and seeds; the last point of each burst, then the others."""
    points = list(dict.fromkeys(r["at"] for r in results))
    lines = [
        "| detector | AUROC | AUPR | AUROC within classes | the same, at " + ", ".join(points) + " |",
        "|---" * 5 + "|",
    ]
    for name in dict.fromkeys(r["detector"] for r in results):
        cells = [f"{_mean(results, name, points[-1], key):.3f}" for key in ("auroc", "aupr", "auroc_within")]
        course = ", ".join(f"{_mean(results, name, point, 'auroc_within'):.3f}" for point in points)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {course} |")
    return "\n".join(lines)


def _mean(results: list[dict[str, Any]], detector: str, at: str, key: str) -> float:
    found = [r[key] for r in results if (r["detector"], r["at"]) == (detector, at) and r[key] is not None]
    return float(np.mean(found)) if found else math.nan


def main() -> None:
    """Measure what was asked for and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("scene", *pairs.SEQUENCES), default="scene")
    parser.add_argument("--data", type=Path, help="folder of the CamVid sequences")
    parser.add_argument("--source", type=Path, default=Path("edge_sfda/assets/scene_day_nano.safetensors"))
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument("--street", type=int, default=43)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--frames", type=int, default=24, help="labelled, that errors are looked for on")
    parser.add_argument("--stream", type=int, default=0, help="learn from so many frames of a stream, not in a burst")
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    if args.pair != "scene" and args.data is None:
        parser.error("--pair of CamVid needs --data")
    data = None if args.pair == "scene" else args.data
    wanted = [
        Task(pair, args.source, data, args.street, seed, args.frames, args.stream)
        for pair in (args.domains if args.pair == "scene" else [args.pair])
        for seed in args.seeds
    ]
    results = []
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(measure, task) for task in wanted]:
            results.extend(future.result())
            print(results[-1]["pair"], results[-1]["seed"], flush=True)
    name = f"reliability_{args.pair.replace('-', '_')}" + ("_stream" if args.stream else "")
    print(rows.write(name, results, append=args.append))
    print(table(results))


if __name__ == "__main__":
    main()
