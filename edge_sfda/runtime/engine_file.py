"""An engine and the record beside it: NAME.engine, opaque bytes of one TensorRT, and NAME.engine.json. No torch.

The record is written last and holds the engine's hash, so that a pair that was torn apart, or a copy cut short, is
told before the bytes reach a deserialiser.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_sfda.errors import ArtefactError
from edge_sfda.files import write_atomic, write_text_atomic
from edge_sfda.runtime.artefact import ArtefactInfo

FLAVORS = ("enterprise", "rtx")
_MAX_RECORD = 10_000_000  # bytes


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """What stands beside an engine.

    Args:
        info: of the model that it was built from.
        engine_sha256: of the engine's bytes; filled in by `write`.
        flavor: `enterprise` (package tensorrt) or `rtx` (tensorrt_rtx).
        tensorrt: version that built it, and the only one that surely loads it.
        gpu: name of the GPU that it was built on; None: built without one, for the architectures of its flavor.
        driver: release of the driver; None without a GPU.
        refittable: its weights can be swapped.
        verified_on_gpu: it was run and held against the checkpoint.
        onnx_sha256: of the ONNX model that it was built from.

    Raises:
        ArtefactError: an unknown flavor.
    """

    info: ArtefactInfo
    flavor: str
    tensorrt: str
    gpu: str | None
    driver: str | None
    refittable: bool
    verified_on_gpu: bool
    onnx_sha256: str
    engine_sha256: str = ""

    def __post_init__(self) -> None:
        if self.flavor not in FLAVORS:
            raise ArtefactError(f"flavor {self.flavor!r} is not known; expected one of {', '.join(FLAVORS)}")

    def write(self, path: Path, engine: bytes) -> EngineFile:
        """Write the engine to `path` and this record beside it; returns the record as written.

        Raises:
            WriteError: a file cannot be written.
        """
        record = EngineFile(**{**vars(self), "engine_sha256": hashlib.sha256(engine).hexdigest()})
        write_atomic(path, engine)
        write_text_atomic(record_path(path), record.to_json() + "\n")
        return record

    def to_json(self) -> str:
        """Return the record as JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, indent=2)

    @staticmethod
    def read(path: Path) -> tuple[EngineFile, bytes]:
        """Return the record beside the engine at `path`, and the engine's bytes.

        Raises:
            ArtefactError: one of both is missing or unreadable, or the engine is not the one that the record is of.
        """
        record = EngineFile.read_record(path)
        try:
            engine = path.read_bytes()
        except OSError as error:
            raise ArtefactError(f"cannot read engine {path}: {error.strerror}; check the path") from error
        found = hashlib.sha256(engine).hexdigest()
        if found != record.engine_sha256:
            raise ArtefactError(
                f"engine {path} ({len(engine)} bytes) is not the one that {record_path(path).name} is of; damaged or "
                "replaced, copy both again or build it anew"
            )
        return record, engine

    @staticmethod
    def read_record(path: Path) -> EngineFile:
        """Return the record beside the engine at `path`.

        Raises:
            ArtefactError: missing, unreadable, or not a record of an engine.
        """
        beside = record_path(path)
        try:
            with beside.open(encoding="utf-8") as stream:
                text = stream.read(_MAX_RECORD)
        except (OSError, UnicodeDecodeError) as error:
            words = error.strerror if isinstance(error, OSError) else "not text"
            raise ArtefactError(
                f"cannot read {beside}, the record of engine {path.name}: {words}; copy both files"
            ) from error
        try:
            raw: dict[str, Any] = json.loads(text)
            return EngineFile(info=ArtefactInfo.from_json(json.dumps(raw.pop("info"))), **raw)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtefactError(f"{beside} is no record of an engine ({error}); build the engine anew") from error


def record_path(engine: Path) -> Path:
    """Return where the record of an engine lies."""
    return engine.with_name(engine.name + ".json")
