"""The live loop over day, dusk, night and fog, round after round: its running mIoU against that of the source.

    python benchmarks/live_rounds.py [--rounds 3] [--frames 600] [--effort cheap]
    python benchmarks/live_rounds.py --minutes 2      # scene:day-dusk as it is, a row every ten seconds

The loop of `edge-sfda adapt --camera` as it is, with trigger, burst, gate and swap, on a street that goes on through
the seasons; each frame is predicted before anything is learned from it, and labels only count. A burst runs in this
process and takes no time of its own, so what it says is heard as many frames after its beginning as `live_latency.py`
measured, as on a board that learns beside its camera.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import rows
from live_run import MODEL, open_loop
from peers import SEASONS

from edge_sfda.config import EFFORTS, AdaptConfig, BudgetConfig, LiveConfig, with_effort
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.data.sources import SceneSource
from edge_sfda.live.capture import Pace
from edge_sfda.live.job import FIRST, Job, Step
from edge_sfda.live.worker import work
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets import Predictor, load

FPS = 10.0
CHECKPOINT_S = 10.0


@dataclass(frozen=True)
class Timing:
    """Frames at that rate until a worker has answered, from its start.

    Args:
        recall: until it has judged the source against the network in use.
        first_look: until a burst has told what the target's statistics are worth.
        end: until the burst is over.
    """

    recall: int
    first_look: int
    end: int


def timing_of(effort: str) -> Timing:
    """Return what `live_latency.py --parts burst burst-cheap` timed of every burst of a run but its first."""
    timed = rows.read(rows.RESULTS / "live_latency.jsonl")
    row = next(r for r in timed if r["what"] == "burst" and r["onnx"] and r["effort"] == effort)
    return Timing(*(round(row[key] * FPS) for key in ("question_s", "next_first_look_s", "next_burst_s")))


class Street(FrameSource):
    """The scenes of some specs, one after the other; `labels` holds those of the newest frames."""

    fps: float | None = FPS
    len_hint: int | None = None

    def __init__(self, specs: Sequence[str]) -> None:
        self.labels: dict[int, Any] = {}
        self._frames = self._drive(specs)

    def __next__(self) -> Frame:
        return next(self._frames)

    def close(self) -> None:
        """Nothing to release."""

    def _drive(self, specs: Sequence[str]) -> Iterator[Frame]:
        seq = 0
        for spec in specs:
            scene = SceneSource(spec)
            for frame in scene:
                self.labels[seq] = scene.label.copy()
                self.labels.pop(seq - 100, None)
                yield Frame(frame.image, seq, seq / FPS)
                seq += 1


class Beside:
    """A burst in this process: worked off when it begins, heard of when so many turns of the loop have passed."""

    pid = None
    alive = True
    exit_code = None

    def __init__(self, job: Job, timing: Timing) -> None:
        self._first_look = timing.first_look
        self._end = timing.recall if job.recall else timing.end
        self._turns = 0
        self._said: list[Any] = []
        work(self, job)

    def send(self, message: Any) -> None:
        """Take what the burst says."""
        self._said.append(message)

    def poll(self) -> bool:
        """Nobody gives orders to the burst."""
        return False

    def messages(self) -> Iterator[Any]:
        """Yield what was said, once it is time."""
        self._turns += 1
        due = [m for m in self._said if self._turns >= self._due(m)]
        self._said = [message for message in self._said if message not in due]
        yield from (message for message in due if not isinstance(message, Step))

    def _due(self, message: Any) -> int:
        return self._first_look if getattr(message, "files", "") == FIRST else self._end

    def pause(self, wanted: bool) -> None:
        """It is over already."""

    def silent_s(self) -> float:
        """It is never silent."""
        return 0.0

    def stop(self) -> None:
        """Nothing to end."""


def go(specs: Sequence[str], every: int, effort: str) -> list[dict[str, Any]]:
    """Run the loop; returns a row for every so many frames, and one for the whole."""
    net, manifest = load(MODEL)
    source = Predictor(net, manifest)
    classes = len(manifest.classes), manifest.classes.ignore_id
    whole, theirs = ConfusionMatrix(*classes), ConfusionMatrix(*classes)
    part, source_part = ConfusionMatrix(*classes), ConfusionMatrix(*classes)
    street = Street(specs)
    found: list[dict[str, Any]] = []
    timing = timing_of(effort)
    config = LiveConfig(onnx=False, budget=BudgetConfig(share=1.0, seconds_per_hour=3600.0))
    with open_loop(lambda: street, pace=Pace.FAST, config=config, adapt=with_effort(AdaptConfig(), effort)) as run:
        run.loop._make_worker = lambda job: Beside(job, timing)  # type: ignore[assignment, return-value]
        run.loop._clock = lambda: run.loop.latest().frame.captured_at if run.loop.latest() else 0.0  # type: ignore[union-attr]

        def look(latest: Any, seen: Any) -> None:
            nonlocal part, source_part
            seq = latest.frame.seq
            before, label = source(latest.frame.image)[0], street.labels[seq]
            for confusion, mask in ((whole, seen.mask), (part, seen.mask), (theirs, before), (source_part, before)):
                confusion.update(mask, label)
            if (seq + 1) % every == 0:
                row = {
                    "what": "part",
                    "part": seq // every,
                    "miou": round(part.miou(), 4),
                    "source_miou": round(source_part.miou(), 4),
                    "running_margin": round(whole.miou() - theirs.miou(), 4),
                    "generation": run.loop.status().generation,
                }
                found.append(row)
                print(row, flush=True)
                part, source_part = ConfusionMatrix(*classes), ConfusionMatrix(*classes)

        run.loop.run(look)
        told = {kind: run.count(kind) for kind in ("judged", "swapped", "rolled back", "shift found")}
    return [
        *found,
        {
            "what": "whole",
            "frames": len(found) * every,
            "effort": effort,
            **{f"{name}_frames": value for name, value in asdict(timing).items()},
            "miou": round(whole.miou(), 4),
            "source_miou": round(theirs.miou(), 4),
            "least_running_margin": min(row["running_margin"] for row in found),
            "worst_part": round(min(row["miou"] - row["source_miou"] for row in found), 4),
            **told,
        },
    ]


def of_seasons(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of parts with their round and season."""
    return [
        row | {"what": "season", "round": row["part"] // len(SEASONS), "season": SEASONS[row["part"] % len(SEASONS)]}
        if row["what"] == "part"
        else row
        for row in results
    ]


def table(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a season, its gain over the source in each round, in points."""
    lines = []
    seasons = [row for row in results if row["what"] == "season"]
    count = max(row["round"] for row in seasons) + 1
    lines += [
        "| season | source | " + " | ".join(f"round {i + 1}" for i in range(count)) + " |",
        "|---" * (2 + count) + "|",
    ]
    for name in SEASONS:
        mine = [row for row in seasons if row["season"] == name]
        gains = [f"{100 * (row['miou'] - row['source_miou']):+.1f}" for row in mine]
        lines.append(f"| {name} | {np.mean([row['source_miou'] for row in mine]):.3f} | " + " | ".join(gains) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the rounds and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--street", type=int, default=43)
    parser.add_argument("--minutes", type=float, help="of scene:day-dusk, in place of the rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=600, help="of a season: a minute of a camera of 10 Hz")
    parser.add_argument("--effort", choices=EFFORTS, default="full")
    parser.add_argument("--dry", action="store_true", help="write no rows")
    args = parser.parse_args()
    if args.minutes is not None:
        frames = round(args.minutes * 60 * FPS)
        results = go([f"scene:day-dusk?frames={frames}&seed={args.street}"], round(CHECKPOINT_S * FPS), args.effort)
        name = "live_dusk"
    else:
        specs = [
            f"scene:{SEASONS[index % len(SEASONS)]}?frames={args.frames}&seed={args.street}&start={index * args.frames}"
            for index in range(args.rounds * len(SEASONS))
        ]
        results = of_seasons(go(specs, args.frames, args.effort))
        name = "live_rounds" if args.effort == "full" else f"live_rounds_{args.effort}"
        print(table(results))
    results = [row | {"street": args.street} for row in results]
    print(results[-1])
    if not args.dry:
        print(rows.write(name, results))


if __name__ == "__main__":
    main()
