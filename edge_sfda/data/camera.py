"""A live camera: a thread grabs, and only the newest frame is kept."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2

from edge_sfda.data.camera_options import CameraOptions, ask, lock
from edge_sfda.data.capture import Capture, open_quietly, quiet
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.errors import SourceError, UsageError

_DEVICE = re.compile(r"/dev/video(\d+)")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_SECRET = re.compile(r"//[^/@]*@")  # user and password of an address: in no message

_JOIN_S = 2.0  # how long closing waits for a read that hangs in the driver; the thread is a daemon


_APPSINK = " ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1 sync=false"


def is_camera(spec: str) -> bool:
    """Return whether `spec` names a camera: a number, `/dev/videoN`, an address with a scheme, a GStreamer pipeline."""
    return spec.isdecimal() or bool(_DEVICE.fullmatch(spec) or _ADDRESS.match(spec)) or is_pipeline(spec)


def is_pipeline(spec: str) -> bool:
    """Return whether `spec` is a GStreamer pipeline: elements with ` ! ` between them."""
    return " ! " in spec


class CameraSource(FrameSource):
    """Frames of a camera or stream, newest first: whoever is slow misses frames, which shows as gaps in `seq`.

    Args:
        spec: a number, `/dev/videoN`, an rtsp or http address, or a GStreamer pipeline (`nvarguscamerasrc ! ...`), to
            which an appsink is added where it names none.
        options: of a number or device, on V4L2.
        limit_s: longest wait for the camera to open with a first frame, and then for each next frame.
        opener: opens the capture; another one in tests.

    Raises:
        SourceError: it does not open, does not grant an option, or gives no frame in time; while iterating, it stops
            giving frames.
        UsageError: options for an address or a pipeline, which carry their own.
    """

    def __init__(
        self,
        spec: str | int,
        *,
        options: CameraOptions | None = None,
        limit_s: float = 10.0,
        opener: Callable[[int | str], Capture] | None = None,
    ) -> None:
        self.spec = str(spec)
        self.name = _SECRET.sub("//***@", self.spec)
        self.len_hint: int | None = None
        self.fps: float | None = None
        self._options = options or CameraOptions()
        if self._options.given and isinstance(self._target(), str):
            raise UsageError(f"{self.name} takes no camera options; write them into the address or the pipeline")
        self._limit_s = limit_s
        self._opener = opener or self._open
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._failure = ""
        self._closed = False
        self._thread = threading.Thread(target=self._grab, name=f"camera {self.name}", daemon=True)
        self._thread.start()
        try:
            with self._changed:
                self._wait()
                if self._newest is None:
                    raise SourceError(f"camera {self.name} {self._why()}; tried {self._tried()}. {self._advice()}")
        except BaseException:  # Ctrl-C while waiting must not leave the camera taken
            self._closed = True
            raise

    def __next__(self) -> Frame:
        with self._changed:
            if self._closed:
                raise StopIteration
            self._wait()
            if self._has_closed():  # by another thread, meanwhile
                raise StopIteration
            if self._newest is None:
                raise SourceError(f"camera {self.name} {self._why()}; check cable, power and network, then start again")
            frame, self._newest = self._newest, None
            return frame

    def close(self) -> None:
        """Stop grabbing and release the camera; no more frames come."""
        with self._changed:
            self._closed = True
            self._newest = None
            self._changed.notify_all()
        self._thread.join(timeout=_JOIN_S)

    def _wait(self) -> None:
        self._changed.wait_for(lambda: self._newest is not None or self._failure or self._closed, self._limit_s)

    def _why(self) -> str:
        return self._failure or f"gave no frame within {self._limit_s:g} s"

    def _has_closed(self) -> bool:
        return self._closed

    def _grab(self) -> None:
        capture: Capture | None = None
        try:
            capture = self._opener(self._target())
            if not capture.isOpened():
                self._fail("does not open")
                return
            if refused := ask(capture, self._options) if self._options.given else "":
                self._fail(f"does not grant {refused}")
                return
            rate = capture.get(cv2.CAP_PROP_FPS)
            self.fps = rate if 0 < rate < 1000 else None  # drivers report 0, or 90000 for streams without a rate
            self._pump(capture)
        except cv2.error as error:
            self._fail(f"failed in OpenCV ({error.err})")
        finally:
            if capture is not None:
                capture.release()

    def _pump(self, capture: Capture) -> None:
        seq = 0
        while not self._has_closed():
            with quiet():
                given, image = capture.read()
            captured_at = time.monotonic()
            if not given or image is None:
                self._fail(f"stopped after {seq} frames" if seq else "opens but gives no frame")
                return
            with self._changed:
                if self._has_closed():
                    return
                self._newest = Frame(image, seq, captured_at, f"frame-{seq:06d}")
                self._changed.notify_all()
            seq += 1
            if self._options.lock_exposure and seq == self._options.settle and not lock(capture):
                self._fail("cannot hold its exposure: its driver offers none by hand")
                return

    def _fail(self, why: str) -> None:
        with self._changed:
            self._failure = why
            self._changed.notify_all()

    def _open(self, target: int | str) -> Capture:
        if isinstance(target, int):
            # options are V4L2's own numbers, and another back end would read them as its own
            return open_quietly(target, api=cv2.CAP_V4L2 if self._options.given else cv2.CAP_ANY)
        if is_pipeline(target):
            return open_quietly(target, api=cv2.CAP_GSTREAMER)
        return open_quietly(target, limit_s=self._limit_s)

    def _target(self) -> int | str:
        device = _DEVICE.fullmatch(self.spec)
        if device:
            return int(device.group(1))
        if is_pipeline(self.spec):
            return self.spec if "appsink" in self.spec else self.spec + _APPSINK
        return int(self.spec) if self.spec.isdecimal() else self.spec

    def _tried(self) -> str:
        target = self._target()
        if isinstance(target, str) and is_pipeline(target):
            return "OpenCV on GStreamer"
        return f"OpenCV camera number {target}" if isinstance(target, int) else f"OpenCV on the address {self.name}"

    def _advice(self) -> str:
        if is_pipeline(self.spec):
            return _advice_on_gstreamer()
        if isinstance(self._target(), str):
            return "Check the address, the network and the password."
        devices = sorted(str(p) for p in Path("/dev").glob("video*"))
        here = f"Devices here: {', '.join(devices) or 'none'}; check cable, permissions and other programs using it."
        if not self._options.given:
            return here
        return f"{here} What it offers: v4l2-ctl --device /dev/video{self._target()} --list-formats-ext --list-ctrls."


def _advice_on_gstreamer() -> str:
    if cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        return "Try the pipeline with gst-launch-1.0, with fakesink at its end."
    return (
        "This OpenCV was built without GStreamer, as pip's is: use the system's (python3-opencv; on a Jetson the "
        "vendor's) in a virtual environment with --system-site-packages, or an rtsp:// address."
    )
