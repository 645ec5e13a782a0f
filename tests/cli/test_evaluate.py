from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data.frames import read_image


def test_evaluate_json_holds_every_measure_of_every_class(run_cli, nano: Path, drive: Path) -> None:
    ran = run_cli("evaluate", nano, drive, "--json")
    assert (ran.code, ran.err) == (0, "")
    result = json.loads(ran.out)
    assert result["frames"] == 3
    assert list(result["classes"]) == [
        "sky", "road", "pavement", "building", "tree", "pole", "sign", "car", "person", "fence",
    ]  # fmt: skip
    assert all(entry["pixels"] == 3 * 4 * 56 for entry in result["classes"].values())
    assert result["miou"] == pytest.approx(np.mean([entry["iou"] for entry in result["classes"].values()]))
    assert 0 <= result["accuracy"] <= 1
    assert 0 <= result["ece"] <= 1


def test_evaluate_prints_a_table_and_the_means(run_cli, nano: Path, drive: Path) -> None:
    ran = run_cli("evaluate", nano, drive)
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[1:11]] == [
        "sky", "road", "pavement", "building", "tree", "pole", "sign", "car", "person", "fence",
    ]  # fmt: skip
    assert lines[-1].startswith("mIoU ")
    assert lines[-1].endswith("3 frames")


def test_evaluate_writes_report_and_confusion_picture(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    ran = run_cli("evaluate", nano, drive, "-o", tmp_path / "a" / "eval")
    assert ran.code == 0
    report = json.loads((tmp_path / "a" / "eval" / "report.json").read_text())
    assert np.sum(report["confusion"]) == 3 * 40 * 56
    assert read_image(tmp_path / "a" / "eval" / "confusion.png").shape[2] == 3
    assert "confusion.png" in ran.err


def test_evaluate_joins_several_folders(run_cli, nano: Path, drive: Path) -> None:
    assert json.loads(run_cli("evaluate", nano, drive, drive, "--json").out)["frames"] == 6


def test_evaluate_takes_a_scene(run_cli, nano: Path) -> None:
    ran = run_cli("evaluate", nano, "scene:dusk?frames=2&size=48x64", "--json")
    assert json.loads(ran.out)["frames"] == 2


def test_class_that_is_absent_has_null_in_json_and_a_dash_in_the_table(run_cli, nano: Path, drive: Path) -> None:
    for path in (drive / "labels").iterdir():
        cv2.imwrite(str(path), np.full((40, 56), 255, np.uint8))
    assert json.loads(run_cli("evaluate", nano, drive, "--json").out)["miou"] is None
    assert "mIoU – %" in run_cli("evaluate", nano, drive).out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "images" / "f1.png").write_bytes(b""), "f1.png is an empty file"),
        (lambda d: (d / "images" / "f1.png").write_bytes(b"text"), "f1.png is not a picture"),
        (lambda d: (d / "images" / "f1.png").unlink(), "f1"),
        (lambda d: cv2.imwrite(str(d / "labels" / "f1.png"), np.zeros((8, 8), np.uint8)), "label of 8x8 for an image"),
        (lambda d: cv2.imwrite(str(d / "labels" / "f1.png"), np.full((40, 56), 77, np.uint8)), "77"),
        (lambda d: cv2.imwrite(str(d / "labels" / "f1.png"), np.zeros((40, 56, 3), np.uint8)), "3 channels"),
    ],
)
def test_bad_data_is_one_line_and_exit_1(run_cli, nano: Path, drive: Path, spoil, message: str) -> None:
    spoil(drive)
    ran = run_cli("evaluate", nano, drive)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1
    assert message in ran.err


def test_missing_data_folder_is_wrong_usage(run_cli, nano: Path, tmp_path: Path) -> None:
    ran = run_cli("evaluate", nano, tmp_path / "nothing")
    assert ran.code == 2
    assert ran.err.startswith("error: no folder at")


def test_labels_of_other_classes_are_refused(run_cli, nano: Path, drive: Path) -> None:
    (drive / "classes.toml").write_text('names = ["road", "lorry"]\n')
    ran = run_cli("evaluate", nano, drive)
    assert ran.code == 1
    assert "labels of classes road, lorry where sky, road" in ran.err


def test_unwritable_folder_is_refused_before_the_work(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    ran = run_cli("evaluate", nano, drive, "-o", tmp_path / "taken")
    assert ran.code == 1
    assert "cannot make the folder" in ran.err


def _part_of_the_scene(drive: Path, folder: Path) -> str:
    """Give `drive` labels of three of the scene's classes, in an order of their own, and return their class map."""
    for path in (drive / "labels").iterdir():
        cv2.imwrite(str(path), np.repeat(np.arange(4, dtype=np.uint8), 10)[:, None].repeat(56, 1))
    path = folder / "part.toml"
    path.write_text('names = ["car", "sky", "road"]\nvoid = [3]\n')
    return str(path)


def test_labels_of_a_part_of_the_classes_are_measured_over_that_part(
    run_cli, nano: Path, drive: Path, tmp_path: Path
) -> None:
    part = _part_of_the_scene(drive, tmp_path)
    ran = run_cli("evaluate", nano, drive, "--classes", part, "--json")
    assert (ran.code, ran.err) == (0, "")
    result = json.loads(ran.out)
    assert result["miou_over"] == ["car", "sky", "road"]
    pixels = {name: entry["pixels"] for name, entry in result["classes"].items() if entry["pixels"]}
    assert pixels == dict.fromkeys(("sky", "road", "car"), 3 * 10 * 56)
    assert result["miou"] == pytest.approx(np.mean([result["classes"][name]["iou"] for name in result["miou_over"]]))
    assert "% over 3 of 10 classes" in run_cli("evaluate", nano, drive, "--classes", part).out


def test_over_averages_over_the_classes_of_a_map(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    whole = json.loads(run_cli("evaluate", nano, drive, "--json").out)
    (tmp_path / "two.toml").write_text('names = ["car", "road"]')
    ran = run_cli("evaluate", nano, drive, "--over", tmp_path / "two.toml", "--json")
    result = json.loads(ran.out)
    assert result["classes"] == whole["classes"]
    assert result["miou"] == pytest.approx(np.mean([whole["classes"][name]["iou"] for name in ("car", "road")]))


def test_over_classes_that_are_not_measured_is_a_usage_error(run_cli, nano: Path, drive: Path, tmp_path: Path) -> None:
    part = _part_of_the_scene(drive, tmp_path)
    ran = run_cli("evaluate", nano, drive, "--classes", part, "--over", "scene")
    assert ran.code == 2
    assert "pavement" in ran.err
    assert "those that network and labels share: sky, road, car" in ran.err


def test_labels_of_a_class_that_the_network_lacks_are_refused(run_cli, nano: Path, drive: Path) -> None:
    ran = run_cli("evaluate", nano, drive, "--classes", "camvid")
    assert ran.code == 1
    assert "where sky, road, pavement" in ran.err
