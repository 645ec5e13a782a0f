"""`edge-sfda adapt`: from a source checkpoint and unlabelled frames to an adapted checkpoint."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import OUT, OnStep, Stop, comparison, percent, print_json, progress, say
from edge_sfda.config import METHODS
from edge_sfda.errors import UsageError

if TYPE_CHECKING:
    from edge_sfda.adapt.session import Slice, Watch
    from edge_sfda.config import AdaptConfig
    from edge_sfda.data.camera_options import CameraOptions
    from edge_sfda.report.run_folder import RunFolder

BUILT_IN_MODEL = Path(__file__).parent.parent / "assets" / "scene_day_nano.safetensors"
BUILT_IN_FRAMES = "scene:dusk?frames=96&seed=7&fps=2"

STATE = "state.safetensors"

_SCENE = "scene:"

EXAMPLES = options.examples(
    "edge-sfda adapt --frames dusk/images --model source.safetensors -o runs/dusk",
    "edge-sfda adapt --frames dusk/images --labels dusk/labels --hold-out 0.5 --model source.safetensors",
    "edge-sfda adapt --video drive.mp4 --model source.safetensors --method tent --steps 50",
    "edge-sfda adapt --camera /dev/video0 --model source.safetensors -o runs/live --resume",
    "# neither frames nor a model: the built-in scene and its source network",
    "edge-sfda adapt",
)


def adapt(
    camera: Annotated[
        str | None,
        typer.Option(
            help="Learn from a live source as it comes: /dev/video0, 0, rtsp://..., scene:DOMAIN.", show_default=False
        ),
    ] = None,
    frames: Annotated[
        str | None, typer.Option(help="Learn from a folder of pictures, or scene:DOMAIN.", show_default=False)
    ] = None,
    video: Annotated[str | None, typer.Option(help="Learn from a video file or a ROS bag.", show_default=False)] = None,
    topic: options.Topic = None,
    model: Annotated[Path | None, typer.Option(help="Source checkpoint (.safetensors).", show_default=False)] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Folder of labels named as the frames; they only measure.", show_default=False),
    ] = None,
    classes: options.ClassMap = None,
    hold_out: Annotated[
        float, typer.Option(min=0.0, max=0.95, help="Share of the frames, the last, measured but not learned from.")
    ] = 0.0,
    online: Annotated[
        bool, typer.Option("--online", help="Take --frames or --video in order: predict each, then learn from it.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="Settings (TOML), over the defaults.", show_default=False)] = None,
    profile: Annotated[
        str | None,
        typer.Option(help="Device: cpu, orin-nano, ..., or a TOML file; under --config.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.", show_default=False),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="full, or cheap: fewer steps of two frames at half the sides, and every other frame of a stream; "
            "under --config.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything drawn.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Of the burst.", show_default=False)] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many frames.", show_default=False)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of a stream: go on from the state in the run folder, where there is one.")
    ] = False,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything that the run leaves.")] = Path("run"),
    mode: Annotated[
        str, typer.Option(help="Of --camera: auto, recommend, shadow (judge, deploy nothing) or off.")
    ] = "auto",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Of --camera: share of the time for learning (0.5 without a profile), and more bounds where wanted: "
            "0.2,seconds_per_hour=600,memory_mb=2000,celsius=80,watts=10.",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Of --camera: stop after so many minutes.", show_default=False)
    ] = None,
    probes: Annotated[
        str | None,
        typer.Option(help="Of --camera: a labelled set that outranks every vote of the gate.", show_default=False),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Of --camera: take a recording as fast as it goes, not at its own rate.")
    ] = False,
    width: Annotated[
        int | None, typer.Option(min=1, help="Of a V4L2 camera, with --height.", show_default=False)
    ] = None,
    height: Annotated[
        int | None, typer.Option(min=1, help="Of a V4L2 camera, with --width.", show_default=False)
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Of a V4L2 camera.", show_default=False)] = None,
    fourcc: Annotated[
        str | None, typer.Option(help="Pixel format of a V4L2 camera, such as MJPG or YUYV.", show_default=False)
    ] = None,
    exposure: Annotated[
        float | None, typer.Option(help="Of a V4L2 camera, fixed, in milliseconds.", show_default=False)
    ] = None,
    lock_exposure: Annotated[
        bool, typer.Option("--lock-exposure", help="Of a V4L2 camera: hold what it has found over the first frames.")
    ] = False,
    metrics: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            envvar="EDGE_SFDA_METRICS_PORT",
            help="Of --camera: serve /metrics for Prometheus on this port of loopback.",
            show_default=False,
        ),
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(
            help="Of --camera: serve a page to watch and steer by on [HOST:]PORT; loopback where no host is named.",
            show_default=False,
        ),
    ] = None,
    dashboard_token: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that the dashboard asks for, needed beyond loopback; or EDGE_SFDA_TOKEN.",
            show_default=False,
        ),
    ] = None,
    rerun: Annotated[
        str | None,
        typer.Option(
            help="Of --camera: log to a Rerun file (*.rrd) or viewer (rerun+http://127.0.0.1:9876/proxy).",
            show_default=False,
        ),
    ] = None,
    device: options.Device = "auto",
    net: options.Net = None,
    as_json: options.Json = False,
) -> None:
    """Adapt a network to a new domain from unlabelled frames; neither source data nor labels train it.

    With --camera this is a service: it predicts every frame, adapts beside that when the scene changes, and deploys
    what its gate finds better. With --online as well, it learns from each frame right after predicting it.
    """
    from edge_sfda.adapt.session import Keep, Session
    from edge_sfda.config import to_toml
    from edge_sfda.data.bags import with_topic
    from edge_sfda.data.camera_options import CameraOptions
    from edge_sfda.data.labels import labels_of
    from edge_sfda.data.sources import open_source
    from edge_sfda.nets import load
    from edge_sfda.report.adaptation import Origin, write
    from edge_sfda.report.run_folder import RunFolder

    spec, live = _source(camera, frames, video, model)
    spec = with_topic(spec, topic)
    asked = CameraOptions(
        width=width, height=height, fps=fps, fourcc=fourcc, exposure_ms=exposure, lock_exposure=lock_exposure
    )
    if live and not online:
        _serve(
            spec,
            model or BUILT_IN_MODEL,
            out,
            _settings(config, profile, effort, method, seed, steps),
            mode=mode,
            budget=budget,
            profile=profile,
            minutes=minutes,
            limit=limit,
            probes=probes,
            camera=asked,
            fast=fast,
            metrics=metrics,
            dashboard=dashboard,
            dashboard_token=dashboard_token,
            rerun=rerun,
            device=device,
            net=net,
            as_json=as_json,
            not_of_a_service={"--labels": labels, "--classes": classes, "--hold-out": hold_out or None},
        )
        return
    if online and hold_out > 0:
        raise UsageError(
            "--hold-out goes with a set of frames; of a stream, each frame is predicted before it is learned"
        )
    if resume and not online:
        raise UsageError("--resume goes with a stream, --camera or --online; a burst over a set of frames is short")
    settings = _settings(config, profile, effort, method, seed, steps)
    path = model or BUILT_IN_MODEL
    network, manifest = load(path, allow=net, device=device)
    measured = labels_of(spec, labels, classes, manifest.classes)
    with open_source(spec, camera=asked) as source:
        total = min((n for n in (source.len_hint, limit) if n is not None), default=None)
        learn, measure = _parts(spec, total, limit, hold_out)
        session = Session(network, manifest, settings, labels=measured)
        keep = Keep(out / STATE)
        done = session.resume(keep.path) if resume and keep.path.exists() else 0
        run = RunFolder(out, resumed_at=done)  # after all that may be wrong: it replaces an earlier run
        run.write_config(to_toml(settings))
        with Stop() as stop, progress("adapting") as step:
            session.watch = watching(run, stop, step)
            if online:
                skip = 0 if live else done  # a camera does not come back
                outcome = session.online(islice(source, skip, _end(limit, done - skip)), total=total, keep=keep)
            else:
                source.close()  # opened anew for each pass
                outcome = session.offline(learn=learn, measure=measure)
            report = write(run, outcome, Origin(str(path), spec, _measured_on(online, hold_out), online))
    finish(report, run, as_json=as_json)
    if outcome.failure is not None:
        raise outcome.failure


def _serve(
    spec: str,
    model: Path,
    out: Path,
    settings: AdaptConfig,
    *,
    mode: str,
    budget: str | None,
    profile: str | None,
    minutes: float | None,
    limit: int | None,
    probes: str | None,
    camera: CameraOptions,
    fast: bool,
    metrics: int | None,
    dashboard: str | None,
    dashboard_token: Path | None,
    rerun: str | None,
    device: str,
    net: str | None,
    as_json: bool,
    not_of_a_service: dict[str, object],
) -> None:
    from edge_sfda.cli import live
    from edge_sfda.config import BudgetConfig, LiveConfig
    from edge_sfda.data.scene_spec import PREFIX, lasting
    from edge_sfda.profile import load as load_profile

    given = [name for name, value in not_of_a_service.items() if value is not None]
    if given:
        raise UsageError(f"{given[0]} does not go with --camera alone; add --online, or give --frames or --video")
    live.check(minutes, mode)
    if minutes is not None and spec.startswith(PREFIX):
        spec = lasting(spec, 60 * minutes)  # it stands for a camera, which does not end before
    bounds, threads = BudgetConfig(), None
    if profile is not None:
        device_profile = load_profile(profile)
        threads = device_profile.runtime.threads or None
        allowed = device_profile.bounds()
        bounds, mode = (bounds, "off") if allowed is None else (allowed, mode)
    if budget is not None:
        bounds = live.bounded(bounds, budget)
    live.serve(
        live.Service(
            source=spec,
            model=model,
            folder=out,
            config=LiveConfig(mode=mode, budget=bounds),
            adapt=settings,
            net=net,
            device=device,
            threads=threads,
            minutes=minutes,
            limit=limit,
            probes=probes,
            camera=camera,
            fast=fast,
            metrics=metrics,
            dashboard=dashboard,
            token=live.read_token(dashboard_token),
            rerun=rerun,
            as_json=as_json,
        )
    )


def watching(run: RunFolder, stop: Stop, step: OnStep) -> Watch:
    """Return what a session reports to: rows into the run folder, stages to the bar."""
    from edge_sfda.adapt.session import Watch

    def stage(what: str, done: int, total: int | None) -> None:
        aside = f"loss {run.rows[-1]['loss']:.3f}" if what == "adapting" and run.rows else ""
        step(done, total, aside, what=what)

    return Watch(run.add_row, stage, lambda: stop.wanted)


def finish(report: dict[str, Any], run: RunFolder, *, as_json: bool) -> None:
    """Print the report; an early stop then ends as an interrupt does."""
    from edge_sfda.report.adaptation import CHECKPOINT

    checkpoint = run.path / CHECKPOINT
    if as_json:
        print_json({**report, "run": run.path, "checkpoint": checkpoint})
    else:
        _show(report)
        say(f"checkpoint {checkpoint}\npictures   {run.path / 'strip.png'}")
    if report["stopped"]:
        raise KeyboardInterrupt(f"what {report['steps']} steps have learned is in {checkpoint}")


def _source(camera: str | None, frames: str | None, video: str | None, model: Path | None) -> tuple[str, bool]:
    """Return the source of the frames and whether it is live."""
    given = [spec for spec in (camera, frames, video) if spec is not None]
    if len(given) > 1:
        raise UsageError("--camera, --frames and --video exclude each other; give one")
    if given and model is None and not given[0].startswith(_SCENE):  # the built-in street has its own network
        raise UsageError("--model is missing: name the source checkpoint that these frames shall adapt")
    if model is not None and not given:
        raise UsageError("nothing to learn from: give one of --camera, --frames and --video")
    return (given[0], camera is not None) if given else (BUILT_IN_FRAMES, False)


def _settings(
    path: Path | None,
    profile: str | None,
    effort: str | None,
    method: str | None,
    seed: int | None,
    steps: int | None,
) -> AdaptConfig:
    """Return the settings: the method's own under the device's, the effort's, the file's and the command line's."""
    from edge_sfda import config
    from edge_sfda.profile import load as load_profile

    chosen = method or (config.load(path).method if path else config.AdaptConfig().method)
    base = config.from_dict({"method": chosen})  # an unknown method is told here
    base = config.preset(base.method)
    base = load_profile(profile).settings(base) if profile else base
    base = config.with_effort(base, effort) if effort else base
    settings = config.load(path, base=base) if path else base
    asked: dict[str, Any] = {"method": chosen} | ({} if seed is None else {"seed": seed})
    return config.from_dict(asked | ({} if steps is None else {"burst": {"steps": steps}}), base=settings)


