"""A soak of the live loop with faults injected, and a table of what was survived.

    python benchmarks/live_soak.py                       # 30 minutes: the rows
    python benchmarks/live_soak.py --minutes 3 --dry

Frames of the scene stand for a camera. Faults come one after another, round and round: drop-outs, corrupt, black,
frozen and resized frames, a worker that is killed, one that hangs, and a disk that is full for both processes (no file
may grow, which no free space gets past). A fault is survived when, within two minutes of its end, the same process
gives fresh masks, has reported it as an event, and has every event on disk; a worker's fault also needs a new worker.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rows
from live_run import Run, draw, open_loop

from edge_sfda.adapt.generations import Generations
from edge_sfda.config import AdaptConfig, BudgetConfig, BurstConfig, LiveConfig, WatchConfig
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.errors import SourceError
from edge_sfda.live.capture import Pace
from edge_sfda.live.events import Events
from edge_sfda.live.sensors import resident_mb
from edge_sfda.live.status import Phase

FAULTS = ("drop-out", "corrupt", "worker killed", "black", "disk full", "frozen", "worker hangs", "resized")
FAULT_S = 4.0
PATIENCE_S = 120.0
CALM_S = 5.0


class Street:
    """What a camera would see, at a rate and with whatever fault is named; it goes on while a camera is closed."""

    def __init__(self, frames: list[Frame], fps: float) -> None:
        self.frames, self.fps = frames, fps
        self.fault = ""
        self._seq = 0
        self._due = time.monotonic()

    def next(self) -> Frame:
        """Return the next frame when it is due."""
        self._due = max(self._due + 1 / self.fps, time.monotonic() - 1)
        time.sleep(max(0.0, self._due - time.monotonic()))
        self._seq += 1
        return Frame(self._show(self.frames[self._seq % len(self.frames)].image), self._seq, time.monotonic())

    def _show(self, image: Any) -> Any:
        if self.fault == "corrupt":
            return image[:, :, 0]  # a plane where a picture should be
        if self.fault == "black":
            return np.zeros_like(image)
        if self.fault == "frozen":
            return self.frames[0].image
        return image[:-8, :-8] if self.fault == "resized" else image


class Camera(FrameSource):
    """A camera on the street; it neither opens nor goes on during a drop-out."""

    len_hint = None

    def __init__(self, street: Street) -> None:
        self.street = street
        self.fps: float | None = street.fps
        self._check()

    def __next__(self) -> Frame:
        self._check()
        return self.street.next()

    def close(self) -> None:
        """Nothing to release."""

    def _check(self) -> None:
        if self.street.fault == "drop-out":
            raise SourceError("the camera is gone (injected)")


@dataclass
class Tally:
    """How often a fault was injected and survived, and how long the loop took after its end."""

    injected: int = 0
    survived: int = 0
    seconds: list[float] = field(default_factory=list)


class Soak:
    """Injects faults into a running loop; `turn` is called by the loop, so every step of a fault is one turn."""

    def __init__(self, run: Run, street: Street, *, minutes: float) -> None:
        self.run, self.street = run, street
        self.tally = {fault: Tally() for fault in FAULTS}
        self.unread = 0
        self._until = time.monotonic() + 60 * minutes
        self._plan = self._faults()

    def turn(self) -> None:
        """Go one step further; stops the loop when the time is over."""
        if self.run.loop.status().phase is Phase.WATCHING:
            self.run.loop.adapt_now()
        if next(self._plan, None) is None:
            self.run.loop.stop()

    def _faults(self) -> Iterator[str]:
        while time.monotonic() < self._until:
            for fault in FAULTS:
                yield from self._wait(CALM_S)
                if time.monotonic() > self._until:
                    return
                yield from self._inject(fault)

    def _inject(self, fault: str) -> Iterator[str]:
        tally, before = self.tally[fault], len(self.run.told)
        workers = len(self.run.workers)
        if fault.startswith("worker"):
            yield from self._until_learning()
            workers = len(self.run.workers)
            os.kill(self.run.workers[-1].pid or 0, signal.SIGKILL if fault == "worker killed" else signal.SIGSTOP)
        elif fault == "disk full":
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            self._limit((1, limits[1]))
            self.run.loop.events.tell("soak", why="the disk is full (injected)")
            yield from self._wait(FAULT_S)
            assert self.run.loop.events.unwritten > 0, "the disk was not full: nothing was proven"
            self._limit(limits)
            self.run.loop.events.tell("soak", why="the disk has space again")
        else:
            self.street.fault = fault
            yield from self._wait(FAULT_S)
            self.street.fault = ""
        tally.injected += 1
        ended = time.monotonic()
        while not (well := self._is_well(fault, before, workers)) and time.monotonic() < ended + PATIENCE_S:
            yield fault
        tally.survived += well
        tally.seconds.append(time.monotonic() - ended)
        print(f"{fault}: {'survived' if well else 'LOST'} in {tally.seconds[-1]:.1f} s", flush=True)

    def _is_well(self, fault: str, before: int, workers: int) -> bool:
        status, told = self.run.loop.status(), self.run.told[before:]
        kinds = {event["event"] for event in told}
        fresh = not status.stale and self.run.loop.events.unwritten == 0
        if fault.startswith("worker"):
            return fresh and "worker lost" in kinds and len(self.run.workers) > workers
        return fresh and (fault == "disk full" or "stale" in kinds)

    def _until_learning(self) -> Iterator[str]:
        began = time.monotonic()
        while not (self.run.loop.status().phase is Phase.ADAPTING and self.run.loop.status().step > 0):
            if time.monotonic() > began + PATIENCE_S:
                return
            yield "waiting for a burst"

    def _wait(self, seconds: float) -> Iterator[str]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            yield "calm"

    def _limit(self, limits: tuple[int, int]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        worker = self.run.workers[-1] if self.run.workers else None
        if worker is not None and worker.pid is not None and worker.alive:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)


def soak(*, minutes: float, fps: float) -> list[dict[str, Any]]:
    """Return a row a fault, and one over all."""
    frames = draw("scene:day-dusk-day-dusk?frames=120&fps=2&seed=5")
    street = Street(frames, fps)
    config = LiveConfig(
        learn=16,
        hang_s=20.0,
        retries=20,
        onnx=False,
        watch=WatchConfig(silence_s=2.0, back_off_s=(0.2, 2.0)),
        budget=BudgetConfig(share=0.5, seconds_per_hour=3600.0),
    )
    adapt = AdaptConfig(burst=BurstConfig(steps=40))
    with open_loop(lambda: Camera(street), pace=Pace.LIVE, config=config, adapt=adapt) as run:
        injected = Soak(run, street, minutes=minutes)
        run.loop.run(on_turn=injected.turn)
        status = run.loop.status()
        lines = (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        whole = [json.loads(line) for line in lines]  # raises where a full disk has left half a line
        kept = Generations(run.folder / "generations", keep=config.keep).all()
        table = [_row(fault, tally) for fault, tally in injected.tally.items()]
        over_all = {
            "fault": "all",
            "minutes": minutes,
            "injected": sum(row["injected"] for row in table),
            "survived": sum(row["survived"] for row in table),
            "frames": status.frames,
            "dropped": status.capture.dropped,
            "camera_opened": status.capture.opened,
            "faulty_frames": dict(status.capture.faults),
            "bursts": len(run.workers),
            "restarts": status.restarts,
            "judged": run.count("judged"),
            "swaps": run.count("swapped"),
            "events_told": len(run.told),
            "events_on_disk": len(whole),
            "events_lost": _lost(run.loop.events, run.told, whole),
            "generations_whole": len(kept),
            "memory_mb": round(resident_mb(), 1),
        }
    return [*table, over_all]


def _lost(events: Events, told: list[Mapping[str, Any]], whole: list[Any]) -> int:
    assert events.unwritten == 0, "the loop ended with events unwritten"
    return len(told) - len(whole)


def _row(fault: str, tally: Tally) -> dict[str, Any]:
    taken = tally.seconds or [float("nan")]
    return {
        "fault": fault,
        "injected": tally.injected,
        "survived": tally.survived,
        "median_s": round(float(np.median(taken)), 1),
        "longest_s": round(max(taken), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--dry", action="store_true", help="print the rows and write none")
    args = parser.parse_args()
    found = soak(minutes=args.minutes, fps=args.fps)
    for row in found:
        print(row)
    if not args.dry:
        print(rows.write("live_soak", found))


if __name__ == "__main__":
    main()
