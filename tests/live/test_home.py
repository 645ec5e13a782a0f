"""Home: frames that lie where the source was trained, while another network is in use."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sfda import checkpoint
from edge_sfda.adapt import run
from edge_sfda.config import AdaptConfig, BurstConfig
from edge_sfda.data.frames import U8
from edge_sfda.live.home import Home
from edge_sfda.manifest import Manifest
from edge_sfda.nets import SegmentationNet, load
from edge_sfda.nets.inference import Normaliser
from edge_sfda.nets.normalisation import estimate

Make = Callable[..., Any]
State = dict[str, Tensor]

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"
LOOKS = 3  # frames of 10 a second: two looks, at every second one
HOME, AWAY = 180.0, 60.0  # of light, grey levels


def _frames(light: float, count: int = 30) -> Iterator[U8]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield np.clip(rng.normal(light, 20, (3, 192, 256)), 0, 255).astype(np.uint8)


def _fitted(light: float) -> tuple[SegmentationNet, Manifest]:
    net, manifest = load(MODEL)
    frames = torch.from_numpy(np.stack(list(_frames(light, 4))))
    estimate(net, [Normaliser(manifest.preprocessing, torch.device("cpu"))(frames)], blend=1.0)
    return net, manifest


@pytest.fixture
def saved(tmp_path: Path) -> Make:
    """Return a function that returns a home of bright frames, and a checkpoint fitted to frames of another light."""

    def make(light: float, change: Callable[[State], State] = lambda state: state) -> tuple[Home, Path]:
        net, manifest = _fitted(light)
        path = tmp_path / "other.safetensors"
        checkpoint.save(path, change(net.state_dict()), manifest)
        return Home(*_fitted(HOME)), path

    return make


def _asks(home: Home, light: float, *, gap: float = 0.1, at: float = 0.0) -> list[int]:
    return [number for number, x in enumerate(_frames(light), 1) if home.look(x, at + number * gap)]


def test_home_is_seen_at_the_second_look_and_nowhere_else(saved: Make) -> None:
    home, path = saved(AWAY)
    home.leave(home.statistics_of(path))
    assert _asks(home, AWAY) == []
    assert _asks(home, HOME)[0] == LOOKS


def test_a_glare_is_no_home(saved: Make) -> None:
    home, path = saved(AWAY)
    home.leave(home.statistics_of(path))
    clock = itertools.count(step=0.1)
    for bright, dark in zip(_frames(HOME), _frames(AWAY), strict=True):
        assert not any(home.look(x, next(clock)) for x in (bright, bright, dark, dark))


def test_mild_shift_is_no_home(saved: Make) -> None:
    home, path = saved(175)
    home.leave(home.statistics_of(path))
    assert _asks(home, HOME) == []


def test_source_itself_is_held_against_nothing(saved: Make) -> None:
    home, path = saved(HOME)
    assert home.statistics_of(path) is None
    home.leave(None)
    assert _asks(home, HOME) == []


def _sharper(state: State) -> State:
    first = next(iter(state))
    return state | {first: state[first] * 1.5}


def _renamed(state: State) -> State:
    return {f"mine.{name}": value for name, value in state.items()}


@pytest.mark.parametrize("change", [_sharper, _renamed])
def test_nothing_is_told_where_the_first_layers_are_not_the_source_s(
    change: Callable[[State], State], saved: Make
) -> None:
    home, path = saved(AWAY, change)
    assert home.statistics_of(path) is None


def _moved(state: State) -> State:
    first = next(iter(state))
    noise = torch.randn(state[first].shape, generator=torch.Generator().manual_seed(0))
    return state | {first: state[first] + 0.02 * state[first].norm() * noise / noise.norm()}


def test_home_is_seen_where_a_burst_has_moved_the_first_layers_a_little(saved: Make) -> None:
    home, path = saved(AWAY, _moved)
    home.leave(home.statistics_of(path))
    assert _asks(home, AWAY) == []
    assert _asks(home, HOME)[0] == LOOKS


def test_home_is_seen_after_a_burst_with_the_default_settings(tmp_path: Path) -> None:
    net, manifest = load(MODEL)
    method = run.make(net, manifest, AdaptConfig(burst=BurstConfig(steps=3, batch=2)))
    run.offline(method, [torch.from_numpy(frame) for frame in _frames(AWAY, 4)])
    assert method.config.own_steps < 3, "it does not consolidate"
    path = tmp_path / "burst.safetensors"
    checkpoint.save(path, method.deployed.state_dict(), manifest)
    home = Home(*_fitted(HOME))
    home.leave(home.statistics_of(path))
    assert _asks(home, AWAY) == []
    assert _asks(home, HOME)[0] == LOOKS


def test_change_of_the_network_in_use_begins_to_count_anew(saved: Make) -> None:
    home, path = saved(AWAY)
    home.leave(home.statistics_of(path))
    for number, x in enumerate(list(_frames(HOME))[: LOOKS - 1]):
        assert not home.look(x, 0.1 * number)
    home.leave(home.statistics_of(path))
    assert _asks(home, HOME, at=1.0)[0] == LOOKS


@pytest.mark.parametrize(("gap", "frames"), [(0.033, 8), (0.1, 3), (0.2, 2), (1.0, 2)])
def test_looks_are_taken_by_the_stream_s_own_time(gap: float, frames: int, saved: Make) -> None:
    home, path = saved(AWAY)
    home.leave(home.statistics_of(path))
    assert _asks(home, HOME, gap=gap)[0] == frames


def test_recording_that_begins_anew_is_looked_at(saved: Make) -> None:
    home, path = saved(AWAY)
    home.leave(home.statistics_of(path))
    assert _asks(home, AWAY, at=100.0) == []
    assert _asks(home, HOME)[0] == LOOKS


def test_network_without_batch_norm_tells_nothing(saved: Make) -> None:
    _, path = saved(AWAY)
    net: Any = nn.Conv2d(3, 3, 1)
    assert Home(net, load(MODEL)[1]).statistics_of(path) is None
