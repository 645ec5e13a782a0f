"""The floor under each class's share: what it asks for, of whom, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.class_floor import ClassFloor
from edge_sfda.adapt.state import State
from edge_sfda.config import from_dict
from edge_sfda.errors import CheckpointError

Make = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.fixture
def floor(make_manifest: Make) -> Callable[..., ClassFloor]:
    def make(share: float = 0.5, weight: tuple[float, ...] | None = None) -> ClassFloor:
        return ClassFloor(make_manifest(class_weight=weight), share, device=CPU)

    return make


@pytest.fixture(scope="module")
def frames(make_frames: Make) -> list[Tensor]:
    made: list[Tensor] = make_frames(6, 64, 96)
    return made


def _logits(*shares: float) -> Tensor:
    """Return logits [2, C, 4, 4] that say these shares in every pixel."""
    return torch.tensor(shares).log().view(1, -1, 1, 1).expand(2, -1, 4, 4).clone().requires_grad_()


def _probs(*shares: float) -> Tensor:
    return _logits(*shares).detach().softmax(1)


def test_nothing_is_asked_while_every_class_is_above_its_floor(floor: Make) -> None:
    mine = floor(0.5)
    mine.look(_probs(0.4, 0.3, 0.2, 0.1))
    logits = _logits(0.45, 0.3, 0.19, 0.06)  # the least has .6 of what it had
    penalty = mine.penalty(logits)
    penalty.backward()
    assert float(penalty.detach()) == 0
    assert not logits.grad.any()


def test_class_below_its_floor_is_raised_and_no_other(floor: Make) -> None:
    mine = floor(0.5)
    mine.look(_probs(0.4, 0.3, 0.2, 0.1))
    for _ in range(200):  # the running shares have arrived
        penalty = mine.penalty(logits := _logits(0.45, 0.3, 0.23, 0.02))
    penalty.backward()
    assert float(penalty.detach()) == pytest.approx(2 * 0.05 * torch.tensor(0.05 / 0.02).log().item(), rel=1e-3)
    by_class = -logits.grad.sum((0, 2, 3))
    assert by_class[3] > 0
    assert (by_class[:3] < 0).all()  # it comes from the others, the most from the largest
    assert by_class.argmin() == 0


def test_single_batch_without_a_class_is_no_reason(floor: Make) -> None:
    mine = floor(0.85)
    mine.look(_probs(0.4, 0.3, 0.2, 0.1))
    assert float(mine.penalty(_logits(0.5, 0.3, 0.199, 0.001)).detach()) == pytest.approx(0, abs=1e-6)
    for _ in range(30):
        penalty = mine.penalty(_logits(0.5, 0.3, 0.199, 0.001))
    assert float(penalty.detach()) > 0.1


def test_gradient_is_that_of_the_batch_at_the_running_shares(floor: Make) -> None:
    mine = floor(1.0)
    mine.look(_probs(0.25, 0.25, 0.25, 0.25))
    logits = _logits(0.7, 0.1, 0.1, 0.1)
    mine.penalty(logits).backward()
    free = logits.detach().clone().requires_grad_()
    shares = free.softmax(1).mean((0, 2, 3))
    running = torch.full((4,), 0.25).lerp(shares.detach(), 0.1)
    lacking = (running < 0.25).float()
    # d/ds of 2 * sum(floor * log(floor / s)) is -2 * floor / s
    (-(2 * 0.25 / running) * lacking * shares).sum().backward()
    torch.testing.assert_close(logits.grad, free.grad)


def test_class_weights_are_taken_out_of_what_step_0_says(floor: Make) -> None:
    weight = (0.5, 1.0, 1.0, 8.0)
    probs = _probs(0.3, 0.2, 0.2, 0.3)
    mine = floor(1.0, weight)
    mine.look(probs)
    expected = probs[0, :, 0, 0] / torch.tensor(weight).pow(0.75)
    torch.testing.assert_close(mine.state().tensor("usual"), expected / expected.sum())


def test_looks_are_averaged(floor: Make) -> None:
    mine = floor()
    for probs in (_probs(0.7, 0.1, 0.1, 0.1), _probs(0.1, 0.7, 0.1, 0.1), _probs(0.1, 0.1, 0.7, 0.1)):
        mine.look(probs)
    torch.testing.assert_close(mine.state().tensor("usual"), torch.tensor([0.3, 0.3, 0.3, 0.1]))


def test_class_that_step_0_never_saw_costs_nothing_and_stays_finite(floor: Make) -> None:
    mine = floor(1.0)
    mine.look(torch.tensor([1.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 4, 4))
    logits = torch.tensor([200.0, 0.0, 0.0, -200.0]).view(1, 4, 1, 1).expand(1, 4, 4, 4).clone().requires_grad_()
    penalty = mine.penalty(logits)
    penalty.backward()
    assert float(penalty.detach()) == 0
    assert torch.isfinite(logits.grad).all()


def test_state_carries_both_shares(floor: Make) -> None:
    mine, other = floor(), floor()
    mine.look(_probs(0.4, 0.3, 0.2, 0.1))
    mine.penalty(_logits(0.1, 0.2, 0.3, 0.4))
    other.load_state(State({k: v.clone() for k, v in mine.state().tensors.items()}, mine.state().facts))
    logits = _logits(0.9, 0.04, 0.03, 0.03)
    assert torch.equal(mine.penalty(logits), other.penalty(logits))
    with pytest.raises(CheckpointError, match="usual"):
        other.load_state(State({}, {"looks": 1}))


class TestInTheLoop:
    @pytest.fixture
    def adapter(self, make_nano: Make, make_manifest: Make) -> Callable[..., Adapter]:
        def make(*changes: Mapping[str, Any]) -> Adapter:
            config = from_dict({"burst": {"rate": 2e-2, "steps": 12, "warm_up": 0, "batch": 2, "guard": False}})
            for change in changes:
                config = from_dict(change, base=config)
            return Adapter(make_nano(0), make_manifest(height=64, width=96, class_weight=None), config)

        return make

    @staticmethod
    def _burst(method: Adapter, frames: list[Tensor]) -> Tensor:
        """Return the shares that the student gives the classes at the end."""
        method.begin(frames)
        for step in range(12):
            first = step % (len(frames) - 1)
            method.step(torch.stack(frames[first : first + 2]))
        with torch.no_grad():
            return method.net(method.normaliser(torch.stack(frames))).logits.softmax(1).mean((0, 2, 3))

    def test_burst_keeps_more_of_its_least_kept_class(self, adapter: Make, frames: list[Tensor]) -> None:
        none, high = adapter({"burst": {"class_floor": 0.0}}), adapter({"burst": {"class_floor": 1.0}})
        without, with_floor = self._burst(none, frames), self._burst(high, frames)
        assert none.floor is None
        usual = high.floor.state().tensor("usual")
        assert (without / usual).min() < (with_floor / usual).min()

    def test_stream_has_none(self, adapter: Make, frames: list[Tensor]) -> None:
        method = adapter()
        method.begin(())
        method.step(torch.stack(frames[:2]))
        assert method.floor is None

    def test_mild_shift_has_none(self, adapter: Make, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("edge_sfda.adapt.guard.fit_statistics", lambda *_args, **_kwargs: 0.5)
        method = adapter({"burst": {"guard": True}})
        method.begin(frames)
        assert method.floor is None

    @pytest.mark.parametrize("reliability", [True, False])
    def test_it_is_measured_with_or_without_a_metric_network(
        self, reliability: bool, adapter: Make, frames: list[Tensor]
    ) -> None:
        method = adapter({"reliability": {"enabled": reliability}})
        method.begin(frames)
        assert method.floor.state().tensor("usual").sum() == pytest.approx(1)

    def test_burst_goes_on_bit_for_bit_from_its_state(self, adapter: Make, frames: list[Tensor]) -> None:
        whole = adapter({"burst": {"class_floor": 1.0}})
        self._burst(whole, frames)
        kept = State(
            {name: value.detach().clone() for name, value in whole.state().tensors.items()}, dict(whole.state().facts)
        )
        again = adapter({"burst": {"class_floor": 1.0}})
        again.load_state(kept)
        again.rejoin(frames)
        for method in (whole, again):
            method.step(torch.stack(frames[:2]))
        assert torch.equal(whole.floor.state().tensor("running"), again.floor.state().tensor("running"))
        assert all(map(torch.equal, whole.net.state_dict().values(), again.net.state_dict().values()))
