"""The page to watch and steer the loop by: pictures, curves, generations, buttons. Needs the extra `live`.

Every page that a browser has open could send requests here. So: nothing is answered under a name that is not this
machine's own (DNS rebinding), a button needs a header that no foreign page may send, and its origin, where one is
given, must be this server. Beyond loopback there is no answer without the token but the empty page itself.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from edge_sfda.errors import EngineError, UsageError
from edge_sfda.live.events import line_of
from edge_sfda.live.history import History
from edge_sfda.live.loop import Loop
from edge_sfda.live.views import VIEWS, Views

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
ACTIONS = ("pause", "resume", "adapt", "accept", "rollback")

_MIN_TOKEN = 16  # characters: what a person invents is guessed
_CLOSE_S = 2.0
_CONNECTIONS = 32  # at once; more are refused
_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/app.css": ("app.css", "text/css"),
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

_log = logging.getLogger(__name__)


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `[HOST:]PORT`; loopback where no host is named.

    Raises:
        UsageError: it is none.
    """
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--dashboard {text!r} must be [HOST:]PORT, for example 8080 or 0.0.0.0:8080")
    return host or HOST, int(port)


class Listener:
    """A port that is ours before the camera starts; requests wait until the dashboard answers them.

    Args:
        address: see `parse_address`.
        token: what requests must carry; needed beyond loopback.

    Raises:
        EngineError: the extra is not installed.
        UsageError: the port is taken, or others could reach it without a token, or the token is too short.
    """

    def __init__(self, address: str, token: str | None) -> None:
        try:
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise EngineError("the dashboard needs starlette and uvicorn; run pip install 'edge-sfda[live]'") from error
        host, port = parse_address(address)
        if token is not None and len(token) < _MIN_TOKEN:
            raise UsageError(
                f"the dashboard's token has {len(token)} characters, expected {_MIN_TOKEN} or more; make one with "
                "openssl rand -hex 16"
            )
        self.loopback = _is_loopback(host)
        if token is None and not self.loopback:
            raise UsageError(
                f"--dashboard {address} can be reached from other machines; give --dashboard-token FILE or set "
                "EDGE_SFDA_TOKEN, or use 127.0.0.1"
            )
        self.token = token
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            self.socket = socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
        except OSError as error:
            raise UsageError(f"the dashboard cannot listen on {address} ({error}); choose another port") from error
        self.port = int(self.socket.getsockname()[1])
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.port}/"

    def close(self) -> None:
        """Give the port back."""
        self.socket.close()


class Dashboard:
    """The server, in a thread; it runs until `close`, and its failure stops nothing else.

    Args:
        listener: whose port it answers on; taken over.
        loop: that is shown and steered.
        history: of that loop.
    """

    def __init__(self, listener: Listener, loop: Loop, history: History) -> None:
        import uvicorn

        self.url = listener.url
        self._listener = listener
        config = uvicorn.Config(
            _application(listener, loop, history),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="dashboard", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener.socket])
        except Exception:  # noqa: BLE001 - whatever it is, frames go on
            _log.exception("the dashboard has stopped; the loop goes on")

    def close(self) -> None:
        """Stop answering, within two seconds."""
        self._server.should_exit = True
        self._thread.join(timeout=_CLOSE_S)
        if self._thread.is_alive():
            self._server.force_exit = True  # somebody holds a connection open; the thread is a daemon
        self._listener.close()


def _application(listener: Listener, loop: Loop, history: History) -> Starlette:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.routing import Route

    pages = _Pages(loop, history)
    routes = [
        *(Route(path, pages.file(name, kind)) for path, (name, kind) in _FILES.items()),
        Route("/api/state", pages.state),
        Route("/api/view/{name}.jpg", pages.view),
        Route("/api/swap/{number:int}/{side}.jpg", pages.swap),
        Route("/api/do/{action}", pages.act, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(_Guard, listener=listener)])


