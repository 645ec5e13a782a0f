"""What the service manager hears from the live loop: systemd's notify protocol over its socket, no library needed.

Outside of a service every call does nothing, so that the loop need not know where it runs. See sd_notify(3): datagrams
of `NAME=value` lines to the socket in `NOTIFY_SOCKET`; `WATCHDOG_USEC` is the longest silence that the manager bears.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

_PINGS = 3  # within one watchdog period: one lost or late ping must not end the service


class ServiceManager:
    """The way to systemd, or to nobody.

    Args:
        environ: the process's environment.
        clock: monotonic seconds.
    """

    def __init__(
        self, environ: Mapping[str, str] | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        given = os.environ if environ is None else environ
        self._address = _address(given.get("NOTIFY_SOCKET", ""))
        self._clock = clock
        self._said = ""
        self._next_ping = 0.0
        self.watchdog_s: float | None = _watchdog_s(given) if self._address else None

    @property
    def present(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    def ready(self, status: str = "") -> None:
        """Say that frames come in and masks go out: what `systemctl start` waits for."""
        self._send("READY=1", *self._status(status))

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`; the same line again is not sent."""
        self._send(*self._status(text))

    def alive(self) -> bool:
        """Keep the watchdog quiet; call it with every frame, it sends a third of the watchdog's period apart.

        Call it from the thread whose stopping must end the service, never from a timer of its own.

        Returns:
            whether it was sent now.
        """
        if self.watchdog_s is None or self._clock() < self._next_ping:
            return False
        self._next_ping = self._clock() + self.watchdog_s / _PINGS
        return self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Ask for more time to start or to stop, in seconds from now: an engine that is built takes minutes."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self, status: str = "") -> None:
        """Say that the service ends by itself or as asked."""
        self._send("STOPPING=1", *self._status(status))

    def _status(self, text: str) -> list[str]:
        line = " ".join(text.split())  # a line break would start another field
        if not line or line == self._said:
            return []
        self._said = line
        return [f"STATUS={line}"]

    def _send(self, *fields: str) -> bool:
        """Send one datagram; a manager that does not take it is told once in the log, and frames go on."""
        if self._address is None or not fields:
            return False
        try:
            # never waits: a manager that is busy must not cost frames
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto("\n".join(fields).encode(), self._address)
        except BlockingIOError:
            return False  # its queue is full; the next ping comes soon
        except OSError as error:
            _log.warning("the service manager does not hear this service: %s", error)
            self._address = self.watchdog_s = None
            return False
        return True


def _address(name: str) -> str | None:
    """Return the socket's address; a leading @ stands for the abstract namespace."""
    if not name.startswith(("/", "@")):
        return None
    return "\0" + name[1:] if name.startswith("@") else name


def _watchdog_s(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog's period in seconds, or None where none is set for this process."""
    try:
        period = int(environ.get("WATCHDOG_USEC", "")) / 1e6
        pid = int(environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return period if period > 0 and pid == os.getpid() else None
