from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sfda.errors import ArtefactError, WriteError
from edge_sfda.manifest import Classes
from edge_sfda.runtime.artefact import ArtefactInfo
from edge_sfda.runtime.engine_file import EngineFile, record_path

INFO = ArtefactInfo(
    classes=Classes(("road", "car"), ((128, 64, 128), (0, 0, 142))),
    colour_order="rgb",
    frame_size=(64, 96),
    network_size=(64, 96),
    outputs=("mask",),
    precision="fp16",
    checkpoint_sha256="ab" * 32,
    min_side=32,
    producer="edge-sfda 0.1.0",
)
RECORD = EngineFile(
    info=INFO,
    flavor="rtx",
    tensorrt="1.7.1",
    gpu=None,
    driver=None,
    refittable=False,
    verified_on_gpu=False,
    onnx_sha256="cd" * 32,
)


def test_engine_and_record_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.engine"
    written = RECORD.write(path, b"engine")
    assert len(written.engine_sha256) == 64
    assert EngineFile.read(path) == (written, b"engine")
    assert record_path(path).name == "a.engine.json"


@pytest.mark.parametrize("engine", [b"", b"engin", b"another"])
def test_engine_that_is_not_the_records_is_refused(tmp_path: Path, engine: bytes) -> None:
    path = tmp_path / "a.engine"
    RECORD.write(path, b"engine")
    path.write_bytes(engine)
    with pytest.raises(ArtefactError, match="is not the one that a.engine.json is of"):
        EngineFile.read(path)


@pytest.mark.parametrize("missing", ["a.engine", "a.engine.json"])
def test_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "a.engine"
    RECORD.write(path, b"engine")
    (tmp_path / missing).unlink()
    with pytest.raises(ArtefactError, match=rf"cannot read .*{missing}\b"):
        EngineFile.read(path)


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"info": {}}', b"\xff\xfe", b"[" * 100_000])
def test_record_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.engine"
    RECORD.write(path, b"engine")
    record_path(path).write_bytes(text)
    with pytest.raises(ArtefactError):
        EngineFile.read(path)


@pytest.mark.parametrize(("field", "value"), [("flavor", "other"), ("surprise", 1), ("info", None)])
def test_record_with_a_wrong_field_is_refused(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "a.engine"
    raw = json.loads(RECORD.write(path, b"engine").to_json())
    raw[field] = value
    record_path(path).write_text(json.dumps(raw))
    with pytest.raises(ArtefactError):
        EngineFile.read(path)


def test_folder_that_is_missing_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="create its folder first"):
        RECORD.write(tmp_path / "none" / "a.engine", b"engine")
