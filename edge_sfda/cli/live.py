"""`edge-sfda adapt --camera`: the loop as a service, with a screen, plain lines, or JSON events."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sfda.cli.screen import ERR, Stop, note, say
from edge_sfda.errors import UsageError

if TYPE_CHECKING:
    from edge_sfda.config import AdaptConfig, BudgetConfig, LiveConfig
    from edge_sfda.data.camera_options import CameraOptions
    from edge_sfda.data.frames import FrameSource
    from edge_sfda.live.loop import Loop
    from edge_sfda.live.rerun_log import RerunLog
    from edge_sfda.live.service import ServiceManager
    from edge_sfda.live.status import Latest
    from edge_sfda.manifest import Classes
    from edge_sfda.runtime.predict import Segmentation

GENERATIONS = "generations"
EVENTS = "events.jsonl"

_SCREEN_S = 0.25  # between two pictures of the screen


@dataclass(frozen=True, kw_only=True)
class Service:
    """What `serve` is asked for.

    Args:
        source: of the frames.
        model: the source's checkpoint.
        folder: of the run; generations of an earlier one in it are gone on from.
        config: of the loop.
        adapt: of a burst.
        net: `module:factory` of a network of your own.
        device: to infer and to learn on.
        threads: of inference on a CPU; None leaves the choice to the library.
        minutes: after which it stops; None goes on for ever.
        limit: of frames.
        probes: folder of labelled probes, or None.
        camera: what is asked of a V4L2 camera.
        fast: take a recording as fast as it goes, every frame; else at its own rate, as a camera would give it.
        metrics: port on loopback to serve `/metrics` on; None serves none.
        dashboard: `[HOST:]PORT` to serve the page on; None serves none.
        token: that requests to the dashboard must carry; None asks for none.
        rerun: file or viewer's URL to log to; None logs nothing.
        as_json: print events as JSON lines.
    """

    source: str
    model: Path
    folder: Path
    config: LiveConfig
    adapt: AdaptConfig
    net: str | None
    device: str
    threads: int | None
    minutes: float | None
    limit: int | None
    probes: str | None
    camera: CameraOptions
    fast: bool
    metrics: int | None
    dashboard: str | None
    token: str | None
    rerun: str | None
    as_json: bool


def serve(service: Service) -> None:
    """Run until the source ends, time is up, or somebody asks to stop; exit code 0 in all three cases."""
    from edge_sfda.adapt.generations import Generations
    from edge_sfda.adapt.probes import read_labelled
    from edge_sfda.data.camera import is_camera
    from edge_sfda.data.sources import open_source
    from edge_sfda.live.capture import Capture, Pace
    from edge_sfda.live.dashboard import Dashboard, Listener
    from edge_sfda.live.events import Events
    from edge_sfda.live.exchange import artefact_of
    from edge_sfda.live.history import History
    from edge_sfda.live.loop import Loop, Place
    from edge_sfda.live.service import ServiceManager
    from edge_sfda.nets import load
    from edge_sfda.nets.device import resolve
    from edge_sfda.report.run_folder import make_folder
    from edge_sfda.runtime.predict import Segmenter

    device = resolve(service.device)  # of both: a board with a GPU learns on it as well
    network, manifest = load(service.model, allow=service.net)
    labelled = read_labelled(service.probes, manifest)
    config = _with_onnx(service.config)
    pace = Pace.LIVE if is_camera(service.source) else Pace.FAST if service.fast else Pace.NATIVE

    def opener() -> FrameSource:
        return open_source(service.source, camera=service.camera, limit_s=config.watch.silence_s)

    with ExitStack() as stack:
        stop = stack.enter_context(Stop())
        listener = None if service.dashboard is None else Listener(service.dashboard, service.token)
        if listener is not None:
            stack.callback(listener.close)
        log = _rerun_log(service.rerun, manifest.classes)
        if log is not None:
            stack.callback(log.close)
        capture = Capture(opener, config.watch, pace=pace, min_side=network.min_side)
        stack.callback(capture.close)
        make_folder(service.folder)  # after all that may be wrong with the arguments
        generations = Generations(service.folder / GENERATIONS, keep=service.config.keep)
        generations.start(network.state_dict(), manifest)
        newest = generations.newest()
        segmenter = stack.enter_context(
            Segmenter.load(
                artefact_of(newest),
                device=service.device,
                threads=service.threads,
                net=service.net,
                colour_order="bgr",
            )
        )
        shown = _Shown(as_json=service.as_json)
        history = History(manifest.classes)

        def told(event: Mapping[str, Any]) -> None:
            history.event(event)
            shown.event(event)
            if log is not None:
                log.event(event)

        loop = Loop(
            segmenter,
            capture,
            generations,
            manifest,
            Place(service.folder, service.net, labelled, device),
            config=config,
            adapt=service.adapt,
            events=Events(service.folder / EVENTS, listener=told),
        )
        if service.metrics is not None:
            from edge_sfda.live.telemetry import Telemetry

            stack.callback(Telemetry(loop.status, port=service.metrics).close)
        if listener is not None:
            stack.callback(Dashboard(listener, loop, history).close)
            note(f"dashboard on {listener.url}")
        if log is not None:
            log.watch(loop)
        end = None if service.minutes is None else time.monotonic() + 60 * service.minutes
        manager = ServiceManager()
        ready: list[bool] = []

        def turn() -> None:
            manager.alive()  # from this thread: a loop that hangs must be ended by its service manager
            shown.turn(loop)
            history.sample(loop.status)
            if stop.wanted or (end is not None and time.monotonic() > end):
                manager.stopping()
                loop.stop()

        def look(latest: Latest, seen: Segmentation) -> None:
            _tell_ready(manager, ready)
            history.frame(latest)
            if service.limit is not None and loop.status().frames >= service.limit:
                loop.stop()

        loop.run(look, on_turn=turn)
        shown.end(loop)


def _rerun_log(target: str | None, classes: Classes) -> RerunLog | None:
    if target is None:
        return None
    from edge_sfda.live.rerun_log import RerunLog

    return RerunLog(target, classes)


def _tell_ready(manager: ServiceManager, told: list[bool]) -> None:
    """Say once that masks go out."""
    if not told:
        manager.ready("masks go out")
        told.append(True)


class _Shown:
    """A live screen in a terminal, lines elsewhere, JSON where it was asked for."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._live: Any = None
        self._next = 0.0
        self._lines: list[str] = []
        if not as_json and ERR.is_terminal:
            from rich.live import Live

            self._live = Live(console=ERR, auto_refresh=False, transient=True)
            self._live.start()

    def event(self, event: Mapping[str, Any]) -> None:
        if self.as_json:
            from edge_sfda.live.events import line_of

            say(line_of(event))
            return
        words = event.get("detail") or event.get("why") or event.get("reason") or ""
        name = event.get("phase", event["event"])
        line = f"{time.strftime('%H:%M:%S', time.localtime(event['at']))}  {name}{': ' if words else ''}{words}"
        self._lines = [*self._lines[-9:], line]
        if self._live is None:
            note(line)

    def turn(self, loop: Loop) -> None:
        now = time.monotonic()
        if self._live is None or now < self._next:
            return
        self._next = now + _SCREEN_S
        from edge_sfda.live.screen import picture

        self._live.update(picture(loop.status(), self._lines), refresh=True)

    def end(self, loop: Loop) -> None:
        if self._live is not None:
            self._live.stop()
        if self.as_json:
            return
        status = loop.status()
        say(
            f"{status.frames} frames, {status.latency_ms[0]:.1f} ms each (99 %: {status.latency_ms[1]:.1f}), "
            f"generation {status.generation}"
        )


