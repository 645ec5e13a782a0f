from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data.frames import write_png
from edge_sfda.data.scene import Scene
from edge_sfda.data.scene_spec import SceneSpec
from edge_sfda.data.sources import FolderSource, SceneSource, VideoSource, open_source
from edge_sfda.errors import FrameError, SourceError, UsageError


def _picture(value: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def _video(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (32, 16))
    for i in range(frames):
        writer.write(_picture(40 * i, 16, 32))
    writer.release()
    return path


# --- folder -----------------------------------------------------------------------------------------------------------


def test_folder_gives_frames_in_natural_order(tmp_path: Path) -> None:
    for name, value in (("f10.png", 3), ("f2.png", 2), ("f1.png", 1), ("g.png", 4)):
        write_png(tmp_path / name, _picture(value))
    with FolderSource(tmp_path) as source:
        frames = list(source)
    assert [(f.seq, f.name, int(f.image[0, 0, 0])) for f in frames] == [
        (0, "f1", 1), (1, "f2", 2), (2, "f10", 3), (3, "g", 4),
    ]  # fmt: skip
    assert (source.len_hint, source.fps) == (4, None)
    assert [f.captured_at for f in frames] == [0.0, 0.1, 0.2, 0.3]


def test_folder_passes_over_what_is_no_picture_by_name(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", _picture(1))
    write_png(tmp_path / ".hidden.png", _picture(2))
    (tmp_path / "notes.txt").write_text("x")
    assert [f.name for f in FolderSource(tmp_path)] == ["a"]


def test_folder_allows_mixed_sizes(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", _picture(1, 8, 10))
    write_png(tmp_path / "b.png", _picture(1, 20, 16))
    assert [(f.height, f.width) for f in FolderSource(tmp_path)] == [(8, 10), (20, 16)]


def test_folder_names_an_unreadable_picture_and_does_not_skip_it(tmp_path: Path) -> None:
    write_png(tmp_path / "1.png", _picture(1))
    (tmp_path / "2.png").write_bytes(b"broken")
    write_png(tmp_path / "3.png", _picture(3))
    source = FolderSource(tmp_path)
    assert next(source).name == "1"
    for _ in range(2):
        with pytest.raises(FrameError, match=r"2\.png"):
            next(source)


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        FolderSource(tmp_path / "none")
    with pytest.raises(SourceError, match=r"holds no pictures \(\.bmp"):
        FolderSource(tmp_path)


def test_folder_of_folders_points_to_the_one_with_pictures(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_png(tmp_path / "images" / "a.png", _picture(1))
    with pytest.raises(SourceError, match=r"did you mean .*images\?"):
        FolderSource(tmp_path)


def test_folder_named_like_a_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FrameError, match="it is no file"):
        FolderSource(tmp_path)


def test_closed_folder_gives_no_more(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", _picture(1))
    source = FolderSource(tmp_path)
    source.close()
    assert list(source) == []


# --- video ------------------------------------------------------------------------------------------------------------


def test_video_gives_all_frames_with_their_times(tmp_path: Path) -> None:
    with VideoSource(_video(tmp_path / "drive.avi", 5)) as source:
        assert (source.len_hint, source.fps) == (5, 20.0)
        frames = list(source)
    assert [f.seq for f in frames] == [0, 1, 2, 3, 4]
    assert [f.name for f in frames][:2] == ["drive-000000", "drive-000001"]
    assert [f.captured_at for f in frames] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [round(float(f.image.mean()) / 40) for f in frames] == [0, 1, 2, 3, 4]
    assert (frames[0].height, frames[0].width) == (16, 32)


def test_video_that_is_none_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all" * 50)
    with pytest.raises(SourceError, match="does not open as a video"):
        VideoSource(tmp_path / "a.mp4")
    with pytest.raises(SourceError, match="no video file"):
        VideoSource(tmp_path / "none.mp4")
    assert capfd.readouterr().err == ""


def test_video_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no frame|does not open"):
        VideoSource(_video(tmp_path / "empty.avi", 0))


def test_video_shorter_than_its_header_says_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = VideoSource(_video(tmp_path / "short.avi", 3))
    source.len_hint = 7
    with caplog.at_level(logging.WARNING):
        assert len(list(source)) == 3
    assert "ended after 3 frames, its header says 7" in caplog.text


def test_closed_video_gives_no_more(tmp_path: Path) -> None:
    source = VideoSource(_video(tmp_path / "a.avi", 3))
    next(source)
    source.close()
    source.close()
    assert list(source) == []


# --- scene ------------------------------------------------------------------------------------------------------------


def test_scene_source_gives_what_the_scene_draws() -> None:
    with SceneSource("scene:dusk?frames=3&seed=4&size=48x64&fps=5&start=10") as source:
        assert (source.len_hint, source.fps) == (3, 5.0)
        frames, labels = [], []
        for frame in source:
            frames.append(frame)
            labels.append(source.label)
    assert [f.name for f in frames] == ["dusk-000010", "dusk-000011", "dusk-000012"]
    assert [f.captured_at for f in frames] == [2.0, 2.2, 2.4]
    image, label = Scene(4, 48, 64).render(2.2, "dusk")
    assert np.array_equal(frames[1].image, image)
    assert np.array_equal(labels[1], label)


def test_scene_source_has_no_label_before_its_first_frame() -> None:
    source = SceneSource(SceneSpec(("day",), frames=1, height=16, width=16))
    with pytest.raises(UsageError, match="no frame yet"):
        _ = source.label


def test_scene_source_of_several_domains_ends_in_the_last() -> None:
    frames = list(SceneSource("scene:day-night?frames=4&size=48x64"))
    assert len(frames) == 4
    assert np.array_equal(frames[0].image, Scene(0, 48, 64).render(0.0, "day")[0])
    assert np.array_equal(frames[3].image, Scene(0, 48, 64).render(0.3, "night")[0])


# --- open_source ------------------------------------------------------------------------------------------------------


def test_open_source_finds_the_kind(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", _picture(9))
    _video(tmp_path / "v.avi", 2)
    kinds = {
        str(tmp_path): FolderSource,
        str(tmp_path / "a.png"): FolderSource,
        str(tmp_path / "v.avi"): VideoSource,
        "scene:day?frames=1&size=16x16": SceneSource,
    }
    for spec, kind in kinds.items():
        with open_source(spec) as source:
            assert type(source) is kind
            assert len(list(source)) in (1, 2)


def test_open_source_of_a_broken_picture_fails_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(FrameError, match=r"a\.png"):
        open_source(str(tmp_path / "a.png"))


def test_open_source_of_nothing_lists_what_it_takes() -> None:
    with pytest.raises(SourceError, match=r"nothing at 'nowhere'.*scene:dusk"):
        open_source("nowhere")


def test_open_source_takes_a_number_for_a_camera(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "97").mkdir()
    with pytest.raises(SourceError, match="camera 97 does not open"):
        open_source("97")
    with pytest.raises(SourceError, match="holds no pictures"):
        open_source("./97")
