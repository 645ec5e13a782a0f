from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
from onnx import ModelProto

from edge_sfda.errors import ArtefactError, EngineError
from edge_sfda.runtime import refit
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.export import ExportConfig, read_info, to_onnx
from edge_sfda.runtime.gpu import Gpu
from edge_sfda.runtime.refit import WeightTable, check_refit, refit_engine, table_path

ORIN = Gpu("Orin", "540")


@pytest.fixture(scope="module")
def models(make_small: Any) -> dict[str, ModelProto]:
    """Re-exports of one network: as it was, adapted, wider, and of other outputs."""
    net, manifest = make_small()
    old = to_onnx(net, manifest, ExportConfig())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    net.shift_logits(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    adapted = to_onnx(net, replace(manifest, tensors_sha256="cd" * 32), ExportConfig())
    wider = to_onnx(*make_small(channels=8), ExportConfig())
    return {
        "old": old,
        "adapted": adapted,
        "wider": wider,
        "mask": to_onnx(net, manifest, ExportConfig(confidence=False)),
    }


@pytest.fixture
def engine(models: dict[str, ModelProto], tmp_path: Path) -> Path:
    """A refittable engine of the old model, as far as files go."""
    return _engine(tmp_path / "a.engine", models["old"])


def _engine(path: Path, model: ModelProto, **changes: Any) -> Path:
    record = EngineFile(
        info=read_info(model),
        flavor="enterprise",
        tensorrt="10.3",
        gpu=ORIN.name,
        driver=ORIN.driver,
        refittable=True,
        verified_on_gpu=True,
        onnx_sha256=hashlib.sha256(model.SerializeToString()).hexdigest(),
    )
    WeightTable.of(model).write(path)
    replace(record, **changes).write(path, b"engine")
    return path


def test_adapted_weights_have_the_same_table(models: dict[str, ModelProto]) -> None:
    old, new = WeightTable.of(models["old"]), WeightTable.of(models["adapted"])
    assert old.differences(new) == []
    assert models["old"].graph.initializer != models["adapted"].graph.initializer


def test_adapted_weights_of_the_scenes_network_have_the_same_table(exported, scene_net) -> None:
    table = WeightTable.of(exported())
    assert len(table.weights) > 50
    assert table.differences(WeightTable.of(exported())) == []
    assert table.differences(WeightTable.of(exported(precision="fp16"))) != []


def test_other_network_differs_in_named_weights(models: dict[str, ModelProto]) -> None:
    found = WeightTable.of(models["old"]).differences(WeightTable.of(models["wider"]))
    assert any("was float [6, 3, 5, 5], is float [8, 3, 5, 5]" in difference for difference in found)


def test_weights_that_come_or_go_and_other_operators_are_told(models: dict[str, ModelProto]) -> None:
    table = WeightTable.of(models["old"])
    name = next(iter(table.weights))
    fewer = replace(table, weights={k: v for k, v in table.weights.items() if k != name})
    assert table.differences(fewer) == [f"{name} is gone"]
    assert fewer.differences(table) == [f"{name} is new"]
    assert table.differences(replace(table, graph_sha256="0")) == ["the operators differ"]


def test_table_comes_back_from_its_file(models: dict[str, ModelProto], tmp_path: Path) -> None:
    table = WeightTable.of(models["old"])
    table.write(tmp_path / "a.engine")
    assert WeightTable.read(tmp_path / "a.engine") == table


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weights": {"a": 1}, "graph_sha256": ""}'])
def test_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    table_path(tmp_path / "a.engine").write_text(text)
    with pytest.raises(ArtefactError, match="is no table of weights"):
        WeightTable.read(tmp_path / "a.engine")


def test_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="a.engine.weights.json, the weights' table of a.engine"):
        WeightTable.read(tmp_path / "a.engine")


@pytest.mark.parametrize(
    ("name", "message"),
    [("wider", "the new weights do not fit"), ("mask", "is for other classes, sizes, outputs or precision")],
)
def test_model_of_another_network_is_refused(
    models: dict[str, ModelProto], engine: Path, name: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        check_refit(engine, models[name])


def test_engine_with_fixed_weights_is_refused(models: dict[str, ModelProto], tmp_path: Path) -> None:
    path = _engine(tmp_path / "b.engine", models["old"], refittable=False)
    with pytest.raises(EngineError, match="was built with fixed weights; build it anew with --refittable"):
        check_refit(path, models["adapted"])


def test_int8_engine_is_refused(models: dict[str, ModelProto], tmp_path: Path) -> None:
    info = replace(read_info(models["old"]), precision="int8")
    path = _engine(tmp_path / "b.engine", models["old"], info=info)
    with pytest.raises(EngineError, match="ranges of its calibration frames"):
        check_refit(path, models["adapted"])


@pytest.mark.parametrize(
    ("gpu", "message"),
    [(None, "there is none here"), (Gpu("Orin", "541"), "with driver 540, here is Orin with 541")],
)
def test_refit_away_from_the_engines_gpu_is_refused(
    models: dict[str, ModelProto], engine: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None, message: str
) -> None:
    monkeypatch.setattr(refit, "find_gpu", lambda: gpu)
    with pytest.raises(EngineError, match=message):
        refit_engine(engine, models["adapted"])


def test_refit_hands_engine_and_model_on_and_gives_the_new_record(
    models: dict[str, ModelProto], engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run_worker(request: Any, inputs: Any, **limits: Any) -> bytes:
        asked.append((request, inputs))
        return b"swapped"

    monkeypatch.setattr(refit, "find_gpu", lambda: ORIN)
    monkeypatch.setattr(refit, "run_worker", run_worker)
    swapped, record = refit_engine(engine, models["adapted"])
    data = models["adapted"].SerializeToString()
    assert asked == [({"job": "refit", "flavor": "enterprise"}, {"onnx": data, "engine": b"engine"})]
    assert swapped == b"swapped"
    assert record.info.checkpoint_sha256 == "cd" * 32
    assert record.onnx_sha256 == hashlib.sha256(data).hexdigest()
    assert not record.verified_on_gpu
    assert EngineFile.read(engine)[1] == b"engine"  # the caller decides


def test_old_engine_stays_when_tensorrt_fails(
    models: dict[str, ModelProto], engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('no libnvinfer')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(refit, "find_gpu", lambda: ORIN)
    before = EngineFile.read(engine)
    with pytest.raises(EngineError, match=r"TensorRT \(enterprise\) failed to refit: no libnvinfer"):
        refit_engine(engine, models["adapted"])
    assert EngineFile.read(engine) == before
