"""Processes around the node: it, one that publishes and one that listens, in a ROS domain of their own on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sfda.data.sources import open_source

ROOT = Path(__file__).parents[3]
MODEL = ROOT / "edge_sfda" / "assets" / "scene_day_nano.safetensors"
COUNT = 4

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),  # another run on this machine is another world
    "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    "OMP_NUM_THREADS": "1",
}


class Peer:
    """A process of `peer.py`; called with a command, it returns the answer."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )

    def __call__(self, do: str, **words: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer

    def diagnostics(self, until: str) -> dict[str, Any]:
        """Return the next diagnostics with these words in them."""
        return self("listen", topic="/diagnostics", kind="DiagnosticArray", until=until)

    def events(self, until: str) -> list[dict[str, Any]]:
        """Return what was told on ~/events since the last time, up to an event with these words in it."""
        return [json.loads(text) for text in self("followed", topic="/edge_sfda/events", until=until)["texts"]]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass(frozen=True, eq=False)
class Street:
    """Frames, none like another, also as a file for the publisher: uint8 BGR [N, H, W, 3]."""

    file: Path
    frames: np.ndarray[Any, Any]


@contextlib.contextmanager
def started(log: Path, *words: str, **parameters: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a node; its parameters are those of the arguments, `__` standing for a dot."""
    given = {"diagnostics_period_s": 0.1, **parameters}
    arguments = [part for name, value in given.items() for part in ("-p", f"{name.replace('__', '.')}:={value}")]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_sfda.live.ros", "--ros-args", *arguments, *words],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=ENVIRONMENT,
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def start_node(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Return a function that starts a node, which ends with the test; `tmp_path/node.log` has what it says."""
    with contextlib.ExitStack() as stack:
        yield lambda *words, **parameters: stack.enter_context(started(tmp_path / "node.log", *words, **parameters))


@pytest.fixture(scope="module")
def publisher() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def listener() -> Iterator[Peer]:
    peer = Peer()
    peer("follow", topic="/edge_sfda/events")
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Street:
    with open_source(f"scene:day?frames={COUNT}&fps=2&seed=5&size=96x128") as source:
        frames = np.stack([frame.image for frame in source])
    file = tmp_path_factory.mktemp("street") / "frames.npz"
    np.savez(file, frames=frames)
    return Street(file, frames)


@pytest.fixture
def onnx_model(tiny_onnx: Callable[..., Path]) -> Path:
    """A model whose mask shows where a frame's first channel, blue, is bright: it tells when colours are swapped."""
    return tiny_onnx("student.onnx")
