"""Messages of a topic as a source of frames: the newest only; what cannot be decoded is counted. Imports no ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_sfda.data.frames import U8, Frame, FrameSource, Stamp
from edge_sfda.data.ros_images import decode, to_bgr
from edge_sfda.errors import FrameError, SourceError


@dataclass(frozen=True)
class Mail:
    """How messages arrive.

    Args:
        received: messages.
        skipped: of them, replaced by a newer one before anybody took them.
        refused: of them, not to be decoded.
        refusal: why the last of those was refused; empty without one.
        waited_s: since the last message, or since the beginning.
    """

    received: int
    skipped: int
    refused: int
    refusal: str
    waited_s: float


class Mailbox:
    """Holds the newest message of a topic for whoever decodes it.

    The thread of ROS puts messages in, which costs it nothing; they are decoded in the thread that takes frames. A
    message outlasts the source that did not take it: `open` may be called again and again.

    Args:
        topic: for messages to people.
        silence_s: without an image, after which a source raises SourceError.
        clock: seconds that only grow.
    """

    def __init__(self, topic: str, *, silence_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.topic, self.silence_s = topic, silence_s
        self._clock = clock
        self._changed = threading.Condition()
        self._newest: tuple[Any, int, float] | None = None  # message, number, time of arrival
        self._received = self._skipped = self._refused = 0
        self._refusal = ""
        self._closed = False
        self._last_at = clock()

    def put(self, message: Any) -> None:
        """Take a `sensor_msgs/Image` or `CompressedImage`; an older one that nobody took goes."""
        with self._changed:
            self._skipped += self._newest is not None
            self._last_at = self._clock()
            self._newest = (message, self._received, self._last_at)
            self._received += 1
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """Wait for the newest message that nobody took and return it decoded; None after `close`.

        Raises:
            SourceError: none came, or none that can be decoded.
        """
        limit = self._clock() + self.silence_s
        reason = "no image came"
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._newest is not None or self._closed, max(0, limit - self._clock()))
                taken, self._newest = self._newest, None
                if self._closed:
                    return None
            if taken is None:
                raise SourceError(
                    f"{reason} on {self.topic} for {self.silence_s:g} s; is it published, under that name, with a QoS "
                    "that fits?"
                )
            message, seq, at = taken
            try:
                return Frame(picture(message), seq, at, stamp=stamp_of(message))
            except FrameError as error:
                reason = f"none but undecodable images ({error}) came"
                with self._changed:
                    self._refused += 1
                    self._refusal = str(error)

    def open(self) -> FrameSource:
        """Return a source of the frames from now on."""
        return TopicSource(self)

    def close(self) -> None:
        """Let whoever waits go; no more frames come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def status(self) -> Mail:
        """Return how messages arrive."""
        with self._changed:
            waited_s = self._clock() - self._last_at
            return Mail(self._received, self._skipped, self._refused, self._refusal, waited_s)


class TopicSource(FrameSource):
    """The newest images of a mailbox, for ever; `seq` counts its messages, `captured_at` is their time of arrival.

    Raises:
        SourceError: while iterating, where no image comes for as long as the mailbox says.
    """

    fps: float | None = None
    len_hint: int | None = None

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox: Mailbox | None = mailbox

    def __next__(self) -> Frame:
        frame = None if self._mailbox is None else self._mailbox.take()
        if frame is None:
            raise StopIteration
        return frame

    def close(self) -> None:
        """Give no more frames; the mailbox stays."""
        self._mailbox = None


def picture(message: Any) -> U8:
    """Return the picture of a `sensor_msgs/Image` or `CompressedImage`, HWC uint8 BGR.

    Raises:
        FrameError: it cannot be decoded.
    """
    if not hasattr(message, "encoding"):
        return decode(message.data)
    return to_bgr(
        message.data, encoding=message.encoding, height=message.height, width=message.width, step=message.step
    )


def stamp_of(message: Any) -> Stamp:
    """Return what a message's header says, an empty stamp as 0."""
    header = message.header
    return Stamp(header.stamp.sec * 1_000_000_000 + header.stamp.nanosec, header.frame_id)
