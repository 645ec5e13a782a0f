"""The shipped network of the scene, exported once a session in each form, and frames of the scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sfda.data.frames import Frame
from edge_sfda.data.sources import open_source
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets import SegmentationNet, load
from edge_sfda.nets.bring_your_own import Hooked

if TYPE_CHECKING:
    from onnx import ModelProto

CLASSES = Classes(("a", "b", "c", "d"), ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))

Loaded = tuple[SegmentationNet, Manifest]


class Small(nn.Module):
    """As a third party writes one: a backbone, a head, logits at stride 4; exports in a moment."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 5, 4, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, len(CLASSES), 1)

    def forward(self, x: Tensor) -> Any:
        return {"out": self.head(self.backbone(x)), "aux": None}


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def scene_net() -> Loaded:
    return load(Path(str(files("edge_sfda") / "assets" / "scene_day_nano.safetensors")))


@pytest.fixture(scope="session")
def make_small() -> Callable[..., Loaded]:
    """Return a function that makes a small network behind the contract, sure of itself, and its manifest."""

    def make(height: int = 48, width: int = 64, *, seed: int = 0, channels: int = 6) -> Loaded:
        torch.manual_seed(seed)
        net = Small(channels)
        with torch.no_grad():
            net.head.weight.mul_(20)
            net.backbone[1].running_mean.normal_(std=0.1)
        hooked = Hooked(net, encoder_layer="backbone", classes=len(CLASSES)).eval()
        spec = NetSpec("their.module:factory", 0, "backbone")
        return hooked, Manifest(spec, CLASSES, Preprocessing(height, width), tensors_sha256="ab" * 32)

    return make


@pytest.fixture(scope="session")
def scene_frames() -> Callable[..., list[Frame]]:
    """Return a function that gives frames of the scene at dusk, of any size, once drawn."""
    drawn: dict[tuple[int, int, int], list[Frame]] = {}

    def frames(count: int = 4, height: int = 192, width: int = 256) -> list[Frame]:
        if (count, height, width) not in drawn:
            with open_source(f"scene:dusk?frames={count}&fps=1&size={height}x{width}") as source:
                drawn[count, height, width] = list(source)
        return drawn[count, height, width]

    return frames


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """Return a function that gives a frame of coarse blocks: something to see at any stride."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        blocks = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        return np.ascontiguousarray(blocks.repeat(8, 0).repeat(8, 1)[:height, :width])

    return make


@pytest.fixture(scope="session")
def exported(scene_net: Loaded, scene_frames: Callable[..., list[Frame]]) -> Callable[..., ModelProto]:
    """Return a function that exports the scene's network, each form once a session; not to be changed."""
    pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
    from edge_sfda.runtime.export import ExportConfig, to_onnx

    made: dict[ExportConfig, ModelProto] = {}

    def export(**settings: Any) -> ModelProto:
        config = ExportConfig(**settings)
        if config not in made:
            made[config] = to_onnx(*scene_net, config, calibration=[frame.image for frame in scene_frames()])
        return made[config]

    return export
