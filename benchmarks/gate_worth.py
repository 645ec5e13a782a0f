"""What the gate is worth: bad candidates accepted and good ones refused, told by labels that it never sees.

    python benchmarks/gate_worth.py [--source CHECKPOINT] [--streets 43] [--cycles 2] [--frames 32] [--steps 40]

Streams on the built-in scene that lead adaptation astray, and some that do not:

    rounds          day, dusk, day, ... adapted online at ten times the rate, judged at each change
    rounds-bursts   the same stream with a burst at the usual rate at each change, from the source
    frozen          a camera that gives one frame again and again, with the noise of a sensor
    walls           a robot that stands before a wall
    swapped         red and blue exchanged
    too-fast        a burst at ten times the rate, with many snapshots
    all-weights     a burst over all weights instead of scale and shift
    DOMAIN          the usual burst in each domain of the scene

Each stream is gone through as the live loop does: what the gate accepts is deployed, and the next candidates meet it;
the source with the target's statistics is judged before a burst, the burst's end and snapshots after it.
A candidate is bad when its mIoU on the next part of the stream (the street without the fault, for frozen and walls, but
with the swap for a camera that stays swapped) is below that of the deployed network by more than `--tolerance`, good
when it is above by more. The gate's settings were chosen on streets 7, 11 and 31.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.adapt.gate import DEPLOYED, SOURCE, Gate
from edge_sfda.config import GateConfig
from edge_sfda.data.frames import to_input
from edge_sfda.data.scene import DOMAINS
from edge_sfda.data.sources import SceneSource
from edge_sfda.manifest import Manifest
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets import SegmentationNet, load
from edge_sfda.nets.inference import Normaliser

STREAMS = ("rounds", "rounds-bursts", "frozen", "walls", "swapped", "too-fast", "all-weights", *DOMAINS)
FPS = 2
PROBES, HELD_OUT = 16, 16


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    source: Path
    street: int
    cycles: int
    frames: int
    steps: int
    fast_steps: int
    tolerance: float


@dataclass(frozen=True, eq=False)
class Part:
    """A stretch of a stream: frames to learn from, probes between them, and what comes next with its labels."""

    learn: list[Tensor]
    probes: Tensor
    after: Tensor
    labels: np.ndarray


class Stream:
    """One stream and its deployed network; judges candidates as they come."""

    def __init__(self, name: str, options: Options) -> None:
        self.name, self.options = name, options
        self.source: SegmentationNet
        self.manifest: Manifest
        self.source, self.manifest = load(options.source)
        self.deployed = self.source
        self.gate = Gate(GateConfig(cool_down_s=0), self.manifest)
        self.normaliser = Normaliser(self.manifest.preprocessing, torch.device("cpu"))
        self.rows: list[dict[str, Any]] = []
        self.judgements = 0

    def go(self) -> list[dict[str, Any]]:
        """Go through the stream and return a row a judged candidate."""
        {"rounds": self.rounds, "rounds-bursts": self.rounds_bursts}.get(self.name, self.single)()
        return self.rows

    def rounds(self) -> None:
        """Online, at ten times the rate, until the weights are far away."""
        settings = configs.from_dict({"burst": {"rate": 2e-2}})
        method = run.make(copy.deepcopy(self.source), self.manifest, settings)
        method.begin(())
        for part in self.cycle():
            for frame in part.learn:
                run.learn_online(method, frame)
            self.judge(part, {"average": copy.deepcopy(method.deployed).eval()})

    def rounds_bursts(self) -> None:
        """A burst at the usual rate whenever the domain changes."""
        for part in self.cycle():
            self.judge_burst(part, self.burst(part, {}, self.options.steps))

    def cycle(self) -> Iterator[Part]:
        for index in range(2 * self.options.cycles):
            yield self.part("dusk" if index % 2 == 0 else "day", start=index)

    def single(self) -> None:
        """One burst, as the stream's name says."""
        options = self.options
        domain = self.name if self.name in DOMAINS else "dusk"
        for start, place in enumerate((domain,) if self.name in DOMAINS else (domain, "day")):
            part = self.part(place, start=start)
            if self.name == "too-fast":
                candidates = self.burst(part, {"rate": 2e-2}, options.fast_steps)
            elif self.name == "all-weights":
                candidates = self.burst(part, {"rate": 1e-3, "affine_only": False}, options.steps)
            else:
                candidates = self.burst(part, {}, options.steps)
            self.judge_burst(part, candidates)

    def judge_burst(self, part: Part, candidates: dict[str, SegmentationNet]) -> None:
        """Judge the target's statistics before the burst, then its end and snapshots, as the live loop does."""
        before, statistics = self.deployed, candidates.pop("statistics")
        self.judge(part, {"statistics": statistics})
        if self.deployed is statistics:
            candidates["statistics"] = statistics
        self.judge(part, candidates, before=before)

    def burst(self, part: Part, burst: dict[str, Any], steps: int) -> dict[str, SegmentationNet]:
        """Return a burst's average, a snapshot at each quarter of it, and the source with the target's statistics."""
        settings = configs.from_dict({"burst": {**burst, "steps": steps}})
        method = run.make(copy.deepcopy(self.source), self.manifest, settings)
        candidates: dict[str, SegmentationNet] = {}

        def keep(step: int, report: object) -> None:
            if step % max(1, steps // 4) == 0 and step < steps:
                candidates[f"step {step}"] = method.snapshot()

        def begin() -> None:
            candidates["statistics"] = method.snapshot()

        run.offline(method, part.learn, on_begin=begin, on_step=keep)
        return {"average": method.deployed.eval(), **candidates}

    def part(self, domain: str, *, start: int) -> Part:
        """Return a stretch of the street: probes are every so many of its frames, which are then not learned from."""
        count = self.options.frames + PROBES
        total = count + HELD_OUT
        spec = f"scene:{domain}?frames={total}&seed={self.options.street}&fps={FPS}&start={start * total}"
        source = SceneSource(spec)
        frames, labels = [], []
        for frame in source:
            frames.append(torch.from_numpy(to_input(frame.image, self.manifest.preprocessing)))
            labels.append(source.label.copy())
        seen = self.fault()(torch.stack(frames[:count]))
        after = torch.stack(frames[count:])
        after = after.flip(1) if self.name == "swapped" else after
        probes = torch.arange(0, count, count // PROBES)[:PROBES]
        learned = [seen[i] for i in range(count) if i not in set(probes.tolist())]
        return Part(learned, seen[probes], after, np.stack(labels[count:]))

    def fault(self) -> Callable[[Tensor], Tensor]:
        """Return what is wrong with the camera or its place, over uint8 [N, 3, H, W]."""
        rng = torch.Generator().manual_seed(self.options.street)

        def frozen(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=rng) * 3
            return (x[:1].float() + noise).round().clamp(0, 255).to(torch.uint8)

        def walls(x: Tensor) -> Tensor:
            height, width = x.shape[-2:]
            patch = x[:, :, height * 5 // 16 : height * 9 // 16, : width // 4].float()
            return F.interpolate(patch, size=(height, width), mode="bilinear").round().to(torch.uint8)

        return {"frozen": frozen, "walls": walls, "swapped": lambda x: x.flip(1)}.get(self.name, lambda x: x)

    def judge(self, part: Part, burst: dict[str, SegmentationNet], *, before: SegmentationNet | None = None) -> None:
        """Let the gate decide, hold every candidate against labels, and deploy what it accepted.

        `before` is what the gate holds candidates against where a first look has put another network into use since;
        labels hold them against the one in use.
        """
        candidates = {SOURCE: self.source, DEPLOYED: self.deployed if before is None else before, **burst}
        start = time.perf_counter()
        decision = self.gate.judge(candidates, part.probes)
        seconds = time.perf_counter() - start
        miou = {name: self.miou(net, part) for name, net in candidates.items()}
        in_use = self.miou(self.deployed, part)
        for name, net in candidates.items():
            if name == DEPLOYED or (before is not None and net is self.deployed):
                continue
            gain = miou[name] - in_use
            kind = "bad" if gain < -self.options.tolerance else "good" if gain > self.options.tolerance else "even"
            self.rows.append(
                {
                    "stream": self.name,
                    "street": self.options.street,
                    "judgement": self.judgements,
                    "candidate": name,
                    "kind": kind,
                    "accepted": decision.accepted == name,
                    "decision": decision.accepted,
                    "miou": round(miou[name], 4),
                    "deployed_miou": round(in_use, 4),
                    "reason": decision.reason,
                    "vetoes": list(decision.vetoes.get(name, ())),
                    "votes": decision.votes.get(name, {}),
                    "scores": decision.scores.get(name, {}),
                    "judge_s": round(seconds, 2),
                }
            )
        if decision.accepted != DEPLOYED:
            self.deployed = candidates[decision.accepted]
        self.judgements += 1

    def miou(self, net: SegmentationNet, part: Part) -> float:
        """Return the mIoU of a network on what comes next."""
        counts = ConfusionMatrix(len(self.manifest.classes), self.manifest.classes.ignore_id)
        with torch.inference_mode():
            for index in range(0, len(part.after), 4):
                logits = net(self.normaliser(part.after[index : index + 4])).logits
                label = part.labels[index : index + 4]
                logits = F.interpolate(logits, size=label.shape[1:], mode="bilinear")
                counts.update(logits.argmax(1).numpy(), label)
        return counts.miou()


def go(name: str, options: Options) -> list[dict[str, Any]]:
    """Go through one stream on one thread."""
    torch.set_num_threads(1)
    return Stream(name, options).go()


def table(results: list[dict[str, Any]]) -> str:
    """Return the counts as Markdown, a row a stream.

    Of each judgement at most one candidate is accepted, so a good one counts as refused only where none was accepted.
    """
    lines = [
        "| stream | judgements | bad candidates | bad accepted | with a good candidate | nothing good accepted |",
        "|---|---|---|---|---|---|",
    ]
    sums = [0] * 5
    for name in [*dict.fromkeys(r["stream"] for r in results), "all"]:
        if name != "all":
            judgements: dict[tuple[int, int], list[dict[str, Any]]] = {}
            for row in (r for r in results if r["stream"] == name):
                judgements.setdefault((row["street"], row["judgement"]), []).append(row)
            bad = sum(r["kind"] == "bad" for group in judgements.values() for r in group)
            bad_accepted = sum(r["kind"] == "bad" and r["accepted"] for group in judgements.values() for r in group)
            good = [group for group in judgements.values() if any(r["kind"] == "good" for r in group)]
            refused = sum(not any(r["kind"] == "good" and r["accepted"] for r in group) for group in good)
            counts = [len(judgements), bad, bad_accepted, len(good), refused]
            sums = [a + b for a, b in zip(sums, counts, strict=True)]
        else:
            counts = sums
        lines.append(f"| {name} | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("edge_sfda/assets/scene_day_nano.safetensors"))
    parser.add_argument("--streams", nargs="+", choices=STREAMS, default=STREAMS)
    parser.add_argument("--streets", nargs="+", type=int, default=[43], help="seeds of the street")
    parser.add_argument("--cycles", type=int, default=2, help="rounds of dusk and day")
    parser.add_argument("--frames", type=int, default=32, help="learned from between two judgements")
    parser.add_argument("--steps", type=int, default=50, help="of a burst")
    parser.add_argument("--fast-steps", type=int, default=2000, help="of the burst at ten times the rate")
    parser.add_argument("--tolerance", type=float, default=0.005, help="of mIoU, below which two networks are even")
    parser.add_argument("--jobs", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--name", default="gate_worth", help="of the results")
    parser.add_argument("--append", action="store_true", help="to the results that are there")
    chosen = parser.parse_args()
    results: list[dict[str, Any]] = []
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(
                go,
                name,
                Options(
                    chosen.source,
                    street,
                    chosen.cycles,
                    chosen.frames,
                    chosen.steps,
                    chosen.fast_steps,
                    chosen.tolerance,
                ),
            )
            for street in chosen.streets
            for name in chosen.streams
        ]
        for future in futures:
            found = future.result()
            # as they come: hours of work must not hang on the last stream
            rows.write(chosen.name, found, append=chosen.append or len(results) > 0)
            results += found
            for row in found:
                print({k: v for k, v in row.items() if k not in ("scores", "votes")}, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
