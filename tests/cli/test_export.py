from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
import onnx

from edge_sfda import checkpoint
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build
from edge_sfda.runtime import parity, trt_build
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.export import read_info
from edge_sfda.runtime.refit import WeightTable

FACTORY = "their_segmentation:small"
SCENE = "scene:dusk?frames=3&fps=1&size=48x64"


class Small(nn.Module):
    """A third party's: exports in a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, len(SCENE_CLASSES), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.backbone(x))
        return y


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a network that the package does not know, importable as `FACTORY`; adapted in its offsets."""
    torch.manual_seed(0)
    (tmp_path / "their_segmentation.py").write_text("from edge_sfda_test_net import Small as small\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "edge_sfda_test_net", sys.modules[__name__])
    monkeypatch.delitem(sys.modules, "their_segmentation", raising=False)
    manifest = Manifest(NetSpec(FACTORY, 0, "backbone"), SCENE_CLASSES, Preprocessing(48, 64))
    net = build(manifest.net, len(SCENE_CLASSES), allow=FACTORY)
    with torch.no_grad():
        net.net.head.weight.mul_(20)
    net.shift_logits(torch.linspace(-1, 1, len(SCENE_CLASSES)))
    path = tmp_path / "small.safetensors"
    checkpoint.save(path, net.state_dict(), manifest)
    return path


@pytest.fixture
def export(run_cli, small: Path, tmp_path: Path) -> Callable[..., object]:
    """Export the small network into `out`."""
    return lambda *args: run_cli("export", small, "--net", FACTORY, "-o", tmp_path / "out", *args)


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_export_writes_a_model_with_its_report_and_sums_up(export, small: Path, tmp_path: Path) -> None:
    ran = export("--calibrate", SCENE)
    assert (ran.code, ran.err) == (0, "")
    report = ["small-fp32.onnx.report.json", "small-fp32.onnx.report.txt"]
    assert _names(tmp_path / "out") == ["small-fp32.onnx", *report]
    assert ran.out.splitlines()[0].startswith(f"{tmp_path / 'out' / 'small-fp32.onnx'}   0.0")
    assert "% of the pixels of 3 frames" in ran.out
    model = onnx.load(tmp_path / "out" / "small-fp32.onnx")
    assert read_info(model).checkpoint_sha256 == checkpoint.read_manifest(small).tensors_sha256


def test_export_json_is_a_list_of_what_was_made(export, tmp_path: Path) -> None:
    ran = export("--json", "--colour-order", "rgb", "--logits", "--no-confidence", "--size", "60x80")
    (made,) = json.loads(ran.out)
    assert made["path"] == str(tmp_path / "out" / "small-fp32.onnx")
    assert made["info"]["colour_order"] == "rgb"
    assert made["info"]["outputs"] == ["mask", "logits"]
    assert made["info"]["frame_size"] == [60, 80]
    assert made["parity"]["frames"] == 16
    assert made["parity"]["agreement"] > 0.999
    assert json.loads(Path(made["report"]).read_text())["parity"] == made["parity"]


def test_frames_of_any_size_are_compared_in_two_sizes(export) -> None:
    (made,) = json.loads(export("--json", "--dynamic").out)
    assert made["info"]["frame_size"] is None
    assert made["parity"]["frames"] == 16
    assert made["parity"]["resized"] is True


def test_int8_takes_its_ranges_from_the_frames_and_labels_tell_what_it_costs(export) -> None:
    (made,) = json.loads(export("--json", "--precision", "int8", "--calibrate", SCENE).out)
    assert made["parity"]["layers_asked"]["int8"] >= 1
    assert made["parity"]["labelled"] == 3  # the scene has its own
    assert made["parity"]["miou_lost"] == pytest.approx(made["parity"]["miou_torch"] - made["parity"]["miou_artefact"])


def test_labels_are_found_by_the_frames_names(export, drive: Path) -> None:
    (made,) = json.loads(export("--json", "--calibrate", drive / "images", "--labels", drive / "labels").out)
    assert made["parity"]["labelled"] == 3


def test_model_below_its_bound_is_kept_aside_and_exit_1(
    export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "AGREEMENT", {"fp32": 1.1})
    ran = export("--calibrate", SCENE, "--trt")
    assert ran.code == 1
    assert "fp32 must reach 110.0 %; kept aside as" in ran.err
    assert "small-fp32.onnx.rejected" in _names(tmp_path / "out")
    assert "small-fp32.onnx" not in _names(tmp_path / "out")
    assert not (tmp_path / "out" / "small-fp32.engine").exists()
    assert json.loads((tmp_path / "out" / "small-fp32.onnx.rejected.report.json").read_text())["accepted"] is False


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="needs the package tensorrt_rtx")
def test_engine_is_built_without_a_gpu_and_says_that_it_was_not_run(
    export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trt_build, "find_gpu", lambda: None)
    ran = export("--trt", "--onnx", "--trt-flavor", "rtx", "--calibrate", SCENE)
    assert (ran.code, ran.err) == (0, "")
    assert "not verified on a GPU" in ran.out
    engine = tmp_path / "out" / "small-fp32.engine"
    record, _ = EngineFile.read(engine)
    assert (record.flavor, record.verified_on_gpu) == ("rtx", False)
    assert (tmp_path / "out" / "small-fp32.onnx").is_file()
    assert "not verified on a GPU" in (tmp_path / "out" / "small-fp32.engine.report.txt").read_text()


