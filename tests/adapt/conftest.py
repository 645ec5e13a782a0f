"""Small networks, their manifests, and frames; one thread and a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda import nets
from edge_sfda.adapt import run
from edge_sfda.adapt.method import Method
from edge_sfda.config import AdaptConfig, StatisticsConfig
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets import Prediction, SegmentationNet
from edge_sfda.nets.bring_your_own import Hooked

CLASSES = Classes(("a", "b", "c", "d"), ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 3, 3)))


class Toy(SegmentationNet):
    """Convolution of stride 4, BatchNorm, classifier: small enough to compute by hand, and sensitive to mirroring."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.feature_channels = 4, (6,)
        self.encoder = nn.Conv2d(3, 6, 4, 4, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.classifier = nn.Conv2d(6, 4, 3, padding=1)
        nn.init.normal_(self.classifier.weight, std=3)  # sure of itself, as a trained network is
        self.register_buffer("offset", torch.zeros(4))

    def forward(self, x: Tensor) -> Prediction:
        features = self.norm(self.encoder(x))
        return Prediction(self.classifier(F.relu(features)) + self.offset.view(1, -1, 1, 1), (features,))

    def shift_logits(self, offset: Tensor) -> None:
        self.offset += offset


@pytest.fixture(scope="session")
def make_toy() -> Callable[..., SegmentationNet]:
    """Return a function that makes one: the same weights for the same seed, in eval mode."""

    def make(seed: int = 0) -> SegmentationNet:
        torch.manual_seed(seed)
        return Toy().eval()

    return make


@pytest.fixture(scope="session")
def make_nano() -> Callable[..., SegmentationNet]:
    """Return a function that makes one: the same weights for the same seed, surer of itself than fresh ones are."""

    def make(seed: int = 0, stride: int = 8) -> SegmentationNet:
        torch.manual_seed(seed)
        net = nets.build(NetSpec("nano", stride), len(CLASSES)).eval()
        with torch.no_grad():
            net.classifier.weight.mul_(30)
        return net

    return make


@pytest.fixture(scope="session")
def make_manifest() -> Callable[..., Manifest]:
    def make(
        height: int = 64,
        width: int = 64,
        *,
        spec: NetSpec = NetSpec("nano", 8),  # noqa: B008  frozen
        class_weight: tuple[float, ...] | None = None,
    ) -> Manifest:
        return Manifest(spec, CLASSES, Preprocessing(height, width), class_weight=class_weight)

    return make


@pytest.fixture(scope="session")
def make_frames() -> Callable[..., list[Tensor]]:
    """Return a function that makes uint8 RGB [3, H, W] frames of coarse blocks: something to see at any stride."""

    def make(count: int, height: int = 64, width: int = 64, seed: int = 0) -> list[Tensor]:
        rng = torch.Generator().manual_seed(seed)
        blocks = torch.randint(256, (count, 3, -(-height // 16), -(-width // 16)), generator=rng, dtype=torch.uint8)
        whole = blocks.repeat_interleave(16, 2).repeat_interleave(16, 3)
        return list(whole[:, :, :height, :width].contiguous())

    return make


@pytest.fixture(scope="session")
def frames(make_frames: Callable[..., list[Tensor]]) -> list[Tensor]:
    """Four small frames, for tests that need no others."""
    return make_frames(4, 64, 64)


@pytest.fixture(scope="session")
def make_method(
    make_nano: Callable[..., SegmentationNet], make_manifest: Callable[..., Manifest]
) -> Callable[..., Any]:
    """Return a function that makes a method by its name, over a small network unless one is given."""

    def make(name: str, *, net: SegmentationNet | None = None, **parts: Any) -> Method:
        config = AdaptConfig(method=name, statistics=StatisticsConfig(frames=4))
        manifest = make_manifest(class_weight=(0.5, 1, 2, 4))
        return run.make(net or make_nano(), manifest, dataclasses.replace(config, **parts))

    return make


@pytest.fixture(scope="session")
def make_normless() -> Callable[[], Hooked]:
    """Return a function that makes a network of somebody's own without any normalisation."""

    def make() -> Hooked:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, len(CLASSES), 1))
        return Hooked(layers, encoder_layer="0", classes=len(CLASSES))

    return make


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
