"""What is learnt of mirror images: what that moves, how it follows a burst's other steps, and on a stream."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edge_sfda.adapt import run, state
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.consolidation import Consolidation
from edge_sfda.adapt.state import State
from edge_sfda.config import AdaptConfig, ConsolidationConfig, from_dict
from edge_sfda.errors import CheckpointError, NetError
from edge_sfda.nets import SegmentationNet

Make = Callable[..., Any]


@pytest.fixture
def x() -> Tensor:
    """Normalised frames."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def consolidation(make_manifest: Make) -> Callable[..., Consolidation]:
    def make(net: SegmentationNet, *, teacher: SegmentationNet | None = None, **settings: float) -> Consolidation:
        return Consolidation(net, make_manifest(), ConsolidationConfig(**settings), seed=0, teacher=teacher)

    return make


@pytest.fixture
def adapter(make_nano: Make, make_manifest: Make) -> Callable[..., Adapter]:
    def make(**changes: Mapping[str, Any]) -> Adapter:
        quick: dict[str, Any] = {
            "burst": {"steps": 8, "batch": 2, "warm_up": 1, "guard": False},
            "reliability": {"embedding": 8, "per_class": 16, "warm_up": 2},
            "statistics": {"frames": 4},
            "consolidation": {"share": 0.5},
        }
        config = from_dict(changes, base=from_dict(quick, base=AdaptConfig()))
        return Adapter(make_nano(), make_manifest(64, 96, class_weight=(0.5, 1.0, 2.0, 4.0)), config)

    return make


@pytest.fixture
def frames(make_frames: Make) -> list[Tensor]:
    made: list[Tensor] = make_frames(6, 64, 96)
    return made


def _values(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _moved(before: Mapping[str, Tensor], net: nn.Module) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(before[name], value)}


@torch.no_grad()
def _both_ways(net: SegmentationNet, x: Tensor) -> Tensor:
    return (net(x).logits.softmax(1) + net(x.flip(-1)).logits.softmax(1).flip(-1)) / 2


def test_target_is_the_mean_of_both_views_sharpened(make_toy: Make, consolidation: Make, x: Tensor) -> None:
    net = make_toy()
    mean = _both_ways(net, x)
    torch.testing.assert_close(consolidation(net, temperature=1.0)._target(x), mean)
    sharp = mean.square() / mean.square().sum(1, keepdim=True)
    torch.testing.assert_close(consolidation(net, temperature=0.5)._target(x), sharp)


def test_teacher_is_asked_for_the_mirror_image_alone_where_it_spoke_already(
    make_toy: Make, consolidation: Make, x: Tensor
) -> None:
    net = make_toy()
    mine = consolidation(net)
    asked: list[Tensor] = []
    mine.teacher.register_forward_hook(lambda module, given, answer: asked.append(given[0]))
    with torch.no_grad():
        torch.testing.assert_close(mine._target(x, said=net(x).logits.softmax(1)), mine._target(x))
    assert torch.equal(asked[0], x.flip(-1))
    assert len(asked[1]) == 2 * len(x)


def test_network_comes_to_say_what_both_views_said(make_toy: Make, consolidation: Make, x: Tensor) -> None:
    net = make_toy()
    said = _both_ways(net, x).square()
    said /= said.sum(1, keepdim=True)

    @torch.no_grad()
    def off() -> float:
        """Nats by which the network says something else, seen as it is and mirrored."""
        views = (net(x).logits, net(x.flip(-1)).logits.flip(-1))
        return sum(float((said * (said.clamp(min=1e-9).log() - v.log_softmax(1))).sum(1).mean()) for v in views) / 2

    before = off()
    mine = consolidation(net, rate=5e-3, encoder_rate_scale=1.0)
    for _ in range(40):
        mine.step(x, 1.0)
    assert off() < 0.8 * before


