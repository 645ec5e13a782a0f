from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data import sources
from edge_sfda.data.frames import Frame, read_image, read_label
from edge_sfda.data.sources import FolderSource


def test_predict_writes_masks_of_ids_and_overlays_at_the_frames_size(
    run_cli, nano: Path, drive: Path, tmp_path
) -> None:
    ran = run_cli("predict", nano, drive / "images", "-o", tmp_path / "out")
    assert (ran.code, ran.err) == (0, "")
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["f0.png", "f1.png", "f2.png"]
    mask = read_label(tmp_path / "out" / "masks" / "f0.png")
    assert mask.shape == (40, 56)
    assert mask.max() < 10
    assert read_image(tmp_path / "out" / "overlays" / "f0.png").shape == (40, 56, 3)
    assert ran.out.startswith("3 frames, mean confidence ")


def test_predict_json_sums_up(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    ran = run_cli("predict", nano, drive / "images", "-o", tmp_path / "out", "--json", "--no-overlays")
    result = json.loads(ran.out)
    assert result["frames"] == 3
    assert result["overlays"] is None
    assert sum(result["shares"].values()) == pytest.approx(1.0)
    assert 0.1 <= result["confidence"] <= 1
    assert not (tmp_path / "out" / "overlays").exists()


def test_predict_stops_at_the_limit(run_cli, nano: Path, tmp_path: Path) -> None:
    run_cli("predict", nano, "scene:fog?size=48x64", "-o", tmp_path / "out", "--limit", 2)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def test_frames_of_one_stem_get_a_mask_each(run_cli, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a.png"):
        cv2.imwrite(str(tmp_path / "in" / name), np.zeros((40, 56, 3), np.uint8))
    run_cli("predict", nano, tmp_path / "in", "-o", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["a-000001.png", "a.png"]


def test_frames_of_different_sizes_are_predicted_each_at_its_own(run_cli, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 56, 3)), ("b.png", (64, 48, 3))):
        cv2.imwrite(str(tmp_path / "in" / name), np.zeros(size, np.uint8))
    assert run_cli("predict", nano, tmp_path / "in", "-o", tmp_path / "out").code == 0
    assert read_label(tmp_path / "out" / "masks" / "b.png").shape == (64, 48)


class _Interrupted(FolderSource):
    """A folder whose user loses patience after two frames."""

    def __next__(self) -> Frame:
        if self._next == 2:
            raise KeyboardInterrupt
        return super().__next__()


def test_interrupt_keeps_what_is_written_and_exits_130(
    run_cli, nano: Path, drive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "open_source", lambda spec: _Interrupted(spec))
    ran = run_cli("predict", nano, drive / "images", "-o", tmp_path / "out")
    assert ran.code == 130
    assert ran.err == f"interrupted; the masks so far are in {tmp_path / 'out' / 'masks'}\n"
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def _video_without_frames(folder: Path) -> Path:
    path = folder / "v.avi"
    # OpenCV's own writer: FFmpeg's would settle its log's level for the process, before the package does
    cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48)).release()
    return path


def _tiny(folder: Path) -> Path:
    cv2.imwrite(str(folder / "t.png"), np.zeros((7, 7, 3), np.uint8))
    return folder / "t.png"


def _text(folder: Path) -> Path:
    (folder / "t.mp4").write_text("no video")
    return folder / "t.mp4"


def _empty_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nothing", "nothing at"),
        (_empty_folder, "holds no pictures"),
        (_text, "does not open as a video"),
        (_video_without_frames, "v.avi"),
        (_tiny, "too small"),
        (lambda folder: "/dev/video99", "/dev/video99"),
    ],
)
def test_source_that_gives_no_frames_is_one_line_and_exit_1(run_cli, nano: Path, tmp_path: Path, make, message) -> None:
    ran = run_cli("predict", nano, make(tmp_path), "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_unwritable_folder_is_exit_1(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ran = run_cli("predict", nano, drive / "images", "-o", tmp_path / "taken")
    assert ran.code == 1
    assert "cannot make the folder" in ran.err
