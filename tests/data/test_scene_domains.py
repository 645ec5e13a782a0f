from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from edge_sfda.data.scene_domains import DOMAINS, TOWNS, blend, domain_of, weather
from edge_sfda.data.scene_styles import STYLES
from edge_sfda.errors import UsageError


@pytest.mark.parametrize("name", DOMAINS)
def test_domain_of_gives_the_domain_of_that_name(name: str) -> None:
    assert domain_of(name) is DOMAINS[name]
    assert DOMAINS[name].name == name


def test_domain_of_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(UsageError, match="choose one of day, dusk, night, fog, rain, city, sensor"):
        domain_of("snow")


def test_only_the_city_is_another_town() -> None:
    assert {name for name, d in DOMAINS.items() if d.style != "home"} == {"city"}


def test_domain_of_an_unknown_town_is_refused() -> None:
    with pytest.raises(UsageError, match="style 'village'; choose one of home, city"):
        replace(DOMAINS["day"], style="village")


def test_every_town_has_its_streets() -> None:
    assert tuple(STYLES) == TOWNS


def test_blend_ends_at_its_ends() -> None:
    day, night = DOMAINS["day"], DOMAINS["night"]
    assert replace(blend(day, night, 0.0), name="day") == day
    assert replace(blend(day, night, 1.0), name="night") == night


def test_blend_mixes_numbers_and_colours() -> None:
    a = replace(DOMAINS["day"], haze=0.0, sun=(1.0, 0.0, 0.5), white_balance=(1.0, 1.0, 1.0))
    b = replace(DOMAINS["day"], haze=0.4, sun=(0.0, 1.0, 0.5), white_balance=(2.0, 1.0, 0.0))
    mixed = blend(a, b, 0.25)
    assert mixed.haze == pytest.approx(0.1)
    assert mixed.sun == pytest.approx((0.75, 0.25, 0.5))
    assert mixed.white_balance == pytest.approx((1.25, 1.0, 0.75))
    assert mixed.name == "day-day"


def test_blend_changes_the_town_at_one_half() -> None:
    day, city = DOMAINS["day"], DOMAINS["city"]
    assert [blend(day, city, share).style for share in (0.49, 0.5)] == ["home", "city"]


def test_weather_is_smooth_in_time_and_differs_by_seed() -> None:
    day = DOMAINS["day"]
    clouds = [weather(day, 0, t / 10)[0].cloud for t in range(600)]
    assert max(abs(b - a) for a, b in pairwise(clouds)) < 0.02
    assert max(clouds) - min(clouds) > 0.3
    assert weather(day, 0, 5.0)[0].cloud != weather(day, 1, 5.0)[0].cloud


def test_weather_without_variation_leaves_the_domain() -> None:
    still = replace(DOMAINS["day"], variation=0.0)
    assert weather(still, 3, 77.0)[0] == still


def test_overcast_takes_the_sun_and_the_blue() -> None:
    day = DOMAINS["day"]
    looks = [weather(day, seed, 31.0 * i)[0] for seed in range(6) for i in range(6)]
    clear, grey = min(looks, key=lambda d: d.cloud), max(looks, key=lambda d: d.cloud)
    assert max(grey.sun) < 0.5 * max(clear.sun)
    assert grey.sky_high[2] / grey.sky_high[0] < 0.6 * clear.sky_high[2] / clear.sky_high[0]


def test_sun_is_a_unit_vector_above_the_horizon() -> None:
    for seed in range(5):
        sun = weather(DOMAINS["day"], seed, 10.0 * seed)[1]
        assert sun.s**2 + sun.d**2 + sun.y**2 == pytest.approx(1.0)
        assert 0.3 < sun.y < 0.9
