"""Fills the tables of the project's README and of `benchmarks/README.md` from the rows in `benchmarks/results/`.

    python benchmarks/page.py

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is the file of its rows, or several files
joined by `+`. Where rows can be shown in another way, `<!-- table:NAME VIEW -->` says in which.
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
import peers_table
import reliability_study
import rows

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md")
TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {
    "ablation": ablation.table,
    "reliability": reliability_study.table,
    "peers": peers_table.table,
    "cost": cost.table,
    "live_rounds": live_rounds.table,
    "gate_worth": gate_worth.table,
}  # by the file's name, or what it begins with
VIEWS = {
    "by_protocol": peers_table.by_protocol,
    "by_worst": peers_table.by_worst,
    "by_domain": peers_table.by_domain,
}

_TABLE = re.compile(r"<!-- table:([\w+]+)( \w+)? -->\n.*?<!-- /table:\1 -->", re.DOTALL)


def filled(text: str, results: Path = rows.RESULTS) -> str:
    """Return the page with every table made anew.

    Raises:
        KeyError: a table, or a view of one, that nobody knows how to make.
        FileNotFoundError: there are no rows of that name.
    """

    def make(found: re.Match[str]) -> str:
        name, view = found[1], found[2] or ""
        usual = next((key for key in TABLES if name == key or name.startswith(f"{key}_")), name)
        table = VIEWS[view.strip()] if view else TABLES[usual]
        body = table([row for part in name.split("+") for row in rows.read(results / f"{part}.jsonl")]).strip("\n")
        return f"<!-- table:{name}{view} -->\n{body}\n<!-- /table:{name} -->"

    return _TABLE.sub(make, text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(page)


if __name__ == "__main__":
    main()
