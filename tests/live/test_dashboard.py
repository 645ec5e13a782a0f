"""The dashboard over real HTTP, and in a real browser where there is one."""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from edge_sfda.errors import UsageError
from edge_sfda.live.history import History
from edge_sfda.live.loop import Loop

pytest.importorskip("starlette", reason="needs the extra live")
pytest.importorskip("uvicorn", reason="needs the extra live")

from edge_sfda.live.dashboard import ACTIONS, Dashboard, Listener, parse_address

TOKEN = "0123456789abcdef"
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


@dataclass
class Site:
    """A dashboard over a loop that has seen three frames."""

    loop: Loop
    history: History
    listener: Listener

    def ask(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.listener.port, timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()


@pytest.fixture
def make_site(make_loop: Callable[..., Any]) -> Iterator[Callable[..., Site]]:
    open_ones: list[Dashboard] = []

    def make(address: str = "0", token: str | None = None, *, frames: int = 3) -> Site:
        run = make_loop(f"scene:day?frames={frames}&fps=10&seed=5", mode="off")
        history = History(run.loop.manifest.classes, clock=itertools.count(step=2).__next__)
        run.loop.run(lambda latest, seen: history.frame(latest), on_turn=lambda: history.sample(run.loop.status))
        listener = Listener(address, token)
        open_ones.append(Dashboard(listener, run.loop, history))
        return Site(run.loop, history, listener)

    yield make
    for dashboard in open_ones:
        dashboard.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080", ("127.0.0.1", 8080)),
        (":8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:5", ("::1", 5)),
    ],
)
def test_address_is_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "host", "127.0.0.1:", "1:-2", "99999", "8080:tcp"])
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"must be \[HOST:\]PORT"):
        parse_address(text)


def test_beyond_loopback_needs_a_token() -> None:
    with pytest.raises(UsageError, match="can be reached from other machines; give --dashboard-token"):
        Listener("0.0.0.0:0", None)


def test_short_token_is_refused() -> None:
    with pytest.raises(UsageError, match="has 5 characters, expected 16 or more"):
        Listener("0", "hello")


def test_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"cannot listen on {port} .*; choose another port"):
            Listener(str(port), None)


def test_state_is_the_loop_s(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.history.event({"at": 1.0, "event": "phase", "phase": "watching"})
    code, body, headers = site.ask("/api/state")
    state = json.loads(body)
    assert code == 200
    assert headers["content-type"] == "application/json"
    assert state["status"]["phase"] == "off"
    assert state["status"]["frames"] == 3
    assert state["status"]["loss"] is None  # NaN is no JSON
    assert state["classes"]["names"][1] == "road"
    assert sum(state["shares"]) == pytest.approx(1, abs=0.01)
    assert state["events"] == [{"number": 1, "at": 1.0, "event": "phase", "phase": "watching"}]
    assert json.loads(site.ask("/api/state?events=1&points=1")[1])["events"] == []


def test_pictures_are_jpeg_and_sent_once(make_site: Callable[..., Site]) -> None:
    site = make_site()
    code, body, headers = site.ask("/api/view/overlay.jpg")
    assert (code, headers["content-type"]) == (200, "image/jpeg")
    assert cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).shape == (192, 256, 3)
    assert site.ask(f"/api/view/overlay.jpg?have={headers['x-number']}")[0] == 204
    assert site.ask("/api/view/reliability.jpg")[0] == 204  # no burst yet
    assert site.ask("/api/view/secret.jpg")[0] == 404
    assert site.ask("/api/view/overlay.jpg?have=-1e9")[0] == 200


def test_swap_s_pictures_are_kept(make_site: Callable[..., Site]) -> None:
    site = make_site()
    site.history.event({"at": 1.0, "event": "swapped", "generation": 1, "reason": "better"})
    (swap,) = json.loads(site.ask("/api/state")[1])["swaps"]
    assert swap == {"number": 1, "generation": 1, "at": 1.0, "reason": "better", "before": True, "after": False}
    assert site.ask("/api/swap/1/before.jpg")[2]["content-type"] == "image/jpeg"
    assert [site.ask(path)[0] for path in ("/api/swap/1/after.jpg", "/api/swap/2/before.jpg")] == [404, 404]


@pytest.mark.parametrize("action", ACTIONS)
def test_buttons_reach_the_loop(action: str, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch) -> None:
    pressed: list[str] = []
    for name in ("pause", "resume", "adapt_now", "accept", "rollback"):
        monkeypatch.setattr(Loop, name, lambda self, name=name: pressed.append(name))
    site = make_site()
    origin = f"http://127.0.0.1:{site.listener.port}"
    assert site.ask(f"/api/do/{action}", method="POST", headers={"X-Edge-SFDA": "1", "Origin": origin})[0] == 202
    assert pressed == [{"adapt": "adapt_now"}.get(action, action)]


