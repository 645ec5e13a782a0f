"""From a network to an ONNX model: traced, in its precision, described, checked. Nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

import edge_sfda
from edge_sfda.errors import ArtefactError, UsageError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.runtime.artefact import COLOUR_ORDERS, METADATA_KEY, OUTPUTS, PRECISIONS, ArtefactInfo
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.packages import require_export_packages
from edge_sfda.runtime.quantise import quantise
from edge_sfda.runtime.trace import MAX_SIDE, Trace

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

U8 = npt.NDArray[np.uint8]

_MAX_BYTES = 2**31 - 1  # of a model in one file: protobuf's limit


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What to make of a checkpoint.

    Raises:
        UsageError: a value is not one of those, or a size is given for frames of any size.
    """

    # of the network inside; resize, normalisation and upsampling stay in float32
    precision: str = "fp32"
    # H, W of the frames; None: the network's own, which needs no resize
    frame_size: tuple[int, int] | None = None
    # frames of any height and width, resized in the graph; a fixed size runs faster and builds better engines
    dynamic: bool = False
    # of the frames; OpenCV and this package have BGR, most other libraries RGB
    colour_order: str = "bgr"
    # a second output at the frame's size; costs about as much as the arg-max
    confidence: bool = True
    # a third output at the network's stride, for whoever fuses classes or thresholds on their own
    logits: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("colour order", self.colour_order, COLOUR_ORDERS),
        ):
            if value not in known:
                raise UsageError(f"{name} {value!r} is not known; choose one of {', '.join(known)}")
        if self.dynamic and self.frame_size is not None:
            raise UsageError("a size and --dynamic exclude each other; give one")

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        wanted = {"mask": True, "confidence": self.confidence, "logits": self.logits}
        return tuple(name for name in OUTPUTS if wanted[name])

    def frames_of(self, manifest: Manifest) -> tuple[int, int] | None:
        """Return H, W of the frames for a network, or None for any."""
        pre = manifest.preprocessing
        return None if self.dynamic else self.frame_size or (pre.height, pre.width)


def describe(net: SegmentationNet, manifest: Manifest, config: ExportConfig) -> ArtefactInfo:
    """Return what the artefact says about itself.

    Raises:
        UsageError: frames of this size are smaller or larger than the network takes.
    """
    size, pre = config.frames_of(manifest), manifest.preprocessing
    if size is not None and not net.min_side <= min(size) <= max(size) <= MAX_SIDE:
        raise UsageError(
            f"size {size[0]}x{size[1]} is out of range: this network takes {net.min_side}..{MAX_SIDE} pixels a side"
        )
    return ArtefactInfo(
        classes=manifest.classes,
        colour_order=config.colour_order,
        frame_size=size,
        network_size=(pre.height, pre.width),
        outputs=config.outputs,
        precision=config.precision,
        checkpoint_sha256=manifest.tensors_sha256,
        min_side=net.min_side,
        producer=f"edge-sfda {edge_sfda.__version__}",
    )


def to_onnx(
    net: SegmentationNet,
    manifest: Manifest,
    config: ExportConfig,
    *,
    calibration: Sequence[U8] = (),
    cache: Path | None = None,
) -> ModelProto:
    """Trace a network with all that stands before and after it.

    Args:
        net: on the CPU; not changed.
        manifest: of that network.
        config: what to make.
        calibration: for int8: frames HWC uint8 in the colour order and, unless dynamic, of the size of the artefact.
        cache: file that keeps the trace for the next network that differs in its weights alone, see `trace`.

    Returns:
        a checked ONNX model that carries its `ArtefactInfo`; outputs as `config.outputs`. The value `logits` is in the
        graph whether or not it is an output.

    Raises:
        UsageError: the size does not fit the network.
        ArtefactError: a package is missing, the network does not trace, or the model is not valid.
        WriteError: the trace cannot be kept.
    """
    info = describe(net, manifest, config)
    require_export_packages()
    if config.precision == "int8" and not calibration:
        raise ArtefactError("int8 needs frames to measure ranges on; give --calibrate FRAMES of the place of use")
    graph = FrameGraph(
        net,
        manifest.preprocessing,
        colour_order=config.colour_order,
        frame_size=info.frame_size,
        half=config.precision == "fp16",
    ).eval()
    model = _filled(graph, info, cache)
    if config.precision == "int8":
        model = quantise(model, calibration, network_size=info.network_size)
    _keep_outputs(model, info)
    _add_record(model, info)
    _check(model)
    return model


def read_info(model: ModelProto) -> ArtefactInfo:
    """Return what a model says about itself.

    Raises:
        ArtefactError: nothing, or nothing that can be read.
    """
    found = [entry.value for entry in model.metadata_props if entry.key == METADATA_KEY]
    if len(found) != 1:
        raise ArtefactError("the ONNX model carries no record of edge-sfda; export it with edge-sfda export")
    return ArtefactInfo.from_json(found[0])


def _filled(graph: FrameGraph, info: ArtefactInfo, cache: Path | None) -> ModelProto:
    """Return the model of a graph, traced anew where no trace is kept that fits."""
    trace = None if cache is None else Trace.read(cache)
    if trace is None or not trace.fits(graph, info):
        trace = Trace.of(graph, info)
        if cache is not None and trace.fits(graph, info):
            trace.write(cache)
    return trace.filled(graph)


def _keep_outputs(model: ModelProto, info: ArtefactInfo) -> None:
    """Drop the outputs that are not asked for, the nodes that only they needed, and name the sizes."""
    by_name = {value.name: value for value in model.graph.output}
    del model.graph.output[:]
    model.graph.output.extend(by_name[name] for name in info.outputs)
    needed = set(info.outputs)
    nodes = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            nodes.append(node)
    nodes.reverse()
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    kept = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    height, width = info.frame_size or ("height", "width")
    _set_dims(model.graph.input[0], ("batch", height, width, 3))
    for value in model.graph.output:
        if value.name != "logits":
            _set_dims(value, ("batch", height, width))


def _set_dims(value: ValueInfoProto, dims: Sequence[int | str]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for dim in dims:
        added = shape.dim.add()
        if isinstance(dim, int):
            added.dim_value = dim
        else:
            added.dim_param = dim


def _add_record(model: ModelProto, info: ArtefactInfo) -> None:
    from onnx.helper import set_model_props

    set_model_props(model, {METADATA_KEY: info.to_json()})
    model.producer_name, _, model.producer_version = info.producer.partition(" ")
    model.doc_string = ""
    used = {node.domain for node in model.graph.node}
    opsets = [entry for entry in model.opset_import if entry.domain in used]  # the quantiser announces its own as well
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    for node in model.graph.node:  # the exporter leaves stack traces, with paths of the machine that it ran on
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]


def _check(model: ModelProto) -> None:
    from onnx import TensorProto, checker

    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ArtefactError("the exporter put weights into files of their own; the network is too large for one file")
    if model.ByteSize() > _MAX_BYTES:
        raise ArtefactError(f"the model takes {model.ByteSize()} bytes, more than the {_MAX_BYTES} of one ONNX file")
    try:
        checker.check_model(model, full_check=True)
    except Exception as error:
        raise ArtefactError(f"the exporter wrote an invalid model: {str(error).strip().splitlines()[0]}") from error
