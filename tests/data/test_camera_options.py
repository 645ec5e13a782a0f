from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data.camera import CameraSource
from edge_sfda.data.camera_options import CameraOptions, ask, lock
from edge_sfda.data.sources import open_source
from edge_sfda.errors import SourceError, UsageError

YUYV, MJPG = (float(cv2.VideoWriter.fourcc(*name)) for name in ("YUYV", "MJPG"))


class FakeDriver:
    """A V4L2 driver: keeps what it offers of what it is asked, answers True for everything, as drivers do."""

    def __init__(self, *, offers: dict[int, tuple[float, ...]] | None = None, exposure: float = 156.0) -> None:
        self.offers = offers or {}
        self.state = {
            cv2.CAP_PROP_FOURCC: YUYV,
            cv2.CAP_PROP_FRAME_WIDTH: 640.0,
            cv2.CAP_PROP_FRAME_HEIGHT: 480.0,
            cv2.CAP_PROP_FPS: 30.0,
            cv2.CAP_PROP_EXPOSURE: exposure,
            cv2.CAP_PROP_AUTO_EXPOSURE: 3.0,
        }
        self.asked: list[tuple[int, float]] = []
        self.reads = 0
        self.auto_at: list[float] = []

    def isOpened(self) -> bool:
        return True

    def get(self, propId: int) -> float:
        return self.state.get(propId, -1.0)

    def set(self, propId: int, value: float) -> bool:
        self.asked.append((propId, value))
        if propId not in self.state:
            return False
        if value in self.offers.get(propId, (value,)):
            self.state[propId] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.auto_at.append(self.state[cv2.CAP_PROP_AUTO_EXPOSURE])
        self.reads += 1
        return (True, np.zeros((8, 8, 3), np.uint8)) if self.reads <= 6 else (False, None)

    def release(self) -> None: ...


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 640}, "needs width and height, got 640 and None"),
        ({"width": 0, "height": 480}, r"width = 0 must be a number above 0"),
        ({"fps": float("nan")}, "fps = nan must be"),
        ({"fps": float("inf")}, "fps = inf must be"),
        ({"exposure_ms": -1.0}, r"exposure_ms = -1\.0 must be"),
        ({"fourcc": "JPEG2"}, "fourcc = 'JPEG2' must have four characters"),
        ({"exposure_ms": 5.0, "lock_exposure": True}, "give one of them"),
        ({"settle": 0}, "settle = 0 must lie in 1..100000"),
    ],
)
def test_camera_options_refuse_what_makes_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CameraOptions(**options)  # type: ignore[arg-type]


def test_ask_sets_the_pixel_format_before_size_and_rate() -> None:
    driver = FakeDriver()
    assert ask(driver, CameraOptions(width=1280, height=720, fps=25, fourcc="MJPG")) == ""
    assert [prop for prop, _ in driver.asked] == [
        cv2.CAP_PROP_FOURCC,
        cv2.CAP_PROP_FRAME_WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT,
        cv2.CAP_PROP_FPS,
    ]
    assert driver.state[cv2.CAP_PROP_FOURCC] == MJPG
    assert driver.state[cv2.CAP_PROP_AUTO_EXPOSURE] == 3.0


def test_ask_tells_what_a_driver_rounds_in_silence() -> None:
    driver = FakeDriver(
        offers={cv2.CAP_PROP_FRAME_WIDTH: (640.0,), cv2.CAP_PROP_FPS: (30.0,), cv2.CAP_PROP_FOURCC: (YUYV,)}
    )
    refused = ask(driver, CameraOptions(width=1280, height=480, fps=60, fourcc="MJPG"))
    assert refused == "MJPG (it gives YUYV), 1280x480 (it gives 640x480), 60 frames a second (it gives 30)"


def test_ask_takes_a_broadcast_rate_for_the_round_one() -> None:
    driver = FakeDriver(offers={cv2.CAP_PROP_FPS: ()})
    driver.state[cv2.CAP_PROP_FPS] = 29.97
    assert ask(driver, CameraOptions(fps=30)) == ""


def test_ask_sets_exposure_by_hand_in_units_of_a_tenth_of_a_millisecond() -> None:
    driver = FakeDriver()
    assert ask(driver, CameraOptions(exposure_ms=8)) == ""
    assert driver.state[cv2.CAP_PROP_AUTO_EXPOSURE] == 1.0
    assert driver.state[cv2.CAP_PROP_EXPOSURE] == 80.0


def test_ask_tells_when_there_is_no_exposure_by_hand() -> None:
    driver = FakeDriver()
    del driver.state[cv2.CAP_PROP_AUTO_EXPOSURE]
    assert ask(driver, CameraOptions(exposure_ms=8)) == "an exposure of 8 ms"


def test_lock_holds_the_exposure_that_was_found() -> None:
    driver = FakeDriver(exposure=213.0)
    assert lock(driver)
    assert driver.state[cv2.CAP_PROP_AUTO_EXPOSURE] == 1.0
    assert driver.asked[-1] == (cv2.CAP_PROP_EXPOSURE, 213.0)


@pytest.mark.parametrize("unknown", [0.0, -1.0, float("nan")])
def test_lock_fails_without_an_exposure_to_hold(unknown: float) -> None:
    driver = FakeDriver(exposure=unknown)
    assert not lock(driver)
    assert driver.state[cv2.CAP_PROP_AUTO_EXPOSURE] == 3.0


def test_camera_locks_after_the_frames_that_it_settles_over() -> None:
    driver = FakeDriver()
    source = CameraSource(0, options=CameraOptions(lock_exposure=True, settle=4), opener=lambda target: driver)
    source._thread.join(10)  # it ends by itself after six frames
    assert driver.auto_at == [3.0] * 4 + [1.0] * 3
    source.close()


def test_camera_that_does_not_grant_an_option_is_an_error() -> None:
    driver = FakeDriver(offers={cv2.CAP_PROP_FPS: (30.0,)})
    with pytest.raises(SourceError, match=r"camera 0 does not grant 60 frames a second \(it gives 30\).*v4l2-ctl"):
        CameraSource(0, options=CameraOptions(fps=60), opener=lambda target: driver)


@pytest.mark.parametrize("spec", ["rtsp://cam/1", "videotestsrc ! appsink"])
def test_address_and_pipeline_take_no_options(spec: str) -> None:
    with pytest.raises(UsageError, match="takes no camera options"):
        CameraSource(spec, options=CameraOptions(fps=30), opener=lambda target: FakeDriver())


def test_recording_takes_no_camera_options() -> None:
    with pytest.raises(UsageError, match="scene:dusk is no camera"):
        open_source("scene:dusk", camera=CameraOptions(fps=30))


def test_real_camera_grants_its_own_settings() -> None:
    if not Path("/dev/video0").exists():
        pytest.skip("needs a V4L2 camera at /dev/video0; this machine has none")
    with CameraSource(0) as source:
        frame = next(source)
    with CameraSource(0, options=CameraOptions(width=frame.width, height=frame.height)) as source:
        assert next(source).image.shape == frame.image.shape
