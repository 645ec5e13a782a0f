from __future__ import annotations

import json
from pathlib import Path

import pytest
from page import PAGES, filled


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_page_holds_what_the_rows_say(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- table:" in text
    assert filled(text) == text, "run python benchmarks/page.py"


def test_table_is_made_anew_and_the_rest_stays(tmp_path: Path) -> None:
    row = {"profile": "full", "miou": 0.5, "rare": 0.25, "seconds": 4.0, "to_90_s": 2.0, "memory_mb": 7.0,
           "gmacs_per_frame": 3.0}  # fmt: skip
    (tmp_path / "cost.jsonl").write_text(json.dumps(row) + "\n")
    text = "before\n<!-- table:cost -->\nold\n<!-- /table:cost -->\nafter\n"
    lines = filled(text, tmp_path).splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    assert "old" not in lines
    assert lines[4] == "| full | 0.500 | 0.250 | 4.0 | 1.00 | 2.0 s | 7 MB | 3.0 |"
    assert filled("\n".join(lines), tmp_path) == "\n".join(lines)


def test_view_of_rows_is_made_anew_as_it_was_asked_for(tmp_path: Path) -> None:
    row = {"protocol": "offline", "pair": "dusk", "street": 43, "steps": 160, "miou": 0.5, "rare": 0.25}
    lines = [json.dumps(row | {"method": method}) for method in ("none", "bn", "tent", "stvm")]
    (tmp_path / "peers_scene.jsonl").write_text("\n".join(lines))
    text = "<!-- table:peers_scene by_domain -->\nold\n<!-- /table:peers_scene -->"
    made = filled(text, tmp_path)
    assert made.splitlines()[0] == "<!-- table:peers_scene by_domain -->"
    assert made.splitlines()[-2] == "| dusk | .500 | .500 | .500 | .500 |"
    assert filled(made, tmp_path) == made


def test_rows_of_several_files_make_one_table(tmp_path: Path) -> None:
    for name, street, mious in (("peers_a", 43, (0.5, 0.7)), ("peers_b", 53, (0.2,))):
        row = {"protocol": "offline", "pair": "dusk", "street": street, "steps": 160, "rare": 0.25}
        rows = [row | {"method": m, "miou": miou} for m in ("none", "bn", "tent", "stvm") for miou in mious]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "<!-- table:peers_a+peers_b by_domain -->\nold\n<!-- /table:peers_a+peers_b -->"
    made = filled(text, tmp_path)
    assert made.splitlines()[-2] == "| dusk | .400 | .400 | .400 | .400 |"  # each street counts once
    assert filled(made, tmp_path) == made


def test_table_that_nobody_can_make_is_told(tmp_path: Path) -> None:
    (tmp_path / "peers.jsonl").write_text("{}")
    with pytest.raises(KeyError, match="sideways"):
        filled("<!-- table:peers sideways -->\n<!-- /table:peers -->", tmp_path)
    with pytest.raises(KeyError, match="weather"):
        filled("<!-- table:weather -->\n<!-- /table:weather -->", tmp_path)
    with pytest.raises(FileNotFoundError):
        filled("<!-- table:cost -->\n<!-- /table:cost -->", tmp_path)
