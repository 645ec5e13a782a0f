"""ROS bags as sources of frames, and masks written back as one: ROS 2 (mcap, sqlite3) and ROS 1, without ROS.

Needs the package `rosbags` (extra `bags`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sfda.data.frames import U8, Frame, FrameSource, Stamp
from edge_sfda.data.ros_images import COMPRESSED, IMAGE, decode, to_bgr
from edge_sfda.errors import SourceError, UsageError, WriteError
from edge_sfda.files import rename_folder

if TYPE_CHECKING:
    from typing_extensions import Self

SUFFIXES = (".mcap", ".db3", ".bag")

_TOPIC = "?topic="
_MCAP = ".mcap"


def is_bag(spec: str) -> bool:
    """Return whether `spec` names a bag: a file with one of `SUFFIXES`, or a folder with a `metadata.yaml`."""
    path, _ = split(spec)
    return path.suffix.lower() in SUFFIXES or (path / "metadata.yaml").is_file()


def split(spec: str) -> tuple[Path, str | None]:
    """Split `run.mcap?topic=/camera/image_raw` into path and topic."""
    path, _, topic = spec.partition(_TOPIC)
    return Path(path), topic or None


def with_topic(spec: str, topic: str | None) -> str:
    """Return the source `spec` with a topic asked for; the other way of `split`.

    Raises:
        UsageError: a topic for what is no bag.
    """
    if topic is None:
        return spec
    if not is_bag(spec):
        raise UsageError(
            f"--topic {topic} goes with a bag, {spec!r} is none; expected {', '.join(SUFFIXES)} or a folder"
        )
    return f"{split(spec)[0]}{_TOPIC}{topic}"


class BagSource(FrameSource):
    """The images of one topic, in the order they were recorded in.

    `captured_at` is the message's own stamp in seconds, or the time of recording where the stamp is empty. A message
    that cannot be decoded raises FrameError, as a picture in a folder that cannot be read does.

    Args:
        path: the bag.
        topic: to read; needed only where there are images on several.

    Raises:
        SourceError: not there, not readable, or without images on that topic.
    """

    def __init__(self, path: Path, topic: str | None = None) -> None:
        self.path = path
        self._reader: Any = _open(path)
        try:
            images = [c for c in self._reader.connections if c.msgtype in (IMAGE, COMPRESSED)]
            self.topic = _choose(path, topic, sorted({c.topic for c in images}))
            chosen = [c for c in images if c.topic == self.topic]
            self.len_hint: int | None = sum(c.msgcount for c in chosen)
            if not self.len_hint:
                raise SourceError(f"topic {self.topic} of {path} holds no image; record it again")
            seconds = self._reader.duration / 1e9
            self.fps: float | None = (self.len_hint - 1) / seconds if seconds > 0 and self.len_hint > 1 else None
        except BaseException:
            self.close()
            raise
        self._messages: Iterator[Any] | None = self._reader.messages(connections=chosen)
        self._seq = 0

    def __next__(self) -> Frame:
        if self._messages is None:
            raise StopIteration
        try:
            connection, recorded, raw = next(self._messages)
            message = self._reader.deserialize(raw, connection.msgtype)
        except StopIteration:
            self.close()
            raise
        except Exception as error:  # a damaged bag fails in whatever layer it is damaged in
            self.close()
            raise SourceError(f"{self.path} cannot be read past frame {self._seq}: {error}; is it whole?") from error
        if connection.msgtype == IMAGE:
            image = to_bgr(
                message.data,
                encoding=message.encoding,
                height=message.height,
                width=message.width,
                step=message.step,
            )
        else:
            image = decode(message.data)
        stamp = message.header.stamp
        nanoseconds = stamp.sec * 1_000_000_000 + stamp.nanosec or recorded
        seq = self._seq
        self._seq += 1
        origin = Stamp(nanoseconds, message.header.frame_id)
        return Frame(image, seq, nanoseconds / 1e9, f"{self.path.stem}-{seq:06d}", origin)

    def close(self) -> None:
        """Close the bag; no more frames come."""
        self._messages = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class BagWriter:
    """Writes masks as a ROS 2 bag (mcap): `sensor_msgs/Image` of encoding mono8, one a frame.

    The bag is written beside `path` and takes its name when it is whole; left by an exception, it is removed, but
    an interrupt keeps what there is.

    Args:
        path: what does not exist yet: a folder, as ROS 2 has its bags, or with the suffix .mcap its one file alone.
        topic: of the masks.

    Raises:
        UsageError: there is something at `path`.
        WriteError: the bag cannot be written.
    """

    def __init__(self, path: Path, *, topic: str = "/segmentation/mask") -> None:
        try:
            from rosbags.rosbag2 import StoragePlugin, Writer
            from rosbags.typesys import Stores, get_typestore
        except ImportError as error:
            raise WriteError(f"writing the bag {path} needs pip install 'edge-sfda[bags]'") from error
        if path.exists():
            raise UsageError(f"{path} exists already; name a bag that does not, or remove it")
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._store = get_typestore(Stores.ROS2_HUMBLE)
        try:
            _remove(self._part)
            self._writer = Writer(self._part, version=9, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        except OSError as error:
            raise WriteError(f"cannot write bag {path}: {error.strerror}; check the folder") from error
        self._connection = self._writer.add_connection(topic, IMAGE, typestore=self._store)

    def write(self, mask: U8, frame: Frame) -> None:
        """Add a mask, HW uint8, with the stamp of its frame; one without has its time in seconds, of no coordinates.

        Raises:
            WriteError: the disk is full.
        """
        types = self._store.types
        nanoseconds, frame_id = frame.stamp or Stamp(round(frame.captured_at * 1e9), "")
        stamp = types["builtin_interfaces/msg/Time"](sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
        message = types[IMAGE](
            header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id),
            height=mask.shape[0],
            width=mask.shape[1],
            encoding="mono8",
            is_bigendian=0,
            step=mask.shape[1],
            data=np.ascontiguousarray(mask, np.uint8).reshape(-1),
        )
        try:
            self._writer.write(self._connection, nanoseconds, self._store.serialize_cdr(message, IMAGE))
        except OSError as error:
            raise WriteError(f"cannot write bag {self.path}: {error.strerror}; make room") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt):
            self._writer.abort()
            _remove(self._part)
            return
        try:
            self._writer.close()
            self._publish()
        except OSError as failure:
            raise WriteError(f"cannot write bag {self.path}: {failure.strerror}; make room") from failure
        finally:
            _remove(self._part)  # where it did not become the bag

    def _publish(self) -> None:
        """Give the whole bag its name, once the disk has it."""
        (data,) = self._part.glob(f"*{_MCAP}")
        with data.open("rb") as written:
            os.fsync(written.fileno())
        rename_folder(data if self.path.suffix.lower() == _MCAP else self._part, self.path)


def _open(path: Path) -> Any:
    try:
        from rosbags.highlevel import AnyReader
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise SourceError(f"{path} is a ROS bag; reading one needs pip install 'edge-sfda[bags]'") from error
    if not path.exists():
        raise SourceError(f"no bag at {path}; check the path")
    try:
        # bags of sqlite3 carry no definitions; those of images never changed
        reader = AnyReader([path], default_typestore=get_typestore(Stores.ROS2_HUMBLE))
        reader.open()
    except Exception as error:  # its readers raise whatever a damaged file makes them run into
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path} cannot be read as a ROS bag: {reason}; is it whole, and closed?") from error
    return reader


def _choose(path: Path, topic: str | None, images: list[str]) -> str:
    if not images:
        raise SourceError(f"{path} holds no topic of images; record one of type {IMAGE} or {COMPRESSED}")
    if topic is None and len(images) > 1:
        raise UsageError(f"{path} holds images on {', '.join(images)}; choose one with --topic")
    if topic is not None and topic not in images:
        raise UsageError(f"{path} holds no images on {topic}; it has {', '.join(images)}")
    return topic or images[0]


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
