"""The script is run as users run it, in a process of its own, and held to the Segmenter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda import Segmenter
from edge_sfda.data.frames import read_label
from edge_sfda.runtime.engine_fake import fake_info

SCRIPT = Path(__file__).parents[2] / "deploy" / "onnx_minimal.py"


@pytest.mark.parametrize("colour_order", ["bgr", "rgb"])
@pytest.mark.parametrize("frame_size", [None, (40, 56)])
def test_script_gives_the_segmenters_mask(tiny_onnx, tmp_path: Path, frame_size, colour_order: str) -> None:
    model = tiny_onnx(info=fake_info(frame_size=frame_size, colour_order=colour_order))
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "frame.png"), image)
    command = [sys.executable, str(SCRIPT), str(model), str(tmp_path / "frame.png"), str(tmp_path / "mask.png")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    mask = Segmenter.load(model, device="cpu", threads=1, colour_order="bgr")(image)
    assert (read_label(tmp_path / "mask.png") == mask).all()
    assert ran.stdout.startswith("{'dark': ")


def test_script_has_fifteen_lines_and_imports_nothing_of_the_package() -> None:
    lines = [line for line in SCRIPT.read_text().splitlines() if line.strip()]
    assert len(lines) <= 15
    assert not any("import edge_sfda" in line or "from edge_sfda" in line or "torch" in line for line in lines)
