"""`edge-sfda export`: from a checkpoint to artefacts that run without torch, each proven to be the same."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import note, percent, print_json, progress, say
from edge_sfda.errors import ArtefactError, UsageError

if TYPE_CHECKING:
    from onnx import ModelProto

    from edge_sfda.data.frames import Frame
    from edge_sfda.data.labels import Labels
    from edge_sfda.manifest import Manifest
    from edge_sfda.nets import SegmentationNet
    from edge_sfda.runtime.deliver import Delivered
    from edge_sfda.runtime.export import ExportConfig
    from edge_sfda.runtime.parity import Parity, Sample
    from edge_sfda.runtime.trt_build import BuildConfig

EXAMPLES = options.examples(
    "edge-sfda export adapted.safetensors -o artefacts/",
    "edge-sfda export adapted.safetensors --precision int8 --calibrate dusk/ --labels dusk-labels/ -o artefacts/",
    "edge-sfda export adapted.safetensors --trt --precision fp16 --size 720x1280 -o artefacts/",
    "edge-sfda export adapted-again.safetensors --refit artefacts/adapted-fp16.engine",
)

_CALIBRATION = 64  # frames kept of a source, evenly spread: ranges settle with far fewer
_LIVE = 256  # frames looked at where a source does not end by itself
_SCENE_FRAMES = 16


def export(
    checkpoint: options.Checkpoint,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help="Folder for artefacts and reports; not needed by --refit.", show_default=False
        ),
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write an ONNX model; the default without --trt.")] = False,
    trt: Annotated[bool, typer.Option("--trt", help="Build a TensorRT engine.")] = False,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Size of the frames; the network's own if left out.", show_default=False),
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Take frames of any size.")] = False,
    calibrate: Annotated[
        str | None,
        typer.Option(
            help="Unlabelled frames of the place of use: for int8 ranges, and to compare on.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Folder of labels of those frames: the mIoU lost.", show_default=False)
    ] = None,
    classes: options.ClassMap = None,
    refittable: Annotated[bool, typer.Option("--refittable", help="Let the engine's weights be swapped.")] = False,
    refit: Annotated[
        Path | None,
        typer.Option(metavar="ENGINE", help="Swap this engine's weights for the checkpoint's.", show_default=False),
    ] = None,
    trt_flavor: Annotated[str, typer.Option(help="auto, enterprise (tensorrt) or rtx (tensorrt_rtx).")] = "auto",
    colour_order: Annotated[str, typer.Option(help="Of the frames: bgr, as OpenCV has them, or rgb.")] = "bgr",
    confidence: Annotated[bool, typer.Option(help="Give the winner's probability as well.")] = True,
    logits: Annotated[bool, typer.Option("--logits", help="Give the logits as well.")] = False,
    workspace: Annotated[int, typer.Option(min=1, help="Scratch memory of the engine's builder, MB.")] = 1024,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that building an engine may take.")] = 3600,
    as_json: options.Json = False,
    net: options.Net = None,
) -> None:
    """Export a checkpoint to ONNX and TensorRT, and hold each artefact against it on real frames."""
    from edge_sfda.nets import load
    from edge_sfda.report.run_folder import make_folder
    from edge_sfda.runtime.export import ExportConfig
    from edge_sfda.runtime.packages import require_export_packages
    from edge_sfda.runtime.trt_build import BuildConfig

    config = ExportConfig(
        precision=precision,
        frame_size=_read_size(size),
        dynamic=dynamic,
        colour_order=colour_order,
        confidence=confidence,
        logits=logits,
    )
    build = BuildConfig(flavor=trt_flavor, refittable=refittable, workspace_mb=workspace, limit_s=limit)
    _check_options(config, out=out, refit=refit, trt=trt, refittable=refittable, calibrate=calibrate, labels=labels)
    if refit is not None:
        config = _config_of(refit)
    require_export_packages()
    network, manifest = load(checkpoint, allow=net)
    folder = out or (refit.parent if refit else Path())
    make_folder(folder)
    job = _Job(network, manifest, config, folder, f"{checkpoint.stem}-{config.precision}")
    job.prepare(calibrate, labels, classes)
    if refit is not None:
        made = [job.refit(refit, folder / refit.name, limit)]
    else:
        made = job.make(onnx=onnx or not trt, build=build if trt else None)
    _tell(made, as_json=as_json)


def _check_options(
    config: ExportConfig,
    *,
    out: Path | None,
    refit: Path | None,
    trt: bool,
    refittable: bool,
    calibrate: str | None,
    labels: str | None,
) -> None:
    if out is None and refit is None:
        raise UsageError("-o is missing: name a folder for the artefacts")
    if labels is not None and calibrate is None:
        raise UsageError("--labels needs the frames that they are of; give --calibrate FRAMES")
    if config.precision == "int8" and calibrate is None:
        raise UsageError("int8 takes its ranges from frames; give --calibrate FRAMES of the place of use, unlabelled")
    if refittable and not trt:
        raise UsageError("--refittable is a property of engines; add --trt")
    if refit is not None and (trt or refittable):
        raise UsageError("--refit changes an engine that is there, --trt builds one; give one of both")


def _read_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if found is None:
        raise UsageError(f"--size {text!r} is no size; write height x width in pixels, such as 720x1280")
    return int(found.group(1)), int(found.group(2))


def _config_of(engine: Path) -> ExportConfig:
    """Return the settings that an engine's model was exported with."""
    from edge_sfda.runtime.engine_file import EngineFile
    from edge_sfda.runtime.export import ExportConfig

    info = EngineFile.read_record(engine).info
    return ExportConfig(
        precision=info.precision,
        frame_size=info.frame_size,
        dynamic=info.frame_size is None,
        colour_order=info.colour_order,
        confidence="confidence" in info.outputs,
        logits="logits" in info.outputs,
    )


