from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sfda.data.frames import Frame
from edge_sfda.runtime import verify as verify_module
from edge_sfda.runtime.engine_fake import FakeEngine, fake_info
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.parity import Sample, samples
from edge_sfda.runtime.verify import verify, verify_built

Net = tuple[object, object]


@pytest.fixture
def frames(noise) -> list[Sample]:
    info = fake_info(frame_size=(48, 64), colour_order="rgb")
    return samples([Frame(noise(48, 64, seed), seed, 0.0) for seed in range(3)], info)


@pytest.fixture
def make_engine(make_small) -> Callable[..., FakeEngine]:
    """Return a function that makes an engine with the small network's masks, a share of their pixels spoilt."""
    net, manifest = make_small(48, 64)
    graph = FrameGraph(net, manifest.preprocessing, colour_order="rgb", frame_size=(48, 64))

    def make(spoilt: float = 0.0, precision: str = "fp16") -> FakeEngine:
        def segment(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                mask = graph(torch.from_numpy(batch))[0].numpy().copy()
            flat = mask.reshape(-1)
            flat[: round(spoilt * flat.size)] = (flat[: round(spoilt * flat.size)] + 1) % 4
            return mask

        info = fake_info(manifest.classes, frame_size=(48, 64), colour_order="rgb")
        return FakeEngine(replace(info, precision=precision), segment=segment)

    return make


def test_engine_with_the_networks_masks_is_verified(make_engine, make_small, frames) -> None:
    engine = make_engine()
    found = verify(engine, *make_small(48, 64), frames)
    assert found.problems() == []
    assert (found.agreement, found.miou_between, found.frames) == (1.0, 1.0, 3)
    assert found.runs_on == "fake"
    assert all(ms > 0 for ms in found.engine_ms)
    assert engine.calls == [(1, 48, 64, 3)] * 4  # the first one warms


@pytest.mark.parametrize(
    ("spoilt", "precision", "good"),
    [
        (0.004, "fp16", True),
        (0.006, "fp16", False),
        (0.006, "fp32", False),
        (0.02, "int8", True),
        (0.04, "int8", False),
    ],
)
def test_engine_with_other_masks_is_told(
    make_engine, make_small, frames, spoilt: float, precision: str, good: bool
) -> None:
    found = verify(make_engine(spoilt, precision), *make_small(48, 64), frames)
    assert found.agreement == pytest.approx(1 - spoilt, abs=1e-3)
    assert (found.problems() == []) == good
    if not good:
        assert f"of the engine have the checkpoint's class, {precision} must reach" in found.problems()[0]


@pytest.mark.parametrize("spoilt", [0.0, 0.5])
def test_built_engine_is_loaded_on_the_gpu_and_closed(
    make_engine, make_small, frames, monkeypatch: pytest.MonkeyPatch, spoilt: float
) -> None:
    engine = make_engine(spoilt)
    asked = []

    def open_engine(path: Path, config: verify_module.EngineConfig) -> FakeEngine:
        asked.append((EngineFile.read(path)[1], config.device))
        return engine

    monkeypatch.setattr(verify_module, "open_engine", open_engine)
    record = EngineFile(
        info=engine.info,
        flavor="enterprise",
        tensorrt="10.3",
        gpu="Orin",
        driver="540",
        refittable=False,
        verified_on_gpu=False,
        onnx_sha256="00",
    )
    verified, found = verify_built(b"engine", record, *make_small(48, 64), frames)
    assert asked == [(b"engine", "cuda")]
    assert engine.closed
    assert verified.verified_on_gpu == (spoilt == 0.0) == (not found.problems())
