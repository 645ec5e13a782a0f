from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data import sources
from edge_sfda.data.frames import Frame, read_image, read_label
from edge_sfda.data.sources import FolderSource
from edge_sfda.runtime.engine_fake import fake_info
from edge_sfda.runtime.predict import Segmenter


def test_predict_writes_masks_of_ids_and_overlays_at_the_frames_size(
    run_cli, nano: Path, drive: Path, tmp_path
) -> None:
    ran = run_cli("predict", drive / "images", "--model", nano, "-o", tmp_path / "out", "--overlay")
    assert ran.code == 0
    assert ran.err.startswith("ran on torch, ")
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["f0.png", "f1.png", "f2.png"]
    mask = read_label(tmp_path / "out" / "masks" / "f0.png")
    assert mask.shape == (40, 56)
    assert mask.max() < 10
    assert read_image(tmp_path / "out" / "overlays" / "f0.png").shape == (40, 56, 3)
    assert ran.out.startswith("3 frames, mean confidence ")


def test_predict_json_sums_up(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    ran = run_cli("predict", drive / "images", "--model", nano, "-o", tmp_path / "out", "--json")
    result = json.loads(ran.out)
    assert result["frames"] == 3
    assert result["overlays"] is None
    assert sum(result["shares"].values()) == pytest.approx(1.0)
    assert 0.1 <= result["confidence"] <= 1
    assert not (tmp_path / "out" / "overlays").exists()


def test_predict_stops_at_the_limit(run_cli, nano: Path, tmp_path: Path) -> None:
    run_cli("predict", "scene:fog?size=48x64", "--model", nano, "-o", tmp_path / "out", "--limit", 2)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def test_frames_of_one_stem_get_a_mask_each(run_cli, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "a.png"):
        cv2.imwrite(str(tmp_path / "in" / name), np.zeros((40, 56, 3), np.uint8))
    run_cli("predict", tmp_path / "in", "--model", nano, "-o", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "masks").iterdir()) == ["a-000001.png", "a.png"]


