"""Drive a method: over a set of frames (offline), or over a stream, each frame predicted before it is learned from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from edge_sfda.adapt import baselines, hamlet, roid, tent
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.method import Method, StepReport, stack
from edge_sfda.config import AdaptConfig
from edge_sfda.errors import DataError, DivergenceError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet

_METHODS: dict[str, type[Method]] = {
    "stvm": Adapter,
    "none": baselines.Source,
    "bn": baselines.Statistics,
    "tent": tent.Tent,
    "eata": tent.Eata,
    "sar": tent.Sar,
    "rdumb": tent.RDumb,
    "roid": roid.Roid,
    "cotta": baselines.Cotta,
    "hamlet": hamlet.Hamlet,
    "mean-teacher": baselines.MeanTeacher,
    "threshold": baselines.ThresholdTeacher,
}


def make(net: SegmentationNet, manifest: Manifest, config: AdaptConfig) -> Method:
    """Return the method that `config.method` names, over `net`, which it takes over and changes."""
    torch.manual_seed(config.seed)
    return _METHODS[config.method](net, manifest, config)


def offline(
    method: Method,
    frames: Sequence[Tensor],
    *,
    done: int = 0,
    on_begin: Callable[[], None] | None = None,
    on_step: Callable[[int, StepReport], None] | None = None,
) -> None:
    """Run one bounded burst: begin, `burst.steps` steps on shuffled frames, finish.

    Args:
        method: fresh, or with the state that it had after `done` steps.
        frames: uint8 RGB [3, H, W] each, of the network's input size; read when needed.
        done: steps taken before, over the same frames; they are not taken again.
        on_begin: called after step 0, when the method has what the target's statistics give.
        on_step: called after each step with its number from 1 and its report.

    Raises:
        DataError: no frames.
        FrameError: a frame is of another dtype or size than the network's input.
        DivergenceError: weights are not finite at the end.
    """
    if len(frames) == 0:
        raise DataError("got no frames to adapt to; check the source")
    config = method.config
    if done == 0:
        method.begin(frames)
    else:
        method.rejoin(frames)
    if on_begin is not None:
        on_begin()
    draws = _draws(len(frames), config.burst.batch, config.seed)
    steps = config.burst.steps if method.trains else 0
    for _ in range(done):
        next(draws)
    for step in range(done + 1, steps + 1):
        batch = stack([frames[i] for i in next(draws)]).to(method.device)
        report = method.step(batch)
        if on_step is not None:
            on_step(step, report)
    method.finish()


def learn_online(method: Method, frame: Tensor) -> StepReport | None:
    """Learn from one frame of a stream, uint8 RGB [3, H, W], after it was predicted.

    The method has begun, without frames: `method.begin(())`. Returns None where no step was due (`burst.every`).
    """
    batch = frame[None].to(method.device)
    method.observe(batch)
    due = method.seen % method.config.burst.every == 0
    method.seen += 1
    return method.step(batch) if due else None


def check_report(step: int, report: StepReport, *, trains: bool) -> dict[str, float]:
    """Return a report's numbers on the host.

    Raises:
        DivergenceError: a method that trains has a loss that is not finite; on a stream the weights would be lost for
            good, and nobody would hear of it before its end.
    """
    row = {"loss": float(report.loss)} | {name: float(value) for name, value in report.scalars.items()}
    if trains and not math.isfinite(row["loss"]):
        raise DivergenceError(f"the loss of step {step} is {row['loss']}; lower burst.rate")
    return row


def _draws(count: int, batch: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of frame numbers: permutation after permutation, so that every frame is used equally often."""
    rng = torch.Generator().manual_seed(seed)
    pool: list[int] = []
    while True:
        while len(pool) < batch:
            pool += torch.randperm(count, generator=rng).tolist()
        yield pool[:batch]
        pool = pool[batch:]
