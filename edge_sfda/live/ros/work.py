"""What the node does with frames, without ROS: a network that is loaded, and a loop for each time that it is active."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge_sfda import profile as profiles
from edge_sfda.config import AdaptConfig, BudgetConfig, LiveConfig, WatchConfig, load
from edge_sfda.errors import ArtefactError, UsageError, WriteError
from edge_sfda.live.capture import Capture, Pace
from edge_sfda.live.events import Events
from edge_sfda.live.inference import Inference
from edge_sfda.live.ros.source import Mailbox
from edge_sfda.live.status import Latest, LoopStatus
from edge_sfda.runtime.predict import Segmentation, Segmenter

if TYPE_CHECKING:
    from edge_sfda.live.loop import Loop

Tell = Callable[[Mapping[str, Any]], None]

GENERATIONS = "generations"  # as `edge-sfda adapt --camera` has them, so that `edge-sfda rollback` finds them
EVENTS = "events.jsonl"

_CHECKPOINT = ".safetensors"

_log = logging.getLogger(__name__)


class Runner(Protocol):
    """What `Inference` and `Loop` have in common."""

    def status(self) -> LoopStatus: ...

    def run(self, on_frame: Callable[[Latest, Segmentation], None]) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the node is to do; see `parameters` for the words.

    Raises:
        UsageError: no model; or learning without a run folder or from anything but a checkpoint.
    """

    model: Path
    mode: str
    run_folder: Path | None
    adapt: AdaptConfig
    net: str | None
    device: str
    threads: int | None
    budget: BudgetConfig
    probes: str | None
    silence_s: float

    def __post_init__(self) -> None:
        if self.learns and self.run_folder is None:
            raise UsageError(f"mode {self.mode} needs run_folder, for the generations that it makes; or choose infer")
        if self.learns and self.model.suffix != _CHECKPOINT:
            raise UsageError(f"mode {self.mode} learns from a checkpoint (.safetensors); {self.model} can only infer")

    @property
    def learns(self) -> bool:
        """Whether it adapts."""
        return self.mode != "infer"

    @property
    def live(self) -> LiveConfig:
        """Settings of the loop; a subscription costs nothing to begin anew, so that nobody waits for it."""
        return LiveConfig(
            mode=self.mode if self.learns else "off",
            watch=WatchConfig(silence_s=self.silence_s, back_off_s=(0.01, 0.1)),
            budget=self.budget,
        )


def plan(values: Mapping[str, Any]) -> Plan:
    """Return what parameters ask for.

    Raises:
        UsageError: they do not go together, or the settings' file is wrong.
    """
    if not values["model"]:
        raise UsageError("parameter model is not set; name the .onnx, .engine or .safetensors to run")
    profile = profiles.load(values["profile"]) if values["profile"] else None
    adapt = AdaptConfig() if profile is None else profile.settings()
    share = values["budget_share"] or None
    budget = BudgetConfig(share=share or BudgetConfig().share) if profile is None else profile.bounds(share)
    if budget is None and values["mode"] != "infer":
        raise UsageError(f"profile {values['profile']} never adapts; set mode infer, or a budget_share above 0")
    return Plan(
        model=Path(values["model"]),
        mode=values["mode"],
        run_folder=Path(values["run_folder"]) if values["run_folder"] else None,
        adapt=load(Path(values["settings"]), base=adapt) if values["settings"] else adapt,
        net=values["net"] or None,
        device=values["device"],
        threads=values["threads"] or (None if profile is None else profile.runtime.threads or None),
        budget=budget or BudgetConfig(),
        probes=values["probes"] or None,
        silence_s=values["silence_s"],
    )


class Work:
    """A loaded network; `start` makes a loop over it, as often as wanted.

    Raises:
        EdgeSfdaError: the model does not load, or the run folder cannot be used.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        with ExitStack() as stack:
            path = self._open_generations() if plan.learns else plan.model
            self.segmenter = stack.enter_context(
                Segmenter.load(path, device=plan.device, threads=plan.threads, net=plan.net, colour_order="bgr")
            )
            self._open = stack.pop_all()

    def start(self, mailbox: Mailbox, tell: Tell) -> tuple[Runner, Capture]:
        """Return a loop to be run, and the capture that it takes its frames from; the caller closes that after it."""
        capture = Capture(mailbox.open, self.plan.live.watch, pace=Pace.LIVE, min_side=self.segmenter.info.min_side)
        try:
            if self.plan.learns:
                return self._loop(capture, tell), capture
            return Inference(self.segmenter, capture, events=Events(None, listener=tell)), capture
        except BaseException:
            capture.close()
            raise

    def close(self) -> None:
        """Release the network."""
        self._open.close()

    def _open_generations(self) -> Path:
        """Begin or go on with the run folder; returns what to run of its newest generation."""
        from edge_sfda.adapt.generations import Generations
        from edge_sfda.adapt.probes import read_labelled
        from edge_sfda.live.exchange import artefact_of
        from edge_sfda.nets import load as load_net

        assert self.plan.run_folder is not None, "a plan that learns has one"
        network, self._manifest = load_net(self.plan.model, allow=self.plan.net)
        self._labelled = read_labelled(self.plan.probes, self._manifest)
        _make_folder(self.plan.run_folder)
        self.generations = Generations(self.plan.run_folder / GENERATIONS, keep=self.plan.live.keep)
        self.generations.start(network.state_dict(), self._manifest)
        return artefact_of(self.generations.newest())

    def _loop(self, capture: Capture, tell: Tell) -> Loop:
        from edge_sfda.live.loop import Loop, Place
        from edge_sfda.nets.device import resolve

        assert self.plan.run_folder is not None, "a plan that learns has one"
        return Loop(
            self.segmenter,
            capture,
            self.generations,
            self._manifest,
            Place(self.plan.run_folder, self.plan.net, self._labelled, resolve(self.plan.device)),
            config=replace(self.plan.live, onnx=_can_export()),
            adapt=self.plan.adapt,
            events=Events(self.plan.run_folder / EVENTS, listener=tell),
        )


def _can_export() -> bool:
    """Return whether candidates can run as ONNX models, told in the log where not."""
    from edge_sfda.runtime.packages import require_export_packages

    try:
        require_export_packages()
    except ArtefactError as error:
        _log.warning("candidates run in torch: %s", error)
        return False
    return True


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make run_folder {path}: {error.strerror}; name another one") from error
