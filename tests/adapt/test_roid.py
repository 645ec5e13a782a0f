from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt import run
from edge_sfda.adapt.roid import Roid, likelihood_ratio, symmetric_cross_entropy
from edge_sfda.config import AdaptConfig, BurstConfig, StatisticsConfig

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def roid(make_nano: Make, make_manifest: Make) -> Make:
    def make(**burst: Any) -> Roid:
        settings = BurstConfig(**{"steps": 3, "batch": 2, "rate": 1e-3, **burst})
        config = AdaptConfig(method="roid", statistics=StatisticsConfig(frames=4), burst=settings)
        made = run.make(make_nano(), make_manifest(), config)
        assert isinstance(made, Roid)
        return made

    return make


def test_likelihood_ratio_of_two_classes_by_hand() -> None:
    logits = torch.tensor([0.8, 0.2]).log().view(1, 2, 1, 1)
    expected = -(0.8 * torch.tensor(4 + 1e-5).log() + 0.2 * torch.tensor(0.25 + 1e-5).log())
    torch.testing.assert_close(likelihood_ratio(logits, clip=0.99), expected.view(1, 1, 1))


def test_likelihood_ratio_of_a_sure_pixel_is_finite_and_still() -> None:
    logits = torch.tensor([60.0, -60.0]).view(1, 2, 1, 1).requires_grad_(True)
    loss = likelihood_ratio(logits, clip=0.99)
    loss.sum().backward()
    assert bool(torch.isfinite(loss).all())
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6


def test_symmetric_cross_entropy_does_not_mind_the_order() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(symmetric_cross_entropy(a, b), symmetric_cross_entropy(b, a))
    probs = a.softmax(1)
    torch.testing.assert_close(symmetric_cross_entropy(a, a), -(probs * probs.log()).sum(1))


def test_pixels_like_the_usual_one_do_not_count_and_sure_ones_count_more(roid: Make) -> None:
    made = roid()
    probs = torch.tensor(
        [[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25], [0.1, 0.7, 0.1, 0.1], [0.0, 0.0, 1.0, 0.0]]
    )
    made.usual_probs = torch.tensor([0.97, 0.01, 0.01, 0.01])
    weight = made._weigh((probs + 1e-6).log().T.reshape(1, 4, 1, 4))[0, 0]
    assert float(weight[0]) == 0  # just as usual
    assert float(weight[3]) > float(weight[2]) > 1  # surer, and as unlike
    expected = 0.9 * torch.tensor([0.97, 0.01, 0.01, 0.01]) + 0.1 * probs.mean(0)
    torch.testing.assert_close(made.usual_probs, expected, rtol=1e-3, atol=1e-4)


def test_weights_are_drawn_to_the_source_after_each_step(
    roid: Make, frames: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = {}
    for keep in (0.99, 0.5):
        made = roid()
        monkeypatch.setattr(Roid, "keep", keep)
        made.begin(frames)
        made.step(torch.stack(frames[:2]))
        moved[keep] = torch.cat([(p - q).detach().flatten() for p, q in zip(made.affine, made.source, strict=True)])
    assert float(moved[0.99].abs().max()) == pytest.approx(0.99e-3, rel=0.01)  # Adam's first step is the rate
    torch.testing.assert_close(moved[0.5], moved[0.99] * 0.5 / 0.99, rtol=1e-3, atol=1e-7)


def test_step_is_the_sum_of_ratio_and_consistency(roid: Make, frames: list[Tensor]) -> None:
    made, twin = roid(), roid()
    made.begin(frames)
    twin.begin(frames)
    batch = torch.stack(frames[:2])
    net = copy.deepcopy(twin.net)
    with torch.no_grad():
        logits = net(twin.normaliser(batch)).logits
        other = net(twin.normaliser(twin.view.photometry(batch.float()))).logits
        weight = twin._weigh(logits)
        expected = (weight * (likelihood_ratio(logits, clip=0.99) + symmetric_cross_entropy(other, logits))).mean()
    assert not torch.allclose(other, logits)
    torch.testing.assert_close(made.step(batch).loss, expected, rtol=1e-4, atol=1e-5)