def test_teacher_statistics_and_gradients_stand_still(make_toy: Make, consolidation: Make, x: Tensor) -> None:
    net = make_toy()
    net.requires_grad_(False)
    net.norm.weight.requires_grad_(True)  # as a student's scale and shift do
    mine = consolidation(net)
    teacher, own = _values(mine.teacher), _values(net)
    for _ in range(3):
        mine.step(x, 1.0)
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == ["norm.weight"]
    assert not _moved(teacher, mine.teacher)
    moved = _moved(own, net)
    assert moved
    assert not any("running_" in name or "num_batches" in name for name in moved)


def test_encoder_moves_at_its_share_of_the_rate_or_not_at_all(make_nano: Make, consolidation: Make) -> None:
    x = torch.randn(2, 3, 64, 64)
    net = make_nano()
    before = _values(net)
    consolidation(net, encoder_rate_scale=0.0).step(x, 1.0)
    moved = _moved(before, net)
    assert moved
    assert not any(name.startswith("encoder.") for name in moved)
    net = make_nano()
    consolidation(net, encoder_rate_scale=0.1).step(x, 0.5)
    change = {name: float((value - before[name]).abs().max()) for name, value in net.state_dict().items()}
    # Adam's first step is as long as the rate: half of 2e-3
    assert max(v for name, v in change.items() if name.startswith("encoder.")) == pytest.approx(1e-4, rel=0.1)
    assert max(v for name, v in change.items() if not name.startswith("encoder.")) == pytest.approx(1e-3, rel=0.1)


def test_network_whose_encoder_nobody_knows_moves_at_the_encoders_rate(make_toy: Make, consolidation: Make) -> None:
    class Foreign(SegmentationNet):
        def __init__(self, net: SegmentationNet) -> None:
            super().__init__()
            self.net, self.classes, self.feature_channels = net, net.classes, net.feature_channels

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

    net = Foreign(make_toy())
    before = _values(net)
    consolidation(net).step(torch.randn(2, 3, 32, 32), 1.0)
    change = max(float((v - before[name]).abs().max()) for name, v in net.state_dict().items())
    assert change == pytest.approx(2e-4, rel=0.1)


def test_nothing_left_to_train_is_told(make_toy: Make, consolidation: Make) -> None:
    net = make_toy()
    net.backbone = net.encoder  # named otherwise, as a network of one's own may have it
    del net.encoder
    with pytest.raises(NetError, match=r"encoder_rate_scale = 0 leaves nothing to train"):
        consolidation(net, encoder_rate_scale=0.0)


def test_rare_classes_weigh_what_they_weighed_in_training(make_toy: Make, make_manifest: Make, x: Tensor) -> None:
    net = make_toy()
    weight = (1.0, 2.0, 1.0, 0.5)
    config = ConsolidationConfig(temperature=1.0)
    mine = Consolidation(net, make_manifest(class_weight=weight), config, seed=0)
    target, probs = _both_ways(net, x), net(x).logits.log_softmax(1)
    mirrored = torch.from_numpy(copy.deepcopy(mine._rng).random(len(x)) < 0.5)
    for i in mirrored.nonzero().flatten():
        target[i], probs[i] = target[i].flip(-1), net(x[i : i + 1].flip(-1)).logits.log_softmax(1)[0]
    each = torch.tensor(weight)[target.argmax(1)]
    expected = -(each * (target * probs).sum(1)).sum() / each.sum()
    torch.testing.assert_close(mine.step(x, 1.0).loss, expected.detach())


def test_last_steps_of_a_burst_consolidate_what_it_would_deploy(adapter: Make, frames: list[Tensor]) -> None:
    whole, cut = adapter(), adapter(consolidation={"share": 0.0}, burst={"steps": 4})
    settled: list[dict[str, Tensor]] = []
    student: list[dict[str, Tensor]] = []

    def look(step: int, report: object) -> None:
        assert (whole.consolidation is not None) == (step > 4)
        if step == 5:
            settled.append(_values(whole.consolidation.teacher))
            student.append(_values(whole.net))

    run.offline(whole, frames, on_step=look)
    run.offline(cut, frames)
    assert not _moved(settled[0], cut.deployed)  # what is frozen is what the burst of four steps deploys
    learnt = _moved(settled[0], whole.deployed)
    assert "classifier.weight" in learnt
    assert not any("running_" in name for name in learnt)
    assert not any("running_" not in name for name in _moved(student[0], whole.net))  # the student's part is over
    assert not any(parameter.requires_grad for parameter in whole.deployed.parameters())


