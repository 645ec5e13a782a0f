from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.errors import FrameError
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets.contract import Prediction, SegmentationNet
from edge_sfda.nets.fpn import nano
from edge_sfda.nets.inference import Normaliser, Predictor, check_input

CLASSES = Classes(("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


class Primary(SegmentationNet):
    """Says which of R, G, B is strongest: the logits are the input, pooled to stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.feature_channels = 3, (3,)
        self.gain = nn.Parameter(torch.ones(()))
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Prediction:
        y = F.avg_pool2d(x, 4) * self.gain
        return Prediction(y, (y,))


def _manifest(height: int = 32, width: int = 48) -> Manifest:
    return Manifest(NetSpec("primary"), CLASSES, Preprocessing(height, width, mean=(0, 0, 0), std=(1, 1, 1)))


def _bgr(height: int, width: int, *rgb: int) -> np.ndarray:
    return np.full((height, width, 3), rgb[::-1], np.uint8)


def test_normaliser_maps_bytes_to_units_of_the_standard_deviation() -> None:
    pre = Preprocessing(8, 8, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 8, 2)
    x = Normaliser(pre, torch.device("cpu"))(frames)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x[0, :, 0], torch.tensor([[0.0, 1.0], [-1.0, 1.0], [-4.0, 0.0]]))


def test_normaliser_takes_a_float_view_as_it_takes_bytes() -> None:
    normaliser = Normaliser(Preprocessing(8, 8), torch.device("cpu"))
    frames = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(normaliser(frames), normaliser(frames.float()))


@pytest.mark.parametrize(("rgb", "mask"), [((255, 9, 0), 0), ((0, 200, 9), 1), ((9, 0, 255), 2)])
def test_frame_is_read_as_bgr_and_the_network_sees_rgb(rgb: tuple[int, int, int], mask: int) -> None:
    found, _ = Predictor(Primary(), _manifest())(_bgr(32, 48, *rgb))
    assert found.dtype == np.uint8
    assert np.unique(found).tolist() == [mask]


def test_mask_and_confidence_have_the_frame_s_own_size_and_place() -> None:
    image = np.concatenate([_bgr(100, 75, 255, 0, 0), _bgr(100, 75, 0, 0, 255)], 1)
    mask, confidence = Predictor(Primary(), _manifest())(image)
    assert mask.shape == confidence.shape == (100, 150)
    assert confidence.dtype == np.float32
    assert (mask[:, :65] == 0).all()
    assert (mask[:, 85:] == 2).all()


def test_confidence_is_the_softmax_of_the_winner() -> None:
    _, confidence = Predictor(Primary(), _manifest())(_bgr(32, 48, 255, 0, 0))
    expected = np.exp(1) / (np.exp(1) + 2)  # logits 1, 0, 0
    np.testing.assert_allclose(confidence, expected, rtol=1e-5)


def test_modes_of_all_layers_come_back_though_they_differ() -> None:
    net = Primary().eval()
    net.layers[0].train()
    before = [m.training for m in net.modules()]
    Predictor(net, _manifest())(_bgr(32, 48, 1, 2, 3))
    assert [m.training for m in net.modules()] == before
    assert before == [False, False, True, False]


def test_network_in_train_mode_predicts_with_its_running_statistics() -> None:
    net = nano(3).train()
    predictor = Predictor(net, _manifest(64, 64))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    _, first = predictor(image)
    assert net.training
    net.eval()
    _, second = predictor(image)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((40, 40, 3), np.float32), "float32, expected uint8"),
        (np.zeros((40, 40), np.uint8), r"\(40, 40\), expected \(height, width, 3\)"),
        (np.zeros((40, 40, 4), np.uint8), r"\(40, 40, 4\)"),
        (np.zeros((31, 400, 3), np.uint8), "31x400 is too small, expected 32"),
        (np.zeros((0, 40, 3), np.uint8), "empty"),
    ],
)
def test_what_is_no_frame_is_refused(image: np.ndarray, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        Predictor(Primary(), _manifest())(image)


def test_input_of_bytes_passes() -> None:
    check_input(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), Primary())


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (torch.zeros(2, 3, 32, 32), "torch.float32"),
        (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), r"\(2, 1, 32, 32\), expected uint8 RGB"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"\(3, 32, 32\)"),
        (torch.zeros(0, 3, 32, 32, dtype=torch.uint8), r"\(0, 3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 31, dtype=torch.uint8), "smaller than the network's 32"),
    ],
)
def test_input_that_no_network_takes_is_refused(frames: Tensor, words: str) -> None:
    with pytest.raises(FrameError, match=words):
        check_input(frames, Primary())
