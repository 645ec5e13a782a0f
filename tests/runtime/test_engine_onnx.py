from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edge_sfda.errors import ArtefactError, EngineError
from edge_sfda.runtime import engine_onnx
from edge_sfda.runtime.engine import EngineConfig
from edge_sfda.runtime.engine_fake import bright, fake_info
from edge_sfda.runtime.engine_onnx import OnnxEngine
from edge_sfda.runtime.gpu import Gpu

CPU = EngineConfig(device="cpu", threads=1)


def _frames(count: int = 2, height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_mask_and_confidence_come_as_the_contract_has_them(tiny_onnx) -> None:
    engine = OnnxEngine(tiny_onnx(), CPU)
    frames = _frames()
    found = engine.run(frames, ("mask", "confidence"))
    assert (found.mask.dtype, found.mask.shape) == (np.uint8, (2, 16, 24))
    assert (found.mask == bright(frames)).all()
    assert found.confidence is not None
    assert np.allclose(found.confidence, frames[..., 0] / np.float32(255))


def test_output_that_is_not_asked_for_does_not_come(tiny_onnx) -> None:
    assert OnnxEngine(tiny_onnx(), CPU).run(_frames(), ("mask",)).confidence is None


def test_buffers_are_used_again_while_the_size_stays(tiny_onnx) -> None:
    engine = OnnxEngine(tiny_onnx(), CPU)
    first = engine.run(_frames(), ("mask",)).mask
    address, before = first.ctypes.data, first.copy()
    second = engine.run(_frames(seed=1), ("mask",)).mask
    assert second.ctypes.data == address
    assert (first == bright(_frames(seed=1))).all()
    assert (before != first).any()


def test_size_and_outputs_may_change_from_call_to_call(tiny_onnx) -> None:
    engine = OnnxEngine(tiny_onnx(), CPU)
    for count, height, width, outputs in [(1, 16, 24, ("mask",)), (3, 8, 9, ("mask", "confidence")), (1, 16, 24, ())]:
        frames = _frames(count, height, width)
        found = engine.run(frames, outputs)
        assert (found.mask == bright(frames)).all()
        assert (found.confidence is None) == ("confidence" not in outputs)


def test_closed_engine_says_so(tiny_onnx) -> None:
    engine = OnnxEngine(tiny_onnx(), CPU)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(_frames(), ("mask",))


def test_frames_of_another_size_than_the_models_are_an_engine_error(tiny_onnx) -> None:
    engine = OnnxEngine(tiny_onnx(info=fake_info(frame_size=(16, 24))), CPU)
    with pytest.raises(EngineError, match="ONNX Runtime failed on frames"):
        engine.run(_frames(1, 20, 24), ("mask",))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_real_export_gives_what_a_plain_session_gives(exported, scene_frames, tmp_path: Path, precision: str) -> None:
    model = exported(precision=precision)
    path = tmp_path / "scene.onnx"
    path.write_bytes(model.SerializeToString())
    frames = np.stack([frame.image for frame in scene_frames(2)])
    found = OnnxEngine(path, CPU).run(frames, ("mask", "confidence"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mask, confidence = session.run(None, {"frame": frames})
    assert (found.mask == mask).mean() > 0.9999
    assert found.confidence is not None
    assert np.allclose(found.confidence, confidence, atol=1e-3)


def test_logits_of_a_real_export_come_at_their_own_size(exported, scene_frames, tmp_path: Path) -> None:
    path = tmp_path / "scene.onnx"
    path.write_bytes(exported(logits=True).SerializeToString())
    engine = OnnxEngine(path, CPU)
    frames = np.stack([frame.image for frame in scene_frames(2)])
    found = engine.run(frames, engine.info.outputs)
    assert found.logits is not None
    assert found.logits.shape[:2] == (2, len(engine.info.classes))
    assert found.logits.shape[2] < 192


def _missing(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _text(path: Path) -> None:
    path.write_text("this is no model at all, only words")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing, "no ONNX model at"),
        (_empty, "carries no record"),
        (_truncated, "is damaged"),
        (_text, "no ONNX model"),
        (_folder, "no ONNX model at"),
    ],
)
def test_damaged_file_is_told_by_name(tiny_onnx, spoil, words: str) -> None:
    path = tiny_onnx()
    spoil(path)
    with pytest.raises(ArtefactError, match=words) as raised:
        OnnxEngine(path, CPU)
    assert "tiny.onnx" in str(raised.value)


@pytest.mark.parametrize(
    ("record", "words"),
    [("", "carries no record of edge-sfda"), ("{}", "unreadable artefact record"), ("not json", "unreadable")],
)
def test_foreign_model_is_refused(tiny_onnx, record: str, words: str) -> None:
    with pytest.raises(ArtefactError, match=words):
        OnnxEngine(tiny_onnx(record=record), CPU)


def test_model_whose_outputs_are_not_those_of_its_record_is_refused(tiny_onnx) -> None:
    other = fake_info(outputs=("mask",)).to_json()
    with pytest.raises(ArtefactError, match="its record says mask"):
        OnnxEngine(tiny_onnx(record=other), CPU)


def test_model_whose_size_is_not_that_of_its_record_is_refused(tiny_onnx) -> None:
    info = fake_info(frame_size=(16, 24))
    with pytest.raises(ArtefactError, match="its record says frames of 16x32"):
        OnnxEngine(tiny_onnx(info=info, record=fake_info(frame_size=(16, 32)).to_json()), CPU)


def test_model_that_takes_something_else_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["mask"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 3, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"edge_sfda": fake_info().to_json()})
    (tmp_path / "other.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match="expected one input frame"):
        OnnxEngine(tmp_path / "other.onnx", CPU)


def _point_outside(path: Path, location: str) -> None:
    model = onnx.load(path)
    tensor = model.graph.initializer[2]
    tensor.ClearField("float_data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("location", ["/etc/hostname", "../weights.bin", "a/../../weights.bin", "link/weights.bin"])
def test_weights_outside_the_models_folder_are_refused(tiny_onnx, tmp_path: Path, location: str) -> None:
    path = tiny_onnx()
    (tmp_path / "link").symlink_to(tmp_path.parent)
    _point_outside(path, location)
    with pytest.raises(ArtefactError, match="outside its own folder"):
        OnnxEngine(path, CPU)


def test_weights_beside_the_model_are_read_from_there(
    tiny_onnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_onnx()
    _point_outside(path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(np.float32(51).tobytes())
    monkeypatch.chdir("/")
    found = OnnxEngine(path, CPU).run(_frames(), ("mask", "confidence"))
    assert found.confidence is not None
    assert np.allclose(found.confidence, _frames()[..., 0] / np.float32(51))


def test_gpu_that_onnxruntime_has_no_code_for_is_an_error(tiny_onnx) -> None:
    if engine_onnx.CUDA in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    with pytest.raises(EngineError, match=r"has no CUDA; .*edge-sfda\[gpu\]"):
        OnnxEngine(tiny_onnx(), EngineConfig(device="cuda"))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "auto"])
def test_silent_fall_back_to_the_cpu_is_an_error(tiny_onnx, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    # what onnxruntime-gpu does where its CUDA libraries are missing: it lists CUDA and gives a session on the CPU
    made: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, providers: Any) -> Any:
        made.append(providers[0])
        return real(data, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [engine_onnx.CUDA, engine_onnx.CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(engine_onnx, "find_gpu", lambda: Gpu("a GPU", "1"))
    with pytest.raises(EngineError, match="fell back to CPUExecutionProvider"):
        OnnxEngine(tiny_onnx(), EngineConfig(device=device))
    assert made == [(engine_onnx.CUDA, {"device_id": "1" if device == "cuda:1" else "0"})]


def test_gpu_without_a_driver_is_an_error(tiny_onnx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [engine_onnx.CUDA, engine_onnx.CPU])
    monkeypatch.setattr(engine_onnx, "find_gpu", lambda: None)
    with pytest.raises(EngineError, match="there is no GPU or driver"):
        OnnxEngine(tiny_onnx(), EngineConfig(device="cuda"))


def test_auto_without_a_gpu_is_the_cpu_and_says_so(tiny_onnx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_onnx, "find_gpu", lambda: None)
    assert OnnxEngine(tiny_onnx(), EngineConfig(threads=1)).runs_on == "ONNX Runtime, CPU, 1 threads"


def test_missing_onnxruntime_names_what_installs_it(tiny_onnx, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_onnx()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"pip install 'edge-sfda\[cpu\]'"):
        OnnxEngine(path, CPU)
