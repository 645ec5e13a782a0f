"""Which precision the layers of a model have, and which they reached when a runtime took them."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

_WORK = frozenset(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "NhwcFusedConv", "FusedGemm", "FusedMatMul")
)  # the operators that hold the weights, with the names that ONNX Runtime fuses them into


def in_graph(model: ModelProto) -> dict[str, int]:
    """Count the weighted layers of a model as it is written, by precision: fp32, fp16, int8."""
    return _count(model, trust_pairs=True)


def in_onnxruntime(model: bytes, provider: str) -> dict[str, int]:
    """Count the weighted layers of a model as ONNX Runtime has them after its own rewriting.

    A layer between quantise and dequantise nodes that was not fused runs in float; half weights become float where the
    provider has no half kernel.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        # the highest level that can be written down: above it only layouts change
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(model, options, providers=[provider])
        return _count(onnx.load(str(path)), trust_pairs=False)


def _count(model: ModelProto, *, trust_pairs: bool) -> dict[str, int]:
    precisions = _Precisions(model)
    counts = Counter(precisions.of(node, trust_pairs=trust_pairs) for node in model.graph.node if _is_work(node))
    return dict(sorted(counts.items()))


def _is_work(node: NodeProto) -> bool:
    return node.op_type in _WORK or (node.op_type.startswith("QLinear") and "Conv" in node.op_type)


class _Precisions:
    def __init__(self, model: ModelProto) -> None:
        self._weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._maker = {name: node for node in model.graph.node for name in node.output}

    def of(self, node: NodeProto, *, trust_pairs: bool) -> str:
        from onnx import TensorProto

        if node.op_type.startswith("QLinear"):
            return "int8"
        kinds = [self._kind(name) for name in node.input[:2]]
        if "pair" in kinds:
            return "int8" if trust_pairs and kinds == ["pair", "pair"] else "fp32"
        return "fp16" if kinds[1] == TensorProto.FLOAT16 else "fp32"

    def _kind(self, name: str) -> int | str | None:
        """Return the type of a weight, `pair` for what a dequantise node gives, None for another value."""
        maker = self._maker.get(name)
        while maker is not None and maker.op_type in ("Reshape", "Transpose", "Identity"):
            name = maker.input[0]
            maker = self._maker.get(name)
        if maker is None:
            return self._weights.get(name)
        if maker.op_type == "DequantizeLinear":
            return "pair"
        if maker.op_type == "Cast":
            return int(next(attribute.i for attribute in maker.attribute if attribute.name == "to"))
        return None
