"""Time and memory of calls that take turns: what a benchmark reports of each alternative."""

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
import torch

WARM_UP = 3


def options(description: str | None, *, rounds: int) -> argparse.Namespace:
    """Read device, dtype, rounds and threads from the command line, and set the threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one alternative: of the wall (on a GPU between two events of its stream), and of the CPU."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    cpu_ms: float
    """Median of the process's CPU time, which a busy machine disturbs less than the wall's."""


def take_turns(calls: dict[str, Callable[[], Any]], *, device: torch.device, rounds: int) -> dict[str, Timing]:
    """Return the timing of each call; they take turns, call by call, after a few rounds that do not count."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    names = list(calls)
    for i in range(WARM_UP + rounds):
        # another one first in each round: what a call finds in cache and allocator depends on the call before
        for name in names[i % len(names) :] + names[: i % len(names)]:
            call = calls[name]
            sample = _timed_on_gpu(call) if device.type == "cuda" else _timed(call)
            if i >= WARM_UP:
                taken[name].append(sample)
    return {name: _summary(samples) for name, samples in taken.items()}


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


def copy_bandwidth(device: torch.device, *, megabytes: int = 512) -> float:
    """Return the bytes a second that a device-to-device copy reads and writes, the best of ten."""
    source = torch.empty(megabytes * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(_timed_on_gpu(lambda: target.copy_(source))[0] for _ in range(10))
    return 2 * source.numel() / (best * 1e-3)


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3


def _timed_on_gpu(call: Callable[[], Any]) -> tuple[float, float]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    cpu = time.process_time()
    start.record()
    call()
    end.record()
    cpu_ms = (time.process_time() - cpu) * 1e3
    end.synchronize()
    return start.elapsed_time(end), cpu_ms


def _summary(samples: list[tuple[float, float]]) -> Timing:
    wall, cpu = np.array(samples).T
    p20, median, p80 = (round(float(v), 4) for v in np.percentile(wall, (20, 50, 80)))
    return Timing(median, p20, p80, round(float(np.median(cpu)), 4))
