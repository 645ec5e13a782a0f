"""What a burst leaves to the gate: its files, what rules them out, and which stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sfda import checkpoint
from edge_sfda.config import AdaptConfig, BudgetConfig, GateConfig
from edge_sfda.live import rivals
from edge_sfda.live.job import CHECKPOINT, LAST, ONNX, Job
from edge_sfda.live.rivals import AVERAGE, Rivals
from edge_sfda.live.worker import _marks
from edge_sfda.nets import load
from edge_sfda.runtime.trace import Trace

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"

MakeRivals = Callable[..., Rivals]


@pytest.fixture
def make_rivals(tmp_path: Path) -> MakeRivals:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 3, 192, 256), np.uint8)

    def make(*slowdowns: float, **changes: Any) -> Rivals:
        fields: dict[str, Any] = {
            "source": MODEL,
            "deployed": MODEL,
            "running": MODEL,
            "net": None,
            "frames": frames,
            "probes": frames[:0],
            "labelled": None,
            "adapt": AdaptConfig(),
            "gate": GateConfig(latency=1.5),
            "budget": BudgetConfig(),
            "folder": tmp_path,
            "onnx": False,
        }
        told = list(slowdowns)
        made = Rivals(Job(**fields | changes), slowdown=(lambda *_: told.pop(0)) if told else None)
        for index, name in enumerate(("step 4", AVERAGE)):
            net, manifest = load(MODEL)
            with torch.no_grad():
                net.classifier.bias.add_(0.5 + index)  # type: ignore[union-attr, operator]
            made.add(name, net, manifest.derive(kind="adapted", steps=4 * (index + 1)))
        return made

    return make


def test_snapshots_are_spread_evenly_and_end_before_the_end() -> None:
    assert _marks(100, 2) == {33, 66}
    assert _marks(100, 0) == set()
    assert _marks(2, 5) == {1}
    assert _marks(1, 3) == set()
    assert _marks(0, 3) == set()


@pytest.mark.parametrize(("accepted", "kept"), [("step 4", "step 4"), (AVERAGE, AVERAGE), ("deployed", AVERAGE)])
def test_one_network_s_files_stay(accepted: str, kept: str, make_rivals: MakeRivals, tmp_path: Path) -> None:
    made = make_rivals()
    sha = made.manifests[kept].tensors_sha256
    manifest, has_model = made.keep(accepted)
    assert not has_model
    assert [path.name for path in tmp_path.iterdir()] == [f"{LAST}{CHECKPOINT}"]
    assert checkpoint.load(tmp_path / f"{LAST}{CHECKPOINT}").manifest.tensors_sha256 == manifest.tensors_sha256 == sha


def test_model_of_the_accepted_network_stays_and_none_of_an_earlier_burst(
    make_rivals: MakeRivals, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    model = tmp_path / f"{LAST}{ONNX}"
    model.write_bytes(b"of an earlier burst")
    made = make_rivals(1.0, 1.0, onnx=True)
    assert made.veto("step 4") is None
    assert made.veto(AVERAGE) is None
    manifest, has_model = made.keep("step 4")
    assert has_model
    assert sorted(path.name for path in tmp_path.iterdir()) == [model.name, f"{LAST}{CHECKPOINT}", "trace.onnx"]
    assert manifest.tensors_sha256 in model.read_bytes().decode("latin-1")
    _, has_model = make_rivals().keep(AVERAGE)
    assert not has_model
    assert not model.exists()


def test_model_that_is_another_network_is_no_model(
    make_rivals: MakeRivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    made = make_rivals(1.0, onnx=True)
    monkeypatch.setattr("edge_sfda.runtime.parity.Parity.problems", lambda self: ["half the pixels differ"])
    assert made.veto(AVERAGE) == "its ONNX model is not the same network: half the pixels differ"
    assert not (tmp_path / "of-adapted.onnx").exists()
    assert made.keep("deployed")[1] is False


def test_network_is_traced_once_and_anew_where_that_is_another_network(
    make_rivals: MakeRivals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    traced: list[bool] = []
    trace, problems = Trace.of, iter([[], ["half the pixels differ"], []])
    monkeypatch.setattr(Trace, "of", lambda graph, info: traced.append(True) or trace(graph, info))
    monkeypatch.setattr("edge_sfda.runtime.parity.Parity.problems", lambda self: next(problems))
    made = make_rivals(1.0, 1.0, onnx=True)
    assert made.veto("step 4") is None
    assert len(traced) == 1
    assert made.veto(AVERAGE) is None  # at the second try
    assert len(traced) == 2
    assert next(problems, None) is None
    assert (tmp_path / "of-adapted.onnx").exists()


def test_slow_network_is_ruled_out_once_it_was_slow_three_times(make_rivals: MakeRivals) -> None:
    assert make_rivals(9.0, 9.0, 1.2).veto(AVERAGE) is None
    words = make_rivals(9.0, 9.0, 2.25).veto(AVERAGE)
    assert words == "a frame takes 2.25 times what it takes the network in use, more than 1.5"


def test_networks_that_the_burst_did_not_make_are_not_asked_about(make_rivals: MakeRivals) -> None:
    made = make_rivals(9.0)
    assert made.veto("deployed") is None
    assert made.veto("source") is None


def test_time_of_a_frame_is_held_against_the_artefact_in_use(make_rivals: MakeRivals) -> None:
    made = make_rivals()
    assert rivals.slowdown_of(MODEL, MODEL, made.job) > 0
    calls: list[str] = []
    assert rivals.ratio(lambda: calls.append("a"), lambda: calls.append("b")) > 0
    assert calls == ["a", "b"] * (len(calls) // 2)
