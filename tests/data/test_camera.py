from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest

from edge_sfda.data.camera import CameraSource, is_camera
from edge_sfda.errors import SourceError


class FakeCamera:
    """A camera that gives a frame each time the test allows one; frame n is filled with n."""

    def __init__(self, *, opens: bool = True, ends: bool = True) -> None:
        self.opens = opens
        self.ends = ends  # what a read does once `finish` was called: fail, or hang
        self.allowed = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)  # released whenever a read starts, so the read before it is done
        self.finished = threading.Event()
        self.released = threading.Event()
        self.asked: list[int | str] = []
        self.count = 0

    def __call__(self, target: int | str) -> FakeCamera:
        self.asked.append(target)
        return self

    def isOpened(self) -> bool:
        return self.opens

    def get(self, propId: int) -> float:
        return 25.0

    def set(self, propId: int, value: float) -> bool:
        raise AssertionError("nothing was asked of the camera")

    def release(self) -> None:
        self.released.set()

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.waiting.release()
        self.allowed.acquire()
        if self.finished.is_set():
            return False, None
        self.count += 1
        return True, np.full((8, 8, 3), self.count - 1, np.uint8)

    def give(self, frames: int) -> None:
        """Let `frames` frames through and wait until the reader has taken them all."""
        for _ in range(frames):
            self.allowed.release()
            self.waiting.acquire()

    def finish(self) -> None:
        self.finished.set()
        self.allowed.release()


def _opened(camera: FakeCamera, **options: float) -> CameraSource:
    camera.allowed.release()
    source = CameraSource(0, opener=camera, **options)
    camera.waiting.acquire()
    camera.waiting.acquire()
    return source


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("0", True),
        ("12", True),
        ("/dev/video3", True),
        ("rtsp://cam/1", True),
        ("http://cam/feed.mjpg", True),
        ("nvarguscamerasrc ! nvvidconv ! appsink", True),
        ("what a drive!.mp4", False),
        ("frames", False),
        ("./0", False),
        ("/dev/video", False),
        ("C:/frames", False),
    ],
)
def test_is_camera_knows_cameras_from_paths(spec: str, expected: bool) -> None:
    assert is_camera(spec) is expected


@pytest.mark.parametrize(("spec", "target"), [("2", 2), ("/dev/video7", 7), ("rtsp://cam/1", "rtsp://cam/1"), (3, 3)])
def test_camera_opens_what_was_named(spec: str | int, target: int | str) -> None:
    camera = FakeCamera(opens=False)
    with pytest.raises(SourceError):
        CameraSource(spec, opener=camera)
    assert camera.asked == [target]


def test_camera_gives_the_newest_frame_and_shows_the_gap() -> None:
    camera = FakeCamera()
    with _opened(camera) as source:
        first = next(source)
        camera.give(3)
        newest = next(source)
        assert (first.seq, newest.seq) == (0, 3)
        assert int(newest.image[0, 0, 0]) == 3
        assert newest.captured_at >= first.captured_at
        assert source.fps == 25.0
        assert source.len_hint is None
        camera.finish()


def test_camera_that_does_not_open_says_what_was_tried() -> None:
    with pytest.raises(SourceError, match="camera 5 does not open; tried OpenCV camera number 5"):
        CameraSource(5, opener=FakeCamera(opens=False))


def test_camera_that_opens_without_a_frame_is_an_error() -> None:
    camera = FakeCamera()
    camera.finish()
    with pytest.raises(SourceError, match="opens but gives no frame"):
        CameraSource(0, opener=camera)
    assert camera.released.wait(10)


def test_camera_silent_for_the_limit_is_an_error() -> None:
    camera = FakeCamera()
    with pytest.raises(SourceError, match=r"gave no frame within 0\.01 s"):
        CameraSource(0, limit_s=0.01, opener=camera)
    camera.finish()
    assert camera.released.wait(10)


def test_camera_that_stops_says_after_how_many_frames() -> None:
    camera = FakeCamera()
    with _opened(camera) as source:
        camera.give(2)
        assert next(source).seq == 2
        camera.finish()
        with pytest.raises(SourceError, match="camera 0 stopped after 3 frames"):
            next(source)


def test_closed_camera_gives_no_more_and_is_released() -> None:
    camera = FakeCamera()
    source = _opened(camera)
    camera.finish()
    source.close()
    assert list(source) == []
    assert camera.released.wait(10)


def test_password_of_an_address_is_in_no_message() -> None:
    with pytest.raises(SourceError, match=r"rtsp://\*\*\*@cam/1") as caught:
        CameraSource("rtsp://me:secret@cam/1", opener=FakeCamera(opens=False))
    assert "secret" not in str(caught.value)


def test_missing_device_leaves_stderr_to_our_message(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match="/dev/video98 does not open"):
        CameraSource("/dev/video98")
    assert capfd.readouterr().err == ""


def test_pipeline_gets_an_appsink_where_it_names_none() -> None:
    bare, whole = "videotestsrc ! videoconvert", "videotestsrc ! appsink"
    for pipeline in (bare, whole):
        camera = FakeCamera(opens=False)
        with pytest.raises(SourceError, match="tried OpenCV on GStreamer"):
            CameraSource(pipeline, opener=camera)
        (asked,) = camera.asked
        assert str(asked).startswith(pipeline)
        assert str(asked).count("appsink") == 1


def test_pipeline_without_gstreamer_says_which_opencv_has_it() -> None:
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        pytest.skip("this OpenCV has GStreamer; pip's has not")
    with pytest.raises(SourceError, match="built without GStreamer, as pip's is: use the system's"):
        CameraSource("videotestsrc ! videoconvert")


def test_pipeline_gives_frames_where_opencv_has_gstreamer() -> None:
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        pytest.skip("needs an OpenCV with GStreamer, such as the system's; pip's has none")
    with CameraSource("videotestsrc is-live=true ! video/x-raw,width=160,height=120") as source:
        assert next(source).image.shape == (120, 160, 3)
