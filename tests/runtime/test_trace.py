"""A trace that is kept gives what a new one would, and is used for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edge_sfda.runtime.artefact import INPUT
from edge_sfda.runtime.export import ExportConfig, describe, to_onnx
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.parity import open_session
from edge_sfda.runtime.refit import WeightTable
from edge_sfda.runtime.trace import Trace

CONFIG = ExportConfig(logits=True)

MakeSmall = Callable[..., Any]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "trace.onnx"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[FrameGraph]:
    """What was traced since."""
    found: list[FrameGraph] = []
    of = Trace.of
    monkeypatch.setattr(Trace, "of", lambda graph, info: found.append(graph) or of(graph, info))
    return found


def _graph(net: Any, manifest: Any, config: ExportConfig = CONFIG) -> tuple[FrameGraph, Any]:
    info = describe(net, manifest, config)
    pre = manifest.preprocessing
    return FrameGraph(net, pre, colour_order=config.colour_order, frame_size=info.frame_size).eval(), info


def test_other_weights_through_a_kept_trace_are_a_new_export(
    make_small: MakeSmall, noise: Callable[..., np.ndarray], cache: Path, traced: list[FrameGraph]
) -> None:
    to_onnx(*make_small(), CONFIG, cache=cache)
    kept = cache.read_bytes()
    net, manifest = make_small(seed=1)
    model = to_onnx(net, manifest, CONFIG, cache=cache)
    assert len(traced) == 1
    assert cache.read_bytes() == kept
    new = to_onnx(net, manifest, CONFIG)
    assert model == new
    assert WeightTable.of(model) == WeightTable.of(new)
    frame = noise(48, 64)[None]
    logits = open_session(model.SerializeToString()).run(["logits"], {INPUT: frame})[0]
    with torch.inference_mode():
        expected = _graph(net, manifest)[0](torch.from_numpy(frame))[2].numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [ExportConfig(logits=True, colour_order="rgb"), ExportConfig(frame_size=(96, 64))])
def test_trace_of_something_else_is_made_anew(
    config: ExportConfig, make_small: MakeSmall, cache: Path, traced: list[FrameGraph]
) -> None:
    to_onnx(*make_small(), CONFIG, cache=cache)
    assert to_onnx(*make_small(), config, cache=cache) == to_onnx(*make_small(), config)
    assert len(traced) == 3
    to_onnx(*make_small(seed=1), config, cache=cache)
    assert len(traced) == 3


def test_network_of_other_layers_is_traced_anew(make_small: MakeSmall, cache: Path, traced: list[FrameGraph]) -> None:
    to_onnx(*make_small(), CONFIG, cache=cache)
    to_onnx(*make_small(channels=8), CONFIG, cache=cache)
    assert len(traced) == 2


@pytest.mark.parametrize("content", [b"no model", onnx.ModelProto(producer_name="somebody").SerializeToString()])
def test_file_that_is_no_trace_is_replaced(
    content: bytes, make_small: MakeSmall, cache: Path, traced: list[FrameGraph]
) -> None:
    cache.write_bytes(content)
    assert Trace.read(cache) is None
    to_onnx(*make_small(), CONFIG, cache=cache)
    assert len(traced) == 1
    assert Trace.read(cache) is not None


def test_trace_without_one_of_the_weights_fits_nothing(make_small: MakeSmall) -> None:
    graph, info = _graph(*make_small())
    trace = Trace.of(graph, info)
    assert trace.fits(graph, info)
    short = onnx.ModelProto()
    short.CopyFrom(trace.model)
    del short.graph.initializer[:1]  # as where two equal ones were merged
    assert not replace(trace, model=short).fits(graph, info)


def test_trace_that_fits_nothing_is_not_kept(
    make_small: MakeSmall, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trace, "fits", lambda self, graph, info: False)
    assert to_onnx(*make_small(), CONFIG, cache=cache) == to_onnx(*make_small(), CONFIG)
    assert not cache.exists()


def test_filling_leaves_the_trace_as_it_is(make_small: MakeSmall) -> None:
    graph, info = _graph(*make_small())
    trace = Trace.of(graph, info)
    before = trace.model.SerializeToString(deterministic=True)
    trace.filled(_graph(*make_small(seed=1))[0])
    assert trace.model.SerializeToString(deterministic=True) == before