class _Job:
    """One checkpoint on its way to artefacts.

    Args:
        net: on the CPU.
        manifest: of that network.
        config: what to make of it.
        folder: for artefacts and reports.
        stem: of their names.
    """

    def __init__(self, net: SegmentationNet, manifest: Manifest, config: ExportConfig, folder: Path, stem: str) -> None:
        from edge_sfda.runtime.export import describe

        self.net, self.manifest, self.config = net, manifest, config
        self.folder, self.stem = folder, stem
        self.info = describe(net, manifest, config)
        self.samples: list[Sample] = []

    def prepare(self, calibrate: str | None, labels: str | None, class_map: str | None) -> None:
        """Read the frames to calibrate and compare on; nothing is made before they are there."""
        from edge_sfda.data.sources import open_source
        from edge_sfda.data.spread import Spread
        from edge_sfda.runtime.parity import samples

        known = self._labels(calibrate, labels, class_map) if calibrate is not None else None
        specs = [calibrate] if calibrate is not None else _scenes(self.info.network_size, self.info.frame_size)
        with progress("reading frames") as step:
            for spec in specs:
                with open_source(spec) as source:
                    kept: Spread[Frame] = Spread(_CALIBRATION)
                    end = None if source.len_hint is not None else _LIVE
                    for frame in itertools.islice(source, end):
                        kept.offer(partial(_same, frame))
                        step(kept.seen, source.len_hint or end)
                self.samples += samples(kept.items, self.info, known)
        if labels is not None and not any(sample.label is not None for sample in self.samples):
            raise UsageError(f"no file in {labels} has the name of a frame of {calibrate}; names must be the same")

    def _labels(self, frames: str, labels: str | None, class_map: str | None) -> Labels | None:
        from edge_sfda.data.labels import labels_of
        from edge_sfda.data.scene import SCENE_CLASSES

        if labels is None and self.manifest.classes.names != SCENE_CLASSES.names:
            return None  # the scene's own labels would not fit
        return labels_of(frames, labels, class_map, self.manifest.classes)

    def model(self) -> tuple[ModelProto, Parity]:
        """Export, and compare."""
        from edge_sfda.runtime.export import to_onnx
        from edge_sfda.runtime.parity import as_input, measure

        frames = [as_input(sample.image, self.info.colour_order) for sample in self.samples]
        with progress("exporting") as step:
            step(0, None)
            model = to_onnx(self.net, self.manifest, self.config, calibration=frames)
        with progress("comparing") as step:
            return model, measure(model, self.net, self.manifest, self.samples, on_frame=step)

    def make(self, *, onnx: bool, build: BuildConfig | None) -> list[Delivered]:
        """Export, and build where asked; a model that is not its checkpoint is never built into an engine."""
        from edge_sfda.runtime.deliver import deliver_engine, deliver_onnx
        from edge_sfda.runtime.gpu import find_gpu
        from edge_sfda.runtime.trt_build import build_engine, find_toolchain

        if build is not None:
            find_toolchain(build.flavor, find_gpu())  # what is missing is told before the work
        model, parity = self.model()
        made = []
        if onnx or parity.problems():
            made.append(deliver_onnx(model, parity, self.folder / f"{self.stem}.onnx"))
        if build is not None and not parity.problems():
            with progress("building") as step:
                engine, record = build_engine(
                    model, build, on_phase=lambda phase, done, total: step(done, total, what=phase)
                )
            path = self.folder / f"{self.stem}.engine"
            made.append(deliver_engine(engine, record, path, model=model, parity=parity))
        return made

    def refit(self, engine: Path, target: Path, limit_s: float) -> Delivered:
        """Give an engine the checkpoint's weights; it stays as it is when anything fails."""
        from edge_sfda.runtime.deliver import deliver_engine, deliver_onnx
        from edge_sfda.runtime.refit import refit_engine

        model, parity = self.model()
        if parity.problems():
            return deliver_onnx(model, parity, self.folder / f"{self.stem}.onnx")
        swapped, record = refit_engine(engine, model, limit_s=limit_s)
        return deliver_engine(swapped, record, target, model=model, parity=parity)


