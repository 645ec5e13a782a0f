"""Against a real RTSP server on loopback: GStreamer's, where the system has it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sfda.data.camera import CameraSource
from edge_sfda.errors import SourceError

SYSTEM_PYTHON = Path("/usr/bin/python3")  # PyGObject belongs to it; its wheels need GStreamer's headers to build


class Server:
    """GStreamer's server in a process of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, Path(__file__).with_name("rtsp_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = self.process.stdout.readline().strip()

    def address(self, path: str = "street") -> str:
        return f"rtsp://127.0.0.1:{self.port}/{path}"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)


@pytest.fixture
def server() -> Iterator[Server]:
    if not SYSTEM_PYTHON.exists():
        pytest.skip(f"needs the system's Python at {SYSTEM_PYTHON}")
    server = Server()
    if not server.port:
        _, why = server.process.communicate(timeout=30)
        assert server.process.returncode == 3, why
        pytest.skip(
            f"needs GStreamer's RTSP server (Debian: gir1.2-gst-rtsp-server-1.0, gstreamer1.0-plugins-good): {why}"
        )
    yield server
    server.kill()


def test_rtsp_stream_gives_moving_frames(server: Server) -> None:
    with CameraSource(server.address()) as source:
        first, later = next(source), next(source)
        assert first.image.shape == later.image.shape == (120, 160, 3)
        assert later.seq > first.seq
        assert later.captured_at > first.captured_at
        assert (first.image != later.image).any()


def test_rtsp_server_that_dies_ends_the_stream_and_comes_back(server: Server) -> None:
    with CameraSource(server.address(), limit_s=5) as source:
        next(source)
        server.kill()
        with pytest.raises(SourceError, match=r"stopped after \d+ frames|gave no frame within 5 s"):
            for _ in source:
                pass
    again = Server()
    try:
        with CameraSource(again.address()) as source:
            assert next(source).image.shape == (120, 160, 3)
    finally:
        again.kill()


def test_rtsp_path_that_is_not_served_is_an_error(server: Server) -> None:
    with pytest.raises(SourceError, match="does not open; tried OpenCV on the address.*Check the address"):
        CameraSource(server.address("nothing"))


def test_close_of_a_stream_ends_its_thread(server: Server) -> None:
    source = CameraSource(server.address())
    next(source)
    source.close()
    assert not any(thread.name.startswith("camera rtsp") for thread in threading.enumerate())
