from __future__ import annotations

from itertools import pairwise

import pytest

from edge_sfda.data.scene_domains import DOMAINS
from edge_sfda.data.scene_spec import SceneSpec, lasting
from edge_sfda.errors import UsageError


def test_parse_of_a_bare_domain_has_the_defaults() -> None:
    assert SceneSpec.parse("scene:dusk") == SceneSpec(("dusk",), 200, 0, 192, 256, 10.0, 0)


def test_parse_reads_every_option() -> None:
    spec = SceneSpec.parse("scene:day-fog?frames=30&seed=3&size=96x128&fps=2.5&start=7")
    assert spec == SceneSpec(("day", "fog"), frames=30, seed=3, height=96, width=128, fps=2.5, start=7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("day", "is no scene"),
        ("scene:", "unknown scene domain ''"),
        ("scene:dawn", "unknown scene domain 'dawn'"),
        ("scene:day-", "unknown scene domain ''"),
        ("scene:day?frame=3", "unknown option 'frame'"),
        ("scene:day?frames", "cannot read options 'frames'"),
        ("scene:day?frames=", "cannot read frames="),
        ("scene:day?frames=few", "cannot read frames=few"),
        ("scene:day?frames=0", "frames = 0 must lie in 1"),
        ("scene:day?size=192", "cannot read size=192"),
        ("scene:day?size=8x8", "height = 8 must lie in 16"),
        ("scene:day?fps=nan", "fps = nan"),
        ("scene:day?seed=-1", "seed = -1"),
    ],
)
def test_parse_says_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        SceneSpec.parse(text)


def test_moments_follow_the_frame_rate_from_the_start_on() -> None:
    spec = SceneSpec(("day",), frames=3, fps=4.0, start=8)
    assert [spec.moment(i)[0] for i in range(3)] == [2.0, 2.25, 2.5]
    assert {spec.moment(i)[1].name for i in range(3)} == {"day"}


def test_several_domains_are_held_and_then_change_smoothly() -> None:
    spec = SceneSpec(("day", "night"), frames=40)
    names = [spec.moment(i)[1].name for i in range(40)]
    assert names[:14] == ["day"] * 14
    assert names[15:20] == ["day-night"] * 5
    assert names[20:] == ["night"] * 20
    lamps = [spec.moment(i)[1].lamps for i in range(40)]
    assert lamps == sorted(lamps)
    assert max(b - a for a, b in pairwise(lamps)) < 0.2
    assert spec.moment(39)[1] == DOMAINS["night"]


def test_open_makes_the_scene_of_that_seed_and_size() -> None:
    scene = SceneSpec.parse("scene:day?seed=3&size=96x128").open()
    assert (scene.seed, scene.height, scene.width) == (3, 96, 128)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scene:day-dusk", "scene:day-dusk?frames=1200"),
        ("scene:dusk?fps=4&seed=3", "scene:dusk?fps=4&seed=3&frames=480"),
        ("scene:dusk?frames=7", "scene:dusk?frames=7"),
    ],
)
def test_lasting_gives_frames_for_the_time_unless_they_are_named(text: str, expected: str) -> None:
    assert lasting(text, 120) == expected
