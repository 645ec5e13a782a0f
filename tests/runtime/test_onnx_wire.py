from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="needs onnx")
import onnx
from onnx import TensorProto, helper

from edge_sfda.runtime.onnx_wire import read_head


def _external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def _branch(tensor: TensorProto) -> onnx.GraphProto:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])


def _model() -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(_external("values", "sparse.bin"))
    sparse.indices.CopyFrom(helper.make_tensor("indices", TensorProto.INT64, [1], [2]))
    choice = helper.make_node("If", ["yes"], ["y"], then_branch=_branch(_external("t", "then.bin")))
    graph = helper.make_graph([choice], "g", [], [], [_external("w", "weights.bin")], sparse_initializer=[sparse])
    function = helper.make_function(
        "own", "f", [], ["z"], [helper.make_node("Constant", [], ["z"], value=_external("f", "function.bin"))], []
    )
    model = helper.make_model(graph, functions=[function])
    helper.set_model_props(model, {"edge_sfda": "{}", "note": "ä"})
    return model


def test_head_has_the_metadata() -> None:
    assert read_head(_model().SerializeToString()).properties == {"edge_sfda": "{}", "note": "ä"}


def test_external_files_are_found_wherever_a_tensor_may_hide() -> None:
    found = read_head(_model().SerializeToString()).external
    assert set(found) == {"weights.bin", "sparse.bin", "then.bin", "function.bin"}


def test_model_without_external_files_has_none() -> None:
    graph = helper.make_graph([], "g", [], [], [helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])])
    assert read_head(helper.make_model(graph).SerializeToString()).external == ()


@pytest.mark.parametrize("cut", [1, 7, 100])
def test_truncated_model_is_told(cut: int) -> None:
    with pytest.raises(ValueError, match="it ends after"):
        read_head(_model().SerializeToString()[:-cut])


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_head(data)


def test_nesting_without_end_is_refused() -> None:
    data = b""
    for _ in range(400):  # graph in attribute in node in graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            size = len(data)
            length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
            data = tag + length + data
        if len(data) > 12000:
            break
    data = b"\x3a" + bytes([len(data) & 127 | 128, len(data) >> 7]) + data
    with pytest.raises(ValueError, match="nested too deep"):
        read_head(data)
