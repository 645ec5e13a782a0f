"""The command line, run in this process: same code path as the entry point, without the start-up of an interpreter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from edge_sfda import checkpoint
from edge_sfda.cli import main
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build


@dataclass(frozen=True)
class Ran:
    """What a command came to."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "120")

    def run(*args: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(arg) for arg in args])
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Ran(stop.value.code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of fresh weights for the scene's classes: fast, and as good as a guess."""
    torch.manual_seed(0)
    manifest = Manifest(NetSpec("nano"), SCENE_CLASSES, Preprocessing(48, 64))
    net = build(manifest.net, len(SCENE_CLASSES))
    path = tmp_path_factory.mktemp("nets") / "nano.safetensors"
    checkpoint.save(path, net.state_dict(), manifest)
    return path


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A labelled sequence of three frames, ids as in the scene's classes."""
    root = tmp_path / "drive"
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir(parents=True)
    for index in range(3):
        image = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        label = np.repeat(np.arange(10, dtype=np.uint8), 4)[:, None].repeat(56, 1)
        cv2.imwrite(str(root / "images" / f"f{index}.png"), image)
        cv2.imwrite(str(root / "labels" / f"f{index}.png"), label)
    return root
