"""The loop in Rerun's viewer, or in its file: frames, masks, reliability, curves, events. Needs `rerun-sdk` (extra).

A thread of its own looks at the loop a few times a second and logs what it sees; the loop's thread only hands over
events. A viewer may come and go: while it is away nothing is sent, and little is kept.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import cv2
import numpy as np

from edge_sfda.errors import EngineError, UsageError
from edge_sfda.live.events import line_of
from edge_sfda.live.history import encode
from edge_sfda.live.job import Look
from edge_sfda.live.status import Latest, LoopStatus
from edge_sfda.manifest import Classes

if TYPE_CHECKING:
    import rerun

APPLICATION = "edge-sfda"
CURVES = ("doubt", "confidence", "reliability", "agreement", "loss", "fps", "generation")

_PERIOD_S = 0.2  # between two looks at the loop
_AWAY_S = 2.0  # between two tries to reach a viewer
_REACH_S = 0.5  # that a try may take
_EVENTS = 1000  # kept while the viewer is away
_PORT = 9876  # where a viewer listens as a rule
_WARNINGS = ("stale", "worker lost", "refused", "rolled back", "held")


class Watched(Protocol):
    """What is looked at: a `Loop`."""

    def status(self) -> LoopStatus: ...

    def latest(self) -> Latest | None: ...

    def look(self) -> Look | None: ...


class RerunLog:
    """Logs until `close`.

    Args:
        target: a file to write, `*.rrd`; or the URL of a viewer, such as `rerun+http://127.0.0.1:9876/proxy`.
        classes: of the masks.

    Raises:
        EngineError: `rerun-sdk` is not installed.
        UsageError: the target is neither, or the file is there already or cannot be written.
    """

    def __init__(self, target: str, classes: Classes) -> None:
        try:
            import rerun
        except ImportError as error:
            raise EngineError("--rerun needs rerun-sdk; run pip install 'edge-sfda[rerun]'") from error
        self._rr = rerun
        self._classes = classes
        self._events: deque[Mapping[str, Any]] = deque(maxlen=_EVENTS)
        self._closing = threading.Event()
        self._loop: Watched | None = None
        self._seq = -1
        self._looked: Look | None = None
        self._stream: rerun.RecordingStream | None = None
        self._viewer = _viewer(target)
        self._target = target
        if self._viewer is None:
            self._stream = self._open_file(Path(target))
        self._thread = threading.Thread(target=self._work, name="rerun", daemon=True)

    def watch(self, loop: Watched) -> None:
        """Begin to look at a loop."""
        self._loop = loop
        self._thread.start()

    def event(self, event: Mapping[str, Any]) -> None:
        """Take note of an event as `Events` tells it; costs the caller nothing."""
        self._events.append(event)

    def close(self) -> None:
        """Log what is left and end; a viewer that is away is not waited for."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    # --- its own thread ---

    def _work(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            if not self._reached():
                self._closing.wait(_AWAY_S)
                continue
            self._log()
        if self._reached():
            self._log()
            self._end()

    def _reached(self) -> bool:
        """Whether there is somebody to log to; a viewer that left takes its stream with it."""
        if self._viewer is None:
            return self._stream is not None
        try:
            with socket.create_connection(self._viewer, timeout=_REACH_S):
                pass
        except OSError:
            self._stream = None  # what it holds is let go, not waited for
            return False
        if self._stream is None:
            self._stream = self._rr.RecordingStream(APPLICATION)
            self._stream.connect_grpc(self._target)
            self._begin(self._stream)
        return True

    def _open_file(self, path: Path) -> rerun.RecordingStream:
        if path.exists():
            raise UsageError(f"--rerun {path} is there already; name another file, or remove it")
        stream = self._rr.RecordingStream(APPLICATION)
        try:
            stream.save(path)
        except RuntimeError as error:
            raise UsageError(f"--rerun {path} cannot be written ({error}); name another file") from error
        self._begin(stream)
        return stream

    def _begin(self, stream: rerun.RecordingStream) -> None:
        """Name the classes; void is left without a colour."""
        pairs = zip(self._classes.names, self._classes.palette, strict=True)
        stream.log("/", self._rr.AnnotationContext([(i, *pair) for i, pair in enumerate(pairs)]), static=True)

    def _log(self) -> None:
        stream, loop = self._stream, self._loop
        if stream is None or loop is None:
            return
        status = loop.status()
        stream.set_time("clock", timestamp=time.time())
        stream.set_time("frame", sequence=status.frames)
        for name in CURVES:
            value = float(getattr(status, name))
            if math.isfinite(value):
                stream.log(f"loop/{name}", self._rr.Scalars(value))
        for name, value in zip(("p50", "p99"), status.latency_ms, strict=True):
            if math.isfinite(value):
                stream.log(f"latency_ms/{name}", self._rr.Scalars(value))
        self._log_pictures(stream, loop)
        while self._events:
            event = self._events.popleft()
            stream.set_time("clock", timestamp=float(event["at"]))
            level = "WARN" if event["event"] in _WARNINGS else "INFO"
            stream.log("events", self._rr.TextLog(line_of(event), level=level))

    def _log_pictures(self, stream: rerun.RecordingStream, loop: Watched) -> None:
        latest, look = loop.latest(), loop.look()
        if latest is not None and latest.frame.seq != self._seq:
            self._seq = latest.frame.seq
            stream.log("camera/image", self._jpeg(encode(latest.frame.image)))
            stream.log("camera/mask", self._rr.SegmentationImage(latest.mask))
        if look is not None and look is not self._looked:
            self._looked = look
            image = np.ascontiguousarray(look.image.transpose(1, 2, 0)[..., ::-1])
            height, width = image.shape[:2]
            stream.log("learned/image", self._jpeg(encode(image)))
            grown = np.asarray(cv2.resize(look.reliability, (width, height), interpolation=cv2.INTER_NEAREST))
            stream.log("learned/reliability", self._rr.Image(grown, color_model="L"))

    def _jpeg(self, data: bytes) -> Any:
        return self._rr.EncodedImage(contents=data, media_type="image/jpeg")

    def _end(self) -> None:
        assert self._stream is not None, "somebody is there"
        self._stream.flush(timeout_sec=1.0)
        self._stream.disconnect()


def _viewer(target: str) -> tuple[str, int] | None:
    """Return host and port of a viewer's URL; None for a file."""
    parts = urlsplit(target)
    if parts.scheme in ("rerun+http", "rerun+https", "rerun") and parts.hostname:
        return parts.hostname, parts.port or _PORT
    if "://" in target or Path(target).suffix != ".rrd":
        raise UsageError(
            f"--rerun {target} is neither a file (*.rrd) nor a viewer's URL, such as rerun+http://127.0.0.1:9876/proxy"
        )
    return None
