from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sfda.adapt import run
from edge_sfda.config import BurstConfig
from edge_sfda.manifest import Manifest
from edge_sfda.nets import Predictor
from edge_sfda.nets.normalisation import affine_parameters

Make = Callable[..., Any]

BURST = BurstConfig(steps=3, batch=2, rate=1e-3)
GROWN = ("eata", "sar", "rdumb", "roid")  # out of TENT
MARGIN = 0.4 * math.log(4)


@pytest.fixture(scope="module")
def method(make_method: Make) -> Make:
    return functools.partial(make_method, burst=BURST)


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _changed(net: nn.Module, before: Mapping[str, Tensor]) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def _affine(method: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in method.affine])


def _entropy(logits: Tensor) -> Tensor:
    probs = logits.softmax(1)
    return -(probs * probs.log()).sum(1)


def test_predicting_in_the_midst_of_tent_does_not_change_its_steps(
    method: Make, make_manifest: Callable[..., Manifest], frames: list[Tensor]
) -> None:
    plain, watched = method("tent"), method("tent")
    run.offline(plain, frames)
    image = np.zeros((64, 64, 3), np.uint8)
    run.offline(
        watched, frames, on_step=lambda step, report: Predictor(watched.deployed, make_manifest())(image) and None
    )
    assert _changed(plain.deployed, watched.deployed.state_dict()) == set()


@pytest.mark.parametrize("name", GROWN)
@pytest.mark.parametrize("stream", [False, True])
def test_what_grew_out_of_tent_trains_scale_and_shift_alone(
    name: str, stream: bool, method: Make, make_nano: Make, frames: list[Tensor]
) -> None:
    net = make_nano()
    with torch.no_grad():
        net.classifier.weight.mul_(4 if stream else 1)  # under running statistics it would be sure of nothing
    made = method(name, net=net)
    before = {key: value.detach().clone() for key, value in made.net.named_parameters()}
    if stream:
        made.begin(())
        for frame in frames:
            run.learn_online(made, frame)
    else:
        run.offline(made, frames)
    affine = {id(p) for p in affine_parameters(made.net)}
    changed = {key for key, p in made.net.named_parameters() if not torch.equal(p, before[key])}
    assert changed
    assert changed <= {key for key, p in made.net.named_parameters() if id(p) in affine}


@pytest.mark.parametrize("name", GROWN)
def test_what_grew_out_of_tent_has_nothing_to_train_without_affine_normalisation(
    name: str, method: Make, frames: list[Tensor], make_normless: Make
) -> None:
    net = make_normless()
    before = _state(net)
    made = method(name, net=net)
    run.offline(made, frames)
    assert _changed(made.deployed, before) == set()


def test_rdumb_weighs_sure_pixels_and_leaves_out_the_others(method: Make, frames: list[Tensor]) -> None:
    made = method("rdumb")
    made.begin(frames)
    batch = torch.stack(frames[:2])
    with torch.no_grad():
        h = _entropy(copy.deepcopy(made.net)(made.normaliser(batch)).logits)
    sure = h[h < MARGIN]
    assert 0 < len(sure) < h.numel()
    expected = (sure * (MARGIN - sure).exp()).sum() / len(sure)
    torch.testing.assert_close(made.step(batch).loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["eata", "sar", "rdumb"])
def test_batch_without_a_sure_pixel_moves_nothing(
    name: str, method: Make, make_nano: Make, frames: list[Tensor]
) -> None:
    net = make_nano()
    with torch.no_grad():
        net.classifier.weight.mul_(1e-4)
    made = method(name, net=net)
    made.begin(frames)
    before = _affine(made)
    assert float(made.step(torch.stack(frames[:2])).loss) == 0.0
    assert torch.equal(_affine(made), before)


def test_eata_s_information_is_the_mean_squared_gradient_under_the_source_s_own_labels(
    method: Make, frames: list[Tensor]
) -> None:
    made = method("eata")
    twin = method("eata")
    for layer in twin.net.modules():
        layer.train(isinstance(layer, nn.BatchNorm2d))
    made.begin(frames)
    logits = twin.net(twin.normaliser(torch.stack(frames))).logits
    loss = nn.functional.cross_entropy(logits, logits.argmax(1))
    expected = [g.square() for g in torch.autograd.grad(loss, twin.affine)]
    assert made.looked == 1
    assert max(float(g.max()) for g in expected) > 0
    for mine, theirs in zip(made.fisher, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-9)


