from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_sfda.live.service import ServiceManager


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The manager's end of a real notify socket."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(5)
        yield path, receiver


def test_manager_hears_ready_status_and_stopping(manager) -> None:
    path, receiver = manager
    service = ServiceManager({"NOTIFY_SOCKET": path})
    assert service.present
    service.ready("watching /dev/video0")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=watching /dev/video0"
    service.status("adapting 3 of 100\nREADY=0")
    assert receiver.recv(4096) == b"STATUS=adapting 3 of 100 READY=0"
    service.extend(90.5)
    assert receiver.recv(4096) == b"EXTEND_TIMEOUT_USEC=90500000"
    service.stopping()
    assert receiver.recv(4096) == b"STOPPING=1"


def test_same_status_is_not_sent_again(manager) -> None:
    path, receiver = manager
    service = ServiceManager({"NOTIFY_SOCKET": path})
    service.status("watching")
    service.status("watching")
    service.status("adapting")
    assert [receiver.recv(4096), receiver.recv(4096)] == [b"STATUS=watching", b"STATUS=adapting"]


def test_watchdog_is_kept_quiet_three_times_a_period(manager) -> None:
    path, receiver = manager
    clock = Clock()
    service = ServiceManager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "30000000"}, clock=clock)
    assert service.watchdog_s == 30.0
    sent = []
    for _ in range(300):  # ten frames a second, half a minute
        sent.append(service.alive())
        clock.now += 0.1
    assert sum(sent) == 3
    assert [receiver.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_watchdog_for_this_process_nothing_is_sent(manager, environ: dict[str, str]) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": manager[0]} | environ)
    assert service.watchdog_s is None
    assert not service.alive()


def test_watchdog_of_this_process_counts(manager) -> None:
    environ = {"NOTIFY_SOCKET": manager[0], "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert ServiceManager(environ).alive()


def test_abstract_socket_is_reached() -> None:
    name = f"edge-sfda-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.settimeout(5)
        ServiceManager({"NOTIFY_SOCKET": "@" + name}).ready()
        assert receiver.recv(4096) == b"READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "relative"}])
def test_outside_of_a_service_every_call_does_nothing(environ: dict[str, str]) -> None:
    service = ServiceManager(environ)
    assert not service.present
    service.ready("x")
    service.status("y")
    service.extend(1)
    service.stopping()
    assert not service.alive()


def test_manager_that_has_gone_is_told_once_and_frames_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "1"})
    with caplog.at_level(logging.WARNING, "edge_sfda"):
        service.ready()
        service.status("watching")
        assert not service.alive()
    assert len(caplog.records) == 1
    assert not service.present


def test_manager_whose_queue_is_full_costs_no_frame(manager) -> None:
    path, _ = manager
    clock = Clock()
    service = ServiceManager({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "3"}, clock=clock)
    sent = 0
    for _ in range(100_000):  # nobody reads: at some point the queue is full
        clock.now += 1
        if not service.alive():
            break
        sent += 1
    else:
        pytest.fail("the queue never filled")
    assert service.present
    assert sent > 0
