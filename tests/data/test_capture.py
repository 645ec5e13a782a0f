from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from edge_sfda.data.capture import open_quietly, quiet


def test_quiet_restores_the_level_after_the_outermost_block() -> None:
    before = cv2.utils.logging.getLogLevel()
    silent = cv2.utils.logging.LOG_LEVEL_SILENT
    assert before != silent
    with quiet():
        with quiet():
            assert cv2.utils.logging.getLogLevel() == silent
        assert cv2.utils.logging.getLogLevel() == silent
    assert cv2.utils.logging.getLogLevel() == before


def test_quiet_restores_the_level_after_an_error() -> None:
    before = cv2.utils.logging.getLogLevel()
    with pytest.raises(KeyError), quiet():
        raise KeyError
    assert cv2.utils.logging.getLogLevel() == before


def test_open_quietly_keeps_decoders_off_stderr(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    capture = open_quietly(str(tmp_path / "a.mp4"))
    assert not capture.isOpened()
    assert capfd.readouterr().err == ""
