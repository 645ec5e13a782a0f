"""The order of calls that TensorRT asks for when weights are swapped; a GPU would be needed to make them for real."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sfda.runtime import trt_worker


class _Engine:
    def __init__(self) -> None:
        self.weights = b"old"

    def serialize(self) -> bytes:
        return b"engine of " + self.weights


class _Refitter:
    missing: tuple[str, ...] = ()
    accepts = True

    def __init__(self, engine: _Engine, logger: Any) -> None:
        self.engine, self.given = engine, b""

    def get_missing_weights(self) -> tuple[str, ...]:
        return self.missing

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = self.given
        return self.accepts


class _ParserRefitter:
    accepts = True

    def __init__(self, refitter: _Refitter, logger: Any) -> None:
        self.refitter = refitter

    def refit_from_bytes(self, model: bytes) -> bool:
        self.refitter.given = model
        return self.accepts


class _Logger:
    Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0, INFO=3)

    def log(self, severity: int, message: str) -> None:
        raise NotImplementedError


class _Runtime:
    def __init__(self, logger: _Logger) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, data: bytes) -> _Engine | None:
        if data != b"old engine":
            self.logger.log(3, "a remark")
            self.logger.log(1, "Serialization assertion\nstdVersionRead failed")
            return None
        return _Engine()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(
        ILogger=_Logger,
        Runtime=_Runtime,
        Refitter=type("Refitter", (_Refitter,), {}),
        OnnxParserRefitter=type("OnnxParserRefitter", (_ParserRefitter,), {}),
    )
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return module


def _ask(folder: Path, engine: bytes = b"old engine") -> int:
    (folder / "engine").write_bytes(engine)
    (folder / "onnx").write_bytes(b"new")
    request = {
        "job": "refit",
        "flavor": "enterprise",
        "engine": str(folder / "engine"),
        "onnx": str(folder / "onnx"),
        "out": str(folder / "out"),
    }
    (folder / "request.json").write_text(json.dumps(request))
    return trt_worker.main(str(folder / "request.json"))


def test_refit_gives_the_engine_of_the_new_weights(fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ask(tmp_path) == 0
    assert (tmp_path / "out").read_bytes() == b"engine of new"
    assert json.loads(capsys.readouterr().out) == {"ok": True}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda fake: setattr(fake.OnnxParserRefitter, "accepts", False), "the new weights do not fit the engine"),
        (lambda fake: setattr(fake.Refitter, "missing", ("a", "b")), "2 weights would stay old, a among them"),
        (lambda fake: setattr(fake.Refitter, "accepts", False), "did not take the new weights"),
    ],
)
def test_refit_that_fails_gives_no_engine(
    fake, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, message: str
) -> None:
    spoil(fake)
    assert _ask(tmp_path) == 1
    assert not (tmp_path / "out").exists()
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_engine_of_another_version_is_told_in_tensorrts_words(
    fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ask(tmp_path, b"foreign") == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error == "the engine does not load here (Serialization assertion stdVersionRead failed)"
