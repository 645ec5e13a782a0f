from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sfda.adapt.trigger import Change, Trigger, describe
from edge_sfda.cli.adapt import BUILT_IN_MODEL
from edge_sfda.config import TriggerConfig
from edge_sfda.data.scene import Scene
from edge_sfda.errors import ConfigError, UsageError
from edge_sfda.nets import Predictor, load

SHORT = TriggerConfig(settle=20, window=5, patience=3, cool_down=40)
FOUND, OVER = Change.SHIFT_FOUND, Change.SHIFT_OVER


def _noise(count: int, mean: float = 1.0, spread: float = 0.1, seed: int = 0) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, spread, count))


def _changes(trigger: Trigger, values: list[float]) -> list[tuple[int, Change]]:
    found = [(index, trigger.observe({"doubt": value})) for index, value in enumerate(values)]
    return [(index, change) for index, change in found if change is not None]


def test_shift_is_found_and_over_soon_after_it_is() -> None:
    trigger = Trigger(SHORT)
    changes = _changes(trigger, _noise(100) + _noise(30, mean=3.0) + _noise(50))
    assert [change for _, change in changes] == [FOUND, OVER]
    assert 100 < changes[0][0] <= 110
    assert 130 < changes[1][0] <= 140
    assert not trigger.shifted


def test_shift_downwards_is_one_too() -> None:
    assert [change for _, change in _changes(Trigger(SHORT), _noise(60) + _noise(20, mean=-1.0))] == [FOUND]


@pytest.mark.parametrize("odd", [1e9, -1e9, 0.0, 5.0])
def test_single_odd_frames_are_no_shift(odd: float) -> None:
    values = _noise(400)
    values[10] = odd  # while the reference is taken
    values[60::9] = [odd] * len(values[60::9])
    assert _changes(Trigger(SHORT), values) == []


def test_odd_frames_do_not_blind_the_trigger() -> None:
    values = _noise(300)
    values[60::9] = [1e9] * len(values[60::9])
    assert [change for _, change in _changes(Trigger(SHORT), values + _noise(20, mean=3.0))] == [FOUND]


def test_slow_dusk_is_found() -> None:
    trigger = Trigger(TriggerConfig())
    values = [1 + index / 2000 + noise for index, noise in enumerate(_noise(4000, mean=0))]
    changes = _changes(trigger, values)
    assert changes[0][1] == FOUND


