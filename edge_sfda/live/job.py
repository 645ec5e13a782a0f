"""What a burst needs, and what it says while it lasts and at its end: all that crosses the pipe to its process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_sfda.config import AdaptConfig, BudgetConfig, GateConfig

U8 = npt.NDArray[np.uint8]

CHECKPOINT, ONNX = ".safetensors", ".onnx"  # of the files that a candidate leaves
FIRST, LAST = "first", "candidate"  # what they are called: of the look before the burst, and of its end


@dataclass(frozen=True, eq=False)
class Job:
    """What a burst needs.

    Args:
        source: checkpoint that the burst begins from.
        deployed: checkpoint in use, to be judged against; the source's where nothing else is.
        running: artefact in use, whose time a frame is what a candidate's is held to.
        net: `module:factory` of a network of your own that the checkpoints may run.
        frames: to learn from, uint8 RGB [N, 3, H, W], of the network's input size.
        probes: to judge on, never learned from, likewise.
        labelled: probes with labels [M, H, W], or None.
        adapt: of the burst.
        gate: of the judgement.
        budget: its share of the time.
        folder: where the candidate goes.
        onnx: export the candidate as well, and rule it out where it is not its checkpoint.
        device: to learn on, as torch names it.
        recall: learn nothing, judge the source against the network in use alone.
        look_first: judge what the target's statistics alone make of the source, and tell, before the burst.
    """

    source: Path
    deployed: Path
    running: Path
    net: str | None
    frames: U8
    probes: U8
    labelled: tuple[U8, U8] | None
    adapt: AdaptConfig
    gate: GateConfig
    budget: BudgetConfig
    folder: Path
    onnx: bool
    device: str = "cpu"
    recall: bool = False
    look_first: bool = False


@dataclass(frozen=True, eq=False)
class Look:
    """One of the job's frames with the reliability of the teacher's label: what a person looks at.

    Args:
        image: uint8 RGB [3, H, W].
        reliability: uint8 [h, w], 255 for 1, on the grid of the logits.
    """

    image: U8
    reliability: U8


@dataclass(frozen=True)
class Step:
    """A step was taken, in `seconds`; now and then with a look at what the teacher's labels are worth."""

    number: int
    of: int
    loss: float
    reliability: float
    seconds: float
    agreement: float = float("nan")  # share of pixels in which the student says what it is taught
    look: Look | None = None


@dataclass(frozen=True)
class Judged:
    """The burst is over, or its first look.

    Args:
        accepted: name of the network to deploy: `source`, `deployed`, `adapted`, a snapshot's, `step N`, or in a first
            look `statistics`.
        reason: in words.
        decision: the whole decision, as JSON values.
        steps: of the burst.
        manifest: of the candidate, as JSON.
        onnx: whether the candidate's model lies beside it.
        files: how its files in the job's folder are called, `FIRST` or `LAST`.
    """

    accepted: str
    reason: str
    decision: dict[str, Any]
    steps: int
    manifest: str
    onnx: bool
    files: str = LAST


@dataclass(frozen=True)
class Failed:
    """The burst came to nothing: its frames or settings do not do; trying again would not help."""

    reason: str


Message = Step | Judged | Failed
