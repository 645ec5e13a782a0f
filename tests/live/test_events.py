from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edge_sfda.live.events import Events


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_event_is_a_line_and_is_heard(tmp_path: Path) -> None:
    heard: list[Any] = []
    events = Events(tmp_path / "e.jsonl", listener=heard.append, clock=lambda: 12.34567)
    events.tell("started", mode="auto")
    events.tell("judged", scores={"a": float("nan"), "b": [1.0, float("inf")]})
    assert _lines(tmp_path / "e.jsonl") == [
        {"at": 12.346, "event": "started", "mode": "auto"},
        {"at": 12.346, "event": "judged", "scores": {"a": None, "b": [1.0, None]}},
    ]
    assert [event["event"] for event in heard] == ["started", "judged"]


def test_disk_that_takes_nothing_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "not there yet"
    events = Events(folder / "e.jsonl")
    with caplog.at_level(logging.WARNING, logger="edge_sfda"):
        for number in range(3):
            events.tell("n", number=number)
    assert events.unwritten == 3
    assert len(caplog.records) == 1
    folder.mkdir()
    events.tell("n", number=3)
    assert [line["number"] for line in _lines(folder / "e.jsonl")] == [0, 1, 2, 3]
    assert (events.unwritten, events.lost) == (0, 0)


def test_events_that_wait_are_bounded(tmp_path: Path) -> None:
    events = Events(tmp_path / "no" / "e.jsonl")
    for number in range(1010):
        events.tell("n", number=number)
    assert (events.unwritten, events.lost) == (1000, 10)


def test_run_without_a_file_only_tells() -> None:
    heard: list[Any] = []
    events = Events(None, listener=heard.append)
    events.tell("started")
    assert len(heard) == 1
    assert events.flush()
