"""The stream's guard: the source near home, the stream's own network away from it, what it does between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.run import learn_online
from edge_sfda.adapt.stream_guard import StreamGuard
from edge_sfda.config import AdaptConfig, from_dict
from edge_sfda.errors import NetError
from edge_sfda.nets.normalisation import batch_norms, estimate, given_to, observe, running

Make = Callable[..., Any]


def _plain() -> Any:
    """Return a network of one BatchNorm layer, which is given what comes."""
    return nn.Sequential(nn.BatchNorm2d(3)).eval()


def _frame(shift: float, seed: int) -> Tensor:
    return torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) + shift


def _see(guard: StreamGuard, net: nn.Module, shift: float, seed: int = 0) -> bool:
    anew = guard.look(_frame(shift, seed))
    observe(net, _frame(shift, seed), momentum=0.5)
    return anew


def test_first_frame_begins_the_stream_and_a_shift_leaves_home() -> None:
    net = _plain()
    guard = StreamGuard(net)
    assert guard.at_home
    assert _see(guard, net, 3.0)
    assert not _see(guard, net, 3.0, seed=1)
    assert not guard.at_home
    assert guard.distance == pytest.approx(9, rel=0.3)  # nats: the square of three deviations


def test_coming_home_is_seen_at_once_and_begins_anew_at_the_second_frame() -> None:
    net = _plain()
    guard = StreamGuard(net)
    for seed in range(6):
        _see(guard, net, 3.0, seed)
    assert not guard.at_home
    assert not _see(guard, net, 0.0, 6)
    assert guard.at_home
    assert _see(guard, net, 0.0, 7)


def test_a_single_odd_frame_begins_nothing_anew() -> None:
    net = _plain()
    guard = StreamGuard(net)
    for seed in range(6):
        _see(guard, net, 3.0, seed)
    assert not _see(guard, net, 0.0, 6)
    assert not _see(guard, net, 3.0, 7)
    assert not guard.at_home
    assert not _see(guard, net, 0.0, 8)


def test_source_counts_as_more_frames_the_nearer_the_stream_is() -> None:
    net = _plain()
    guard = StreamGuard(net)
    assert guard.source_frames(4) == 10  # nothing is known yet
    _see(guard, net, 0.0)
    assert guard.source_frames(4) == 10
    guard.distance = 0.2
    assert guard.source_frames(4) == pytest.approx(5)
    guard.distance = 3.0
    assert guard.source_frames(4) == 4


def _settled() -> tuple[Any, StreamGuard]:
    """Return a network that has followed a stream, and its guard."""
    net = _plain()
    guard = StreamGuard(net)
    for seed in range(12):
        _see(guard, net, 3.0, seed)
        assert not guard.changed
    return net, guard


def test_change_is_seen_with_the_fifth_frame_and_what_was_before_counts_as_little() -> None:
    net, guard = _settled()
    assert guard.source_frames(4) == 4
    for seed in range(12, 16):
        assert not guard.look(_frame(12.0, seed))
        assert not guard.changed
    assert not _see(guard, net, 12.0, 16)
    assert guard.changed
    assert guard.source_frames(4) == 3
    assert guard.source_frames(1) == 1  # as few as were asked for
    _see(guard, net, 12.0, 17)
    assert not guard.changed
    assert guard.source_frames(4) == 3  # until it begins anew
    _see(guard, net, 0.0, 18)
    assert _see(guard, net, 0.0, 19)
    guard.distance = 3.0
    assert guard.source_frames(4) == 4


def test_four_odd_frames_are_no_change() -> None:
    net, guard = _settled()
    for seed in range(12, 27, 5):
        for odd in range(seed, seed + 4):  # a glare: the statistics are let alone
            guard.look(_frame(12.0, odd))
            assert not guard.changed
        _see(guard, net, 3.0, seed + 4)
        assert not guard.changed
    assert guard.source_frames(4) == 4


@pytest.mark.parametrize(("step", "changed"), [(0.2, False), (1.0, True)])
def test_a_step_is_a_change_where_it_is_large_not_only_larger_than_a_still_stream_s(step: float, changed: bool) -> None:
    net = _plain()
    guard = StreamGuard(net)
    for _ in range(60):
        _see(guard, net, 3.0)  # one frame all along: any step is many times as far as its frames lie
    for _ in range(5):
        guard.look(_frame(3.0 + step, 0))
    assert guard.changed == changed


def test_coming_home_is_no_change() -> None:
    net, guard = _settled()
    for seed in range(12, 20):
        _see(guard, net, 0.0, seed)
        assert not guard.changed


@pytest.mark.parametrize(("shift", "mild"), [(0.4, True), (0.7, False)])  # its square is the distance in nats
def test_shift_is_mild_where_frames_lie_near_the_source_on_average(shift: float, mild: bool) -> None:
    net = _plain()
    guard = StreamGuard(net)
    for seed in range(8):
        _see(guard, net, shift, seed)
        assert not guard.at_home or seed == 0
        assert guard.mild == mild
    for seed in range(8, 10):  # two frames of the other kind turn nothing
        guard.look(_frame(0.55, seed))
        assert guard.mild == mild


def test_source_the_mix_or_what_is_learnt_is_chosen() -> None:
    net, learnt = _plain(), _plain()
    guard = StreamGuard(net)
    assert guard.chosen(learnt) is guard.source
    for seed in range(4):
        _see(guard, net, 0.4, seed)
    assert guard.chosen(learnt) is guard.mix
    for seed in range(4, 8):
        _see(guard, net, 3.0, seed)
    assert guard.chosen(learnt) is learnt


def test_mix_has_a_third_of_what_is_learnt_and_of_its_statistics() -> None:
    net, learnt = _plain(), _plain()
    guard = StreamGuard(net)
    with torch.no_grad():
        learnt[0].weight.add_(3.0)
        learnt[0].running_mean.add_(6.0)
    assert guard.chosen(learnt) is guard.source  # nothing is known of the shift yet
    assert torch.equal(guard.mix[0].weight, net[0].weight)
    _see(guard, net, 0.4)
    assert guard.chosen(learnt) is guard.mix
    torch.testing.assert_close(guard.mix[0].weight, guard.source[0].weight + 1.0)
    torch.testing.assert_close(guard.mix[0].running_mean, torch.full((3,), 2.0))
    assert torch.equal(guard.source[0].running_mean, torch.zeros(3))
    assert torch.equal(learnt[0].running_mean, torch.full((3,), 6.0))


def test_network_without_batch_norm_has_no_home_and_no_mild_shift() -> None:
    net: Any = nn.Conv2d(3, 3, 1)
    guard = StreamGuard(net)
    assert not guard.look(_frame(0.0, 0))
    assert not guard.at_home
    assert not guard.mild
    assert guard.chosen(net) is net


def test_looking_runs_what_lies_before_the_first_normalised_layer_and_no_more() -> None:
    class Behind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("runs")

    net: Any = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Behind()).eval()
    guard = StreamGuard(net)
    before = [value.clone() for value in net.state_dict().values()]
    assert guard.look(_frame(0.0, 0))
    assert guard.distance is not None
    assert all(torch.equal(value, old) for value, old in zip(net.state_dict().values(), before, strict=True))
    assert not net[1]._forward_pre_hooks


def test_layer_that_takes_no_part_is_named() -> None:
    net = nn.Sequential(nn.Identity())
    with pytest.raises(NetError, match="BatchNorm2d of Sequential takes no part"):
        given_to(nn.BatchNorm2d(3), net, _frame(0.0, 0))


def test_state_goes_on_where_it_was() -> None:
    net = _plain()
    guard, other = StreamGuard(net), StreamGuard(net)
    for seed in range(6):
        _see(guard, net, 3.0, seed)
    _see(guard, net, 0.0, 6)
    other.load_state(guard.state())
    assert (other.at_home, other.distance) == (True, guard.distance)
    assert _see(other, net, 0.0, 7)


def test_state_in_the_midst_of_a_change_goes_on_where_it_was() -> None:
    net, guard = _settled()
    other = StreamGuard(net)
    for seed in range(12, 16):
        guard.look(_frame(12.0, seed))
    other.load_state(guard.state())
    other.look(_frame(12.0, 16))
    assert other.changed
    third = StreamGuard(net)
    third.load_state(other.state())
    assert third.source_frames(4) == 3


@pytest.fixture
def bright(make_frames: Make) -> list[Tensor]:
    made: list[Tensor] = make_frames(12)
    return made


@pytest.fixture
def stream(make_toy: Make, make_manifest: Make, bright: list[Tensor]) -> Callable[..., Adapter]:
    """Return a function that makes a method over a source of bright frames, on a stream that has begun."""

    def make(**burst: Any) -> Adapter:
        net = make_toy()
        config = from_dict({"burst": {"rate": 1e-2, "frozen_stride": 0} | burst}, base=AdaptConfig())
        method = Adapter(net, make_manifest(class_weight=(1.0, 2.0, 3.0, 4.0)), config)
        estimate(net, [method.normaliser(torch.stack(bright))], blend=1.0)
        method.begin(())
        return method

    return make


def _dark(frames: list[Tensor]) -> list[Tensor]:
    return [frame // 8 for frame in frames]


def _home(method: Adapter) -> nn.Module:
    assert method.stream_guard is not None, "it is on a stream"
    return method.stream_guard.source


def _parameters(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def test_stream_uses_what_it_learnt_away_from_home_and_the_source_back_there(
    stream: Callable[..., Adapter], bright: list[Tensor]
) -> None:
    method = stream()
    source, fresh = _parameters(method.deployed), _parameters(method.net)
    assert method.deployed is _home(method)
    for frame in _dark(bright[:6]):
        learn_online(method, frame)
    assert method.deployed is method.teacher.net
    assert not _equal(_parameters(method.teacher.net), fresh)
    learn_online(method, bright[6])
    assert method.deployed is _home(method)
    assert _equal(_parameters(method.deployed), source)
    method.observe(bright[7][None])  # the second in a row
    assert _equal(_parameters(method.net), fresh)
    assert _equal(_parameters(method.teacher.net), fresh)
    assert method.teacher.updates == 0
    assert torch.isfinite(method.step(bright[7][None]).loss)


def _mixed(method: Adapter) -> list[Tensor]:
    """Return what the mix is to be: a third of the way from where the stream began to the teacher, statistics too."""
    home, learnt = _home(method).state_dict(), method.teacher.net.state_dict()
    return [torch.lerp(home[name], value, 1 / 3) for name, value in learnt.items() if value.is_floating_point()]


def _floats(net: nn.Module) -> list[Tensor]:
    return [value.clone() for value in net.state_dict().values() if value.is_floating_point()]


def _shaded(frames: list[Tensor]) -> list[Tensor]:
    """Return frames that lie .15 to .25 nats from the source."""
    return [(frames[index].float() * 0.85).to(torch.uint8) for index in (1, 5, 6, 7)]


def test_mild_stream_uses_a_mix_that_keeps_up_with_frames_and_steps(
    stream: Callable[..., Adapter], bright: list[Tensor]
) -> None:
    method = stream(every=2)
    before = _floats(method.deployed)
    for index, frame in enumerate(_shaded(bright) * 2):
        taken = learn_online(method, frame)
        assert (taken is not None) == (index % 2 == 0)
        assert method.deployed not in (_home(method), method.teacher.net)
        torch.testing.assert_close(_floats(method.deployed), _mixed(method))
        assert not _equal(_floats(method.deployed), before)
        before = _floats(method.deployed)


def test_saved_mild_stream_is_used_as_it_was(stream: Callable[..., Adapter], bright: list[Tensor]) -> None:
    first, second = stream(), stream()
    for frame in _shaded(bright):
        learn_online(first, frame)
    second.load_state(first.state())
    assert second.deployed is not second.teacher.net
    assert _equal(_floats(second.deployed), _floats(first.deployed))
    assert not _equal(_floats(second.deployed), _floats(_home(second)))


def test_without_the_guard_a_stream_never_goes_home(stream: Callable[..., Adapter], bright: list[Tensor]) -> None:
    method = stream(guard=False)
    for frame in _dark(bright[:4]) + bright[4:8]:
        learn_online(method, frame)
        assert method.deployed is method.teacher.net
    assert method.teacher.updates == 8


def test_statistics_follow_a_change(
    stream: Callable[..., Adapter], bright: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [frame // 8 + 60 for frame in bright[:1] * 40]  # long enough for a new frame to count little
    after = [frame - 60 for frame in before[:14]]

    def means() -> Tensor:
        method = stream()
        for frame in before + after:
            method.observe(frame[None])
        return running(batch_norms(method.net)[0])[0]

    wanted = stream()
    estimate(wanted.net, [wanted.normaliser(frame[None]) for frame in after[:1]], blend=1.0)
    goal = running(batch_norms(wanted.net)[0])[0]
    follows = means()
    monkeypatch.setattr("edge_sfda.adapt.stream_guard._CHANGED", float("inf"))
    assert (follows - goal).norm() < 0.5 * (means() - goal).norm()


def test_saved_stream_goes_on_bit_for_bit_over_a_fresh_start(
    stream: Callable[..., Adapter], bright: list[Tensor]
) -> None:
    whole, first, second = stream(), stream(), stream()
    frames = _dark(bright[:5]) + bright[5:9]
    for frame in frames:
        learn_online(whole, frame)
    for frame in frames[:6]:  # one bright frame: the next begins anew
        learn_online(first, frame)
    second.load_state(first.state())
    assert second.deployed is _home(second)
    for frame in frames[6:]:
        learn_online(second, frame)
    assert _equal(_parameters(second.teacher.net), _parameters(whole.teacher.net))
    assert _equal(list(second.net.buffers()), list(whole.net.buffers()))
    assert whole.teacher.updates == 1  # at home each frame begins anew
