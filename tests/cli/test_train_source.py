from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sfda.data.frames import read_image
from edge_sfda.nets import load
from edge_sfda.train import supervised

SMALL = ("--arch", "nano", "--batch", "2", "--epochs", "2")
SCENE = "scene:day?frames=10&size=48x64&fps=2"


def test_train_source_writes_a_checkpoint_and_curves(run_cli, tmp_path: Path) -> None:
    out = tmp_path / "a" / "s.safetensors"
    ran = run_cli("train-source", SCENE, "-o", out, *SMALL, "--json")
    assert ran.code == 0
    result = json.loads(ran.out)
    assert [epoch["epoch"] for epoch in result["history"]] == [1, 2]
    assert result["val_miou"] == max(epoch["val_miou"] for epoch in result["history"])
    assert result["parameters"] < 600_000
    _, manifest = load(out)
    assert (manifest.preprocessing.height, manifest.preprocessing.width) == (48, 64)
    assert manifest.provenance["val_miou"] == pytest.approx(result["val_miou"])
    assert read_image(tmp_path / "a" / "s.curves.png").shape[2] == 3
    assert ran.err.count("validation mIoU") == 2
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["s.curves.png", "s.safetensors"]


def test_train_source_prints_the_best_epoch(run_cli, drive: Path, tmp_path: Path) -> None:
    ran = run_cli(
        "train-source", drive, "--val", drive, "--classes", _map(tmp_path), "-o", tmp_path / "s.safetensors", *SMALL
    )
    assert ran.code == 0
    assert "on the validation frames, after epoch" in ran.out


def _map(folder: Path) -> Path:
    path = folder / "map.toml"
    path.write_text('names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]\n')
    return path


def test_interrupted_training_goes_on_by_the_same_command(run_cli, tmp_path: Path, monkeypatch) -> None:
    whole = json.loads(run_cli("train-source", SCENE, "-o", tmp_path / "w.safetensors", *SMALL, "--json").out)
    train_epoch = supervised.Trainer._train_epoch

    def impatient(self, epoch, on_step):
        if epoch == 1:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, on_step)

    out = tmp_path / "s.safetensors"
    with monkeypatch.context() as patched:
        patched.setattr(supervised.Trainer, "_train_epoch", impatient)
        ran = run_cli("train-source", SCENE, "-o", out, *SMALL)
    assert ran.code == 130
    assert ran.err.endswith("interrupted; the same command goes on after the last whole epoch\n")
    ran = run_cli("train-source", SCENE, "-o", out, *SMALL, "--json")
    assert ran.code == 0
    assert "going on after epoch 1" in ran.err
    assert json.loads(ran.out)["history"] == whole["history"]


def test_size_is_the_networks_input(run_cli, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    assert run_cli("train-source", SCENE, "-o", out, *SMALL, "--epochs", 1, "--size", "32x48").code == 0
    pre = load(out)[1].preprocessing
    assert (pre.height, pre.width) == (32, 48)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--size", "large"), "--size 'large' must be HEIGHTxWIDTH"),
        (("--size", "4x4"), "must lie in 8..8192"),
        (("--epochs", "0"), "epochs = 0 must lie in"),
        (("--rate", "nan"), "rate = nan must lie in"),
        (("--val", "scene:nowhere"), "unknown scene domain 'nowhere'"),
        (("--device", "toaster"), "device toaster cannot be used"),
    ],
)
def test_wrong_setting_exits_2_and_leaves_nothing(run_cli, tmp_path: Path, args, message: str) -> None:
    ran = run_cli("train-source", SCENE, "-o", tmp_path / "s.safetensors", *SMALL, *args)
    assert ran.code == 2
    assert message in ran.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_architecture_is_told(run_cli, tmp_path: Path) -> None:
    ran = run_cli("train-source", SCENE, "-o", tmp_path / "s.safetensors", "--arch", "resnet")
    assert ran.code == 1
    assert "unknown architecture 'resnet'" in ran.err


def test_validation_data_of_other_classes_is_refused(run_cli, drive: Path, tmp_path: Path) -> None:
    (drive / "classes.toml").write_text('names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]\n')
    ran = run_cli("train-source", SCENE, "--val", drive, "-o", tmp_path / "s.safetensors", *SMALL)
    assert ran.code == 1
    assert "labels of classes a, b" in ran.err


def test_folder_in_place_of_the_checkpoint_is_wrong_usage(run_cli, tmp_path: Path) -> None:
    ran = run_cli("train-source", SCENE, "-o", tmp_path, *SMALL)
    assert ran.code == 2
    assert "name the checkpoint to write" in ran.err
