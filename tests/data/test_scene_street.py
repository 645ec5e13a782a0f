from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.data.scene_shapes import Label
from edge_sfda.data.scene_street import CHUNK, FAR, Street
from edge_sfda.data.scene_styles import CrossSection


def test_shapes_do_not_depend_on_the_way_there() -> None:
    direct = Street(3, "home").shapes(50.0)
    driven = Street(3, "home")
    for t in (0.0, 200.0, 49.0):
        driven.shapes(t)
    again = driven.shapes(50.0)
    assert np.array_equal(direct.points, again.points)
    assert np.array_equal(direct.label, again.label)


@pytest.mark.parametrize("style", ["home", "city"])
@pytest.mark.parametrize("t", [0.0, 33.0, 1e6])
def test_shapes_reach_from_behind_the_camera_to_the_end_of_sight(style: str, t: float) -> None:
    street = Street(1, style)
    s = street.driven(t) - street.origin(t)
    assert 0 <= s < CHUNK
    road = street.shapes(t)
    ground = road.points[np.repeat(road.label == Label.ROAD, road.counts)]
    assert ground[:, 0].min() <= s - 5
    assert ground[:, 0].max() >= s + FAR


def test_what_stands_stays_where_it_is_when_the_origin_moves_on() -> None:
    street = Street(2, "home")
    times = np.arange(0, 12, 0.05)
    origins = np.array([street.origin(t) for t in times])
    change = int(np.flatnonzero(np.diff(origins))[0])
    before, after = (street.shapes(float(times[change + i])) for i in (0, 1))
    trees = [shapes.anchor[shapes.label == Label.TREE] for shapes in (before, after)]
    moved = np.unique(np.round(trees[0][:, 0] - CHUNK, 2))
    shared = np.intersect1d(moved, np.unique(np.round(trees[1][:, 0], 2)))
    assert len(shared) > 5


def test_bend_is_continuous_over_a_change_of_origin() -> None:
    street = Street(4, "home")
    for origin in (0.0, 8e6):
        here = street.bend(np.array([CHUNK, CHUNK + 10], np.float32), origin)
        there = street.bend(np.array([0, 10], np.float32), origin + CHUNK)
        assert here == pytest.approx(there, abs=1e-3)


def test_towns_run_the_same_way_and_look_different() -> None:
    home, city = Street(5, "home"), Street(5, "city")
    s = np.linspace(0, 100, 11, dtype=np.float32)
    assert np.array_equal(home.bend(s, 0.0), city.bend(s, 0.0))
    assert city.cut.half > home.cut.half + 0.5


def test_camera_moves_at_eight_metres_a_second() -> None:
    street = Street(6, "home")
    assert street.driven(100.0) - street.driven(0.0) == pytest.approx(800, abs=3)
    steps = np.diff([street.driven(t) for t in np.arange(0, 60, 0.1)])
    assert steps.min() > 0.7
    assert steps.max() < 0.9


def test_nobody_is_on_the_lane_right_before_the_camera() -> None:
    """Walkers and cars keep clear of the camera's own lane for the next metres."""
    for seed in range(4):
        street = Street(seed, "city")
        for t in np.arange(0, 120, 0.5):
            shapes = street.shapes(float(t))
            s = street.driven(float(t)) - street.origin(float(t))
            ahead, aside = shapes.anchor[:, 0] - s, np.abs(shapes.anchor[:, 1] - street.cut.lane)
            near = (ahead > 0) & (ahead < 6) & (aside < 1.0)
            assert not (near & np.isin(shapes.label, (Label.PERSON, Label.CAR))).any(), (seed, t)


def test_cross_section_adds_up_from_the_middle() -> None:
    cut = CrossSection(half=3.0, pavement=4.0, parking=(-1,))
    assert (cut.kerb(-1), cut.kerb(1)) == pytest.approx((5.2, 3.25))
    assert (cut.front(-1), cut.front(1)) == pytest.approx((9.2, 7.25))
    assert cut.lane == 1.5
    assert [cut.parks(side) for side in (-1, 1)] == [True, False]
