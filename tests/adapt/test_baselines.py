from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda.adapt import run
from edge_sfda.config import BurstConfig, MixingConfig, StatisticsConfig, TeacherConfig, ViewConfig
from edge_sfda.nets.normalisation import affine_parameters, estimate

Make = Callable[..., Any]

BURST = BurstConfig(
    steps=3,
    batch=2,
    rate=1e-3,
    warm_up=0,
    affine_only=False,
    batch_statistics=False,
    entropy=0.0,
    frozen_stride=0,
    guard=False,
)
# no draws: the loss of a step can be computed beside it
PLAIN = {"mixing": MixingConfig(enabled=False), "view": ViewConfig(enabled=False)}


@pytest.fixture(scope="module")
def method(make_method: Make) -> Make:
    return functools.partial(make_method, burst=BURST)


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _changed(net: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def test_none_leaves_the_source_as_it_came(method: Make, make_nano: Make, frames: list[Tensor]) -> None:
    source = method("none")
    source.begin(frames)
    source.observe(torch.stack(frames[:1]))
    report = source.step(torch.stack(frames[:2]))
    source.finish()
    assert math.isnan(float(report.loss))
    assert report.scalars == {}
    assert _changed(source.deployed, make_nano().state_dict()) == set()


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
def test_bn_blends_the_target_s_statistics_and_changes_nothing_else(
    blend: float, method: Make, make_nano: Make, frames: list[Tensor]
) -> None:
    adapted = method("bn", statistics=StatisticsConfig(blend=blend, frames=4))
    run.offline(adapted, frames)
    expected = make_nano()
    estimate(expected, [adapted.normaliser(torch.stack(frames))], blend=blend)
    assert _changed(adapted.deployed, expected.state_dict()) == set()
    assert bool(_changed(adapted.deployed, make_nano().state_dict())) == (blend > 0)


def test_bn_on_a_stream_moves_the_statistics_and_no_weight(method: Make, make_nano: Make, frames: list[Tensor]) -> None:
    adapted = method("bn")
    adapted.begin(())
    run.learn_online(adapted, frames[0])
    changed = _changed(adapted.deployed, make_nano().state_dict())
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)


def test_tent_trains_scale_and_shift_alone(method: Make, frames: list[Tensor]) -> None:
    tent = method("tent")
    before = {name: value.detach().clone() for name, value in tent.net.named_parameters()}
    run.offline(tent, frames)
    affine = {id(p) for p in affine_parameters(tent.net)}
    names = {name for name, p in tent.net.named_parameters() if id(p) in affine}
    changed = {name for name, p in tent.net.named_parameters() if not torch.equal(p, before[name])}
    assert names
    assert changed == names


def test_tent_takes_the_step_of_its_batch_s_entropy(method: Make, frames: list[Tensor]) -> None:
    tent = method("tent")
    tent.begin(frames)
    twin = copy.deepcopy(tent.net)
    batch = torch.stack(frames[:2])
    with torch.no_grad():
        logits = twin(tent.normaliser(batch)).logits  # statistics of the batch, in train mode
        eval_logits = twin.eval()(tent.normaliser(batch)).logits
    probs = logits.softmax(1)
    loss = tent.step(batch).loss
    torch.testing.assert_close(loss, -(probs * probs.log()).sum(1).mean(), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(logits, eval_logits, rtol=0.1)


def test_tent_lowers_the_entropy(method: Make, frames: list[Tensor]) -> None:
    tent = method("tent", burst=BurstConfig(steps=15, batch=4, rate=1e-3))
    losses: list[float] = []
    run.offline(tent, frames, on_step=lambda step, report: losses.append(float(report.loss)))
    assert losses[-1] < 0.9 * losses[0]


def test_tent_s_statistics_are_those_of_the_target_under_the_new_weights(method: Make, frames: list[Tensor]) -> None:
    tent = method("tent")
    run.offline(tent, frames)
    assert not any(m.training for m in tent.deployed.modules())
    expected = copy.deepcopy(tent.deployed)
    estimate(expected, [tent.normaliser(torch.stack(frames))], blend=1.0)
    assert _changed(tent.deployed, expected.state_dict()) == set()


def test_tent_on_a_stream_uses_running_statistics(method: Make, frames: list[Tensor]) -> None:
    tent = method("tent")
    tent.begin(())
    before = _state(tent.net)
    run.learn_online(tent, frames[0])
    assert not any(m.training for m in tent.net.modules())
    changed = _changed(tent.net, before)
    assert "encoder._bn0.running_mean" in changed
    assert "encoder._bn0.weight" in changed
    assert "encoder._conv_stem.weight" not in changed


@pytest.mark.parametrize(("stream", "rate"), [(False, 0.02), (True, 0.005)])
def test_tent_takes_its_share_of_the_rate_on_a_stream(
    stream: bool, rate: float, method: Make, frames: list[Tensor]
) -> None:
    tent = method("tent", burst=dataclasses.replace(BURST, rate=0.02, online_share=0.25))
    tent.begin(() if stream else frames)
    before = [p.detach().clone() for p in tent.net.parameters()]
    tent.step(torch.stack(frames[:2]))
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(tent.net.parameters(), before, strict=True))
    assert moved == pytest.approx(rate, rel=0.01)  # Adam's first step is the gradient's sign


