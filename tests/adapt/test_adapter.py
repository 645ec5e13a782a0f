from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.reliability import combined, levels
from edge_sfda.adapt.run import learn_online, offline
from edge_sfda.config import AdaptConfig, from_dict
from edge_sfda.errors import DivergenceError, FrameError, NetError
from edge_sfda.nets import SegmentationNet
from edge_sfda.nets.bring_your_own import Hooked
from edge_sfda.nets.normalisation import affine_parameters, batch_norms, estimate

Make = Callable[..., Any]

# every part on, small: what is tested here must not depend on the defaults
RECIPE: dict[str, Any] = {
    "statistics": {"blend": 1.0, "frames": 4, "prior": 1.0},
    "teacher": {"average_max": 0.9, "flip": True},
    "reliability": {"enabled": True, "confidence": True, "embedding": 8, "per_class": 16, "warm_up": 3},
    "mixing": {"enabled": True, "memory": 4, "fraction": 0.5},
    "view": {"enabled": True, "strength": 1.0, "blur": 0.5, "crop": 0.5},
    "burst": {
        "steps": 3,
        "warm_up": 1,
        "batch": 2,
        "rate": 1e-3,
        "weight_decay": 0.0,
        "frozen_stride": 0,
        "class_floor": 0.0,
        "affine_only": False,
        "batch_statistics": False,
        "entropy": 0.0,
        "guard": False,
    },
    "consolidation": {"share": 0.0, "online_share": 0.0},
}
AFFINE: dict[str, Any] = {"burst": {"affine_only": True, "batch_statistics": True, "entropy": 0.5}}
STILL: dict[str, Any] = {"mixing": {"enabled": False}, "view": {"enabled": False}}  # the student sees what came
ALL_OFF: dict[str, Any] = {
    "statistics": {"blend": 0.0, "prior": 0.0},
    "teacher": {"flip": False, "average_max": 0.0},
    "reliability": {"enabled": False, "confidence": False},
    "mixing": {"enabled": False},
    "view": {"enabled": False},
}
WEIGHT = (0.5, 1.0, 2.0, 4.0)


def _config(*changes: Mapping[str, Any], seed: int = 0) -> AdaptConfig:
    config = from_dict(RECIPE, base=AdaptConfig(seed=seed))
    for change in changes:
        config = from_dict(change, base=config)
    return config


