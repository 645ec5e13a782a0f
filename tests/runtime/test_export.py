from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from edge_sfda.errors import ArtefactError, UsageError
from edge_sfda.nets import Predictor
from edge_sfda.nets.bring_your_own import Hooked
from edge_sfda.runtime.artefact import METADATA_KEY, ArtefactInfo
from edge_sfda.runtime.export import ExportConfig, describe, read_info, to_onnx
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.trace import OPSET


def _run(model: onnx.ModelProto, frames: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, {"frame": frames}), strict=True))


def _signature(values: Any) -> dict[str, tuple[int, list[Any]]]:
    return {
        v.name: (v.type.tensor_type.elem_type, [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim])
        for v in values
    }


def test_model_keeps_the_contract_of_input_and_outputs(exported) -> None:
    graph = exported().graph
    assert _signature(graph.input) == {"frame": (TensorProto.UINT8, ["batch", 192, 256, 3])}
    assert _signature(graph.output) == {
        "mask": (TensorProto.UINT8, ["batch", 192, 256]),
        "confidence": (TensorProto.FLOAT, ["batch", 192, 256]),
    }


def test_model_of_any_size_keeps_the_contract(exported) -> None:
    graph = exported(dynamic=True).graph
    assert _signature(graph.input)["frame"][1] == ["batch", "height", "width", 3]
    assert _signature(graph.output)["mask"][1] == ["batch", "height", "width"]


@pytest.mark.parametrize("settings", [{}, {"precision": "fp16"}, {"precision": "int8"}, {"dynamic": True}])
def test_model_is_valid_of_one_opset_and_one_file(exported, settings: dict[str, Any]) -> None:
    model = exported(**settings)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": OPSET}
    assert not any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer)


def test_record_travels_in_the_model(exported, scene_net) -> None:
    model = onnx.load_from_string(exported(precision="fp16").SerializeToString())
    info = read_info(model)
    assert info == describe(*scene_net, ExportConfig(precision="fp16"))
    assert info.classes == scene_net[1].classes
    assert info.checkpoint_sha256 == scene_net[1].tensors_sha256
    assert (info.frame_size, info.network_size, info.outputs) == ((192, 256), (192, 256), ("mask", "confidence"))


def test_model_tells_nothing_of_the_machine_that_made_it(exported) -> None:
    assert not re.search(rb"/[a-z_]+/[a-z_./0-9-]+\.py", exported().SerializeToString())


@pytest.mark.parametrize("batch", [1, 3])
def test_batch_of_frames_gives_each_frames_mask(exported, scene_net, scene_frames, batch: int) -> None:
    frames = scene_frames()[:batch]
    out = _run(exported(), np.stack([frame.image for frame in frames]))
    for frame, mask, confidence in zip(frames, out["mask"], out["confidence"], strict=True):
        expected, certain = Predictor(*scene_net)(frame.image)
        assert (mask == expected).mean() > 0.9999
        np.testing.assert_allclose(confidence, certain, atol=1e-4)


def test_model_of_any_size_takes_any_size(exported, scene_net, scene_frames) -> None:
    for height, width in ((192, 256), (150, 301), (96, 128)):
        frame = scene_frames(1, height, width)[0]
        mask = _run(exported(dynamic=True), frame.image[None])["mask"][0]
        assert mask.shape == (height, width)
        assert (mask == Predictor(*scene_net)(frame.image)[0]).mean() > 0.98  # OpenCV's resize is of 11 bits


def test_half_model_holds_half_weights(exported) -> None:
    kinds = {t.data_type for t in exported(precision="fp16").graph.initializer if len(t.dims) == 4 and t.dims[0] > 3}
    assert kinds == {TensorProto.FLOAT16}


def test_int8_model_is_symmetric_with_first_layers_and_classifier_in_float(exported) -> None:
    graph = exported(precision="int8").graph
    made = {name: node for node in graph.node for name in node.output}
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert all(not np.any(values[node.input[2]]) for node in pairs)
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    plain = [node for node in convolutions if made[node.input[0]].op_type != "DequantizeLinear"]
    assert plain[:5] == convolutions[:5]  # stem, first block, and the second block's way to stride 4
    assert [list(node.output) for node in plain[5:]] == [["logits"]]
    assert len({values[made[node.input[1]].input[1]].size for node in convolutions if node not in plain} - {1}) > 1


