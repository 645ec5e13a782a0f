from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_sfda.data.sources import VideoSource
from edge_sfda.data.video import VideoWriter
from edge_sfda.errors import FrameError, UsageError, WriteError


def _picture(value: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("name", ["v.mp4", "v.avi", "V.MP4"])
def test_video_is_read_back_with_its_frames_and_rate(tmp_path: Path, name: str) -> None:
    with VideoWriter(tmp_path / name, fps=5) as video:
        for value in (10, 120, 240):
            video.write(_picture(value))
        assert not (tmp_path / name).exists()  # not before it is whole
    with VideoSource(tmp_path / name) as source:
        assert source.fps == 5
        means = [float(frame.image.mean()) for frame in source]
    assert means == pytest.approx([10, 120, 240], abs=6)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_interrupt_keeps_what_there_is_and_an_error_nothing(tmp_path: Path) -> None:
    for error, kept in ((KeyboardInterrupt, True), (FrameError, False)):
        path = tmp_path / f"{error.__name__}.avi"
        video = VideoWriter(path)
        video.write(_picture(1))
        video.__exit__(error, error(), None)
        assert path.exists() == kept
    assert len(list(tmp_path.iterdir())) == 1


def test_video_of_no_frames_leaves_nothing(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.avi"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "v.avi") as video:
        video.write(_picture(1))
        with pytest.raises(FrameError, match="32x64 in a video of"):
            video.write(_picture(1, 32))


def test_unknown_suffix_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'.gif'; expected one of .mp4, .avi"):
        VideoWriter(tmp_path / "v.gif")


def test_missing_folder_is_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="choose another place"):
        VideoWriter(tmp_path / "none" / "v.avi")


def test_video_that_was_cut_short_is_a_write_error_and_not_left(tmp_path: Path) -> None:
    video = VideoWriter(tmp_path / "v.avi")
    video.write(_picture(1))
    video._writer.release()
    video._temporary.write_bytes(b"")  # as on a full disk, of which OpenCV tells nothing
    with pytest.raises(WriteError, match="empty or cut short"):
        video.close()
    assert list(tmp_path.iterdir()) == []
