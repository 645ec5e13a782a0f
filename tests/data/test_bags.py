"""Real bags, written by the library in every format and read as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sfda.data.bags import BagSource, BagWriter, is_bag, split, with_topic
from edge_sfda.data.frames import Frame, Stamp
from edge_sfda.data.sources import open_source
from edge_sfda.errors import FrameError, SourceError, UsageError, WriteError

rosbags = pytest.importorskip("rosbags", reason="needs the extra bags")

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"


def _picture(value: int) -> np.ndarray:
    image = np.zeros((8, 12, 3), np.uint8)
    image[:] = (value % 80, value % 80 * 2, value % 80 * 3)
    return image


def _message(types: Any, kind: str, image: np.ndarray, seconds: float, encoding: str = "bgr8") -> Any:
    whole = int(seconds)
    stamp = types["builtin_interfaces/msg/Time"](sec=whole, nanosec=round((seconds - whole) * 1e9))
    extra = {"seq": 0} if "seq" in types["std_msgs/msg/Header"].__dataclass_fields__ else {}
    header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera", **extra)
    if kind == COMPRESSED:
        _, data = cv2.imencode(".png", image)
        return types[kind](header=header, format="png", data=data.reshape(-1))
    return types[kind](
        header=header, height=8, width=12, encoding=encoding, is_bigendian=0, step=36, data=image.reshape(-1)
    )


def _bag(
    folder: Path,
    storage: str = "mcap",
    topics: dict[str, str] | None = None,
    *,
    frames: int = 3,
    stamped: bool = True,
    encoding: str = "bgr8",
) -> Path:
    """Write `frames` images to each topic, a tenth of a second apart; returns what a user would name."""
    from rosbags.typesys import Stores, get_typestore

    topics = topics or {"/camera/image_raw": IMAGE}
    if storage == "ros1":
        from rosbags.rosbag1 import Writer as Writer1

        store, path = get_typestore(Stores.ROS1_NOETIC), folder / "run.bag"
        writer: Any = Writer1(path)
        serialise = store.serialize_ros1
    else:
        from rosbags.rosbag2 import StoragePlugin, Writer

        store, path = get_typestore(Stores.ROS2_HUMBLE), folder / "run"
        plugin = {"mcap": StoragePlugin.MCAP, "sqlite3": StoragePlugin.SQLITE3}[storage]
        writer = Writer(path, version=9, storage_plugin=plugin)
        serialise = store.serialize_cdr
    with writer:
        connections = {topic: writer.add_connection(topic, kind, typestore=store) for topic, kind in topics.items()}
        for index in range(frames):
            for topic, kind in topics.items():
                at = 100 + index / 10
                message = _message(store.types, kind, _picture(20 * index), at if stamped else 0.0, encoding)
                writer.write(connections[topic], round((at + 0.01) * 1e9), serialise(message, kind))
    return path


@pytest.mark.parametrize("storage", ["mcap", "sqlite3", "ros1"])
@pytest.mark.parametrize("kind", [IMAGE, COMPRESSED])
def test_bag_gives_its_images_with_their_stamps(storage: str, kind: str, tmp_path: Path) -> None:
    with open_source(str(_bag(tmp_path, storage, {"/camera/image_raw": kind}))) as source:
        assert isinstance(source, BagSource)
        assert source.len_hint == 3
        assert source.fps == pytest.approx(10.0)
        frames = list(source)
    assert [(f.seq, f.name) for f in frames] == [(0, "run-000000"), (1, "run-000001"), (2, "run-000002")]
    assert [f.captured_at for f in frames] == pytest.approx([100.0, 100.1, 100.2])
    assert all(np.array_equal(f.image, _picture(20 * i)) for i, f in enumerate(frames))


def test_single_file_of_a_bag_is_enough(tmp_path: Path) -> None:
    (file,) = _bag(tmp_path).glob("*.mcap")
    with open_source(str(file)) as source:
        assert len(list(source)) == 3


def test_time_of_recording_stands_in_for_an_empty_stamp(tmp_path: Path) -> None:
    with open_source(str(_bag(tmp_path, stamped=False))) as source:
        assert next(source).captured_at == pytest.approx(100.01)


def test_topic_is_asked_for_where_there_are_several(tmp_path: Path) -> None:
    path = _bag(tmp_path, topics={"/left": IMAGE, "/right": IMAGE})
    with pytest.raises(UsageError, match="holds images on /left, /right; choose one with --topic"):
        open_source(str(path))
    with open_source(f"{path}?topic=/right") as source:
        assert len(list(source)) == 3
    with pytest.raises(UsageError, match="holds no images on /up; it has /left, /right"):
        open_source(f"{path}?topic=/up")


def test_bag_without_images_says_what_to_record(tmp_path: Path) -> None:
    from rosbags.rosbag2 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    with Writer(tmp_path / "run", version=9) as writer:
        writer.add_connection("/chatter", "std_msgs/msg/String", typestore=store)
    with pytest.raises(SourceError, match=r"no topic of images; record one of type sensor_msgs/msg/Image"):
        open_source(str(tmp_path / "run"))


def test_topic_without_a_message_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="/camera/image_raw .* holds no image"):
        open_source(str(_bag(tmp_path, frames=0)))


def test_encoding_that_is_not_known_names_those_that_are(tmp_path: Path) -> None:
    with (
        open_source(str(_bag(tmp_path, encoding="32FC1"))) as source,
        pytest.raises(FrameError, match="encoding '32FC1'; expected one of bgr8"),
    ):
        next(source)


@pytest.mark.parametrize("name", ["run.mcap", "run.db3", "run.bag"])
@pytest.mark.parametrize("content", [b"", b"no bag at all, but long enough to look like one"])
def test_damaged_bag_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=f"{name} cannot be read as a ROS bag: .*; is it whole, and closed"):
        open_source(str(tmp_path / name))


def test_truncated_bag_is_an_error_not_a_short_run(tmp_path: Path) -> None:
    (file,) = _bag(tmp_path, frames=20).glob("*.mcap")
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="cannot be read"), open_source(str(file)) as source:
        list(source)


def test_missing_bag_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no bag at"):
        open_source(str(tmp_path / "run.mcap"))


def test_specs_are_told_apart(tmp_path: Path) -> None:
    assert is_bag("run.mcap")
    assert is_bag("run.bag?topic=/a")
    assert not is_bag("run.mp4")
    assert not is_bag(str(tmp_path))
    assert split("a/run.mcap?topic=/x/y") == (Path("a/run.mcap"), "/x/y")
    assert with_topic("run.mcap", "/x") == "run.mcap?topic=/x"
    assert with_topic("run.mcap?topic=/y", "/x") == "run.mcap?topic=/x"
    assert with_topic("run.mp4", None) == "run.mp4"
    with pytest.raises(UsageError, match="--topic /x goes with a bag"):
        with_topic("run.mp4", "/x")


def test_masks_come_back_as_they_were_written(tmp_path: Path) -> None:
    masks = [np.random.default_rng(i).integers(0, 11, (6, 9), np.uint8) for i in range(3)]
    with BagWriter(tmp_path / "masks") as writer:
        for index, mask in enumerate(masks):
            writer.write(mask, Frame(_picture(0), index, 7 + index / 4))
    with open_source(str(tmp_path / "masks")) as source:
        frames = list(source)
    assert [f.captured_at for f in frames] == [7.0, 7.25, 7.5]
    for frame, mask in zip(frames, masks, strict=True):
        assert np.array_equal(frame.image, np.dstack([mask] * 3))


def test_bag_of_masks_is_whole_or_not_there(tmp_path: Path) -> None:
    def fail() -> None:
        with BagWriter(tmp_path / "masks") as writer:
            writer.write(np.zeros((2, 2), np.uint8), Frame(_picture(0), 0, 1.0))
            raise RuntimeError("the camera is gone")

    with pytest.raises(RuntimeError, match="the camera is gone"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_bag_of_masks_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        BagWriter(tmp_path / "masks")


def test_masks_carry_the_stamp_of_their_frames_to_the_nanosecond(tmp_path: Path) -> None:
    exact = Stamp(1_700_000_000_123_456_789, "camera_optical")  # no float holds this
    with BagWriter(tmp_path / "masks", topic="/seen") as writer:
        writer.write(np.zeros((8, 12), np.uint8), Frame(_picture(0), 0, exact.nanoseconds / 1e9, "", exact))
    with BagSource(tmp_path / "masks", "/seen") as source:
        assert next(source).stamp == exact


def test_interrupt_keeps_the_masks_so_far(tmp_path: Path) -> None:
    def interrupted() -> None:
        with BagWriter(tmp_path / "masks") as writer:
            writer.write(np.ones((2, 2), np.uint8), Frame(_picture(0), 0, 1.0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with BagSource(tmp_path / "masks") as source:
        assert source.len_hint == 1


def test_bag_named_mcap_is_one_file(tmp_path: Path) -> None:
    stamp = Stamp(1_700_000_000_123_456_789, "camera_optical")
    mask = np.random.default_rng(0).integers(0, 11, (6, 9), np.uint8)
    with BagWriter(tmp_path / "masks.mcap") as writer:
        writer.write(mask, Frame(_picture(0), 0, 1.0, "", stamp))
    assert [path.name for path in tmp_path.iterdir()] == ["masks.mcap"]
    assert (tmp_path / "masks.mcap").is_file()
    with open_source(str(tmp_path / "masks.mcap")) as source:
        (frame,) = source
    assert frame.stamp == stamp
    assert np.array_equal(frame.image[..., 0], mask)


def test_bag_that_cannot_take_its_name_leaves_nothing(tmp_path: Path) -> None:
    def late() -> None:
        with BagWriter(tmp_path / "masks") as writer:
            writer.write(np.ones((2, 2), np.uint8), Frame(_picture(0), 0, 1.0))
            (tmp_path / "masks").write_text("somebody was quicker")

    with pytest.raises(WriteError, match="cannot rename"):
        late()
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
    assert (tmp_path / "masks").read_text() == "somebody was quicker"
