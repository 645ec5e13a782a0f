from __future__ import annotations

import json
from pathlib import Path

import pytest

SCENE = "scene:day?frames=2&size=48x64"


def test_bench_compares_artefacts_with_the_first(run_cli, nano: Path, tiny_onnx, tmp_path: Path) -> None:
    args = ("--frames", SCENE, "--rounds", 3, "--threads", 1, "--device", "cpu", "--json")
    ran = run_cli("bench", tiny_onnx("a.onnx"), tiny_onnx("b.onnx", turn=True), nano, *args)
    assert ran.code == 0
    result = json.loads(ran.out)
    assert (result["size"], result["rounds"]) == ([48, 64], 3)
    first, turned, other = result["artefacts"]
    assert (first["agreement"], first["speed"]) == (1, 1)
    assert turned["agreement"] == 0
    assert other["agreement"] is None  # of other classes
    assert other["runs_on"].startswith("torch")
    assert first["bytes"] == tiny_onnx("a.onnx").stat().st_size
    assert first["fps"] == pytest.approx(1e3 / first["latency"]["total"]["p50_ms"])


def test_bench_shows_a_row_for_each(run_cli, nano: Path) -> None:
    ran = run_cli("bench", nano, "--frames", SCENE, "--rounds", 2)
    assert ran.code == 0
    assert "fps" in ran.out
    assert "nano.safetensors" in ran.out
    assert "2 calls each in turn, frames of 48x64" in ran.err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["none.onnx"], 1, "no ONNX model at none.onnx"),
        (["a.onnx", "--rounds", "0"], 2, "rounds"),
        (["a.onnx", "--device", "npu"], 2, "expected auto, cpu, cuda"),
    ],
)
def test_wrong_bench_is_told(run_cli, args: list[str], code: int, words: str) -> None:
    ran = run_cli("bench", *args)
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err


def test_bench_of_frames_that_are_not_there_is_exit_1(run_cli, nano: Path) -> None:
    ran = run_cli("bench", nano, "--frames", "nothing/")
    assert (ran.code, ran.out) == (1, "")
    assert "nothing at" in ran.err
