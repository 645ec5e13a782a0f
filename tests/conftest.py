"""What all tests share: one thread, reproducible examples."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# before torch or OpenCV start their pools: the tensors here are small, and sums must not depend on the core count
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest

if TYPE_CHECKING:
    from edge_sfda.runtime.artefact import ArtefactInfo

# the same examples in every run, and no time limit each: a test must not fail because the machine is busy
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=40, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def ram_path() -> Iterator[Path]:
    """A folder in memory where the machine has one: a busy disk takes seconds for what is synced."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a model of the contract: class 1 where the first channel is 128 or more."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    from onnx import TensorProto, helper

    from edge_sfda.runtime.artefact import METADATA_KEY
    from edge_sfda.runtime.engine_fake import fake_info

    def write(
        name: str = "tiny.onnx", info: ArtefactInfo | None = None, *, record: str | None = None, turn: bool = False
    ) -> Path:
        info = info or fake_info()
        height, width = info.frame_size or ("height", "width")
        nodes = [
            helper.make_node("Gather", ["frame", "channel"], ["first"], axis=3),
            helper.make_node("Less" if turn else "GreaterOrEqual", ["first", "half"], ["over"]),
            helper.make_node("Cast", ["over"], ["mask"], to=TensorProto.UINT8),
            helper.make_node("Cast", ["first"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["float", "full"], ["confidence"]),
        ]
        shape = ["batch", height, width]
        outputs = {"mask": TensorProto.UINT8, "confidence": TensorProto.FLOAT}
        graph = helper.make_graph(
            [node for node in nodes if "confidence" in info.outputs or node.output[0] not in ("float", "confidence")],
            "tiny",
            [helper.make_tensor_value_info("frame", TensorProto.UINT8, [*shape, 3])],
            [helper.make_tensor_value_info(o, outputs[o], shape) for o in info.outputs],
            [
                helper.make_tensor("channel", TensorProto.INT64, [], [0]),
                helper.make_tensor("half", TensorProto.UINT8, [], [128]),
                helper.make_tensor("full", TensorProto.FLOAT, [], [255.0]),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        if record != "":
            helper.set_model_props(model, {METADATA_KEY: record or info.to_json()})
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write
