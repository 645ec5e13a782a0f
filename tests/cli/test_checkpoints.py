"""Bad checkpoints, told by every command that reads one."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest


def _missing(path: Path, good: bytes) -> None:
    path.unlink(missing_ok=True)


def _empty(path: Path, good: bytes) -> None:
    path.write_bytes(b"")


def _truncated(path: Path, good: bytes) -> None:
    path.write_bytes(good[: len(good) // 2])


def _one_bit(path: Path, good: bytes) -> None:
    spoilt = bytearray(good)
    spoilt[-5] ^= 1
    path.write_bytes(spoilt)


def _other_classes(path: Path, good: bytes) -> None:
    path.write_bytes(good.replace(b"pavement", b"sidewalk"))


def _pickled(path: Path, good: bytes) -> None:
    path.write_bytes(pickle.dumps({"state": [1, 2, 3]}))


@pytest.mark.parametrize("command", ["evaluate", "predict", "adapt", "demo"])
@pytest.mark.parametrize("spoil", [_missing, _empty, _truncated, _one_bit, _other_classes, _pickled])
def test_bad_checkpoint_is_one_line_and_exit_1(
    run_cli, nano: Path, drive: Path, tmp_path: Path, command, spoil
) -> None:
    bad = tmp_path / "bad.safetensors"
    spoil(bad, nano.read_bytes())
    out = ["-o", tmp_path / "out"]
    args = {
        "evaluate": [bad, drive, *out],
        "predict": [drive / "images", "--model", bad, *out],
        "adapt": ["--frames", drive / "images", "--model", bad, *out],
        "demo": ["--model", bad, *out],
    }
    ran = run_cli(command, *args[command])
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert "bad.safetensors" in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