@pytest.mark.parametrize(
    ("method", "headers", "code"),
    [
        ("POST", {}, 403),  # a form of another page can do this much
        ("POST", {"X-Edge-SFDA": "1", "Origin": "http://evil.example"}, 403),
        ("POST", {"X-Edge-SFDA": "1", "Origin": "null"}, 403),
        ("GET", {"X-Edge-SFDA": "1"}, 405),
        ("POST", {"X-Edge-SFDA": "1", "Host": "evil.example"}, 421),
    ],
)
def test_other_pages_cannot_press_a_button(
    method: str, headers: dict[str, str], code: int, make_site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed: list[int] = []
    monkeypatch.setattr(Loop, "rollback", lambda self: pressed.append(1))
    assert make_site().ask("/api/do/rollback", method=method, headers=headers)[0] == code
    assert pressed == []


@pytest.mark.parametrize("path", ["/", "/api/state", "/api/view/frame.jpg"])
def test_other_names_are_not_answered(path: str, make_site: Callable[..., Site]) -> None:
    site = make_site()
    assert site.ask(path, headers={"Host": "evil.example"})[0] == 421
    assert site.ask(path, headers={"Host": f"localhost:{site.listener.port}"})[0] == 200


def test_token_guards_everything_but_the_empty_page(make_site: Callable[..., Site]) -> None:
    site = make_site("0.0.0.0:0", TOKEN)
    assert site.ask("/", headers={"Host": "robot.local"})[0] == 200
    for headers in ({}, {"Authorization": "Bearer 0123456789abcdeX"}, {"Authorization": "Bearer "}):
        assert site.ask("/api/state", headers=headers)[0] == 401
        assert site.ask("/api/view/frame.jpg", headers=headers)[0] == 401
        assert site.ask("/api/do/pause", method="POST", headers={**headers, "X-Edge-SFDA": "1"})[0] == 401
    good = {"Authorization": f"Bearer {TOKEN}"}
    assert site.ask("/api/state", headers=good)[0] == 200
    assert site.ask("/api/do/pause", method="POST", headers={**good, "X-Edge-SFDA": "1"})[0] == 202


@pytest.mark.parametrize("path", ["/", "/app.js", "/api/state", "/nothing", "/api/view/nothing.jpg"])
def test_every_answer_forbids_foreign_code(path: str, make_site: Callable[..., Site]) -> None:
    headers = make_site().ask(path)[2]
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers


def test_page_needs_nothing_from_elsewhere() -> None:
    assets = Path(__file__).parents[2] / "edge_sfda" / "assets" / "dashboard"
    for name in ("index.html", "app.js", "app.css"):
        text = (assets / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http" not in text.replace("https://", "http://"), name
        assert "style=" not in text, f"{name}: the policy forbids it"


def test_closing_does_not_wait_for_who_holds_a_connection(make_loop: Callable[..., Any]) -> None:
    run = make_loop("scene:day?frames=1&seed=5", mode="off")
    listener = Listener("0", None)
    dashboard = Dashboard(listener, run.loop, History(run.loop.manifest.classes))
    with socket.create_connection(("127.0.0.1", listener.port), timeout=10) as held:
        held.sendall(b"GET /api/state HTTP/1.1\r\nHost: localhost\r\n")  # and never the rest
        dashboard.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", listener.port), timeout=2)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
@pytest.mark.parametrize("token", [None, TOKEN])
def test_browser_shows_the_page(token: str | None, make_site: Callable[..., Site], tmp_path: Path) -> None:
    site = make_site(token=token)
    site.history.event({"at": 1.0, "event": "swapped", "generation": 1, "reason": "it is better"})
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    words += ["--virtual-time-budget=4000", "--dump-dom", f"http://127.0.0.1:{site.listener.port}/"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    dom = ran.stdout
    assert "Content Security Policy" not in ran.stderr
    if token is not None:
        assert "the dashboard needs its token" in dom
        assert "blob:" not in dom
        return
    assert '<span id="phase" class="pill off">off</span>' in dom
    assert 'src="blob:http://127.0.0.1:' in dom  # the picture
    assert "pavement" in dom
    assert "it is better" in dom
    assert dom.count('<div class="curve">') == 7
    assert '<p id="trouble" role="alert" hidden="">' in dom
