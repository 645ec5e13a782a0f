"""A network's graph with its weights still apart: traced once, then filled with the weights of each candidate.

Tracing takes torch's exporter as long as many steps of a burst; putting other weights into the graph and folding them
takes a tenth of that. A network whose weights are not all found in the graph is traced each time.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from edge_sfda.errors import ArtefactError
from edge_sfda.files import write_atomic
from edge_sfda.runtime.artefact import INPUT, OUTPUTS, ArtefactInfo
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.packages import quiet_exporters

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 18  # that of torch's exporter; TensorRT 10.3 of JetPack 6 reads up to 20
MAX_SIDE = 8192  # pixels of a frame of any size

_KEY = "edge_sfda.trace"  # of what the graph was made of, in the file's metadata


@dataclass(frozen=True, eq=False)
class Trace:
    """A graph as torch's exporter gives it, before weights are folded into each other.

    Args:
        model: each weight of the network is an initialiser of its name; what it is good for lies in its metadata.
    """

    model: ModelProto

    @staticmethod
    def of(graph: FrameGraph, info: ArtefactInfo) -> Trace:
        """Trace a graph.

        Raises:
            ArtefactError: it does not trace.
        """
        from onnx.helper import set_model_props

        height, width = info.frame_size or info.network_size
        example = torch.zeros(2, height, width, 3, dtype=torch.uint8)  # two frames: one would fix the batch at one
        dims = {0: torch.export.Dim("batch", min=1, max=1024)}
        if info.frame_size is None:
            dims |= {i: torch.export.Dim(n, min=info.min_side, max=MAX_SIDE) for i, n in ((1, "height"), (2, "width"))}
        # an older torch has no such argument
        apart: dict[str, Any] = (
            {"optimize": False} if "optimize" in inspect.signature(torch.onnx.export).parameters else {}
        )
        try:
            with quiet_exporters(), torch.no_grad():
                program = torch.onnx.export(
                    graph,
                    (example,),
                    dynamo=True,
                    opset_version=OPSET,
                    input_names=[INPUT],
                    output_names=list(OUTPUTS),
                    dynamic_shapes=(dims,),
                    verbose=False,
                    **apart,
                )
            assert program is not None, "only the exporter without dynamo returns nothing"
            model = program.model_proto
        except Exception as error:
            raise _failed(graph, error) from error
        opsets = {entry.domain: entry.version for entry in model.opset_import}
        if opsets.get("") != OPSET:
            raise ArtefactError(f"the exporter wrote opset {opsets.get('')}, asked for {OPSET}; use another torch")
        set_model_props(model, {_KEY: made_of(graph, info)})
        return Trace(model)

    @staticmethod
    def read(path: Path) -> Trace | None:
        """Return what `write` wrote; None where there is no such file, or it is another's."""
        from google.protobuf.message import DecodeError
        from onnx import ModelProto

        try:
            model = ModelProto.FromString(path.read_bytes())
        except (OSError, DecodeError):
            return None
        trace = Trace(model)
        return trace if trace.made_of else None

    @property
    def made_of(self) -> str:
        """What it is good for, see `made_of`; empty in a model that is no trace."""
        return next((entry.value for entry in self.model.metadata_props if entry.key == _KEY), "")

    def write(self, path: Path) -> None:
        """Write graph and weights.

        Raises:
            WriteError: it cannot be written.
        """
        write_atomic(path, self.model.SerializeToString())

    def fits(self, graph: FrameGraph, info: ArtefactInfo) -> bool:
        """Whether the weights of a graph may take the place of these: nothing else differs, and all are found here.

        Weights that were equal when the graph was traced may have been merged; they are not found.
        """
        return self.made_of == made_of(graph, info) and _weights(graph).keys() <= self._names()

    def filled(self, graph: FrameGraph) -> ModelProto:
        """Return the model of a graph of which this is the trace, folded; this stays as it is.

        Raises:
            ArtefactError: the exporter does not take it.
        """
        from onnx import ModelProto
        from onnxscript import ir

        model = ModelProto()
        model.CopyFrom(self.model)  # what is read from a model shares its values
        weights = {name: value for name, value in _weights(graph).items() if name in self._names()}
        try:
            with quiet_exporters():
                program = torch.onnx.ONNXProgram(ir.serde.deserialize_model(model), None)
                program.apply_weights(weights)
                program.optimize()
                return program.model_proto  # type: ignore[no-any-return, unused-ignore]
        except Exception as error:
            raise _failed(graph, error) from error

    def _names(self) -> set[str]:
        return {tensor.name for tensor in self.model.graph.initializer}


def made_of(graph: FrameGraph, info: ArtefactInfo) -> str:
    """Return the SHA-256 of all that a trace depends on but the weights' values, as far as one can tell."""
    import onnxscript

    layout = {name: [str(value.dtype), list(value.shape)] for name, value in _weights(graph).items()}
    versions = {"torch": torch.__version__, "onnxscript": onnxscript.__version__, "opset": OPSET}
    about = json.loads(replace(info, checkpoint_sha256="").to_json())
    whole = json.dumps({"artefact": about, "weights": layout, "net": repr(graph.net), **versions}, sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


def _weights(graph: FrameGraph) -> Mapping[str, Tensor]:
    """Return what inference computes with, by name: parameters and buffers, but for counters of batches."""
    return {
        name: value.detach() for name, value in graph.state_dict().items() if not name.endswith("num_batches_tracked")
    }


def _failed(graph: FrameGraph, error: Exception) -> ArtefactError:
    lines = str(error).strip().splitlines() or [""]
    return ArtefactError(f"{type(graph.net).__name__} does not export to ONNX: {type(error).__name__}: {lines[0]}")