def test_outputs_are_those_that_were_asked_for(make_small, noise) -> None:
    net, manifest = make_small()
    frame = noise(48, 64)[None]
    assert list(_run(to_onnx(net, manifest, ExportConfig(confidence=False)), frame)) == ["mask"]
    model = to_onnx(net, manifest, ExportConfig(logits=True))
    out = _run(model, frame)
    assert list(out) == ["mask", "confidence", "logits"]
    assert out["logits"].shape == (1, 4, 12, 16)
    assert read_info(model).outputs == ("mask", "confidence", "logits")


def test_smaller_set_of_outputs_has_no_nodes_to_spare(make_small) -> None:
    net, manifest = make_small()
    operators = {node.op_type for node in to_onnx(net, manifest, ExportConfig(confidence=False)).graph.node}
    assert not operators & {"Exp", "ReduceSum", "Reciprocal"}


def test_colour_order_is_that_of_the_frame(make_small, noise) -> None:
    net, manifest = make_small()
    image = noise(48, 64)
    bgr = _run(to_onnx(net, manifest, ExportConfig(logits=True)), image[None])
    model = to_onnx(net, manifest, ExportConfig(logits=True, colour_order="rgb"))
    rgb = _run(model, np.ascontiguousarray(image[None, :, :, ::-1]))
    np.testing.assert_allclose(rgb["logits"], bgr["logits"], atol=1e-5)
    assert read_info(model).colour_order == "rgb"


def test_shifted_logits_are_exported(make_small, noise) -> None:
    net, manifest = make_small()
    frame = noise(48, 64)[None]
    before = _run(to_onnx(net, manifest, ExportConfig(logits=True)), frame)["logits"]
    net.shift_logits(torch.tensor([0.0, 3.0, -2.0, 0.5]))
    after = _run(to_onnx(net, manifest, ExportConfig(logits=True)), frame)["logits"]
    np.testing.assert_allclose((after - before).mean((0, 2, 3)), [0.0, 3.0, -2.0, 0.5], atol=1e-4)


def test_other_frames_are_resized_in_the_graph(make_small, noise) -> None:
    net, manifest = make_small(48, 64)
    model = to_onnx(net, manifest, ExportConfig(frame_size=(150, 200)))
    image = noise(150, 200)
    mask = _run(model, image[None])["mask"][0]
    graph = FrameGraph(net, manifest.preprocessing, frame_size=(150, 200))
    assert (mask == graph(torch.from_numpy(image)[None])[0][0].numpy()).mean() > 0.999
    # 150 rows are more than three times 48: windows on whole pixels against OpenCV's fractions of them
    assert (mask == Predictor(net, manifest)(image)[0]).mean() > 0.93


@pytest.mark.parametrize("size", [(16, 64), (64, 31), (64, 9000)])
def test_size_out_of_range_is_wrong_usage(make_small, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"size {size[0]}x{size[1]} is out of range: this network takes 32..8192"):
        to_onnx(*make_small(), ExportConfig(frame_size=size))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "int4"}, "precision 'int4' is not known; choose one of fp32, fp16, int8"),
        ({"colour_order": "yuv"}, "colour order 'yuv'"),
        ({"dynamic": True, "frame_size": (64, 64)}, "exclude each other"),
    ],
)
def test_settings_out_of_range_are_wrong_usage(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportConfig(**settings)


def test_int8_without_frames_is_refused(make_small) -> None:
    with pytest.raises(ArtefactError, match="int8 needs frames"):
        to_onnx(*make_small(), ExportConfig(precision="int8"))


class Undecided(nn.Module):
    """Its way depends on the values: no exporter can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.backbone(x)
        return y if float(y.sum()) > 0 else -y


def test_network_that_does_not_trace_is_named(make_small) -> None:
    _, manifest = make_small()
    with pytest.raises(ArtefactError, match="Hooked does not export to ONNX"):
        to_onnx(Hooked(Undecided(), encoder_layer="backbone", classes=4), manifest, ExportConfig())


def test_missing_package_is_named_with_its_installation(make_small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sfda.runtime.packages.find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ArtefactError, match=r"export needs onnxscript, not installed here; run pip install"):
        to_onnx(*make_small(), ExportConfig())


@pytest.mark.parametrize("values", [[], ["{}"], ["{}", "{}"], ["no json"]])
def test_model_without_a_readable_record_is_foreign(values: list[str]) -> None:
    model = onnx.ModelProto()
    for value in values:
        model.metadata_props.add(key=METADATA_KEY, value=value)
    with pytest.raises(ArtefactError, match="edge-sfda"):
        read_info(model)


def test_record_of_the_contract_is_what_others_read(exported) -> None:
    session = onnxruntime.InferenceSession(exported().SerializeToString(), providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map[METADATA_KEY]
    assert ArtefactInfo.from_json(text) == read_info(exported())
