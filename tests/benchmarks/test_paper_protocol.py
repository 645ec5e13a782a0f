from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import paper_protocol
import pytest
import rows
import torch
from deeplabv2 import deeplabv2
from import_deeplabv2 import FACTORY, to_checkpoint

from edge_sfda.data import class_maps
from edge_sfda.nets import load

SIZE = (64, 128)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), array)


def _frame(path: Path) -> None:
    _write(path, RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def _bands(ids: list[int]) -> np.ndarray:
    """Return a label of horizontal bands."""
    return np.array(ids, np.uint8)[np.arange(SIZE[0]) * len(ids) // SIZE[0]][:, None].repeat(SIZE[1], 1)


def _cityscapes(root: Path) -> Path:
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau")):
        _frame(root / f"leftImg8bit/{split}/{city}/{city}_000000_000019_leftImg8bit.png")
        _write(
            root / f"gtFine/{split}/{city}/{city}_000000_000019_gtFine_labelIds.png", _bands([7, 11, 22, 23, 12, 26])
        )
    return root


def _acdc(root: Path) -> Path:
    for condition in ("fog", "night"):
        for split in ("train", "val"):
            stem = f"{condition}/{split}/GOPR0475/GOPR0475_frame_000041"
            _frame(root / f"rgb_anon/{stem}_rgb_anon.png")
            _write(root / f"gt/{stem}_gt_labelTrainIds.png", _bands([0, 2, 10, 255]))
    return root


def _nthu(root: Path) -> Path:
    for city in ("Rio", "Rome"):
        for i in range(2):
            _frame(root / f"{city}/Images/Train/pano_0000{i}_0_0.png")
        _frame(root / f"{city}/Images/Test/pano_00002_2_180.png")
        _write(root / f"{city}/Labels/Test/pano_00002_2_180_eval.png", _bands([7, 11, 23, 0]))
    return root


def _source(path: Path, class_map: str) -> Path:
    torch.manual_seed(0)
    classes, tiny = class_maps.resolve(class_map).classes, {"width": 4, "blocks": (1, 1, 1, 1)}
    to_checkpoint(deeplabv2(len(classes), **tiny).state_dict(), path, classes=classes, size=SIZE, **tiny)
    return path


def _run(pair: str, source: Path, target: Path, *more: str) -> list[dict[str, object]]:
    common = ["--net", FACTORY, "--methods", "none", "tent", "--seeds", "0", "--steps", "1", "--device", "cpu"]
    paper_protocol.main([pair, "--source", str(source), "--target", str(target), *common, *more])
    return [json.loads(line) for line in (rows.RESULTS / f"paper_{pair}.jsonl").read_text().splitlines()]


def test_gta5_to_cityscapes_learns_from_train_and_measures_val_over_19(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _run("gta5-cityscapes", _source(tmp_path / "s.safetensors", "gta5"), _cityscapes(tmp_path / "city"))
    assert [(row["method"], row["target"], row["frames"], row["learned_from"], row["steps"]) for row in found] == [
        ("none", "all", 1, 0, 0),
        ("tent", "all", 1, 2, 1),
    ]
    assert all(0 <= row["miou_19"] <= 1 and len(row["iou"]) == 19 for row in found)
    assert found[0]["size"] == [64, 128]
    assert "| all | tent | 1 |" in capsys.readouterr().out


def test_synthia_to_cityscapes_reports_16_and_13_of_the_same_confusion(tmp_path: Path) -> None:
    source = _source(tmp_path / "s.safetensors", "synthia")
    row = _run("synthia-cityscapes", source, _cityscapes(tmp_path / "city"))[0]
    iou = {name: value for name, value in row["iou"].items() if not np.isnan(value)}
    assert row["miou_16"] == pytest.approx(np.mean(list(iou.values())), abs=1e-4)
    thirteen = [value for name, value in iou.items() if name not in ("wall", "fence", "pole")]
    assert row["miou_13"] == pytest.approx(np.mean(thirteen), abs=1e-4)


def test_cityscapes_to_acdc_takes_each_condition_by_itself(tmp_path: Path) -> None:
    source, target = _source(tmp_path / "s.safetensors", "cityscapes"), _acdc(tmp_path / "acdc")
    found = _run("cityscapes-acdc", source, target, "--parts", "fog", "night")
    assert [(row["target"], row["method"]) for row in found] == [
        ("fog", "none"), ("fog", "tent"), ("night", "none"), ("night", "tent"),
    ]  # fmt: skip
    assert len(_run("cityscapes-acdc", source, target, "--parts", "fog", "--append")) == 6


@pytest.mark.parametrize("class_map", ["cityscapes-13", "cityscapes"])
def test_cityscapes_to_nthu_measures_13_classes_of_either_network(tmp_path: Path, class_map: str) -> None:
    source = _source(tmp_path / "s.safetensors", class_map)
    found = _run("cityscapes-nthu", source, _nthu(tmp_path / "nthu"), "--parts", "Rio", "Rome")
    assert [row["target"] for row in found] == ["Rio", "Rio", "Rome", "Rome"]
    assert all(len(row["iou"]) == 13 and row["frames"] == 1 for row in found)
    assert found[1]["learned_from"] == 2


def test_source_is_trained_where_data_is_given(tmp_path: Path) -> None:
    for i in range(10):
        _frame(tmp_path / f"synthia/RGB/{i:07d}.png")
        stored = np.zeros((*SIZE, 3), np.uint16)
        stored[..., 2] = _bands([3, 2, 1, 8])
        _write(tmp_path / f"synthia/GT/LABELS/{i:07d}.png", stored)
    target = str(_cityscapes(tmp_path / "city"))
    options = ["--size", "64", "128", "--epochs", "1", "--methods", "none", "--device", "cpu"]
    data = ["--source-data", str(tmp_path / "synthia"), "--target", target]
    paper_protocol.main(["synthia-cityscapes", *data, *options])
    manifest = load(tmp_path / "paper_synthia-cityscapes_source.safetensors")[1]
    assert manifest.classes.names == class_maps.resolve("cityscapes-16").classes.names
    assert manifest.class_weight is not None


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--source", "none.safetensors"], 1, "none.safetensors"),
        ([], 2, "give one of --source"),
        (["--source", "a", "--source-data", "b"], 2, "give one of --source"),
        (["--source", "a", "--parts", "Paris"], 2, "'Paris' is no part of cityscapes-nthu; it has Rio, Rome"),
    ],
)
def test_what_cannot_run_is_told_in_one_line(
    results: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        paper_protocol.main(["cityscapes-nthu", "--target", "nowhere", *more])
    assert stop.value.code == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert not results.exists()


def test_missing_target_is_told_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _source(tmp_path / "s.safetensors", "cityscapes")
    with pytest.raises(SystemExit) as stop:
        _run("cityscapes-acdc", source, tmp_path / "none")
    assert stop.value.code == 2
    assert "no folder at" in capsys.readouterr().err


def test_page_of_the_protocol_names_every_pair_and_leaves_results_empty() -> None:
    page = (Path(paper_protocol.__file__).parent / "paper_protocol.md").read_text(encoding="utf-8")
    for pair in paper_protocol.PAIRS:
        assert f"paper_protocol.py {pair} " in page
    cells = [line.split("|")[3:-1] for line in page.splitlines() if line.startswith("| result ")]
    assert len(cells) >= len(paper_protocol.PAIRS)
    assert all(cell.strip() == "" for row in cells for cell in row)