def test_frames_of_different_sizes_are_predicted_each_at_its_own(run_cli, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 56, 3)), ("b.png", (64, 48, 3))):
        cv2.imwrite(str(tmp_path / "in" / name), np.zeros(size, np.uint8))
    assert run_cli("predict", tmp_path / "in", "--model", nano, "-o", tmp_path / "out").code == 0
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
    ran = run_cli("predict", drive / "images", "--model", nano, "-o", tmp_path / "out")
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
    ran = run_cli("predict", make(tmp_path), "--model", nano, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert ran.err.count("\n") == 1


def test_unwritable_folder_is_exit_1(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ran = run_cli("predict", drive / "images", "--model", nano, "-o", tmp_path / "taken")
    assert ran.code == 1
    assert "cannot make the folder" in ran.err


def test_latency_is_shown_with_its_parts_apart(run_cli, nano: Path) -> None:
    ran = run_cli("predict", "scene:day?size=48x64", "--model", nano, "--limit", 2)
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == [
        "latency",
        "capture",
        "pre",
        "net",
        "post",
        "total",
    ]
    assert "p50 ms" in ran.out
    assert "p99 ms" in ran.out


def test_without_a_place_nothing_is_written(run_cli, nano: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_cli("predict", "scene:day?size=48x64", "--model", nano, "--limit", 1, "--json")
    result = json.loads(ran.out)
    assert (result["masks"], result["overlays"], result["video"]) == (None, None, None)
    assert set(result["latency"]["net"]) == {"p50_ms", "p90_ms", "p99_ms"}
    assert list(tmp_path.iterdir()) == []


def test_predict_runs_an_onnx_model(run_cli, tiny_onnx, drive: Path, tmp_path: Path) -> None:
    args = ("--model", tiny_onnx(), "-o", tmp_path / "out", "--threads", 1, "--device", "cpu")
    ran = run_cli("predict", drive / "images", *args)
    assert (ran.code, ran.err) == (0, "ran on ONNX Runtime, CPU, 1 threads\n")
    frame = read_image(drive / "images" / "f1.png")
    assert (read_label(tmp_path / "out" / "masks" / "f1.png") == (frame[..., 0] >= 128)).all()


def test_artefact_for_rgb_is_given_the_sources_frames_in_rgb(run_cli, tiny_onnx, drive: Path, tmp_path: Path) -> None:
    model = tiny_onnx(info=fake_info(colour_order="rgb"))
    run_cli("predict", drive / "images", "--model", model, "-o", tmp_path / "out", "--device", "cpu")
    frame = read_image(drive / "images" / "f1.png")
    assert (read_label(tmp_path / "out" / "masks" / "f1.png") == (frame[..., 2] >= 128)).all()


def test_video_has_a_frame_for_each(run_cli, nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.avi"
    ran = run_cli("predict", "scene:day?size=48x64&fps=5", "--model", nano, "--limit", 3, "--video", path)
    assert ran.code == 0
    with sources.open_source(str(path)) as video:
        assert (len(list(video)), video.fps) == (3, 5)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--overlay"], 2, "--overlay writes into the folder of -o"),
        (["--video", "out.gif"], 2, "expected one of .mp4, .avi"),
        (["--video", "nowhere/out.mp4"], 1, "choose another place"),
        (["--device", "tpu"], 2, "expected auto, cpu, cuda"),
    ],
)
def test_wrong_arguments_are_one_line(run_cli, nano: Path, args: list[str], code: int, words: str) -> None:
    ran = run_cli("predict", "scene:day?size=48x64", "--model", nano, *args)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1


def test_frame_of_another_size_ends_a_video_and_leaves_none(run_cli, nano: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in (("a.png", (40, 56, 3)), ("b.png", (64, 48, 3))):
        cv2.imwrite(str(tmp_path / "in" / name), np.zeros(size, np.uint8))
    ran = run_cli("predict", tmp_path / "in", "--model", nano, "--video", tmp_path / "out.avi")
    assert ran.code == 1
    assert "frames of several sizes make no video" in ran.err
    assert not (tmp_path / "out.avi").exists()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("none.onnx", None, "no ONNX model at"),
        ("cut.onnx", b"\x08\x0a\x3a\x7f", "is no ONNX model, or is damaged"),
        ("foreign.onnx", b"\x08\x0a", "carries no record of edge-sfda"),
        ("lone.engine", b"engine", "the record of engine lone.engine"),
        ("student.onnx.rejected", b"", "did not agree with its checkpoint"),
    ],
)
def test_bad_artefact_is_one_line_and_nothing_is_written(
    run_cli, tmp_path: Path, name: str, data: bytes | None, words: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    ran = run_cli("predict", "scene:day", "--model", tmp_path / name, "-o", tmp_path / "out")
    assert (ran.code, ran.out) == (1, "")
    assert words in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_masks_are_written_as_a_bag_and_a_bag_is_read_by_topic(run_cli, nano: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs the extra bags")
    scene = "scene:day?frames=3&size=48x64&fps=4"
    ran = run_cli("predict", scene, "--model", nano, "-o", tmp_path / "out", "--bag", tmp_path / "masks")
    assert ran.code == 0, ran.err
    assert f"bag      {tmp_path / 'masks'}" in ran.out
    with sources.open_source(str(tmp_path / "masks")) as bag:
        frames = list(bag)
    assert [frame.captured_at for frame in frames] == [0.0, 0.25, 0.5]
    for frame, path in zip(frames, sorted((tmp_path / "out" / "masks").iterdir()), strict=True):
        assert np.array_equal(frame.image[..., 0], read_label(path))
    again = ("predict", tmp_path / "masks", "--topic", "/segmentation/mask", "--model", nano, "--limit", 2)
    assert run_cli(*again).out.startswith("2 frames")
    ran = run_cli("predict", scene, "--model", nano, "--bag", tmp_path / "masks")
    assert ran.code == 2
    assert "exists already" in ran.err


def test_bag_goes_in_and_masks_come_out_as_one_file_with_their_stamps(run_cli, nano: Path, tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="needs the extra bags")
    from edge_sfda.data.bags import BagWriter
    from edge_sfda.data.frames import Stamp

    stamps = [Stamp(1_700_000_000_000_000_001 + index, "camera_optical") for index in range(3)]
    frames = [np.random.default_rng(index).integers(0, 256, (48, 64), np.uint8) for index in range(3)]
    with BagWriter(tmp_path / "run.mcap", topic="/camera/image_mono") as writer:  # grey images are images as well
        for index, (stamp, pixels) in enumerate(zip(stamps, frames, strict=True)):
            writer.write(pixels, Frame(np.dstack([pixels] * 3), index, 0.0, "", stamp))
    out = tmp_path / "out.mcap"
    ran = run_cli("predict", tmp_path / "run.mcap", "--topic", "/camera/image_mono", "--model", nano, "-o", out)
    assert ran.code == 0, ran.err
    assert f"bag      {out}" in ran.out
    with sources.open_source(f"{out}?topic=/segmentation/mask") as bag:
        masks = list(bag)
    assert [mask.stamp for mask in masks] == stamps
    with Segmenter.load(nano, colour_order="bgr") as segment:
        for mask, pixels in zip(masks, frames, strict=True):
            assert np.array_equal(mask.image[..., 0], segment(np.dstack([pixels] * 3)))
    assert sorted(path.name for path in tmp_path.glob("*.mcap")) == ["out.mcap", "run.mcap"]
    ran = run_cli("predict", tmp_path / "run.mcap", "--model", nano, "-o", out)
    assert ran.code == 2
    assert "exists already" in ran.err
    ran = run_cli("predict", tmp_path / "run.mcap", "--model", nano, "-o", tmp_path / "a.mcap", "--bag", "b")
    assert ran.code == 2
    assert "both name a bag" in ran.err
