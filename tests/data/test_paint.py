from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.data.paint import colour_mask, heat, overlay
from edge_sfda.errors import FrameError, LabelError
from edge_sfda.manifest import Classes

CLASSES = Classes(("road", "sky", "car"), ((10, 20, 30), (200, 100, 0), (0, 0, 255)))


def test_colour_mask_paints_the_palette_in_bgr_and_void_black() -> None:
    painted = colour_mask(np.array([[0, 1], [2, 255]], np.uint8), CLASSES)
    assert painted.dtype == np.uint8
    assert painted.tolist() == [[[30, 20, 10], [0, 100, 200]], [[255, 0, 0], [0, 0, 0]]]


def test_colour_mask_refuses_an_id_that_is_no_class() -> None:
    with pytest.raises(LabelError, match="holds id 3, expected 0..2 or void 255"):
        colour_mask(np.array([[0, 3]], np.uint8), CLASSES)


@pytest.mark.parametrize("mask", [np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.int64)])
def test_colour_mask_refuses_what_is_no_mask(mask: np.ndarray) -> None:
    with pytest.raises(LabelError, match="expected uint8"):
        colour_mask(mask, CLASSES)


def test_overlay_blends_by_alpha_and_leaves_void_pixels() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    blended = overlay(image, np.array([[1, 255]], np.uint8), CLASSES, alpha=0.5)
    assert blended.tolist() == [[[50, 100, 150], [100, 100, 100]]]


def test_overlay_does_not_change_its_frame() -> None:
    image = np.full((2, 2, 3), 100, np.uint8)
    overlay(image, np.zeros((2, 2), np.uint8), CLASSES)
    assert (image == 100).all()


def test_overlay_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(LabelError, match="resize the mask"):
        overlay(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 2), np.uint8), CLASSES)


@pytest.mark.parametrize("image", [None, np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.float32)])
def test_overlay_refuses_what_is_no_picture(image) -> None:
    with pytest.raises(FrameError, match="expected"):
        overlay(image, np.zeros((2, 2), np.uint8), CLASSES)


def test_heat_runs_from_dark_to_light_and_greys_what_is_not_known() -> None:
    painted = heat(np.array([[0.0, 0.5, 1.0, np.nan, 7.0, -1.0]])).astype(int)
    dark, middle, light, unknown, above, below = painted[0].tolist()
    assert sum(dark) < sum(middle) < sum(light)
    assert unknown == [160, 160, 160]
    assert above == light
    assert below == dark


def test_heat_refuses_a_map_with_channels() -> None:
    with pytest.raises(FrameError, match="expected \\(height, width\\)"):
        heat(np.zeros((2, 2, 1)))