def _parts(spec: str, total: int | None, limit: int | None, hold_out: float) -> tuple[Slice, Slice]:
    """Return the frames to learn from and those to measure."""
    from edge_sfda.adapt.session import Slice

    if hold_out == 0:
        return Slice(spec, 0, limit), Slice(spec, 0, limit)
    if total is None or total < 2:
        raise UsageError(f"--hold-out needs two frames or more and a source that knows its length; {spec} has {total}")
    cut = min(max(1, round(total * (1 - hold_out))), total - 1)
    return Slice(spec, 0, cut), Slice(spec, cut, limit)


def _end(limit: int | None, done: int) -> int | None:
    """Return how many frames more a limit allows when `done` of it are taken; None has no end."""
    return None if limit is None else max(0, limit - done)


def _measured_on(online: bool, hold_out: float) -> str:
    if online:
        return "each frame predicted before it was learned from"
    return "frames held out from learning" if hold_out else "the frames learned from"


def _show(report: dict[str, Any]) -> None:
    labelled, unlabelled = report["labelled"], report["unlabelled"]
    say(
        f"{report['method']}, {report['protocol']}: {report['frames']} frames, {report['steps']} steps, "
        f"{report['seconds']:.1f} s, seed {report['seed']}"
    )
    if labelled is not None:
        say(f"measured on {labelled['frames']} frames: {labelled['measured_on']}\n")
        before, after = labelled["before"], labelled["after"]
        mean = {"mIoU": {"before": before["miou"], "after": after["miou"]}}
        OUT.print(comparison("IoU %", labelled["classes"] | mean, bold="mIoU"))
    elif unlabelled is not None:
        say(f"no labels to measure with; {percent(unlabelled['changed'])} % of the pixels changed class\n")
        OUT.print(comparison("share of the pixels %", unlabelled["shares"], judge=False))
    say("")
