"""Ours and its peers in one run: same network, same frames, same number of steps.

    python benchmarks/peers.py --tune                                       # rates, on the scene's street 7
    python benchmarks/peers.py --jobs 2                                     # the scene: offline, online, continual
    python benchmarks/peers.py --seconds --jobs 2                           # offline: steps that take equally long
    python benchmarks/peers.py --pair dusk --data DIR --source CHECKPOINT   # CamVid: offline, online

    offline     a burst on the first half of a drive, mIoU on the second
    online      every frame in order, predicted before it is learned from
    continual   day, dusk, night and fog in turn on one street, round after round, each frame predicted before it is
                learned from; what counts is how the running mIoU stands to the source's own at each change

Peers go by their papers' rules and the rate that did best on street 7 (`--tune`, in `results/peers_tuning.jsonl`); ours
keeps its defaults. `stvm-literal` is what the abstract says and no more: all weights, hard labels, no threshold, weight
by reliability alone, patches by reliability, the average deployed. `stvm-cheap` is ours with `--effort cheap`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import rows
import torch
from peers_table import table

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.config import AdaptConfig
from edge_sfda.data.frames import to_input
from edge_sfda.data.scene import DOMAINS
from edge_sfda.data.sources import SceneSource
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets import Predictor, load

SEASONS = ("day", "dusk", "night", "fog")  # of a round
TUNED = ("tent", "eata", "sar", "rdumb", "roid", "cotta", "hamlet", "mean-teacher", "threshold")
_TUNING = {"street": 7, "domains": ("dusk", "fog", "city")}
_CHEAP = "stvm-cheap"
_FIXED = ("none", "bn", "bn-mix", "bn-momentum")  # no draws: one seed says it all
_MOMENTUM = {"momentum": 0.1, "source_frames": 10}  # as train mode moves them
# over those of a plain mean teacher
_LITERAL = {"method": "stvm", "burst": {"batch": 2, "online_share": 0.16}, "reliability": {"confidence": False}}


@dataclasses.dataclass(frozen=True)
class Task:
    """One row: what is run on what."""

    protocol: str
    pair: str  # of CamVid, or a domain of the scene
    method: str
    config: AdaptConfig
    source: Path
    data: Path | None
    street: int
    rounds: int
    segment: int


def variants(
    steps: int, rates: dict[tuple[str, str], float], protocol: str, costs: dict[str, float] | None = None
) -> dict[str, AdaptConfig]:
    """Return every configuration by name, with the tuned rates and `steps` steps, or as many as cost the same."""
    named = {method: configs.preset(method) for method in configs.METHODS}
    named["bn-mix"] = configs.from_dict({"method": "bn", "statistics": {"blend": 0.75}})
    if protocol != "offline":  # there all frames are known at once
        named |= {
            f"{name}-momentum": configs.from_dict({"statistics": _MOMENTUM}, base=named[name])
            for name in ("bn", *TUNED)
        }
    named["stvm-literal"] = configs.from_dict(_LITERAL, base=configs.preset("mean-teacher"))
    named[_CHEAP] = configs.from_dict(configs.EFFORTS["cheap"])
    found = {}
    for name, config in named.items():
        usual = config.burst.steps if name == _CHEAP else steps  # few steps are what makes it cheap
        burst = dataclasses.replace(config.burst, steps=round(usual / (costs or {}).get(name, 1.0)))
        rate = rates.get((protocol, name.removesuffix("-momentum")))
        if rate is not None and protocol == "offline":
            burst = dataclasses.replace(burst, rate=rate)
        elif rate is not None:  # the share of the rate is what a stream goes by
            burst = dataclasses.replace(burst, rate=rate, online_share=1.0)
        found[name] = dataclasses.replace(config, burst=burst)
    return found


def measure(task: Task) -> dict[str, Any]:
    """Run one task on one thread and return its row."""
    torch.set_num_threads(1)
    net, manifest = load(task.source)
    method = run.make(net, manifest, task.config)
    row: dict[str, Any] = {
        "protocol": task.protocol, "pair": task.pair, "street": task.street if task.data is None else None,
        "method": task.method, "seed": task.config.seed, "rate": task.config.burst.rate,
        "online_share": task.config.burst.online_share, "steps": task.config.burst.steps,
    }  # fmt: skip
    start = time.perf_counter()
    if task.protocol == "continual":
        row |= continual(method, Predictor(load(task.source)[0], manifest), task)
    else:
        pair = pairs.scene(task.pair, task.street) if task.data is None else pairs.camvid(task.pair, task.data)
        go = pairs.offline if task.protocol == "offline" else pairs.online
        row |= pair.scores(go(method, manifest, pair))
    return row | {"seconds": round(time.perf_counter() - start, 1)}


def step_costs(configs_by_name: dict[str, AdaptConfig], source: Path, turns: int = 12) -> dict[str, float]:
    """Return the seconds of a step of each method in those of ours: medians of steps taken in turn, on one thread."""
    torch.set_num_threads(1)
    methods, times = {}, {}
    for name, config in configs_by_name.items():
        net, manifest = load(source)
        frames = pairs.scene("dusk", _TUNING["street"]).learn(manifest)[: config.burst.batch]
        method = run.make(net, manifest, config)
        method.begin(frames)
        methods[name], times[name] = (method, torch.stack(frames)), list[float]()
    for _ in range(turns):
        for name, (method, batch) in methods.items():
            start = time.perf_counter()
            method.step(batch)
            times[name].append(time.perf_counter() - start)
    ours = np.median(times["stvm"])
    return {name: float(np.median(taken) / ours) if methods[name][0].trains else 1.0 for name, taken in times.items()}


def continual(method: run.Method, source: Predictor, task: Task) -> dict[str, Any]:
    """Go through the rounds; margins are of mIoU over the source's, on the same frames."""
    manifest = method.manifest
    classes = len(manifest.classes), manifest.classes.ignore_id
    whole, theirs = ConfusionMatrix(*classes), ConfusionMatrix(*classes)
    method.begin(())
    margins, parts, by_round = [], [], []
    for index in range(task.rounds * len(SEASONS)):
        part, source_part = ConfusionMatrix(*classes), ConfusionMatrix(*classes)
        for image, label in segment(SEASONS[index % len(SEASONS)], task.street, index, task.segment):
            seen, before = Predictor(method.deployed, manifest)(image)[0], source(image)[0]
            for confusion, mask in ((whole, seen), (part, seen), (theirs, before), (source_part, before)):
                confusion.update(mask, label)
            run.learn_online(method, torch.from_numpy(to_input(image, manifest.preprocessing)))
        margins.append(whole.miou() - theirs.miou())
        parts.append(part.miou() - source_part.miou())
        if (index + 1) % len(SEASONS) == 0:
            by_round.append(round(float(np.mean(parts[-len(SEASONS) :])), 4))
    return {
        "miou": round(whole.miou(), 4),
        "source_miou": round(theirs.miou(), 4),
        "least_margin": round(min(margins), 4),  # of the running mIoU
        "worst_segment": round(min(parts), 4),
        "gain_by_round": by_round,
        "frames": task.rounds * len(SEASONS) * task.segment,
    }


