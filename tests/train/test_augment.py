from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_sfda.train.augment import augment, jitter

U8 = NDArray[np.uint8]


def _view(image: U8, label: U8, seed: int = 0, **changes: Any) -> tuple[U8, U8]:
    settings: dict[str, Any] = {"crop": label.shape, "scale": (1.0, 1.0), "colour": 0.0, "ignore_id": 255}
    return augment(image, label, np.random.default_rng(seed), **(settings | changes))


def _painted(height: int = 24, width: int = 32) -> tuple[U8, U8]:
    """A label of which no two rows or columns look alike, and an image that shows it in all channels."""
    label = np.random.default_rng(1).integers(0, 200, (height, width), dtype=np.uint8)
    return label[:, :, None].repeat(3, 2), label


@pytest.mark.parametrize("seed", range(8))
def test_label_follows_the_image_through_crop_and_mirror(seed: int) -> None:
    image, label = _view(*_painted(), seed, crop=(15, 17))
    assert image.shape == (15, 17, 3)
    assert label.shape == (15, 17)
    np.testing.assert_array_equal(image[:, :, 0], label)


@pytest.mark.parametrize("seed", range(8))
def test_label_follows_the_image_through_a_change_of_scale(seed: int) -> None:
    label = np.zeros((48, 64), np.uint8)
    label[10:40, 20:50] = 1
    image, label = _view(label[:, :, None].repeat(3, 2) * 200, label, seed, scale=(0.6, 1.6), crop=(40, 40))
    # linear against nearest: they may disagree on the edge, one pixel wide
    around = np.ones((3, 3), np.uint8)
    same = (cv2.erode(label, around) == cv2.dilate(label, around)) & (label != 255)
    assert same.mean() > 0.5
    np.testing.assert_array_equal((image[:, :, 0] > 100)[same], label[same] == 1)


def test_scale_changes_the_size_of_things_by_the_factor() -> None:
    label = np.zeros((40, 40), np.uint8)
    label[10:30, 10:30] = 1
    _, view = _view(label[:, :, None].repeat(3, 2), label, scale=(1.5, 1.5), crop=(60, 60))
    assert int((view == 1).sum()) == 30 * 30


def test_what_the_frame_does_not_cover_is_grey_and_ignored() -> None:
    image, label = _view(*_painted(), crop=(30, 40))
    covered = label != 255
    assert int(covered.sum()) == 24 * 32
    assert (image[~covered] == 128).all()
    np.testing.assert_array_equal(image[covered][:, 0], label[covered])


def test_both_mirror_images_occur() -> None:
    image, label = _painted()
    seen = set()
    for seed in range(20):
        _, view = _view(image, label, seed)
        seen.add("as it is" if (view == label).all() else "mirrored" if (view == label[:, ::-1]).all() else "broken")
    assert seen == {"as it is", "mirrored"}


def test_crops_lie_all_over_the_frame() -> None:
    label = np.arange(16, dtype=np.uint8)[:, None].repeat(16, 1)
    tops = {int(_view(label[:, :, None].repeat(3, 2), label, seed, crop=(13, 16))[1][0, 0]) for seed in range(40)}
    assert tops == {0, 1, 2, 3}


def test_same_draws_give_the_same_view_and_others_another() -> None:
    settings: dict[str, Any] = {"crop": (15, 17), "scale": (0.7, 1.4), "colour": 0.3}
    first, again, other = (_view(*_painted(), seed, **settings) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()


def test_given_arrays_stay_as_they_are() -> None:
    image, label = _painted()
    before = image.copy(), label.copy()
    _view(image, label, crop=(10, 10), colour=0.5)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_colour_changes_the_image_and_never_the_label() -> None:
    image, label = _painted()
    plain, coloured = _view(image, label, 5), _view(image, label, 5, colour=0.4)
    np.testing.assert_array_equal(coloured[1], plain[1])
    assert (coloured[0] != plain[0]).mean() > 0.5


def test_jitter_leaves_grey_grey_and_flat_flat() -> None:
    for seed in range(5):
        out = jitter(np.full((4, 4, 3), 90, np.uint8), np.random.default_rng(seed), 0.5)
        assert out.dtype == np.uint8
        assert len(np.unique(out)) == 1


def test_jitter_equals_its_formula() -> None:
    class Draws:
        """In place of a generator: saturation 2, contrast 0.5, brightness 1.5."""

        def uniform(self, low: float, high: float, size: int) -> NDArray[np.float64]:
            assert (low, high, size) == (0.25, 1.75, 3)
            return np.array([2.0, 0.5, 1.5])

    pixel = np.array([[[100, 130, 160]]], np.uint8)  # grey 130
    # saturated 70, 130, 190; minus 128, halved, plus 192
    assert jitter(pixel, Draws(), 0.75).tolist() == [[[163, 193, 223]]]  # type: ignore[arg-type]


def test_jitter_is_cut_at_the_ends_of_the_range() -> None:
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    outs = [jitter(image, np.random.default_rng(seed), 0.9) for seed in range(20)]
    assert any(out[0, 0, 0] == 0 for out in outs)
    assert any(out[0, 1, 0] == 255 for out in outs)
    assert all(out[0, 0, 0] <= out[0, 1, 0] for out in outs)  # nothing wraps around
