"""The proof that an artefact is its checkpoint: the same frames through both, pixel by pixel.

Three ways of a frame are compared. The artefact against the torch module that it was traced from, in float32, shows
what conversion and precision cost; that is what the bounds hold. The artefact against `nets.Predictor`, which resizes
on the host, shows besides what the resize in the graph costs; without a resize both are the same. Labels, where there
are any, show what of it matters.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from edge_sfda.data.frames import Frame, check_frame, resize_label
from edge_sfda.data.labels import Labels
from edge_sfda.errors import ArtefactError
from edge_sfda.manifest import Manifest
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.inference import Predictor
from edge_sfda.runtime import layers
from edge_sfda.runtime.artefact import INPUT, ArtefactInfo
from edge_sfda.runtime.export import read_info
from edge_sfda.runtime.graph import FrameGraph

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxruntime import InferenceSession

U8 = npt.NDArray[np.uint8]

# share of the pixels that must have the checkpoint's class
AGREEMENT: Mapping[str, float] = MappingProxyType({"fp32": 0.999, "fp16": 0.995, "int8": 0.97})
# of the mean IoU, where labels are given
MIOU_LOST = 0.010
# of the pixels against the host's resize: below it the graph does not show the network what it was trained on
HOST_AGREEMENT = 0.95

PROVIDER = "CPUExecutionProvider"  # everywhere the same, and exact in float32


@dataclass(frozen=True, eq=False)
class Sample:
    """A frame as the artefact takes it, but for its colour order: HWC uint8 BGR; with its label, HW uint8, or None."""

    image: U8
    label: U8 | None = None


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What was found; shares are of 0..1, times in milliseconds.

    Args:
        precision: asked for.
        frames: compared.
        agreement: share of pixels with the class of the torch module of the same graph.
        miou_between: mean IoU of the artefact's masks against that module's.
        max_logit_error: largest absolute difference of a logit to that module's, and largest logit there.
        max_confidence_error: likewise; None without that output.
        host_agreement: share of pixels with the class that `nets.Predictor` gives.
        resized: the graph resizes the frames.
        miou_torch, miou_artefact: against labels, of `nets.Predictor` and of the artefact; None without labels.
        labelled: frames with a label.
        layers_asked, layers_reached: weighted layers by precision, in the model and in ONNX Runtime here.
        artefact_ms, torch_ms: 20th, 50th and 80th percentile of one frame, taken in turn.
        conditions: versions, threads and machine.
    """

    precision: str
    frames: int
    agreement: float
    miou_between: float
    max_logit_error: float
    max_logit: float
    max_confidence_error: float | None
    host_agreement: float
    resized: bool
    miou_torch: float | None
    miou_artefact: float | None
    labelled: int
    layers_asked: Mapping[str, int]
    layers_reached: Mapping[str, int]
    artefact_ms: tuple[float, float, float]
    torch_ms: tuple[float, float, float]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def miou_lost(self) -> float | None:
        """Mean IoU of torch less the artefact's; below 0 where the artefact is the better one."""
        if self.miou_torch is None or self.miou_artefact is None:
            return None
        return self.miou_torch - self.miou_artefact

    def problems(self) -> list[str]:
        """Return in words which bounds are not kept; empty for an artefact that may leave."""
        found = []
        bound = AGREEMENT[self.precision]
        if not self.agreement >= bound:
            found.append(
                f"{100 * self.agreement:.3f} % of the pixels have the checkpoint's class, {self.precision} must reach "
                f"{100 * bound:.1f} %"
            )
        if self.miou_lost is not None and not self.miou_lost <= MIOU_LOST:
            found.append(f"{100 * self.miou_lost:.2f} points of mIoU are lost, at most {100 * MIOU_LOST:.1f} may be")
        if not self.host_agreement >= HOST_AGREEMENT:
            found.append(
                f"{100 * self.host_agreement:.2f} % of the pixels have the class that the host's resize gives, not the "
                f"{100 * HOST_AGREEMENT:.0f} %; export for frames nearer to the network's size"
            )
        return found


def samples(frames: Iterable[Frame], info: ArtefactInfo, labels: Labels | None = None) -> list[Sample]:
    """Bring frames, and labels where there are any, to the artefact's size.

    Raises:
        FrameError: a frame is none, or too small.
        LabelError: a label cannot be read.
        ArtefactError: there are no frames.
    """
    found = []
    for frame in frames:
        check_frame(frame.image, min_side=info.min_side)
        label = None if labels is None else labels.of(frame)
        height, width = info.frame_size or frame.image.shape[:2]
        image = frame.image
        if image.shape[:2] != (height, width):
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        found.append(Sample(image, None if label is None else resize_label(label, height, width)))
    if not found:
        raise ArtefactError("no frames to hold the artefact against its checkpoint; give --calibrate FRAMES")
    return found


def as_input(image: U8, colour_order: str) -> U8:
    """Return a frame, HWC uint8 BGR, in an artefact's colour order, contiguous."""
    return np.ascontiguousarray(image if colour_order == "bgr" else image[:, :, ::-1])