def test_shift_on_the_edge_does_not_ring() -> None:
    trigger = Trigger(SHORT)
    _changes(trigger, _noise(60))
    spread = trigger._signals["doubt"]._least(trigger._signals["doubt"].spread)
    edge = trigger._signals["doubt"].reference + SHORT.high * spread
    wobble = [edge + spread * (1 if index // 10 % 2 == 0 else -1) for index in range(600)]
    changes = [change for _, change in _changes(trigger, wobble)]
    assert OVER not in changes
    assert changes[0] == FOUND


def test_shift_that_lasts_is_found_again_each_time_later() -> None:
    changes = _changes(Trigger(SHORT), _noise(60) + _noise(4000, mean=5.0))
    assert {change for _, change in changes} == {FOUND}
    gaps = np.diff([index for index, _ in changes])
    assert list(gaps[:4]) == [41, 81, 161, 321]
    assert max(gaps) <= 16 * 40 + 1


def test_shift_that_comes_back_within_the_cool_down_waits_for_its_end() -> None:
    changes = _changes(Trigger(SHORT), _noise(60) + _noise(15, mean=5.0) + _noise(15) + _noise(40, mean=5.0))
    assert [change for _, change in changes] == [FOUND, OVER, FOUND]
    assert changes[2][0] - changes[0][0] >= 40


def test_rebase_takes_the_new_domain_as_home() -> None:
    trigger = Trigger(SHORT)
    _changes(trigger, _noise(60) + _noise(20, mean=5.0))
    assert trigger.shifted
    trigger.rebase()
    assert trigger.settling
    assert _changes(trigger, _noise(100, mean=5.0)) == []
    assert [change for _, change in _changes(trigger, _noise(20))] == [FOUND]


def _lit(values: list[float]) -> list[dict[str, float]]:
    return [{"doubt": 0.1, "brightness": value} for value in values]


def test_network_fitted_to_known_frames_is_left_at_once() -> None:
    trigger = Trigger(SHORT)
    for signals in _lit(_noise(30) + _noise(12, mean=2.0, seed=1)):
        trigger.observe(signals)
    fitted = trigger.recent(12)
    assert list(fitted) == ["brightness"]
    assert len(fitted["brightness"]) == 12
    assert min(fitted["brightness"]) > 1.5
    stays, leaves = Trigger(SHORT), Trigger(SHORT)
    for each in (stays, leaves):
        each.rebase(fitted)
    assert [stays.observe(signals) for signals in _lit(_noise(18, mean=2.0, seed=2))] == [None] * 18
    found = [leaves.observe(signals) for signals in _lit(_noise(18, mean=3.0, seed=2))]
    assert found.index(FOUND) == SHORT.window + SHORT.patience - 2  # before doubt, of which nothing is known, settles
    assert not leaves.settling


def test_too_few_frames_are_no_reference() -> None:
    trigger = Trigger(SHORT)
    for signals in _lit(_noise(30)):
        trigger.observe(signals)
    trigger.rebase(trigger.recent(SHORT.window - 1))
    assert trigger.settling
    assert [trigger.observe(signals) for signals in _lit(_noise(18, mean=9.0))] == [None] * 18


def test_nothing_is_noticed_while_the_reference_is_taken() -> None:
    trigger = Trigger(SHORT)
    assert _changes(trigger, _noise(10) + _noise(9, mean=50.0)) == []
    assert (trigger.score, trigger.settling) == (0.0, True)


@pytest.mark.parametrize("value", [0.0, 1e-9, 7.0, -3.0])
def test_signal_that_never_changes_is_no_shift(value: float) -> None:
    assert _changes(Trigger(SHORT), [value] * 300) == []


def test_any_signal_may_show_the_shift() -> None:
    trigger = Trigger(SHORT)
    found = []
    for index, (doubt, warmth) in enumerate(zip(_noise(90), _noise(60, seed=1) + _noise(30, 4.0), strict=True)):
        if trigger.observe({"doubt": doubt, "warmth": warmth}) is FOUND:
            found.append(index)
    assert len(found) == 1
    assert trigger.scores["warmth"] > SHORT.high > trigger.scores["doubt"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=120))
def test_any_finite_stream_gives_found_before_over(values: list[float]) -> None:
    trigger = Trigger(TriggerConfig(settle=4, window=2, patience=1, cool_down=3))
    told = [change for _, change in _changes(trigger, values)]
    on = False
    for change in told:
        assert change is FOUND or on
        on = change is FOUND


@pytest.mark.parametrize("signals", [{}, {"doubt": float("nan")}, {"doubt": float("inf")}])
def test_what_is_no_signal_is_told(signals: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected one or more finite numbers"):
        Trigger(SHORT).observe(signals)


def test_other_signals_than_before_are_told() -> None:
    trigger = Trigger(SHORT)
    trigger.observe({"doubt": 1.0})
    with pytest.raises(UsageError, match=r"got \['contrast'\] after \['doubt'\]"):
        trigger.observe({"contrast": 1.0})


@pytest.mark.parametrize("wrong", [{"low": 7.0}, {"window": 61}, {"settle": 3}, {"patience": 0}, {"floor": 0.0}])
def test_settings_out_of_range_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"trigger.{next(iter(wrong))}"):
        TriggerConfig(**wrong)


def test_description_of_a_frame() -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[..., 2] = 255  # red, as BGR
    signals = describe(image, np.full((8, 12), 0.75, np.float32))
    assert signals == pytest.approx({"doubt": 0.25, "brightness": 1 / 3, "contrast": 2**0.5 / 3, "warmth": 1.0})


def test_night_on_the_scene_is_found_and_day_is_not() -> None:
    scene, predict = Scene(seed=5, height=96, width=128), Predictor(*load(BUILT_IN_MODEL))
    trigger = Trigger(TriggerConfig(settle=30))
    changes: dict[str, list[Change]] = {"day": [], "night": []}
    for index in range(90):
        domain = "day" if index < 65 else "night"
        image, _ = scene.render(index / 5, domain)
        change = trigger.observe(describe(image, predict(image)[1]))
        changes[domain] += [change] if change is not None else []
    assert changes == {"day": [], "night": [FOUND]}


def test_trigger_needs_no_torch() -> None:
    code = "import sys, edge_sfda.adapt.trigger, edge_sfda.adapt.generations; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
