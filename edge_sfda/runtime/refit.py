"""New weights for an engine that is there: seconds instead of minutes, guarded before and after.

The weights come from a re-export, never from the checkpoint: the exporter folds BatchNorm into the convolutions. It
also merges weights that happen to be equal, so a re-export may have another graph; the table tells before anything is
touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_sfda.errors import ArtefactError, EngineError
from edge_sfda.files import write_text_atomic
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.export import read_info
from edge_sfda.runtime.gpu import find_gpu
from edge_sfda.runtime.trt_build import run_worker

if TYPE_CHECKING:
    from onnx import ModelProto

Row = tuple[tuple[int, ...], str]  # shape and dtype of a weight


@dataclass(frozen=True)
class WeightTable:
    """What the weights of a model are, apart from their values.

    Args:
        weights: shape and dtype by name.
        graph_sha256: of everything else that computes: operators, their order, attributes and names.
    """

    weights: Mapping[str, Row]
    graph_sha256: str

    @staticmethod
    def of(model: ModelProto) -> WeightTable:
        """Return the table of a model."""
        from onnx import TensorProto

        digest = hashlib.sha256()
        for node in model.graph.node:
            digest.update(node.SerializeToString(deterministic=True))
        rows = {t.name: (tuple(t.dims), TensorProto.DataType.Name(t.data_type)) for t in model.graph.initializer}
        return WeightTable(rows, digest.hexdigest())

    def differences(self, other: WeightTable) -> list[str]:
        """Return in words what keeps the weights of `other` from taking the place of these; empty when nothing does."""
        found = [f"{name} is gone" for name in sorted(set(self.weights) - set(other.weights))]
        found += [f"{name} is new" for name in sorted(set(other.weights) - set(self.weights))]
        for name in sorted(set(self.weights) & set(other.weights)):
            if self.weights[name] != other.weights[name]:
                found.append(f"{name} was {_words(self.weights[name])}, is {_words(other.weights[name])}")
        if not found and self.graph_sha256 != other.graph_sha256:
            found.append("the operators differ")
        return found

    def write(self, engine: Path) -> None:
        """Write the table beside an engine.

        Raises:
            WriteError: it cannot be written.
        """
        rows = {name: [list(shape), dtype] for name, (shape, dtype) in self.weights.items()}
        text = json.dumps({"graph_sha256": self.graph_sha256, "weights": rows}, sort_keys=True, indent=1)
        write_text_atomic(table_path(engine), text + "\n")

    @staticmethod
    def read(engine: Path) -> WeightTable:
        """Read the table beside an engine.

        Raises:
            ArtefactError: missing or unreadable.
        """
        path = table_path(engine)
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            rows = {str(n): (tuple(int(d) for d in shape), str(kind)) for n, (shape, kind) in raw["weights"].items()}
            return WeightTable(rows, str(raw["graph_sha256"]))
        except OSError as error:
            raise ArtefactError(
                f"cannot read {path}, the weights' table of {engine.name}: {error.strerror}; copy it too, or build anew"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtefactError(f"{path} is no table of weights ({error}); build the engine anew") from error


def table_path(engine: Path) -> Path:
    """Return where the table of an engine's weights lies."""
    return engine.with_name(engine.name + ".weights.json")


def check_refit(engine: Path, model: ModelProto) -> EngineFile:
    """See that the weights of a model may take the place of an engine's; returns the engine's record.

    Raises:
        ArtefactError: record, engine or table are missing or damaged.
        EngineError: it was not built for it, or the model is another one; the message says in what.
    """
    record, _ = EngineFile.read(engine)
    if not record.refittable:
        raise EngineError(f"{engine} was built with fixed weights; build it anew with --refittable")
    if record.info.precision == "int8":
        raise EngineError("an int8 engine holds the ranges of its calibration frames as well; build it anew")
    new = read_info(model)
    if replace(new, checkpoint_sha256="", producer="") != replace(record.info, checkpoint_sha256="", producer=""):
        raise EngineError(f"{engine} is for other classes, sizes, outputs or precision; build it anew")
    differences = WeightTable.read(engine).differences(WeightTable.of(model))
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise EngineError(
            f"the new weights do not fit {engine}: {'; '.join(differences[:3])}{more}; build the engine anew"
        )
    return record


def refit_engine(engine: Path, model: ModelProto, *, limit_s: float = 600.0) -> tuple[bytes, EngineFile]:
    """Return the engine with a model's weights, and its record; the file itself is not touched.

    Args:
        engine: the old one, with its record and table beside it.
        model: the re-export of the new checkpoint.
        limit_s: after so many seconds it is given up.

    Raises:
        ArtefactError, EngineError: see `check_refit`; or TensorRT failed, is another version, or there is no GPU.
    """
    record = check_refit(engine, model)
    gpu = find_gpu()
    if gpu is None:
        raise EngineError("refitting needs the GPU that the engine runs on, and there is none here; run this there")
    if (record.gpu, record.driver) != (gpu.name, gpu.driver):
        raise EngineError(
            f"{engine} was built on {record.gpu} with driver {record.driver}, here is {gpu.name} with {gpu.driver}; "
            "build it anew"
        )
    data = model.SerializeToString()
    request = {"job": "refit", "flavor": record.flavor}
    swapped = run_worker(request, {"onnx": data, "engine": engine.read_bytes()}, limit_s=limit_s)
    return swapped, replace(
        record,
        info=read_info(model),
        onnx_sha256=hashlib.sha256(data).hexdigest(),
        engine_sha256="",
        verified_on_gpu=False,
    )


def _words(row: Row) -> str:
    return f"{row[1].lower()} {list(row[0])}"
