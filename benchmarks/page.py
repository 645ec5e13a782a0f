"""Fills the tables of `benchmarks/README.md` from the rows in `benchmarks/results/`.

    python benchmarks/page.py

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is the file of its rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation
import cost
import gate_worth
import live_rounds
import peers
import reliability_study
import rows

PAGE = Path(__file__).parent / "README.md"
TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "ablation": ablation.table,
    "reliability": reliability_study.table,
    "peers": peers.table,
    "cost": cost.table,
    "live_rounds": live_rounds.table,
    "gate_worth": gate_worth.table,
}  # by the file's name, or what it begins with

_TABLE = re.compile(r"<!-- table:(\w+) -->\n.*?<!-- /table:\1 -->", re.DOTALL)


def filled(text: str, results: Path = rows.RESULTS) -> str:
    """Return the page with every table made anew.

    Raises:
        KeyError: a table that nobody knows how to make.
        FileNotFoundError: there are no rows of that name.
    """

    def make(found: re.Match[str]) -> str:
        name = found[1]
        table = TABLES[next((key for key in TABLES if name == key or name.startswith(f"{key}_")), name)]
        body = table(rows.read(results / f"{name}.jsonl")).strip("\n")
        return f"<!-- table:{name} -->\n{body}\n<!-- /table:{name} -->"

    return _TABLE.sub(make, text)


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
