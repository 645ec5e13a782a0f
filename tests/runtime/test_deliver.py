from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="delivers ONNX models")
from onnx import ModelProto

from edge_sfda.errors import WriteError
from edge_sfda.manifest import Classes
from edge_sfda.runtime.artefact import METADATA_KEY, ArtefactInfo
from edge_sfda.runtime.deliver import deliver_engine, deliver_onnx
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.parity import Parity

INFO = ArtefactInfo(
    classes=Classes(("road", "car"), ((128, 64, 128), (0, 0, 142))),
    colour_order="bgr",
    frame_size=None,
    network_size=(180, 240),
    outputs=("mask",),
    precision="int8",
    checkpoint_sha256="ab" * 32,
    min_side=32,
    producer="edge-sfda 0.1.0",
)
PARITY = Parity(
    precision="int8",
    frames=16,
    agreement=0.9912,
    miou_between=0.95,
    max_logit_error=0.8,
    max_logit=14.0,
    max_confidence_error=None,
    host_agreement=0.99,
    resized=True,
    miou_torch=0.51,
    miou_artefact=0.507,
    labelled=12,
    layers_asked={"fp32": 1, "int8": 60},
    layers_reached={"fp32": 3, "int8": 58},
    artefact_ms=(10.0, 11.0, 12.5),
    torch_ms=(20.0, 22.0, 24.0),
    conditions={"provider": "CPUExecutionProvider", "onnxruntime": "1", "torch": "2", "threads": 1, "machine": "x"},
)
BAD = replace(PARITY, agreement=0.5, max_logit_error=float("inf"))


def _model() -> ModelProto:
    model = ModelProto()
    model.metadata_props.add(key=METADATA_KEY, value=INFO.to_json())
    return model


def test_accepted_model_lies_under_its_name_beside_its_report(tmp_path: Path) -> None:
    made = deliver_onnx(_model(), PARITY, tmp_path / "a.onnx")
    assert made.problems == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx", "a.onnx.report.json", "a.onnx.report.txt"]
    assert made.path.read_bytes() == _model().SerializeToString()
    report = json.loads(made.report.read_text())
    assert report["accepted"] is True
    assert report["parity"]["agreement"] == 0.9912
    assert report["parity"]["miou_lost"] == pytest.approx(0.003)
    assert report["info"]["classes"]["names"] == ["road", "car"]
    page = (tmp_path / "a.onnx.report.txt").read_text()
    for text in (
        "a.onnx: accepted",
        "any size, BGR; the network sees 180x240",
        "99.1200 % of the pixels (the module that was traced)",
        "torch 51.00, this 50.70, lost 0.30",
        "3 fp32, 58 int8 (CPUExecutionProvider)",
        "11.0 ms (10.0 to 12.5), torch 22.0 ms",
    ):
        assert text in page
    assert max(len(line) for line in page.splitlines()) <= 120


def test_rejected_model_lies_aside_and_an_older_one_stays(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"older")
    made = deliver_onnx(_model(), BAD, tmp_path / "a.onnx")
    assert made.path == tmp_path / "a.onnx.rejected"
    assert made.path.is_file()
    assert (tmp_path / "a.onnx").read_bytes() == b"older"
    report = json.loads((tmp_path / "a.onnx.rejected.report.json").read_text())
    assert report["accepted"] is False
    assert report["parity"]["max_logit_error"] is None
    assert "int8 must reach 97.0 %" in report["problems"][0]
    assert "REJECTED" in (tmp_path / "a.onnx.rejected.report.txt").read_text()
    assert not (tmp_path / "a.onnx.report.json").exists()


def test_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot write"):
        deliver_onnx(_model(), PARITY, tmp_path / "none" / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_no_artefact_and_nothing_half_written(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from edge_sfda.errors import WriteError\n"
        "from edge_sfda.files import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "import importlib.util as u\n"
        "spec = u.spec_from_file_location('t', sys.argv[1]); t = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(t)\n"
        "model = t._model(); model.doc_string = 'x' * 50_000\n"
        "try:\n    t.deliver_onnx(model, t.PARITY, Path(sys.argv[2]) / 'a.onnx')\n"
        "except WriteError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, __file__, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "free some space" in ran.stdout, ran.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.onnx.report.json", "a.onnx.report.txt"]


@pytest.mark.parametrize("gpu", [None, "NVIDIA Orin"])
def test_engine_lies_beside_its_record_and_says_whether_it_was_run(tmp_path: Path, gpu: str | None) -> None:
    record = EngineFile(
        info=INFO,
        flavor="rtx",
        tensorrt="1.7",
        gpu=gpu,
        driver=gpu and "580.1",
        refittable=gpu is not None,
        verified_on_gpu=gpu is not None,
        onnx_sha256="00",
    )
    made = deliver_engine(b"engine", record, tmp_path / "a.engine", model=_model(), parity=PARITY)
    assert EngineFile.read(made.path)[1] == b"engine"
    page = (tmp_path / "a.engine.report.txt").read_text()
    report = json.loads(made.report.read_text())
    if gpu is None:
        assert "built without a GPU" in page
        assert "not verified on a GPU" in page
        assert report["verified"] == "not verified on a GPU"
        assert not (tmp_path / "a.engine.weights.json").exists()
    else:
        assert "NVIDIA Orin, driver 580.1" in page
        assert report["verified"] == "verified on this GPU"
        assert (tmp_path / "a.engine.weights.json").is_file()