def test_eata_s_penalty_is_what_it_says(method: Make, frames: list[Tensor]) -> None:
    made, plain = method("eata"), method("rdumb")
    batch = torch.stack(frames[:2])
    losses = []
    for one in (made, plain):
        one.begin(frames)
        with torch.no_grad():
            for parameter in one.affine:
                parameter.add_(0.01)
        losses.append(one.step(batch).loss)
    expected = 2000 * 0.01**2 * sum(fisher.sum() for fisher in made.fisher)
    assert float(expected) > 0
    torch.testing.assert_close(losses[0] - losses[1], expected, rtol=1e-2, atol=1e-5)


def test_eata_looks_at_the_first_frames_of_a_stream_alone(
    method: Make, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = method("eata")
    monkeypatch.setattr(type(made), "looks", 2)
    made.begin(())
    seen = []
    for frame in frames:
        run.learn_online(made, frame)
        seen.append([fisher.clone() for fisher in made.fisher])
    assert made.looked == 2
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen[1], seen[3], strict=True))


def test_rdumb_returns_to_the_source_after_its_period(
    method: Make, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, fresh = method("rdumb"), method("rdumb")
    monkeypatch.setattr(type(made), "period", 2)
    batch = torch.stack(frames[:2])
    for one in (made, fresh):
        one.begin(frames)
    for _ in range(3):
        made.step(batch)
    fresh.step(batch)  # the third step of the one is the first of the other, but for what the statistics saw
    torch.testing.assert_close(_affine(made), _affine(fresh), rtol=0, atol=1e-7)
    made.step(batch)
    assert not torch.allclose(_affine(made), _affine(fresh), rtol=0, atol=1e-5)


def test_sar_takes_the_gradient_at_the_worst_point_nearby(method: Make, frames: list[Tensor]) -> None:
    made, twin = method("sar"), method("sar")
    batch = torch.stack(frames[:2])
    for one in (made, twin):
        one.begin(frames)
    x = twin.normaliser(batch)

    def loss(among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = _entropy(twin.net(x).logits)
        sure = h.detach() < MARGIN if among is None else among & (h.detach() < MARGIN)
        return h[sure].mean(), sure

    first, sure = loss()
    gradients = torch.autograd.grad(first, twin.affine)
    length = torch.cat([g.flatten() for g in gradients]).norm()
    before = _affine(twin)
    with torch.no_grad():
        for parameter, gradient in zip(twin.affine, gradients, strict=True):
            parameter.add_(0.05 * gradient / length)
    worst = torch.autograd.grad(loss(sure)[0], twin.affine)
    report = made.step(batch)
    torch.testing.assert_close(report.loss, first.detach(), rtol=1e-4, atol=1e-6)
    expected = before - BURST.rate * torch.cat([g.flatten() for g in worst])
    torch.testing.assert_close(_affine(made), expected, rtol=1e-4, atol=1e-7)
    plain = before - BURST.rate * torch.cat([g.flatten() for g in gradients])
    assert float((expected - plain).norm()) > 1e-2 * float((expected - before).norm())


@pytest.mark.parametrize(("usual", "returns"), [(0.001, True), (1.0, False)])
def test_sar_returns_to_the_source_when_the_usual_loss_collapses(
    usual: float, returns: bool, method: Make, frames: list[Tensor]
) -> None:
    made = method("sar")
    made.begin(frames)
    source = _affine(made)
    with torch.no_grad():
        for parameter in made.affine:
            parameter.add_(0.01)
    made._sure = torch.ones(())
    made.step(torch.stack(frames[:2]))
    made.usual_loss = torch.tensor(usual)
    made._recover(torch.tensor(usual), torch.tensor(True))
    assert torch.equal(_affine(made), source) == returns
    moments = [m for s in made.optimizer.state.values() for m in s.values()]
    assert all(float(m.abs().max()) == 0 for m in moments) == returns
    assert bool(made.usual_loss.isnan()) == returns


@pytest.mark.parametrize("name", GROWN)
def test_what_grew_out_of_tent_lowers_the_entropy_of_real_batches(
    name: str, method: Make, frames: list[Tensor]
) -> None:
    rate = 1e-2 if name == "sar" else 2e-3
    made = method(name, burst=BurstConfig(steps=20, batch=4, rate=rate))
    batch = torch.stack(frames)
    made.begin(frames)

    def usual() -> float:
        with torch.no_grad():
            return float(_entropy(copy.deepcopy(made.net)(made.normaliser(batch)).logits).mean())

    before = usual()
    for _ in range(20):
        made.step(batch)
    assert usual() < before