def _same(frame: Frame) -> Frame:
    return frame


def _scenes(network: tuple[int, int], frame: tuple[int, int] | None) -> list[str]:
    """Return frames of the built-in street: few, far apart, from day into night; in two sizes where any size goes."""
    sizes = [frame] if frame is not None else [network, (network[0] * 3 // 2, network[1] * 3 // 2)]
    each = _SCENE_FRAMES // len(sizes)
    return [f"scene:day-night?frames={each}&fps=1&size={height}x{width}" for height, width in sizes]


def _tell(made: list[Delivered], *, as_json: bool) -> None:
    if as_json:
        print_json([{**item.numbers, "path": item.path, "report": item.report} for item in made])
    else:
        for item in made:
            _show(item)
    rejected = [item for item in made if item.problems]
    if rejected:
        item = rejected[0]
        raise ArtefactError(f"{'; '.join(item.problems)}; kept aside as {item.path}, report {item.report}")


def _show(item: Delivered) -> None:
    if item.problems:
        note(f"rejected {item.path}")
        return
    numbers = item.numbers
    parity = numbers.get("parity") or numbers["parity_of_onnx"]
    verified = f", {numbers['verified']}" if "verified" in numbers else ""
    say(f"{item.path}   {numbers['bytes'] / 1e6:.2f} MB{verified}")
    lost = parity["miou_lost"]
    say(
        f"  same class as torch: {percent(parity['agreement'], digits=3)} % of the pixels of {parity['frames']} frames"
        + ("" if lost is None else f"; mIoU {percent(parity['miou_artefact'])} %, lost {percent(lost, digits=2)}")
    )
    say(f"  report {item.report}")