def measure(
    model: ModelProto,
    net: SegmentationNet,
    manifest: Manifest,
    frames: Sequence[Sample],
    *,
    on_frame: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Hold an ONNX model against the network that it was made of.

    Args:
        model: as `export.to_onnx` gives it.
        net: on the CPU, in float32.
        manifest: of that network.
        frames: from `samples`.
        on_frame: called with (done, total).

    Raises:
        ArtefactError: ONNX Runtime does not take the model.
    """
    info = read_info(model)
    data = model.SerializeToString()
    graph = FrameGraph(net, manifest.preprocessing, colour_order=info.colour_order, frame_size=info.frame_size).eval()
    tally = _Tally(info, manifest)
    session, inside = open_session(data), open_session(_with_logits(model))
    predictor = Predictor(net, manifest)
    for index, sample in enumerate(frames):
        frame = as_input(sample.image, info.colour_order)[None]
        expected, confidence, logits = tally.torch(partial(graph, torch.from_numpy(frame)))
        got = dict(zip(info.outputs, tally.artefact(partial(session.run, None, {INPUT: frame})), strict=True))
        got["logits"] = inside.run(["logits"], {INPUT: frame})[0]
        tally.count(got, {"mask": expected, "confidence": confidence, "logits": logits})
        tally.count_host(got["mask"][0], predictor(sample.image)[0], sample.label)
        on_frame(index + 1, len(frames))
    return tally.parity(layers.in_graph(model), layers.in_onnxruntime(data, PROVIDER))


def open_session(model: bytes) -> InferenceSession:
    """Return a session on the CPU with as many threads as torch has.

    Raises:
        ArtefactError: ONNX Runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
    except Exception as error:
        raise ArtefactError(f"ONNX Runtime refuses the model: {str(error).strip().splitlines()[0]}") from error


def _with_logits(model: ModelProto) -> bytes:
    """Return the model with `logits` among its outputs: the same nodes, one more of their values shown."""
    from onnx import ModelProto, TensorProto, helper

    if any(value.name == "logits" for value in model.graph.output):
        return bytes(model.SerializeToString())
    shown = ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    return bytes(shown.SerializeToString())


class _Tally:
    """Counts while frames go by."""

    def __init__(self, info: ArtefactInfo, manifest: Manifest) -> None:
        self.info = info
        classes, ignore_id = len(manifest.classes), manifest.classes.ignore_id
        self.between = ConfusionMatrix(classes, ignore_id)
        self.host = ConfusionMatrix(classes, ignore_id)
        self.labels = {"torch": ConfusionMatrix(classes, ignore_id), "artefact": ConfusionMatrix(classes, ignore_id)}
        self.labelled = 0
        self.errors = {"logits": 0.0, "confidence": 0.0}
        self.largest = 0.0
        self.seconds: dict[str, list[float]] = {"torch": [], "artefact": []}

    def torch(self, call: Callable[[], Any]) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            return [output.numpy() for output in self._timed("torch", call)]

    def artefact(self, call: Callable[[], Any]) -> Any:
        return self._timed("artefact", call)

    def _timed(self, who: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self.seconds[who].append(time.perf_counter() - start)
        return result

    def count(self, got: Mapping[str, npt.NDArray[Any]], expected: Mapping[str, npt.NDArray[Any]]) -> None:
        self.between.update(got["mask"], expected["mask"])
        for name in self.errors:
            if name in got:
                error = float(np.abs(got[name] - expected[name]).max())
                # NaN must not hide behind a comparison
                self.errors[name] = max(self.errors[name], error) if np.isfinite(error) else float("inf")
        self.largest = max(self.largest, float(np.abs(expected["logits"]).max()))

    def count_host(self, mask: U8, host: U8, label: U8 | None) -> None:
        self.host.update(mask, host)
        if label is not None:
            self.labels["torch"].update(host, label)
            self.labels["artefact"].update(mask, label)
            self.labelled += 1

    def parity(self, asked: Mapping[str, int], reached: Mapping[str, int]) -> Parity:
        import onnxruntime

        first = 1 if len(self.seconds["torch"]) > 1 else 0  # the first frame allocates
        ms = {
            who: [float(q) for q in np.percentile(1e3 * np.array(times[first:]), (20, 50, 80))]
            for who, times in self.seconds.items()
        }
        miou = {who: matrix.miou() if self.labelled else None for who, matrix in self.labels.items()}
        return Parity(
            precision=self.info.precision,
            frames=len(self.seconds["torch"]),
            agreement=self.between.accuracy(),
            miou_between=self.between.miou(),
            max_logit_error=self.errors["logits"],
            max_logit=self.largest,
            max_confidence_error=self.errors["confidence"] if "confidence" in self.info.outputs else None,
            host_agreement=self.host.accuracy(),
            resized=self.info.frame_size != self.info.network_size,
            miou_torch=miou["torch"],
            miou_artefact=miou["artefact"],
            labelled=self.labelled,
            layers_asked=asked,
            layers_reached=reached,
            artefact_ms=(ms["artefact"][0], ms["artefact"][1], ms["artefact"][2]),
            torch_ms=(ms["torch"][0], ms["torch"][1], ms["torch"][2]),
            conditions={
                "provider": PROVIDER,
                "onnxruntime": onnxruntime.__version__,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "machine": platform.machine(),
            },
        )