def segment(domain: str, street: int, index: int, frames: int) -> Iterator[tuple[Any, Any]]:
    """Yield images and labels of the next stretch of the drive."""
    source = SceneSource(f"scene:{domain}?frames={frames}&seed={street}&fps=2&start={index * frames}")
    for frame in source:
        yield frame.image, source.label.copy()


def tasks(args: argparse.Namespace, rates: dict[tuple[str, str], float]) -> Iterator[Task]:
    """Yield what the command line asks for."""
    costs = None
    if args.seconds:
        every = variants(args.steps, rates, "offline")
        wanted = {"stvm", *(args.methods or every)}
        costs = step_costs({name: config for name, config in every.items() if name in wanted}, args.source)
    for protocol in args.protocols:
        for name, config in variants(args.steps, rates, protocol, costs).items():
            if args.methods and name not in args.methods:
                continue
            for seed in args.seeds[:1] if name in _FIXED or protocol == "continual" else args.seeds:
                for pair, street in itertools.product(_places(args, protocol), _streets(args, protocol)):
                    seeded = dataclasses.replace(config, seed=seed)
                    source, data = args.source, args.data if args.pair != "scene" else None
                    yield Task(protocol, pair, name, seeded, source, data, street, args.rounds, args.segment)


def tuning(args: argparse.Namespace) -> Iterator[Task]:
    """Yield every peer at every rate, on a street of its own."""
    for protocol in [p for p in args.protocols if p != "continual"]:
        for name, config in variants(args.steps, {}, protocol).items():
            if name not in TUNED or (args.methods and name not in args.methods):
                continue
            usual = config.burst.rate * (1 if protocol == "offline" else config.burst.online_share)
            for factor in args.factors:
                chosen = variants(args.steps, {(protocol, name): usual * factor}, protocol)[name]
                for domain in _TUNING["domains"]:
                    yield Task(protocol, domain, name, chosen, args.source, None, _TUNING["street"], 0, 0)


