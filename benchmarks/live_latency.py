"""What adaptation costs inference: latency beside it, frames lost by beginning a burst and by a swap, memory over time;
and how long a burst takes, its first look, and a question to the source.

    python benchmarks/live_latency.py                                    # the rows
    python benchmarks/live_latency.py --frames 40 --blocks 2 --swaps 3 --memory-frames 500 --dry

Blocks of frames beside a burst at work and beside one that stands still take turns in one run, so that whatever else
the machine does falls on both. A frame's latency is that of its prediction; frames come at their own rate, and one is
lost when a newer one had come before it was predicted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rows
from live_run import MODEL, Reel, Run, draw, open_loop

from edge_sfda import checkpoint
from edge_sfda.adapt.generations import Generations
from edge_sfda.config import AdaptConfig, BudgetConfig, BurstConfig, LiveConfig, with_effort
from edge_sfda.data.frames import Frame, to_input
from edge_sfda.live.capture import Pace
from edge_sfda.live.job import FIRST, Failed, Job, Judged
from edge_sfda.live.sensors import resident_mb
from edge_sfda.live.status import Phase
from edge_sfda.live.worker import Worker

PARTS = ("latency", "swap", "burst", "burst-cheap", "burst-torch", "memory")
SETTLE = 10  # frames after a change that count for neither side: a step under way is ended first


class Stopwatch:
    """Notes the time of each prediction under the name of what is going on, and the frames that were lost meanwhile."""

    def __init__(self, run: Run) -> None:
        self.kind = "start"
        self.ms: dict[str, list[float]] = {}
        self.lost: dict[str, int] = {}
        self.swaps_ms: list[float] = []
        self._seq: int | None = None
        self._run = run
        self._predict, self._swap = run.loop.segmenter.predict, run.loop.segmenter.swap
        run.loop.segmenter.predict = self._timed  # type: ignore[method-assign]
        run.loop.segmenter.swap = self._timed_swap  # type: ignore[method-assign]

    def _timed(self, *args: Any) -> Any:
        start = time.perf_counter()
        found = self._predict(*args)
        self.ms.setdefault(self.kind, []).append(1e3 * (time.perf_counter() - start))
        return found

    def _timed_swap(self, new: Any) -> None:
        start = time.perf_counter()
        self._swap(new)
        self.swaps_ms.append(1e3 * (time.perf_counter() - start))

    def note(self, seq: int) -> None:
        """Count the frames that are missing before this one."""
        gap = 0 if self._seq is None else seq - self._seq - 1
        self.lost[self.kind] = self.lost.get(self.kind, 0) + gap
        self._seq = seq

    def count(self, kind: str) -> int:
        """Return the predictions of a kind."""
        return len(self.ms.get(kind, []))


def beside_a_burst(frames: list[Frame], *, count: int, blocks: int, fps: float, share: float) -> dict[str, Any]:
    """Measure blocks beside a burst at work and beside one that stands still."""
    config = LiveConfig(learn=12, onnx=False, budget=BudgetConfig(share=share, seconds_per_hour=3600.0))
    adapt = AdaptConfig(burst=BurstConfig(steps=1_000_000))
    with open_loop(lambda: Reel(frames, fps), pace=Pace.NATIVE, config=config, adapt=adapt) as run:
        watch = Stopwatch(run)
        plan = _blocks(run, watch, count, blocks)

        def look(latest: Any, found: Any) -> None:
            watch.note(latest.frame.seq)
            if next(plan, None) is None:
                run.loop.stop()

        run.loop.run(look)
        steps = run.loop.status().step
    ratio = {q: _percentile(watch, "beside", q) / _percentile(watch, "alone", q) for q in (50, 99)}
    return {
        "what": "latency beside a burst",
        "fps": fps,
        "share": share,
        "frames_of_each": min(watch.count("beside"), watch.count("alone")),
        "steps": steps,
        **{f"{kind}_p{q}_ms": round(_percentile(watch, kind, q), 2) for kind in ("alone", "beside") for q in (50, 99)},
        "ratio_p50": round(ratio[50], 3),
        "ratio_p99": round(ratio[99], 3),
        "lost_alone": watch.lost.get("alone", 0),
        "lost_beside": watch.lost.get("beside", 0),
        "lost_while_a_burst_begins": watch.lost.get("start", 0) + watch.lost.get("begin", 0),
    }


def _blocks(run: Run, watch: Stopwatch, count: int, blocks: int) -> Any:
    """Yield once a frame; sets what the next frames are counted as."""
    while run.loop.status().phase is not Phase.ADAPTING:
        yield watch.kind
    watch.kind = "begin"  # from the decision to the first step: the process is started and its frames are handed over
    while run.loop.status().step == 0:
        yield watch.kind
    for block in range(2 * blocks):
        rests = block % 2 == 1
        run.loop.pause() if rests else run.loop.resume()
        for kind, frames in (("settle", SETTLE), ("alone" if rests else "beside", count)):
            watch.kind = kind
            for _ in range(frames):
                yield kind


def swaps(frames: list[Frame], *, count: int, fps: float) -> dict[str, Any]:
    """Roll back generation after generation, each a swap between two frames."""

    def prepare(generations: Generations) -> None:
        source = generations.newest()
        state = checkpoint.load(source.checkpoint).state
        for _ in range(count):
            generations.accept(state, source.manifest, report={}, files={})

    config = LiveConfig(mode="off", keep=max(2, count + 1), onnx=False)
    reel = Reel(frames, fps)
    with open_loop(lambda: reel, pace=Pace.NATIVE, config=config, adapt=AdaptConfig(), prepare=prepare) as run:
        watch = Stopwatch(run)
        watch.kind = "usual"
        asked = 0

        def look(latest: Any, found: Any) -> None:
            nonlocal asked
            watch.note(latest.frame.seq)
            done = len(watch.swaps_ms)
            if asked == done and watch.count("usual") > SETTLE * (done + 1):
                asked += done < count
                run.loop.rollback(1) if done < count else run.loop.stop()
            watch.kind = "loading" if asked > done else "usual"

        run.loop.run(look)
    return {
        "what": "swap",
        "fps": fps,
        "swaps": len(watch.swaps_ms),
        "frames": watch.count("usual") + watch.count("loading"),
        "lost": sum(watch.lost.values()),
        "period_ms": round(1e3 / fps, 1),
        "usual_p99_ms": round(_percentile(watch, "usual", 99), 2),
        "while_loading_longest_ms": round(max(watch.ms["loading"]), 2),
        "swap_median_ms": round(float(np.median(watch.swaps_ms)), 2),
        "swap_longest_ms": round(max(watch.swaps_ms), 2),
    }


def burst(frames: list[Frame], *, onnx: bool, effort: str = "full") -> dict[str, Any]:
    """Time the worker's process by itself: a question to the source, then the first burst of a run and the next one.

    `onnx`: what wins is exported, as by default, for which a run traces its network once; else it runs as a checkpoint.
    """
    manifest = checkpoint.read_manifest(MODEL)
    images = np.stack([to_input(frame.image, manifest.preprocessing) for frame in frames])
    config = LiveConfig(onnx=onnx, budget=BudgetConfig(share=1.0))
    adapt = with_effort(AdaptConfig(), effort)
    with tempfile.TemporaryDirectory() as name:
        deployed = Path(name) / "deployed.safetensors"  # another file than the source: judged as another network
        deployed.write_bytes(MODEL.read_bytes())
        asked = Job(
            source=MODEL, deployed=deployed, running=MODEL, net=None, frames=images[:0],
            probes=images[:: len(images) // 4][:4], labelled=None, adapt=adapt, gate=config.gate,
            budget=config.budget, folder=Path(name), onnx=config.onnx, recall=True,
        )  # fmt: skip
        learned = images[np.arange(len(images)) % 4 > 0][: config.learn]
        learns = replace(asked, frames=learned, probes=images[::4], recall=False, look_first=True)
        (question_s,), first, next_ = (_judged_after(job) for job in (asked, learns, learns))
    names = ("first_look_s", "burst_s")
    return {
        "what": "burst", "frames": len(learned), "probes": len(learns.probes), "onnx": onnx, "effort": effort,
        "question_s": question_s,
        **dict(zip(names, first, strict=True)), **{f"next_{n}": s for n, s in zip(names, next_, strict=True)},
    }  # fmt: skip


def _judged_after(job: Job) -> list[float]:
    """Return the seconds from the start of a worker to each of its judgements."""
    start = time.perf_counter()
    worker = Worker(job)
    taken: list[float] = []
    try:
        while True:
            for message in worker.messages():
                if isinstance(message, Failed):
                    raise RuntimeError(message.reason)
                if isinstance(message, Judged):
                    taken.append(round(time.perf_counter() - start, 1))
                    if message.files != FIRST:
                        return taken
            time.sleep(0.01)
    finally:
        worker.stop()


def memory(frames: list[Frame], *, count: int) -> dict[str, Any]:
    """Hold the resident memory after a fifth of the frames against that at the end; bursts come and go meanwhile."""
    config = LiveConfig(learn=12, onnx=False, budget=BudgetConfig(seconds_per_hour=3600.0))
    adapt = AdaptConfig(burst=BurstConfig(steps=4))
    seen: list[float] = []
    with open_loop(lambda: Reel(frames, 10.0), pace=Pace.FAST, config=config, adapt=adapt) as run:

        def look(latest: Any, found: Any) -> None:
            status = run.loop.status()
            if status.frames % max(1, count // 100) == 0:
                seen.append(resident_mb())
            if status.phase is Phase.WATCHING and status.frames % max(1, count // 10) == 0:
                run.loop.adapt_now()
            if status.frames >= count:
                run.loop.stop()

        run.loop.run(look)
        bursts = len(run.workers)
    early, late = seen[len(seen) // 5 :][: len(seen) // 5], seen[-len(seen) // 5 :]
    return {
        "what": "memory",
        "frames": count,
        "bursts": bursts,
        "early_mb": round(float(np.median(early)), 1),
        "late_mb": round(float(np.median(late)), 1),
        "peak_mb": round(max(seen), 1),
    }


def _percentile(watch: Stopwatch, kind: str, q: int) -> float:
    return float(np.percentile(watch.ms[kind], q))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="of a block")
    parser.add_argument("--blocks", type=int, default=6, help="of each kind")
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--share", type=float, default=0.5, help="of the time that learning works")
    parser.add_argument("--swaps", type=int, default=30)
    parser.add_argument("--memory-frames", type=int, default=50_000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs")
    parser.add_argument("--dry", action="store_true", help="print the rows and write none")
    args = parser.parse_args()
    frames = draw("scene:dusk?frames=60&fps=5&seed=5")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "latency": lambda: beside_a_burst(
            frames, count=args.frames, blocks=args.blocks, fps=args.fps, share=args.share
        ),
        "swap": lambda: swaps(frames, count=args.swaps, fps=args.fps),
        "burst": lambda: burst(draw("scene:dusk?frames=64&seed=5"), onnx=True),
        "burst-cheap": lambda: burst(draw("scene:dusk?frames=64&seed=5"), onnx=True, effort="cheap"),
        "burst-torch": lambda: burst(draw("scene:dusk?frames=64&seed=5"), onnx=False),
        "memory": lambda: memory(frames, count=args.memory_frames),
    }
    found = []
    for part in args.parts:
        found.append(parts[part]())
        print(found[-1], flush=True)
    if not args.dry:
        print(rows.write("live_latency", found, append=args.append))


if __name__ == "__main__":
    main()