def _refittable(engine: Path, model: Path) -> None:
    loaded = onnx.load(model)
    record = EngineFile(
        info=read_info(loaded),
        flavor="rtx",
        tensorrt="1.7",
        gpu="A",
        driver="1",
        refittable=True,
        verified_on_gpu=True,
        onnx_sha256="00",
    )
    WeightTable.of(loaded).write(engine)
    record.write(engine, b"old engine")


def test_refit_swaps_the_engine_in_place_or_leaves_it(
    run_cli, export, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_sfda.runtime import refit
    from edge_sfda.runtime.gpu import Gpu

    export("--calibrate", SCENE)
    engine = tmp_path / "boat" / "small-fp32.engine"
    engine.parent.mkdir()
    _refittable(engine, tmp_path / "out" / "small-fp32.onnx")
    command = ("export", small, "--net", FACTORY, "--refit", engine, "--calibrate", SCENE)
    monkeypatch.setattr(refit, "find_gpu", lambda: None)
    ran = run_cli(*command)
    assert ran.code == 1
    assert "refitting needs the GPU" in ran.err
    assert EngineFile.read(engine)[1] == b"old engine"
    monkeypatch.setattr(refit, "find_gpu", lambda: Gpu("A", "1"))
    monkeypatch.setattr(refit, "run_worker", lambda *args, **kwargs: b"new engine")
    ran = run_cli(*command)
    assert (ran.code, ran.err) == (0, "")
    assert EngineFile.read(engine)[1] == b"new engine"
    assert "not verified on a GPU" in ran.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--size", "big"), "--size 'big' is no size; write height x width"),
        (("--size", "16x64"), "size 16x64 is out of range"),
        (("--size", "64x64", "--dynamic"), "exclude each other"),
        (("--precision", "int4"), "precision 'int4' is not known"),
        (("--precision", "int8"), "int8 takes its ranges from frames; give --calibrate"),
        (("--labels", "x"), "--labels needs the frames that they are of"),
        (("--colour-order", "yuv"), "colour order 'yuv' is not known"),
        (("--refittable",), "--refittable is a property of engines; add --trt"),
        (("--trt-flavor", "other"), "TensorRT flavor 'other' is not known"),
        (("--trt", "--refit", "x.engine"), "give one of both"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(export, tmp_path: Path, args: tuple[str, ...], message: str) -> None:
    ran = export(*args)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert not (tmp_path / "out").exists() or _names(tmp_path / "out") == []


def test_folder_must_be_named(run_cli, nano: Path) -> None:
    ran = run_cli("export", nano)
    assert ran.code == 2
    assert "-o is missing" in ran.err


def test_missing_tensorrt_is_told_before_the_work(export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_build, "find_spec", lambda name: None)
    ran = export("--trt", "--trt-flavor", "rtx")
    assert ran.code == 1
    assert "needs the package tensorrt_rtx, not installed here; pip install 'edge-sfda[tensorrt-rtx]'" in ran.err
    assert _names(tmp_path / "out") == []


def test_missing_exporter_is_told_before_the_work(export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sfda.runtime.packages.find_spec", lambda name: None)
    ran = export()
    assert ran.code == 1
    assert "pip install 'edge-sfda[cpu]'" in ran.err
    assert not (tmp_path / "out").exists()


def _empty(folder: Path) -> tuple[object, ...]:
    (folder / "empty").mkdir()
    return "--calibrate", folder / "empty"


def _broken_frame(folder: Path) -> tuple[object, ...]:
    (folder / "frames").mkdir()
    (folder / "frames" / "a.png").write_bytes(b"no picture")
    return "--calibrate", folder / "frames"


def _tiny_frame(folder: Path) -> tuple[object, ...]:
    cv2.imwrite(str(folder / "t.png"), np.zeros((20, 20, 3), np.uint8))
    return "--calibrate", folder / "t.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: ("--calibrate", folder / "none"), "nothing at"),
        (_empty, "holds no pictures"),
        (_broken_frame, "is not a picture"),
        (_tiny_frame, "too small"),
        (lambda folder: ("--refit", folder / "none.engine"), "none.engine.json"),
    ],
)
def test_bad_frames_and_files_are_one_line_and_nothing_is_made(export, tmp_path: Path, make, message: str) -> None:
    ran = export(*make(tmp_path))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert not (tmp_path / "out").exists() or _names(tmp_path / "out") == []


def test_truncated_checkpoint_is_refused(export, small: Path, tmp_path: Path) -> None:
    small.write_bytes(small.read_bytes()[:-10])
    ran = export()
    assert ran.code == 1
    assert "truncated" in ran.err
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_refused_before_the_work(export, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("taken")
    ran = export()
    assert ran.code == 1
    assert "cannot make the folder" in ran.err


def test_labels_without_a_frame_are_wrong_usage(export, drive: Path, tmp_path: Path) -> None:
    for path in sorted((drive / "labels").iterdir()):
        path.rename(path.with_name("other-" + path.name))
    ran = export("--calibrate", drive / "images", "--labels", drive / "labels")
    assert ran.code == 2
    assert "has the name of a frame of" in ran.err