def best(results: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """Return the rate with the best mean mIoU, by protocol and method; what holds online holds in the continual one."""
    found: dict[tuple[str, str], float] = {}
    for protocol, method in dict.fromkeys((r["protocol"], r["method"]) for r in results):
        mine = [r for r in results if (r["protocol"], r["method"]) == (protocol, method)]
        mean = {rate: np.mean([r["miou"] for r in mine if r["rate"] == rate]) for rate in {r["rate"] for r in mine}}
        found[protocol, method] = max(mean, key=lambda rate: float(mean[rate]))
        if protocol == "online":
            found["continual", method] = found[protocol, method]
    return found


def _places(args: argparse.Namespace, protocol: str) -> list[str]:
    if args.pair != "scene":
        return [args.pair]
    return ["rounds"] if protocol == "continual" else list(args.domains)


def _streets(args: argparse.Namespace, protocol: str) -> list[int]:
    """Return those to go through: of the rounds, which take longest, the first alone; CamVid has none."""
    streets: list[int] = args.streets
    return streets[:1] if protocol == "continual" or args.pair != "scene" else streets


def _rates() -> dict[tuple[str, str], float]:
    path = rows.RESULTS / "peers_tuning.jsonl"
    return best(rows.read(path)) if path.exists() else {}


def main() -> None:
    """Measure what was asked for and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("scene", *pairs.SEQUENCES), default="scene")
    parser.add_argument("--data", type=Path, help="folder of the CamVid sequences")
    parser.add_argument("--source", type=Path, default=Path("edge_sfda/assets/scene_day_nano.safetensors"))
    parser.add_argument("--protocols", nargs="+", choices=("offline", "online", "continual"))
    parser.add_argument("--methods", nargs="*", default=[], help="only these")
    parser.add_argument("--domains", nargs="+", default=list(DOMAINS))
    parser.add_argument(
        "--streets", nargs="+", type=int, default=[43], help="seeds of the street; no choice was made on 43, 53, 61"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=configs.AdaptConfig().burst.steps, help="of every burst")
    unlike = parser.add_mutually_exclusive_group()
    unlike.add_argument("--tune", action="store_true", help="find the peers' rates")
    unlike.add_argument("--seconds", action="store_true", help="offline: as many steps as take the seconds of ours")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--segment", type=int, default=30, help="frames of one season of a round")
    parser.add_argument("--factors", nargs="+", type=float, default=[0.3, 1.0, 3.0], help="of a preset's rate, to try")
    parser.add_argument("--name", help="of the results; of what is measured when absent")
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    args = parser.parse_args()
    if args.pair != "scene" and args.data is None:
        parser.error("--pair of CamVid needs --data")
    if args.protocols is None:
        args.protocols = (
            ["offline"] if args.seconds else ["offline", "online", *(["continual"] if args.pair == "scene" else [])]
        )
    wanted = list(tuning(args) if args.tune else tasks(args, _rates()))
    usual = f"peers_{'tuning' if args.tune else args.pair.replace('-', '_')}{'_seconds' if args.seconds else ''}"
    name = args.name or usual
    path, append = rows.RESULTS / f"{name}.jsonl", args.append
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(measure, task) for task in wanted]:
            row = future.result()
            rows.write(name, [row], append=append)  # as they come: hours of work must not hang on the last one
            append = True
            print(row, flush=True)
    print(path)
    print(_rates() if args.tune else table(rows.read(path)))  # all of them: a gain is over the source's row


if __name__ == "__main__":
    main()