def test_share_of_nothing_is_a_burst_as_before(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(consolidation={"share": 0.0})
    run.offline(method, frames)
    assert method.consolidation is None


def test_snapshot_and_early_end_deploy_what_is_learnt_so_far(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(frames)
    for _ in range(6):
        method.step(torch.stack(frames[:2]))
    taken = _values(method.snapshot())
    method.finish()
    assert not _moved(taken, method.deployed)


def test_rate_falls_to_zero_in_each_part_of_a_burst(adapter: Make, frames: list[Tensor]) -> None:
    rates: list[float] = []
    run.offline(adapter(), frames, on_step=lambda step, report: rates.append(float(report.scalars["rate"])))
    shape = [0.5 * 1.0, 0.854, 0.5, 0.146]  # half of it is the warm-up of one step
    assert [rate / 2.5e-3 for rate in rates[:4]] == pytest.approx(shape, abs=0.02)  # times the trust in the batch
    assert [rate / 2e-3 for rate in rates[4:]] == pytest.approx(shape, abs=1e-3)


def test_stream_learns_all_weights_from_its_average_at_a_constant_rate(adapter: Make, frames: list[Tensor]) -> None:
    with_it, without = adapter(), adapter(consolidation={"online_share": 0.0})
    before = _values(with_it.net)
    for method in (with_it, without):
        method.begin(())
        for frame in [*frames, *frames]:
            run.learn_online(method, frame)
    assert without.consolidation is None
    assert with_it.consolidation.teacher is with_it.teacher.net
    assert "merges.0.0.weight" in _moved(before, with_it.deployed)
    assert "merges.0.0.weight" not in _moved(before, without.deployed)


def test_stream_asks_its_average_once_for_each_view_of_a_frame(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(())
    asked: list[int] = []
    method.teacher.net.register_forward_hook(lambda module, given, answer: asked.append(len(given[0])))
    for frame in frames:
        run.learn_online(method, frame)
    assert asked == [1, 1] * len(frames)


def test_stream_that_begins_anew_forgets_what_was_learnt(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(burst={"guard": True})
    method.begin(())
    fresh = _values(method.net)
    for frame in frames:
        run.learn_online(method, frame)
    assert method.consolidation.state().part("optimizer").tensors
    method._restart(method.stream_guard)
    assert not method.consolidation.state().part("optimizer").tensors
    assert not any("num_batches" not in name for name in _moved(fresh, method.net))


def test_state_of_a_stream_holds_its_average_once(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(())
    run.learn_online(method, frames[0])
    assert not method.state().part("consolidation.teacher").tensors


@pytest.mark.parametrize("done", [3, 4, 6])
def test_burst_goes_on_bit_for_bit(adapter: Make, frames: list[Tensor], tmp_path: Path, done: int) -> None:
    whole, first, rest = adapter(), adapter(), adapter()
    run.offline(whole, frames)

    class Cut(Exception):
        pass

    def stop(step: int, report: object) -> None:
        if step == done:
            raise Cut

    with pytest.raises(Cut):
        run.offline(first, frames, on_step=stop)
    state.save(tmp_path / "s.safetensors", first.state(), first.manifest)
    rest.load_state(state.load(tmp_path / "s.safetensors", rest.manifest))
    run.offline(rest, frames, done=done)
    assert not _moved(_values(whole.deployed), rest.deployed)


def test_state_of_other_draws_is_refused(make_toy: Make, consolidation: Make, x: Tensor) -> None:
    mine = consolidation(make_toy())
    mine.step(x, 1.0)
    found = mine.state()
    with pytest.raises(CheckpointError, match="mirrors"):
        consolidation(make_toy()).load_state(State(found.tensors, {**found.facts, "own.random": {"a": 1}}))