def _state(net: SegmentationNet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _batch(frames: Sequence[Tensor], first: int = 0) -> Tensor:
    return torch.stack(list(frames[first : first + 2]))


@pytest.fixture(scope="module")
def adapter(make_nano: Make, make_manifest: Make) -> Callable[..., Adapter]:
    def make(*changes: Mapping[str, Any], seed: int = 0, net_seed: int = 0, **manifest: Any) -> Adapter:
        manifest = {"height": 64, "width": 96, "class_weight": WEIGHT} | manifest
        return Adapter(make_nano(net_seed), make_manifest(**manifest), _config(*changes, seed=seed))

    return make


@pytest.fixture(scope="module")
def frames(make_frames: Make) -> list[Tensor]:
    made: list[Tensor] = make_frames(6, 64, 96)
    return made


@pytest.fixture(scope="module")
def whole(adapter: Make, frames: list[Tensor]) -> dict[str, Tensor]:
    """What the whole recipe deploys with seed 0."""
    method = adapter()
    offline(method, frames)
    return _state(method.deployed)


def test_two_runs_of_one_seed_give_identical_weights_and_another_seed_does_not(
    whole: Mapping[str, Tensor], adapter: Make, frames: list[Tensor]
) -> None:
    again, other = adapter(), adapter(seed=1)
    offline(again, frames)
    offline(other, frames)
    assert _same(_state(again.deployed), whole)
    assert not _same(_state(other.deployed), whole)


def test_teacher_is_what_is_deployed_and_it_has_moved(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    before = _state(method.deployed)
    offline(method, frames)
    assert method.deployed is method.teacher.net
    moved = [n for n, p in method.deployed.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(list(method.deployed.parameters()))


def test_first_step_deploys_the_student_and_later_ones_an_average(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(frames)
    students = []
    for step in range(2):
        method.step(_batch(frames, step))
        students.append([p.detach().clone() for p in method.net.parameters()])
        if step == 0:
            assert all(torch.equal(a, b) for a, b in zip(method.deployed.parameters(), students[0], strict=True))
    for mean, first, second in zip(method.deployed.parameters(), *students, strict=True):
        torch.testing.assert_close(mean, (first + second) / 2)


def test_no_gradient_reaches_the_teacher(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    offline(method, frames)
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.net.parameters())
    assert all(p.grad is not None for p in method.net.parameters())


def test_first_step_moves_each_weight_by_no_more_than_the_rate(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    before = _state(method.net)  # the prior's shift of the bias is in it already
    method.begin(frames)
    rate = float(method.step(_batch(frames)).scalars["rate"])
    moves = torch.cat([(p.detach() - before[n]).abs().flatten() for n, p in method.net.named_parameters()])
    assert 0 < rate <= 1e-3
    assert 0.9 * rate < float(moves.max()) < 1.01 * rate  # Adam's first step is the gradient's sign


@pytest.mark.parametrize("stride", [2, 8, 32])
def test_frozen_layers_keep_their_weights_and_the_others_learn(
    stride: int, adapter: Make, frames: list[Tensor]
) -> None:
    method = adapter({"burst": {"frozen_stride": stride}})
    frozen = {id(p) for layer in method.net.encoder.up_to(stride) for p in layer.parameters()}
    names = {name for name, p in method.net.named_parameters() if id(p) in frozen}
    before = _state(method.net)
    offline(method, frames)
    for net in (method.net, method.deployed):
        changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
        assert names
        assert not names & changed
        assert {name for name, _ in net.named_parameters()} - names == changed


def test_statistics_of_student_and_teacher_are_the_target_s(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    before = _state(method.net)
    method.begin(frames)
    (mine, *_), (theirs, *_) = batch_norms(method.deployed), batch_norms(method.net)
    assert mine.running_mean is theirs.running_mean
    assert not torch.equal(method.net.state_dict()["encoder._bn0.running_mean"], before["encoder._bn0.running_mean"])


def test_steps_leave_the_statistics_and_the_modes_as_they_are(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(frames)
    before = {name: value for name, value in _state(method.net).items() if "running_" in name}
    for step in range(3):
        method.step(_batch(frames, step))
    after = {name: value for name, value in method.net.state_dict().items() if "running_" in name}
    assert _same(before, after)
    assert not any(m.training for m in method.net.modules())


def test_reliability_is_scored_before_the_frame_trains_the_metric(adapter: Make, frames: list[Tensor]) -> None:
    first, second = adapter(), adapter()
    for method in (first, second):
        method.begin(frames)
    batch = _batch(frames)
    view = first.teacher.predict(first.normaliser(batch))
    expected = first.reliability.score(levels(view), view.label)
    first.reliability.learn(levels(view), view.label)
    later = first.reliability.score(levels(view), view.label)
    report = second.step(batch)
    assert torch.equal(report.scalars["reliability"], expected.mean())
    assert not torch.equal(later.mean(), expected.mean())
    assert torch.equal(report.scalars["weight"], combined(view, expected).mean())
    # and it has learned from the frame once, no more
    assert _same(first.reliability.net.state_dict(), second.reliability.net.state_dict())


def test_warm_up_trains_the_metric_and_no_weight_of_the_network(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter({"statistics": {"blend": 0.0}, "reliability": {"warm_up": 5}})
    before = _state(method.net), _state(method.deployed)
    proxies = method.reliability.net.proxies.detach().clone()
    method.begin(frames)
    steps = {int(state["step"]) for state in method.reliability.optimizer.state.values()}
    assert steps == {5}
    assert not torch.equal(method.reliability.net.proxies.detach(), proxies)
    assert _same(_state(method.net), before[0])
    assert _same(_state(method.deployed), before[1])


def test_metric_has_not_been_trained_where_there_is_no_warm_up(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter({"reliability": {"warm_up": 0}})
    method.begin(frames)
    assert not method.reliability.optimizer.state
    assert math.isfinite(float(method.step(_batch(frames)).loss))


def test_loss_is_the_weighted_sum_over_the_number_of_pixels(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(STILL)
    method.begin(frames)
    batch = _batch(frames)
    x = method.normaliser(batch)
    view = method.teacher.predict(x)
    twin = adapter(STILL)
    twin.begin(frames)
    weight = combined(view, twin.reliability.score(levels(view), view.label))
    with torch.no_grad():
        pixel = F.cross_entropy(method.net(x).logits, view.label, reduction="none")
    report = method.step(batch)
    assert float(weight.max()) < 1
    torch.testing.assert_close(report.loss, (weight * pixel).sum() / weight.numel())
    assert not torch.allclose(report.loss, (weight * pixel).sum() / weight.sum(), rtol=1e-2)


def test_unmixed_frames_are_kept_with_their_own_labels(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter({"mixing": {"memory": 4}})
    method.begin(frames)
    given: list[tuple[Tensor, ...]] = []
    push = method.memory.push
    method.memory.push = lambda *batch: (given.append(batch), push(*batch))
    for step in range(2):
        batch = _batch(frames, 2 * step)
        view = method.teacher.predict(method.normaliser(batch))
        method.step(batch)
        assert torch.equal(given[step][0], batch)
        assert torch.equal(given[step][1], view.label)
    assert len(method.memory) == 4


def test_prior_is_undone_in_all_that_a_stream_may_use(adapter: Make, make_nano: Make) -> None:
    source = make_nano()
    method = adapter({"burst": {"guard": True}})
    assert method.prior_undone == 0
    method.begin(())
    shifted = source.classifier.bias - torch.tensor(WEIGHT).log()
    for net in (method.net, method.teacher.net, method.stream_guard.source, method.stream_guard.mix):
        torch.testing.assert_close(net.classifier.bias, shifted)
    assert method.prior_undone == 1


@pytest.mark.parametrize(("share", "undone"), [(0.5, 1.0), (1.0, 0.0)])
def test_prior_is_undone_after_a_burst_where_the_shift_was_mild(
    share: float, undone: float, adapter: Make, frames: list[Tensor]
) -> None:
    method, bare = adapter(), adapter({"statistics": {"prior": 0.0}})
    for one in (method, bare):
        one.begin(frames)
        one.share = share
        one.step(_batch(frames))
    snapshot = method.snapshot()
    for one in (method, bare):
        one.finish()
    shift = undone * torch.tensor(WEIGHT).log()
    torch.testing.assert_close(method.deployed.classifier.bias, bare.deployed.classifier.bias - shift)
    assert torch.equal(snapshot.classifier.bias, method.deployed.classifier.bias)
    assert method.prior_undone == undone


def test_stream_s_end_undoes_the_prior_no_second_time(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(())
    learn_online(method, frames[0])
    before = _state(method.deployed)
    method.finish()
    assert _same(_state(method.deployed), before)
    assert _same(_state(method.snapshot()), before)


@pytest.mark.parametrize(
    "off",
    [
        {"statistics": {"blend": 0.0}},
        {"teacher": {"flip": False}},
        {"teacher": {"average_max": 0.0}},
        {"reliability": {"enabled": False}},
        {"reliability": {"confidence": False}},
        {"mixing": {"enabled": False}},
        {"mixing": {"fraction": 0.0}},
        {"view": {"enabled": False}},
        {"view": {"strength": 0.0}},
        {"view": {"crop": 1.0}},
        {"burst": {"frozen_stride": 8}},
        {"burst": {"affine_only": True}},
        {"burst": {"batch_statistics": True}},
        {"burst": {"entropy": 0.5}},
    ],
    ids=lambda off: next(f"{part}.{name}" for part, values in off.items() for name in values),
)
def test_every_part_can_be_switched_and_does_something(
    off: Mapping[str, Any], whole: Mapping[str, Tensor], adapter: Make, frames: list[Tensor]
) -> None:
    less = adapter(off)
    offline(less, frames)
    assert not _same(whole, _state(less.deployed))


def test_all_off_is_plain_self_training(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(ALL_OFF)
    source = _state(method.net)
    method.begin(frames)
    assert method.reliability is None
    assert _same(_state(method.net), source)
    batch = _batch(frames)
    with torch.no_grad():
        logits = method.net(method.normaliser(batch)).logits
        expected = F.cross_entropy(logits, logits.argmax(1))
    report = method.step(batch)
    torch.testing.assert_close(report.loss, expected)
    assert float(report.scalars["weight"]) == 1.0
    assert float(report.scalars["agreement"]) == 1.0
    assert "reliability" not in report.scalars
    assert len(method.memory) == 0
    assert all(torch.equal(a, b) for a, b in zip(method.deployed.parameters(), method.net.parameters(), strict=True))


@pytest.mark.parametrize(("enabled", "confidence"), [(True, False), (False, True), (False, False)])
def test_weight_is_what_is_on_alone(enabled: bool, confidence: bool, adapter: Make, frames: list[Tensor]) -> None:
    method = adapter({"reliability": {"enabled": enabled, "confidence": confidence}})
    method.begin(frames)
    batch = _batch(frames)
    view = method.teacher.predict(method.normaliser(batch))
    report = method.step(batch)
    expected = torch.ones(()) if not confidence else view.confidence.mean()
    expected = report.scalars["reliability"] if enabled else expected
    torch.testing.assert_close(report.scalars["weight"], expected)


def test_steps_at_half_scale_see_half_the_sides_and_statistics_whole_frames(
    adapter: Make, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = adapter({"burst": {"scale": 0.5, "steps": 2, "batch": 2, "batch_statistics": True, "guard": False}})
    taught: list[Tensor] = []
    predict = method.teacher.predict

    def spied(x: Tensor) -> Any:
        taught.append(x)
        return predict(x)

    monkeypatch.setattr(method.teacher, "predict", spied)
    offline(method, frames)
    # the metric network's warm-up is at full size; sides are of whole cells of 32 pixels
    assert {tuple(x.shape[-2:]) for x in taught} == {(64, 96), (32, 64)}
    small = F.interpolate(torch.stack(frames).float(), size=(32, 64), mode="area").round()
    expected = list(method.normaliser(small))
    seen = [one for batch in taught if batch.shape[-1] == 64 for one in batch]
    assert len(seen) == 4
    assert all(any(torch.allclose(one, x) for x in expected) for one in seen)
    whole = copy.deepcopy(method.deployed)
    estimate(whole, method._batches(frames), blend=1.0)
    assert _same(_state(whole), _state(method.deployed))


def test_rate_follows_the_burst(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(ALL_OFF, {"burst": {"warm_up": 1, "steps": 4, "rate": 0.01}})
    method.begin(frames)
    rates = [float(method.step(_batch(frames)).scalars["rate"]) for _ in range(5)]
    half = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    assert rates == pytest.approx([0.01 * 0.5 * half[0], *(0.01 * h for h in half[1:])], abs=1e-8)
    assert rates[-1] == pytest.approx(0.0, abs=1e-8)


def test_last_step_of_rate_zero_moves_nothing(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter({"burst": {"steps": 2}})
    method.begin(frames)
    for _ in range(2):
        method.step(_batch(frames))
    before = _state(method.net)
    method.step(_batch(frames))
    assert _same(_state(method.net), before)


def test_batch_that_weighs_less_than_usual_takes_a_smaller_step(adapter: Make, frames: list[Tensor]) -> None:
    rates = []
    for usual in (1.0, 4.0, 0.25):
        method = adapter()
        method.begin(frames)
        weight = float(adapter_weight(method, frames))
        # before this step's share of 0.05 is taken in
        method.usual_weight.fill_((usual * weight - 0.05 * weight) / 0.95)
        rates.append(float(method.step(_batch(frames)).scalars["rate"]))
    assert rates[1] == pytest.approx(rates[0] / 4, rel=1e-3)
    assert rates[2] == pytest.approx(rates[0], rel=1e-3)  # never more than the burst's rate


def adapter_weight(method: Adapter, frames: list[Tensor]) -> Tensor:
    view = method.teacher.predict(method.normaliser(_batch(frames)))
    assert method.reliability is not None
    return combined(view, method.reliability.score(levels(view), view.label)).mean()


def test_stream_has_a_constant_share_of_the_rate_and_no_step_0(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(ALL_OFF, {"burst": {"steps": 2, "rate": 0.01, "online_share": 0.25}})
    before = _state(method.net)
    method.begin(())
    assert _same(_state(method.net), before)
    rates = [float(method.step(_batch(frames)).scalars["rate"]) for _ in range(5)]
    assert rates == pytest.approx([0.0025] * 5)


def test_reports_are_on_the_device_and_carry_no_graph(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    method.begin(frames)
    report = method.step(_batch(frames))
    assert set(report.scalars) >= {"reliability", "metric_loss", "weight", "confidence", "rate", "agreement"}
    for value in (report.loss, *report.scalars.values()):
        assert value.shape == ()
        assert not value.requires_grad
        assert bool(value.isfinite())
    first = float(report.scalars["rate"])
    method.step(_batch(frames))
    assert float(report.scalars["rate"]) == first  # a copy: the optimizer's own tensor has moved on


def test_agreement_is_the_share_of_pixels_taught_what_they_say(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(STILL)
    method.begin(frames)
    batch = _batch(frames)
    x = method.normaliser(batch)
    with torch.no_grad():
        expected = (method.net(x).logits.argmax(1) == method.teacher.predict(x).label).float().mean()
    torch.testing.assert_close(method.step(batch).scalars["agreement"], expected)
    assert 0 < float(expected) < 1


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 3, 64, 96),
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(3, 64, 96, dtype=torch.uint8),
        torch.zeros(0, 3, 64, 96, dtype=torch.uint8),
    ],
)
def test_frame_of_another_type_or_size_is_refused_and_leaves_no_trace(
    bad: Tensor, adapter: Make, frames: list[Tensor]
) -> None:
    method, untouched = adapter(), adapter()
    for each in (method, untouched):
        each.begin(frames)
    with pytest.raises(FrameError):
        method.step(bad)
    for each in (method, untouched):
        each.step(_batch(frames))
    assert _same(_state(method.deployed), _state(untouched.deployed))


@pytest.mark.parametrize("name", ["encoder._conv_stem.weight", "classifier.bias"])
def test_weights_that_are_not_finite_end_the_run(name: str, adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    with torch.no_grad():
        method.net.get_parameter(name)[0] = math.nan
    with pytest.raises(DivergenceError, match="is not finite after adaptation"):
        offline(method, frames)


@pytest.mark.parametrize("size", [(66, 98), (65, 97), (33, 64), (32, 32)])
def test_sizes_that_the_stride_does_not_divide_adapt(size: tuple[int, int], adapter: Make, make_frames: Make) -> None:
    method = adapter(height=size[0], width=size[1])
    offline(method, make_frames(4, *size))
    assert all(bool(p.isfinite().all()) for p in method.deployed.parameters())


def test_one_single_frame_adapts(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter()
    before = _state(method.deployed)
    offline(method, frames[:1])
    assert not _same(_state(method.deployed), before)


def test_self_training_makes_the_student_surer_of_what_it_is_taught(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(ALL_OFF, {"teacher": {"average_max": 0.99}, "burst": {"steps": 30, "rate": 3e-3}})
    losses: list[float] = []
    offline(method, frames, on_step=lambda step, report: losses.append(float(report.loss)))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_manifest_without_class_weights_has_no_prior_to_undo(adapter: Make, make_nano: Make) -> None:
    method = adapter(class_weight=None)
    assert torch.equal(method.net.classifier.bias, make_nano().classifier.bias)


def _affine(net: SegmentationNet) -> set[str]:
    ids = {id(p) for p in affine_parameters(net)}
    return {name for name, p in net.named_parameters() if id(p) in ids}


def test_affine_burst_trains_scale_and_shift_alone(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(AFFINE)
    before = _state(method.net)
    offline(method, frames)
    for net in (method.net, method.deployed):
        assert {n for n, p in net.named_parameters() if not torch.equal(p, before[n])} == _affine(net)
    assert all(p.grad is None for name, p in method.net.named_parameters() if name not in _affine(method.net))


def test_affine_burst_leaves_frozen_layers_alone(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(AFFINE, {"burst": {"frozen_stride": 8}})
    frozen = {id(p) for layer in method.net.encoder.up_to(8) for p in layer.parameters()}
    behind = {n for n, p in method.net.named_parameters() if id(p) not in frozen} & _affine(method.net)
    before = _state(method.net)
    offline(method, frames)
    assert {n for n, p in method.net.named_parameters() if not torch.equal(p, before[n])} == behind


def test_affine_burst_of_one_seed_repeats_bit_for_bit(adapter: Make, frames: list[Tensor]) -> None:
    states = []
    for seed in (0, 0, 1):
        method = adapter(AFFINE, seed=seed)
        offline(method, frames)
        states.append(_state(method.deployed))
    assert _same(states[0], states[1])
    assert not _same(states[0], states[2])


def test_affine_burst_needs_a_layer_to_train(make_manifest: Make) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8, affine=False), nn.Conv2d(8, 4, 1))
    net = Hooked(plain, encoder_layer="0", classes=4)
    with pytest.raises(NetError, match="no normalisation layer with scale and shift; set burst.affine_only = false"):
        Adapter(net, make_manifest(), _config(AFFINE))


def test_student_normalises_by_its_batch_and_the_teacher_does_not(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(
        STILL, {"burst": {"batch_statistics": True}, "reliability": {"enabled": False, "confidence": False}}
    )
    method.begin(frames)
    before = _state(method.net)
    batch = _batch(frames)
    x = method.normaliser(batch)
    label = method.teacher.predict(x).label
    twin = copy.deepcopy(method.net)
    for layer in batch_norms(twin):
        layer.train()
    with torch.no_grad():
        expected = F.cross_entropy(twin(x).logits, label)
    torch.testing.assert_close(method.step(batch).loss, expected, rtol=1e-4, atol=1e-5)
    running = {name: value for name, value in _state(method.net).items() if "running_" in name}
    assert _same(running, {name: before[name] for name in running})
    assert not any(m.training for m in method.net.modules())


def test_single_frame_is_normalised_by_the_running_statistics(adapter: Make, frames: list[Tensor]) -> None:
    losses = []
    for batch_statistics in (False, True):
        method = adapter(STILL, {"burst": {"batch_statistics": batch_statistics}})
        method.begin(frames)
        losses.append(method.step(frames[0][None]).loss)
    assert torch.equal(losses[0], losses[1])


def test_statistics_are_estimated_anew_at_the_end_of_such_a_burst(adapter: Make, frames: list[Tensor]) -> None:
    method = adapter(AFFINE)
    offline(method, frames)
    expected = copy.deepcopy(method.deployed)
    estimate(expected, [method.normaliser(torch.stack([frames[i] for i in (0, 1, 3, 4)]))], blend=1.0)
    assert _same(_state(method.deployed), _state(expected))


def test_snapshot_before_the_first_step_estimates_no_statistics_a_second_time(
    adapter: Make, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = adapter(AFFINE)
    method.begin(frames)
    anew = copy.deepcopy(method.deployed)
    estimate(anew, method._batches(frames), blend=1.0)
    monkeypatch.setattr("edge_sfda.adapt.adapter.estimate", _never)
    at_step_0 = _state(method.snapshot())
    assert all(
        torch.allclose(at_step_0[name], value, atol=1e-6)
        for name, value in anew.state_dict().items()
        if "running_" in name
    )


def _never(*_: object, **__: object) -> None:
    raise AssertionError("estimated once more")


def test_snapshot_is_what_a_burst_that_ended_there_deploys_and_disturbs_nothing(
    adapter: Make, frames: list[Tensor]
) -> None:
    def taken_after(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        method, snapshots = adapter(AFFINE, {"burst": {"guard": True}}), []
        offline(
            method, frames, on_step=lambda number, _: snapshots.append(method.snapshot()) if number == step else None
        )
        return _state(method.deployed), _state(snapshots[0])

    plain = adapter(AFFINE, {"burst": {"guard": True}})
    offline(plain, frames)
    for step in (1, 3):
        end, snapshot = taken_after(step)
        assert _same(end, _state(plain.deployed))
        assert _same(snapshot, end) == (step == 3)


def test_stream_uses_running_statistics_and_estimates_nothing_at_its_end(adapter: Make, frames: list[Tensor]) -> None:
    states = []
    for batch_statistics in (False, True):
        method = adapter({"burst": {"batch_statistics": batch_statistics}})
        method.begin(())
        for frame in frames[:2]:
            learn_online(method, frame)
        method.finish()
        states.append({n: v for n, v in _state(method.deployed).items() if "num_batches" not in n})
    assert _same(states[0], states[1])


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_loss_is_the_share_of_the_student_s_entropy_which_nothing_weighs(
    share: float, adapter: Make, frames: list[Tensor]
) -> None:
    method, twin = adapter(STILL, {"burst": {"entropy": share}}), adapter(STILL)
    method.begin(frames)
    twin.begin(frames)
    batch = _batch(frames)
    x = method.normaliser(batch)
    view = method.teacher.predict(x)
    assert twin.reliability is not None
    weight = combined(view, twin.reliability.score(levels(view), view.label))
    with torch.no_grad():
        logits = method.net(x).logits
    probs = logits.softmax(1)
    entropy = -(probs * probs.log()).sum(1).mean()
    taught = (weight * F.cross_entropy(logits, view.label, reduction="none")).sum() / weight.numel()
    torch.testing.assert_close(method.step(batch).loss, share * entropy + (1 - share) * taught, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("size", "kernel"), [((66, 98), 4), ((175, 175), 16)])
def test_network_that_rounds_its_grid_down_adapts(
    size: tuple[int, int], kernel: int, make_manifest: Make, make_frames: Make
) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, kernel, kernel), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    method = Adapter(Hooked(plain, encoder_layer="0", classes=4), make_manifest(*size), _config(AFFINE))
    before = _state(method.deployed)
    offline(method, make_frames(4, *size))
    assert not _same(_state(method.deployed), before)