def _with_onnx(config: LiveConfig) -> LiveConfig:
    """Return the settings with what this machine can do: no ONNX models without the packages that make and run them."""
    from dataclasses import replace

    from edge_sfda.errors import ArtefactError
    from edge_sfda.runtime.packages import require_export_packages

    try:
        require_export_packages()
    except ArtefactError as error:
        if config.onnx:
            logging.getLogger("edge_sfda").warning("candidates run in torch: %s", error)
        return replace(config, onnx=False)
    return config


def read_token(path: Path | None) -> str | None:
    """Return the dashboard's token: of a file, or of the environment's EDGE_SFDA_TOKEN; None where there is neither.

    Never from an option itself: every user of a machine can read what its processes were called with.

    Raises:
        UsageError: the file cannot be read, or is empty.
    """
    if path is None:
        return os.environ.get("EDGE_SFDA_TOKEN") or None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--dashboard-token {path} cannot be read ({error}); it must hold the token") from error
    if not token:
        raise UsageError(
            f"--dashboard-token {path} is empty; write a token into it, such as openssl rand -hex 16 makes"
        )
    return token


def bounded(bounds: BudgetConfig, given: str) -> BudgetConfig:
    """Return the bounds with those of `--budget` in their place: a share, or NAME=NUMBER, separated by commas.

    Raises:
        UsageError: something that is no number.
        ConfigError: an unknown bound, or one out of range.
    """
    from edge_sfda.config import merge

    raw: dict[str, float] = {}
    for part in given.split(","):
        name, _, number = part.rpartition("=")
        try:
            raw[name.strip() or "share"] = float(number)
        except ValueError:
            raise UsageError(
                f"--budget has {part.strip()!r}, expected a share such as 0.2, or a bound such as watts=10"
            ) from None
    found: BudgetConfig = merge(bounds, raw, prefix="budget.")
    return found


def check(minutes: float | None, mode: str) -> None:
    """Raise UsageError for values that make no sense."""
    from edge_sfda.config import MODES

    if minutes is not None and not minutes > 0:
        raise UsageError(f"--minutes {minutes} must be above 0")
    if mode not in MODES:
        raise UsageError(f"--mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
