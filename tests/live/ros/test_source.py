"""Messages as frames: the newest only, decoded where they are taken. Messages are plain objects; ROS is not needed."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sfda.data.frames import Stamp
from edge_sfda.errors import FrameError, SourceError
from edge_sfda.live.ros.source import Mailbox, picture, stamp_of

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)


def _header(nanoseconds: int = 1_700_000_000_123_456_789, frame_id: str = "camera") -> Any:
    seconds, rest = divmod(nanoseconds, 10**9)
    return SimpleNamespace(stamp=SimpleNamespace(sec=seconds, nanosec=rest), frame_id=frame_id)


def _image(pixels: Any = PICTURE, encoding: str = "bgr8", **changes: Any) -> Any:
    fields = {"height": pixels.shape[0], "width": pixels.shape[1], "step": pixels.strides[0], **changes}
    return SimpleNamespace(header=_header(), encoding=encoding, data=pixels.tobytes(), **fields)


def test_frame_has_pixels_number_and_stamp() -> None:
    box = Mailbox("/image", silence_s=1, clock=lambda: 7.5)
    box.put(_image())
    frame = next(box.open())
    assert np.array_equal(frame.image, PICTURE)
    assert (frame.seq, frame.captured_at) == (0, 7.5)
    assert frame.stamp == Stamp(1_700_000_000_123_456_789, "camera")


def test_only_the_newest_is_taken_and_the_others_are_counted() -> None:
    box = Mailbox("/image", silence_s=1)
    for value in range(4):
        box.put(_image(np.full_like(PICTURE, value)))
    frame = next(box.open())
    assert frame.image.max() == 3
    assert frame.seq == 3
    status = box.status()
    assert (status.received, status.skipped, status.refused) == (4, 3, 0)


def test_message_outlasts_the_source_that_did_not_take_it() -> None:
    box = Mailbox("/image", silence_s=1)
    box.open().close()
    box.put(_image())
    assert next(box.open()).seq == 0


def test_undecodable_message_is_counted_and_the_next_one_taken() -> None:
    box = Mailbox("/image", silence_s=10)

    class Bad(SimpleNamespace):
        @property
        def encoding(self) -> str:  # the next one comes while this one is decoded
            box.put(_image())
            return "16UC1"

    box.put(Bad(header=_header(), height=6, width=8, step=16, data=b""))
    assert np.array_equal(next(box.open()).image, PICTURE)
    assert box.status().refused == 1
    assert "encoding '16UC1'; expected one of bgr8" in box.status().refusal


def test_silence_is_told_with_what_to_look_at() -> None:
    box = Mailbox("/image", silence_s=0.01)
    with pytest.raises(SourceError, match="no image came on /image for 0.01 s; is it published"):
        next(box.open())


def test_nothing_but_undecodable_images_is_told_with_the_reason() -> None:
    box = Mailbox("/image", silence_s=0.01)
    box.put(_image(encoding="16UC1"))
    with pytest.raises(SourceError, match=r"none but undecodable images \(image of encoding '16UC1'.* came on /image"):
        next(box.open())


def test_closing_lets_whoever_waits_go() -> None:
    box = Mailbox("/image", silence_s=60)
    ended: list[bool] = []

    def wait() -> None:
        ended.append(next(box.open(), None) is None)

    thread = threading.Thread(target=wait)
    thread.start()
    box.close()
    thread.join(timeout=10)
    assert ended == [True]


def test_compressed_message_is_decoded() -> None:
    png = cv2.imencode(".png", PICTURE)[1].tobytes()
    assert np.array_equal(picture(SimpleNamespace(header=_header(), format="png", data=png)), PICTURE)
    with pytest.raises(FrameError, match="cannot be decoded"):
        picture(SimpleNamespace(header=_header(), format="png", data=png[:20]))


@pytest.mark.parametrize(
    ("encoding", "channels"),
    [("rgb8", 3), ("bgra8", 4), ("mono8", 1), ("bayer_rggb8", 1), ("yuv422", 2), ("yuv422_yuy2", 2)],
)
def test_each_encoding_gives_a_picture_of_its_size(encoding: str, channels: int) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (6, 8, channels), np.uint8)
    assert picture(_image(raw, encoding)).shape == (6, 8, 3)
    if encoding == "rgb8":
        assert np.array_equal(picture(_image(raw, encoding)), raw[..., ::-1])


def test_empty_stamp_is_carried_as_it_is() -> None:
    assert stamp_of(SimpleNamespace(header=_header(0, ""))) == Stamp(0, "")
