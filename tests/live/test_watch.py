from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.config import WatchConfig
from edge_sfda.live.watch import Fault, Watch

CONFIG = WatchConfig(frozen=3, adopt=3)


def _noise(seed: int, height: int = 32, width: int = 40, mean: float = 90.0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(mean, 20, (height, width, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


@pytest.fixture
def watch() -> Watch:
    return Watch(CONFIG)


def test_sound_frames_pass(watch: Watch) -> None:
    assert [watch.judge(_noise(i)) for i in range(5)] == [None] * 5
    assert watch.faults == {}


def test_frame_that_repeats_bit_for_bit_is_a_frozen_camera_from_the_third_on(watch: Watch) -> None:
    judged = [watch.judge(_noise(0).copy()) for _ in range(4)]
    assert judged == [None, None, Fault.FROZEN, Fault.FROZEN]
    assert watch.judge(_noise(1)) is None
    assert watch.faults == {Fault.FROZEN: 2}


def test_one_bit_of_noise_is_a_live_camera(watch: Watch) -> None:
    for index in range(6):
        image = _noise(0)
        image[0, 0, 0] = index
        assert watch.judge(image) is None


@pytest.mark.parametrize("value", [0, 2, 128, 255])
def test_black_and_blank_frames_are_dark(value: int, watch: Watch) -> None:
    assert watch.judge(np.full((32, 40, 3), value, np.uint8)) is Fault.DARK


def test_dim_street_is_no_black_frame(watch: Watch) -> None:
    assert watch.judge(_noise(0, mean=12.0)) is None


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 40), np.uint8),
        np.zeros((32, 40, 4), np.uint8),
        np.zeros((32, 40, 3), np.float32),
        np.zeros((0, 40, 3), np.uint8),
        np.zeros((4, 40, 3), np.uint8),
    ],
)
def test_what_is_no_picture_is_corrupt(image: np.ndarray, watch: Watch) -> None:
    assert watch.judge(image) is Fault.CORRUPT


def test_other_size_is_a_fault_until_it_is_the_camera_s(watch: Watch) -> None:
    assert watch.judge(_noise(0)) is None
    judged = [watch.judge(_noise(i, 48, 64)) for i in range(1, 5)]
    assert judged == [Fault.RESIZED, Fault.RESIZED, None, None]
    assert watch.judge(_noise(9)) is Fault.RESIZED


def test_single_frames_of_other_sizes_never_become_the_camera_s(watch: Watch) -> None:
    watch.judge(_noise(0))
    for index in range(1, 9):
        assert watch.judge(_noise(index, 48, 64)) is Fault.RESIZED
        assert watch.judge(_noise(100 + index)) is None
