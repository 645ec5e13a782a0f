from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="counts what ONNX Runtime makes of a model")
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edge_sfda.runtime.layers import in_graph, in_onnxruntime

CPU = "CPUExecutionProvider"


def _model(dtype: type) -> ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [numpy_helper.from_array(np.ones((4, 4, 1, 1), dtype), name) for name in ("a", "b")]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first"),
        helper.make_node("Relu", ["y"], ["z"]),
        helper.make_node("Conv", ["z", "b"], ["out"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(name, kind, [1, 4, 8, 8]) for name in ("x", "out")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("dtype", "name"), [(np.float32, "fp32"), (np.float16, "fp16")])
def test_layers_count_by_the_type_of_their_weights(dtype: type, name: str) -> None:
    assert in_graph(_model(dtype)) == {name: 2}


def test_float_layers_run_in_float() -> None:
    assert in_onnxruntime(_model(np.float32).SerializeToString(), CPU) == {"fp32": 2}


def test_half_layers_without_a_half_kernel_are_told_to_run_in_float() -> None:
    assert in_onnxruntime(_model(np.float16).SerializeToString(), CPU).keys() <= {"fp32", "fp16"}
    assert sum(in_onnxruntime(_model(np.float16).SerializeToString(), CPU).values()) == 2


def test_int8_layers_are_told_as_written_and_as_run(exported) -> None:
    model = exported(precision="int8")
    whole = sum(in_graph(exported()).values())
    assert in_graph(model) == {"fp32": 12, "int8": whole - 12}
    reached = in_onnxruntime(model.SerializeToString(), CPU)
    assert sum(reached.values()) == whole
    assert reached["int8"] > (whole - 12) / 2


def test_weight_between_nodes_with_a_float_input_is_no_int8_layer() -> None:
    model = _model(np.float32)
    scale = numpy_helper.from_array(np.float32(0.1), "scale")
    whole = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.int8), "q")
    model.graph.initializer.extend([scale, whole])
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], ["dq"]))
    model.graph.node[1].input[1] = "dq"
    assert in_graph(model) == {"fp32": 2}
    assert TensorProto.INT8 in {t.data_type for t in model.graph.initializer}
