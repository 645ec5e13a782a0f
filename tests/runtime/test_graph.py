from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from edge_sfda.data.frames import to_input
from edge_sfda.manifest import Preprocessing
from edge_sfda.nets import Prediction, Predictor, SegmentationNet
from edge_sfda.runtime.graph import FrameGraph


class Seen(SegmentationNet):
    """Gives its input back as logits, so that a test sees what the network sees."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.feature_channels = 3, (3,)
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> Prediction:
        return Prediction(x, (x,))


def _seen(image: np.ndarray, network: tuple[int, int], *, dynamic: bool = False) -> np.ndarray:
    """Return what the network sees of a frame, back in 0..255 RGB, float [3, h, w]."""
    pre = Preprocessing(*network, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    size = None if dynamic else (image.shape[0], image.shape[1])
    graph = FrameGraph(Seen(), pre, frame_size=size)
    return graph(torch.from_numpy(image)[None])[2][0].numpy()


def test_graph_gives_the_predictors_mask_and_confidence_without_a_resize(scene_net, scene_frames) -> None:
    net, manifest = scene_net
    pre = manifest.preprocessing
    graph = FrameGraph(net, pre, frame_size=(pre.height, pre.width))
    for frame in scene_frames(4, pre.height, pre.width):
        mask, confidence, _ = graph(torch.from_numpy(frame.image)[None])
        expected, certain = Predictor(net, manifest)(frame.image)
        assert (mask[0].numpy() == expected).mean() > 0.9999
        np.testing.assert_allclose(confidence[0].numpy(), certain, atol=1e-4)


def test_graph_keeps_the_contract_of_shapes_and_dtypes(make_small, noise) -> None:
    net, manifest = make_small(48, 64)
    graph = FrameGraph(net, manifest.preprocessing, frame_size=(60, 90))
    frames = torch.from_numpy(np.stack([noise(60, 90, seed) for seed in range(3)]))
    mask, confidence, logits = graph(frames)
    assert (mask.dtype, tuple(mask.shape)) == (torch.uint8, (3, 60, 90))
    assert (confidence.dtype, tuple(confidence.shape)) == (torch.float32, (3, 60, 90))
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (3, 4, 12, 16))
    torch.testing.assert_close(graph(frames[1:2])[0], mask[1:2])
    assert 0.25 <= float(confidence.min()) <= float(confidence.max()) <= 1


def test_colour_orders_differ_by_the_order_alone(make_small, noise) -> None:
    net, manifest = make_small()
    image = noise(48, 64)
    bgr = FrameGraph(net, manifest.preprocessing, frame_size=(48, 64), colour_order="bgr")
    rgb = FrameGraph(net, manifest.preprocessing, frame_size=(48, 64), colour_order="rgb")
    swapped = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1]))[None]
    torch.testing.assert_close(bgr(torch.from_numpy(image)[None]), rgb(swapped))
    assert not torch.equal(bgr(torch.from_numpy(image)[None])[2], rgb(torch.from_numpy(image)[None])[2])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (96, 128), (37, 51), (90, 100), (48, 120)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_linear_resize_is_opencvs_within_a_step(height: int, width: int, dynamic: bool) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = to_input(image, Preprocessing(48, 64)).astype(np.float32)
    seen = _seen(image, (48, 64), dynamic=dynamic)
    np.testing.assert_allclose(seen, seen.round(), atol=1e-3)  # whole numbers, as on the host
    error = np.abs(seen - expected)
    assert error.max() <= 1.01
    # on noise, OpenCV's weights of 11 bits leave its own float result by a step as often
    assert (error > 0.5).mean() < 0.15


@pytest.mark.parametrize("times", [3, 4])
def test_shrinking_by_a_whole_number_is_opencvs_area_average(times: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (48 * times, 64 * times, 3), dtype=np.uint8)
    expected = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)[:, :, ::-1].transpose(2, 0, 1)
    assert np.abs(_seen(image, (48, 64)) - expected).max() <= 1.01


def test_shrinking_by_other_numbers_is_close_to_the_area_average_and_centred() -> None:
    rows, columns = np.mgrid[:205, :301].astype(np.float32)
    smooth = np.stack([rows, columns * 0.8, rows * 0.5 + columns * 0.3], -1).clip(0, 255).astype(np.uint8)
    expected = to_input(smooth, Preprocessing(48, 64)).astype(np.float32)
    inner = (slice(None), slice(2, -2), slice(2, -2))
    difference = (_seen(smooth, (48, 64)) - expected)[inner]
    assert np.abs(difference).max() <= 3
    assert abs(difference.mean()) < 0.5  # cut off on one side alone, it would be shifted


def test_half_network_sees_half_and_gives_float(make_small, noise) -> None:
    net, manifest = make_small()
    graph = FrameGraph(net, manifest.preprocessing, frame_size=(48, 64), half=True)
    assert {p.dtype for p in graph.net.parameters()} == {torch.float16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}  # the caller's stays as it is
    frame = torch.from_numpy(noise(48, 64))[None]
    whole = FrameGraph(net, manifest.preprocessing, frame_size=(48, 64))(frame)[2]
    logits = graph(frame)[2]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, whole, rtol=0.02, atol=0.05)
