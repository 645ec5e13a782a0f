"""The rows that benchmarks write."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import rows


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository with a script and the rows of one run; `rows` writes there."""
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (tmp_path / "benchmarks" / "script.py").write_text("a = 1\n")
    (results / "old.jsonl").write_text("{}\n")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "m"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(rows, "RESULTS", results)
    rows.conditions.cache_clear()
    yield tmp_path
    rows.conditions.cache_clear()


def test_rows_before_do_not_make_a_commit_look_changed(checkout: Path) -> None:
    (checkout / "benchmarks" / "results" / "old.jsonl").write_text("{}\n{}\n")
    assert not rows.conditions()["commit"].endswith("-dirty")


def test_changed_code_does(checkout: Path) -> None:
    (checkout / "benchmarks" / "script.py").write_text("a = 2\n")
    assert rows.conditions()["commit"].endswith("-dirty")


def test_rows_are_appended_or_replaced(checkout: Path) -> None:
    rows.write("old", [{"a": 1}], append=True)
    assert [row.get("a") for row in rows.read(checkout / "benchmarks" / "results" / "old.jsonl")] == [None, 1]
    rows.write("old", [{"a": 2}])
    assert [row["a"] for row in rows.read(checkout / "benchmarks" / "results" / "old.jsonl")] == [2]
