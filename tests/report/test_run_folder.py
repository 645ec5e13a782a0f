from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from edge_sfda.data.frames import read_image
from edge_sfda.errors import WriteError
from edge_sfda.report.run_folder import RunFolder


def test_run_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_rows_are_on_disk_as_soon_as_they_are_added(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_row({"step": 1, "loss": 0.5, "metric_loss": math.nan})
    run.add_row({"step": 2, "loss": 0.25})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,metric_loss\n1,0.5,\n2,0.25,\n"
    assert [row["step"] for row in run.rows] == [1, 2]


def test_rows_of_an_earlier_run_are_gone(tmp_path: Path) -> None:
    RunFolder(tmp_path).add_row({"step": 1})
    RunFolder(tmp_path).add_row({"epoch": 7})
    assert (tmp_path / "metrics.csv").read_text() == "epoch\n7\n"


def test_row_with_a_new_column_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.add_row({"step": 1})
    with pytest.raises(WriteError, match="has the columns step; got loss"):
        run.add_row({"step": 2, "loss": 1.0})


def test_report_is_json_with_null_for_nan(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_report({"miou": np.float64(0.5), "iou": [math.nan]})
    assert json.loads((tmp_path / "report.json").read_text()) == {"miou": 0.5, "iou": [None]}


def test_config_is_written_as_given(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_config('method = "stvm"\n')
    assert (tmp_path / "config.toml").read_text() == 'method = "stvm"\n'


def test_curves_are_drawn_from_the_rows(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.write_curves() is None
    run.add_row({"step": 1, "loss": 0.5})
    path = run.write_curves(title="t")
    assert path == tmp_path / "curves.png"
    assert read_image(path).shape[2] == 3


def test_picture_is_written_under_its_stem(tmp_path: Path) -> None:
    picture = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    path = RunFolder(tmp_path).write_picture("strip", picture)
    assert path == tmp_path / "strip.png"
    assert np.array_equal(read_image(path), picture)


def test_run_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    with pytest.raises(WriteError, match="cannot make the folder"):
        RunFolder(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "x"


def test_resumed_run_keeps_the_rows_up_to_its_step(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    for step in (1, 2, 3):
        first.add_row({"step": step, "loss": step / 3, "reliability": float("nan")})
    with (tmp_path / "metrics.csv").open("a") as stream:
        stream.write("4,0.5")  # cut off by a kill
    second = RunFolder(tmp_path, resumed_at=2)
    assert [row["step"] for row in second.rows] == [1, 2]
    assert second.rows[1]["loss"] == 2 / 3
    second.add_row({"step": 3, "loss": 0.5, "reliability": 1.0})
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [
        "1,0.3333333333333333,",
        "2,0.6666666666666666,",
        "3,0.5,1.0",
    ]


def test_resumed_run_whose_rows_are_damaged_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    RunFolder(tmp_path).add_row({"step": 1, "loss": 0.5})
    (tmp_path / "metrics.csv").write_text("step,loss\n1,none\n")
    assert RunFolder(tmp_path, resumed_at=1).rows == []
    assert "the rows before step 1 are lost" in caplog.text
