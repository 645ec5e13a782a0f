"""What the node says, as ROS messages."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from std_msgs.msg import String

from edge_sfda.data.frames import Stamp
from edge_sfda.live.ros.source import Mail
from edge_sfda.live.status import LoopStatus
from edge_sfda.manifest import Classes

REFUSED = "refused"

_ENCODINGS = {("uint8", 2): "mono8", ("uint8", 3): "bgr8", ("float32", 2): "32FC1"}


def image(pixels: NDArray[Any], stamp: Stamp) -> Any:
    """Return a `sensor_msgs/Image`.

    Args:
        pixels: uint8 [H, W] (mono8), uint8 [H, W, 3] BGR (bgr8) or float32 [H, W] (32FC1).
        stamp: of its header.
    """
    pixels = np.ascontiguousarray(pixels)
    message = Image()
    seconds, nanoseconds = divmod(stamp.nanoseconds, 1_000_000_000)
    message.header.stamp.sec, message.header.stamp.nanosec = seconds, nanoseconds
    message.header.frame_id = stamp.frame_id
    message.height, message.width = pixels.shape[:2]
    message.encoding = _ENCODINGS[pixels.dtype.name, pixels.ndim]
    message.is_bigendian = 0
    message.step = pixels.strides[0]
    data = array("B")  # of any other type, each byte is checked by itself
    data.frombytes(pixels.data.cast("B"))
    message.data = data
    return message


def classes(of: Classes) -> Any:
    """Return names, palette and void id as JSON in a `std_msgs/String`."""
    return String(
        data=json.dumps({"names": list(of.names), "palette": [list(c) for c in of.palette], "ignore_id": of.ignore_id})
    )


def text(of: str) -> Any:
    """Return a `std_msgs/String`."""
    return String(data=of)


def diagnostics(
    stamp: Any,
    name: str,
    *,
    hardware: str,
    state: str,
    status: LoopStatus | None,
    mail: Mail | None,
    since: Mapping[str, int],
) -> Any:
    """Return a `diagnostic_msgs/DiagnosticArray` of one status.

    Args:
        stamp: time message, of now.
        name: of the status.
        hardware: what inference runs on.
        state: of the node's lifecycle.
        status: of the loop; None while there is none.
        mail: of the topic, likewise.
        since: images of each kind of trouble (`troubles`) since the last message.
    """
    level, words = _verdict(state, status, mail, since)
    values: dict[str, Any] = {"state": state}
    if status is not None and mail is not None:
        values |= _values(status, mail)
    made = DiagnosticStatus(level=level, name=name, message=words, hardware_id=hardware)
    made.values = [KeyValue(key=key, value=_shown(value)) for key, value in values.items()]
    array_of = DiagnosticArray(status=[made])
    array_of.header.stamp = stamp
    return array_of


def troubles(status: LoopStatus, mail: Mail) -> dict[str, int]:
    """Return how many images were refused, dark, frozen, ... so far."""
    return {REFUSED: mail.refused, **status.capture.faults}


def _verdict(state: str, status: LoopStatus | None, mail: Mail | None, since: Mapping[str, int]) -> tuple[bytes, str]:
    if status is None or mail is None:
        return DiagnosticStatus.WARN, f"{state}: no masks go out"
    if since.get(REFUSED):
        return DiagnosticStatus.ERROR, f"{since[REFUSED]} images refused: {mail.refusal}"
    if status.capture.trouble:
        return DiagnosticStatus.ERROR, status.capture.trouble
    if status.stale:
        return DiagnosticStatus.ERROR, f"no sound image; the last one came {mail.waited_s:.1f} s ago"
    faulty = [f"{count} {fault}" for fault, count in since.items() if count]
    if faulty:
        return DiagnosticStatus.WARN, f"images are not sound: {', '.join(faulty)} since the last message"
    return DiagnosticStatus.OK, "masks go out"


def _values(status: LoopStatus, mail: Mail) -> dict[str, Any]:
    return {
        "phase": status.phase.value,
        "detail": status.detail,
        "step": f"{status.step} of {status.steps}",
        "generation": status.generation,
        "frames": status.frames,
        "fps": status.fps,
        "latency p50 ms": status.latency_ms[0],
        "latency p99 ms": status.latency_ms[1],
        "confidence": status.confidence,
        "images received": mail.received,
        "images skipped": mail.skipped + status.capture.dropped,
        "images refused": mail.refused,
        "last refusal": mail.refusal,
        "seconds since the last image": mail.waited_s,
        "trouble": status.capture.trouble,
        **{f"{fault} images": count for fault, count in status.capture.faults.items()},
    }


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if math.isfinite(value) else ""
    return str(value)