def test_tent_has_nothing_to_train_without_affine_normalisation(
    method: Make, frames: list[Tensor], make_normless: Make
) -> None:
    net = make_normless()
    before = _state(net)
    tent = method("tent", net=net)
    run.offline(tent, frames)
    assert _changed(tent.deployed, before) == set()


def test_cotta_deploys_its_teacher_and_leaves_the_prior(method: Make, make_nano: Make, frames: list[Tensor]) -> None:
    cotta = method("cotta")
    assert cotta.deployed is cotta.teacher.net
    assert torch.equal(cotta.deployed.classifier.bias, make_nano().classifier.bias)
    before = _state(cotta.deployed)
    run.offline(cotta, frames)
    assert "encoder._conv_stem.weight" in _changed(cotta.deployed, before)


def test_cotta_s_labels_are_the_mean_over_scales_and_mirror(method: Make, frames: list[Tensor]) -> None:
    cotta = method("cotta", teacher=TeacherConfig(flip=True))
    cotta.begin(frames)
    batch = torch.stack(frames[:2])
    x = cotta.normaliser(batch)
    with torch.no_grad():
        logits = cotta.net(x).logits
        views = []
        for size in (48, 64, 80):
            scaled = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False)
            probs = cotta.net(scaled).logits.softmax(1) / 2 + cotta.net(scaled.flip(-1)).logits.softmax(1).flip(-1) / 2
            views.append(F.interpolate(probs, size=logits.shape[-2:], mode="bilinear", align_corners=False))
        soft = torch.stack(views).mean(0)
        expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(cotta.step(batch).loss, expected, rtol=1e-4, atol=1e-5)


def test_cotta_restores_one_weight_in_a_hundred(method: Make, make_nano: Make, frames: list[Tensor]) -> None:
    source = make_nano()
    cotta = method("cotta", burst=dataclasses.replace(BURST, rate=0.01))
    cotta.begin(frames)
    cotta.step(torch.stack(frames[:2]))
    # of the matrices: where a gradient is exactly zero Adam leaves a weight at the source's without a draw
    moved = torch.cat([p.grad.flatten() != 0 for p in cotta.net.parameters() if p.grad is not None])
    same = torch.cat([(p == q).flatten() for p, q in zip(cotta.net.parameters(), source.parameters(), strict=True)])
    share = float(same[moved].float().mean())
    assert int(moved.sum()) > 100_000
    assert share == pytest.approx(0.01, abs=0.002)


def test_mean_teacher_weighs_every_pixel_alike(method: Make, frames: list[Tensor]) -> None:
    mean_teacher = method("mean-teacher", **PLAIN)
    mean_teacher.begin(frames)
    batch = torch.stack(frames[:2])
    x = mean_teacher.normaliser(batch)
    with torch.no_grad():
        expected = F.cross_entropy(mean_teacher.net(x).logits, mean_teacher.teacher.predict(x).label)
    report = mean_teacher.step(batch)
    torch.testing.assert_close(report.loss, expected)
    assert float(report.scalars["weight"]) == 1.0
    assert float(report.scalars["rate"]) == pytest.approx(BURST.rate)
    assert "reliability" not in report.scalars


def test_mean_teacher_has_the_method_s_own_extras(method: Make) -> None:
    mean_teacher, stvm = method("mean-teacher"), method("stvm")
    assert _changed(mean_teacher.net, stvm.net.state_dict()) == set()  # the prior is undone in both
    for part in ("teacher", "memory", "view"):
        assert type(getattr(mean_teacher, part)) is type(getattr(stvm, part))


def test_threshold_weighs_a_frame_by_its_share_of_sure_pixels(
    method: Make, make_nano: Make, frames: list[Tensor]
) -> None:
    net = make_nano()
    with torch.no_grad():
        net.classifier.weight.mul_(6)
    threshold = method("threshold", net=net, **PLAIN)
    threshold.begin(frames)
    batch = torch.stack(frames[:2])
    x = threshold.normaliser(batch)
    view = threshold.teacher.predict(x)
    share = (view.confidence > 0.968).float().mean((1, 2))
    with torch.no_grad():
        pixel = F.cross_entropy(threshold.net(x).logits, view.label, reduction="none")
    assert float(share.min()) > 0
    assert float(share.max()) < 1
    assert share[0] != share[1]
    report = threshold.step(batch)
    torch.testing.assert_close(report.loss, (pixel.mean((1, 2)) * share).mean())
    torch.testing.assert_close(report.scalars["weight"], share.mean())


def test_threshold_stands_still_where_no_pixel_is_sure(method: Make, make_nano: Make, frames: list[Tensor]) -> None:
    net = make_nano()
    with torch.no_grad():
        net.classifier.weight.mul_(1e-3)
    threshold = method("threshold", net=net)
    threshold.begin(frames)
    before = _state(threshold.net)
    report = threshold.step(torch.stack(frames[:2]))
    threshold.finish()
    assert float(report.loss) == 0.0
    assert float(report.scalars["rate"]) == 0.0
    assert _changed(threshold.net, before) == set()
    assert _changed(threshold.deployed, before) == set()
