from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.data.scene_objects import BODIES, SIGN_KINDS, TREES, car, lamp_post, person, sign, traffic_light, tree
from edge_sfda.data.scene_shapes import Builder, Glow, Label, Shapes, Surface


def test_build_keeps_points_and_colours() -> None:
    b = Builder(anchor=(1.0, 2.0))
    b.add([(0, 0, 0), (0, 0, 2), (0, 1, 2)], (255, 0, 51), Label.SIGN, glow=Glow.RED)
    b.slab(1, 3, -1, 1, (0, 0, 0), Label.ROAD, Surface.ASPHALT)
    b.lamp(1, 2, 3)
    shapes = b.build()
    assert shapes.counts.tolist() == [3, 4]
    assert shapes.label.tolist() == [6, 1]
    assert shapes.bgr[0].tolist() == pytest.approx([0.2, 0.0, 1.0])
    assert shapes.glow.tolist() == [Glow.RED, Glow.NONE]
    assert shapes.surface.tolist() == [Surface.STANDING, Surface.ASPHALT]
    assert shapes.flat.tolist() == [False, True]
    assert shapes.anchor.tolist() == [[1, 2], [1, 2]]
    assert shapes.lamps.tolist() == [[1, 2, 3]]


def test_wall_frames_its_texture_from_the_upper_corner() -> None:
    b = Builder()
    b.wall((0, 5), (4, 5), 1, 3, (1, 1, 1), Label.FENCE)
    assert b.build().frame[0].tolist() == [[0, 5, 3], [4, 5, 3], [0, 5, 1]]


def test_at_moves_and_scales_about_the_foot() -> None:
    b = Builder()
    b.board(-1, 1, 0, 2, (1, 1, 1), Label.SIGN)
    b.lamp(0, 0, 2)
    moved = b.build().at(10, 3, scale=2)
    assert moved.points.tolist() == [[10, 1, 0], [10, 1, 4], [10, 5, 4], [10, 5, 0]]
    assert moved.anchor.tolist() == [[10, 3]]
    assert moved.lamps.tolist() == [[10, 3, 4]]


def test_join_keeps_order_and_takes_empty_parts() -> None:
    b = Builder()
    b.board(-1, 1, 0, 2, (1, 1, 1), Label.SIGN)
    one = b.build()
    joined = Shapes.join([Builder().build(), one, one.at(5, 0)])
    assert joined.counts.tolist() == [4, 4]
    assert joined.points[:, 0].tolist() == [0, 0, 0, 0, 5, 5, 5, 5]


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("oncoming", [False, True])
def test_car_stands_on_the_ground_from_s_zero(kind: str, oncoming: bool) -> None:
    shapes = car(kind, 0, 1, oncoming, True)
    start = np.concatenate([[0], np.cumsum(shapes.counts)])
    body = np.concatenate([shapes.points[start[i] : start[i + 1]] for i in np.flatnonzero(shapes.label == Label.CAR)])
    assert body[:, 0].min() == pytest.approx(0, abs=0.03)
    assert 3.5 < body[:, 0].max() < 11.5
    assert body[:, 2].min() >= -1e-6
    assert 1.4 < body[:, 2].max() < 3.1
    assert Glow.HEAD in shapes.glow if oncoming else Glow.TAIL in shapes.glow


def test_parked_car_is_dark() -> None:
    assert set(car("sedan", 0, 1, True, False).glow.tolist()) == {Glow.NONE}


def test_car_shows_the_flank_that_faces_the_camera() -> None:
    """The longest polygon is the side: on its left for a car to the right of the camera."""
    for side in (-1, 1):
        shapes = car("van", 0, side, False, True)
        largest = int(np.argmax(shapes.counts))
        first = int(shapes.counts[:largest].sum())
        assert np.sign(shapes.points[first, 1]) == -side


@pytest.mark.parametrize(
    ("shapes", "labels", "height"),
    [
        (person(0, 2, False), {Label.PERSON}, (1.5, 2.0)),
        (person(3, 2, True), {Label.PERSON}, (1.5, 2.0)),
        (tree(0), {Label.TREE}, (4.0, 9.5)),
        (tree(TREES - 1), {Label.TREE}, (4.0, 9.5)),
        (lamp_post(1, False), {Label.POLE}, (6.0, 6.5)),
        (traffic_light(True), {Label.POLE, Label.SIGN}, (3.0, 3.5)),
    ],
)
def test_things_have_their_classes_and_heights(shapes: Shapes, labels: set[Label], height: tuple[float, float]) -> None:
    assert set(shapes.label.tolist()) == labels
    assert height[0] < shapes.points[:, 2].max() < height[1]


@pytest.mark.parametrize("kind", range(SIGN_KINDS))
def test_every_sign_has_a_board_on_a_pole(kind: int) -> None:
    assert set(sign(kind).label.tolist()) == {Label.POLE, Label.SIGN}


def test_lamp_shines_over_the_road() -> None:
    assert lamp_post(1, False).lamps[0, 1] < 0 < lamp_post(-1, False).lamps[0, 1]