class _Pages:
    """The answers; those that draw or wait run in threads of the server's pool."""

    def __init__(self, loop: Loop, history: History) -> None:
        self.loop, self.history = loop, history
        self.views = Views(loop.latest, loop.look, history.classes)
        self.actions: Mapping[str, Callable[[], None]] = {
            "pause": loop.pause,
            "resume": loop.resume,
            "adapt": loop.adapt_now,
            "accept": loop.accept,
            "rollback": loop.rollback,
        }

    def file(self, name: str, kind: str) -> Callable[[Request], Response]:
        """Return what answers with a file of the page."""
        from starlette.responses import Response

        data = (resources.files("edge_sfda") / "assets" / "dashboard" / name).read_bytes()
        return lambda request: Response(data, media_type=kind)

    def state(self, request: Request) -> Response:
        """Answer with all numbers, and what is new since those that the page has."""
        from starlette.responses import Response

        status = asdict(self.loop.status())
        status["phase"] = status["phase"].value
        classes = self.history.classes
        swaps = [
            {
                "number": s.number,
                "generation": s.generation,
                "at": s.at,
                "reason": s.reason,
                "before": s.before is not None,
                "after": s.after is not None,
            }
            for s in self.history.swaps()
        ]
        body = {
            "status": status,
            "classes": {"names": list(classes.names), "palette": [list(c) for c in classes.palette]},
            "shares": self.history.shares(),
            "history": self.history.since(_number(request, "points")),
            "events": self.history.events(_number(request, "events")),
            "swaps": swaps,
        }
        return Response(line_of(body), media_type="application/json")

    def view(self, request: Request) -> Response:
        """Answer with a picture, or 204 where the page has the newest."""
        from starlette.responses import Response

        name = request.path_params["name"]
        if name not in VIEWS:
            return _refuse(404, f"no view {name!r}; there are {', '.join(VIEWS)}")
        view = self.views.get(name)
        if view is None or view.number == _number(request, "have"):
            return Response(status_code=204)
        return Response(view.jpeg, media_type="image/jpeg", headers={"X-Number": str(view.number)})

    def swap(self, request: Request) -> Response:
        """Answer with a swap's picture."""
        from starlette.responses import Response

        number, side = request.path_params["number"], request.path_params["side"]
        found = next((s for s in self.history.swaps() if s.number == number), None)
        jpeg = None if found is None else {"before": found.before, "after": found.after}.get(side)
        return _refuse(404, "no such picture") if jpeg is None else Response(jpeg, media_type="image/jpeg")

    def act(self, request: Request) -> Response:
        """Press a button; what becomes of it is told as an event."""
        from starlette.responses import Response

        action = self.actions.get(request.path_params["action"])
        if action is None:
            return _refuse(404, f"no such action; there are {', '.join(ACTIONS)}")
        action()
        return Response(status_code=202)


class _Guard:
    """Turns away what must not be answered, and sets the headers of what is; plain ASGI."""

    def __init__(self, app: Any, listener: Listener) -> None:
        self.app, self.listener = app, listener

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["method"], scope["path"], headers)
        await (self.app if refusal is None else _refuse(*refusal))(scope, receive, send_with_headers)

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if self.listener.loopback and not _is_loopback(_name_of(host)):
            return 421, f"this server does not answer as {host!r}; use {self.listener.url}"
        if self.listener.token is not None and path not in _FILES:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.listener.token.encode()):
                return 401, "this dashboard needs its token"
        if method not in ("GET", "HEAD"):
            origin = headers.get("origin")
            if "x-edge-sfda" not in headers or (origin is not None and origin != f"http://{host}"):
                return 403, "only this dashboard's own page may do that"
        return None


def _refuse(code: int, why: str) -> Response:
    from starlette.responses import Response

    return Response(json.dumps({"error": why}), status_code=code, media_type="application/json")


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 16 else 0


def _name_of(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
