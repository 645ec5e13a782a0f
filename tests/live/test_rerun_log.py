from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rerun", reason="needs the extra rerun")

from edge_sfda.errors import UsageError
from edge_sfda.live.job import Look
from edge_sfda.live.rerun_log import RerunLog

Make = Callable[..., Any]

SEEN = {
    "/", "/camera/image", "/camera/mask", "/learned/image", "/learned/reliability", "/events", "/loop/fps",
    "/loop/generation", "/latency_ms/p50",
}  # fmt: skip


def _entities(path: Path) -> dict[str, int]:
    """Return what a recording holds: rows by entity, as Rerun's own command lists them."""
    ran = subprocess.run(
        [sys.executable, "-m", "rerun", "rrd", "print", str(path)], capture_output=True, text=True, check=True
    )
    found: dict[str, int] = {}
    for line in ran.stdout.splitlines():
        if line.startswith("Chunk("):
            rows, _, rest = line.split(" with ")[1].partition(" rows (")
            entity = rest.split(" - ")[1]
            found[entity] = found.get(entity, 0) + int(rows)
    return found


def _go(run: Any, log: RerunLog) -> None:
    """Run the loop over its recording with the log beside it."""
    look = Look(np.zeros((3, 192, 256), np.uint8), np.full((24, 32), 200, np.uint8))
    run.loop._look = look
    run.loop.events._listener = log.event
    log.watch(run.loop)
    run.loop.run()
    log.close()


def test_file_holds_frames_masks_reliability_curves_and_events(make_loop: Make, tmp_path: Path) -> None:
    run = make_loop(mode="off")
    path = tmp_path / "run.rrd"
    _go(run, RerunLog(str(path), run.loop.manifest.classes))
    held = _entities(path)
    assert set(held) >= SEEN
    assert held["/events"] == 3  # started, sound frames, stopped
    assert held["/camera/image"] == held["/camera/mask"] >= 1
    assert held["/learned/reliability"] == 1  # the same look is not logged again


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """Rerun's own server, which writes what it gets to a file; its URL, the file, and what ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / "seen.rrd"
    # tests that were begun in the background ignore SIGINT, and so would the server
    heed = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    server = [sys.executable, "-m", "rerun", "--save", str(path), "--port", str(port)]
    command = [sys.executable, "-c", heed, *server]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        nap = threading.Event()
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            nap.wait(0.1)
        else:
            raise AssertionError("the server did not come up")

        def end() -> None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                process.wait(timeout=120)

        yield f"rerun+http://127.0.0.1:{port}/proxy", path, end
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_viewer_gets_the_same(make_loop: Make, viewer: tuple[str, Path, Callable[[], None]]) -> None:
    url, path, end = viewer
    run = make_loop(mode="off")
    _go(run, RerunLog(url, run.loop.manifest.classes))
    end()
    assert set(_entities(path)) >= SEEN


def test_viewer_that_is_away_stops_nobody_and_nothing_is_kept_for_it(make_loop: Make) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        run = make_loop(mode="off")
        log = RerunLog(f"rerun+http://127.0.0.1:{taken.getsockname()[1]}/proxy", run.loop.manifest.classes)
        _go(run, log)
    assert run.loop.status().frames == 60
    assert log._stream is None
    assert not log._thread.is_alive()


@pytest.mark.parametrize("target", ["run.txt", "http://127.0.0.1:9876", "rerun+http:///proxy", "recordings"])
def test_target_that_is_neither_file_nor_viewer_is_refused(make_loop: Make, target: str) -> None:
    with pytest.raises(UsageError, match=r"neither a file \(\*\.rrd\) nor a viewer's URL"):
        RerunLog(target, make_loop().loop.manifest.classes)


def test_recording_that_is_there_is_not_overwritten(make_loop: Make, tmp_path: Path) -> None:
    path = tmp_path / "run.rrd"
    path.write_bytes(b"an older run")
    with pytest.raises(UsageError, match="is there already"):
        RerunLog(str(path), make_loop().loop.manifest.classes)
    assert path.read_bytes() == b"an older run"


def test_file_that_cannot_be_written_is_refused(make_loop: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        RerunLog(str(tmp_path / "away" / "run.rrd"), make_loop().loop.manifest.classes)
