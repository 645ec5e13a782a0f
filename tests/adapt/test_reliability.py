from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.adapt.reliability import Reliability, combined, levels
from edge_sfda.adapt.teacher import TeacherView
from edge_sfda.config import ReliabilityConfig

CONFIG = ReliabilityConfig(embedding=16, kappa=10.0, scale=18.0, per_class=64, rate=2e-3, proxy_rate=1e-2)
CHANNELS = 12
CLASSES = 3
CPU = torch.device("cpu")


def _reliability(
    *,
    channels: tuple[int, ...] = (CHANNELS,),
    classes: int = CLASSES,
    seed: int = 0,
    config: ReliabilityConfig = CONFIG,
) -> Reliability:
    return Reliability(channels, classes, config=config, seed=seed, device=CPU)


def _toy(seed: int, *, noise: float = 1.0) -> tuple[tuple[Tensor, ...], Tensor]:
    """Features of which three channels tell the class, and the class; noise in all twelve."""
    rng = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES, (2, 12, 16), generator=rng)
    means = F.one_hot(label, CHANNELS).permute(0, 3, 1, 2) * 3.0
    return (means + noise * torch.randn(means.shape, generator=rng),), label


def _embed(r: Reliability, features: tuple[Tensor, ...]) -> Tensor:
    return F.normalize(r.net(r.net.stack(features)), dim=1).detach()


def test_reliability_rises_on_separable_features_that_it_has_not_seen() -> None:
    r = _reliability()
    held_out, truth = _toy(100)
    r.score(*_toy(0))
    before = float(r.score(held_out, truth).mean())
    for step in range(60):
        r.learn(*_toy(step))
    after = float(r.score(held_out, truth).mean())
    assert before < 0.85
    assert after > before + 0.08


def test_reliability_of_a_wrong_label_is_low() -> None:
    r = _reliability()
    r.score(*_toy(0))
    for step in range(60):
        r.learn(*_toy(step))
    features, truth = _toy(100)
    assert float(r.score(features, (truth + 1) % CLASSES).mean()) < 0.05


def test_score_is_a_share_at_the_label_s_size() -> None:
    features, _ = _toy(0)
    label = torch.zeros(2, 23, 31, dtype=torch.int64)
    score = _reliability().score(features, label)
    assert score.shape == (2, 23, 31)
    assert score.dtype == torch.float32
    assert not score.requires_grad
    assert 0 <= float(score.min()) <= float(score.max()) <= 1


def test_scoring_trains_nothing() -> None:
    r = _reliability()
    r.score(*_toy(0))
    before = {name: value.clone() for name, value in r.net.state_dict().items()}
    first = r.score(*_toy(1))
    assert torch.equal(r.score(*_toy(1)), first)
    assert all(torch.equal(value, before[name]) for name, value in r.net.state_dict().items())


def test_learning_changes_the_next_score() -> None:
    r = _reliability()
    before = r.score(*_toy(0))
    r.learn(*_toy(0))
    assert not torch.equal(r.score(*_toy(0)), before)


def test_proxies_start_at_the_mean_direction_of_their_class() -> None:
    r = _reliability()
    features, label = _toy(0)
    r.score(features, label)
    z = _embed(r, features)
    for c in range(CLASSES):
        mean = z[label.flatten() == c].mean(0)
        torch.testing.assert_close(r.net.proxies[c].detach(), mean / mean.norm())
    assert r.net.seen.all()


def test_score_is_the_softmax_over_cosines_to_the_proxies() -> None:
    r = _reliability()
    features, label = _toy(0)
    score = r.score(features, label)
    cosine = _embed(r, features) @ r.net.proxies.detach().T
    expected = (10.0 * cosine).softmax(1).gather(1, label.flatten()[:, None]).view_as(score)
    torch.testing.assert_close(score, expected)


def test_class_seen_later_starts_then_and_the_others_stay() -> None:
    r = _reliability()
    features, label = _toy(0)
    r.score(features, label.clamp(max=1))  # class 2 does not occur
    assert r.net.seen.tolist() == [True, True, False]
    before = r.net.proxies.detach().clone()
    later, all_three = _toy(1)
    r.score(later, all_three)
    assert torch.equal(r.net.proxies.detach()[:2], before[:2])
    mean = _embed(r, later)[all_three.flatten() == 2].mean(0)
    torch.testing.assert_close(r.net.proxies.detach()[2], mean / mean.norm())
    assert not torch.allclose(before[2], r.net.proxies.detach()[2])


def test_started_proxy_is_not_started_again() -> None:
    r = _reliability()
    r.score(*_toy(0))
    before = r.net.proxies.detach().clone()
    r.score(*_toy(1))
    assert torch.equal(r.net.proxies.detach(), before)


def test_first_features_set_the_scale_of_the_channels_for_good() -> None:
    r = _reliability()
    (first,), label = _toy(0)
    scaled = first * torch.arange(1, CHANNELS + 1).view(1, -1, 1, 1) + 5
    r.score((scaled,), label)
    rows = r.net.stack((scaled,))
    torch.testing.assert_close(rows.mean(0), torch.zeros(CHANNELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(CHANNELS))
    before = r.net.mean.clone(), r.net.scale.clone()
    r.score((scaled * 100,), label)
    assert torch.equal(r.net.mean, before[0])
    assert torch.equal(r.net.scale, before[1])


def test_channel_that_is_dead_at_first_says_nothing_when_it_comes_to_life() -> None:
    r = _reliability()
    (first,), label = _toy(0)
    first[:, 3] = 2.0
    r.score((first,), label)
    alive = first.clone()
    alive[:, 3] += torch.rand(alive[:, 3].shape)
    assert torch.equal(r.net.stack((alive,)), r.net.stack((first,)))
    assert torch.equal(r.score((alive,), label), r.score((first,), label))


def test_channel_without_variation_does_no_harm() -> None:
    r = _reliability()
    (first,), label = _toy(0)
    first[:, 5] = 3.0
    score = r.score((first,), label)
    assert bool(score.isfinite().all())
    assert bool(r.learn((first,), label).isfinite())


def test_proxies_have_unit_length_after_learning() -> None:
    r = _reliability()
    r.score(*_toy(0))
    for step in range(5):
        r.learn(*_toy(step))
    torch.testing.assert_close(r.net.proxies.detach().norm(dim=1), torch.ones(CLASSES))


def test_learning_falls_in_loss_and_returns_it_without_a_graph() -> None:
    r = _reliability()
    r.score(*_toy(0))
    losses = [r.learn(*_toy(0)) for _ in range(40)]
    assert not losses[0].requires_grad
    assert float(losses[-1]) < 0.5 * float(losses[0])


def test_loss_is_averaged_over_classes_and_not_over_pixels() -> None:
    config = dataclasses.replace(CONFIG, per_class=10_000)  # every pixel is drawn
    r = _reliability(config=config)
    features, label = _toy(0)
    label = torch.where(label == 2, 0, label)
    label[0, 0, :3] = 2  # three pixels against 380
    r.score(features, label)
    logits = 18.0 * _embed(r, features) @ r.net.proxies.detach().T
    pixel = F.cross_entropy(logits, label.flatten(), reduction="none")
    expected = torch.stack([pixel[label.flatten() == c].mean() for c in range(CLASSES)]).mean()
    torch.testing.assert_close(r.learn(features, label), expected, rtol=1e-4, atol=1e-5)


def test_class_that_does_not_occur_counts_in_no_average() -> None:
    config = dataclasses.replace(CONFIG, per_class=10_000)
    r = _reliability(config=config)
    features, label = _toy(0)
    label = label.clamp(max=1)
    r.score(features, label)
    logits = 18.0 * _embed(r, features) @ r.net.proxies.detach().T
    pixel = F.cross_entropy(logits, label.flatten(), reduction="none")
    expected = (pixel[label.flatten() == 0].mean() + pixel[label.flatten() == 1].mean()) / 2
    torch.testing.assert_close(r.learn(features, label), expected, rtol=1e-4, atol=1e-5)


def test_sample_holds_only_its_own_class_and_no_more_than_asked_for() -> None:
    r = _reliability(config=dataclasses.replace(CONFIG, per_class=5))
    label = torch.tensor([0] * 100 + [1] * 3)
    index, valid = r._sample(label)
    assert index.shape == valid.shape == (3, 5)
    assert valid.sum(1).tolist() == [5, 3, 0]
    assert label[index[0]].tolist() == [0] * 5
    assert sorted(index[1][valid[1]].tolist()) == [100, 101, 102]
    assert len(set(index[0].tolist())) == 5


def test_sample_is_drawn_from_all_over_the_frame() -> None:
    r = _reliability(config=dataclasses.replace(CONFIG, per_class=5))
    label = torch.zeros(20, dtype=torch.int64)
    drawn = {int(i) for _ in range(30) for i in r._sample(label)[0][0]}
    assert drawn == set(range(20))


def test_levels_are_brought_to_the_grid_of_the_second() -> None:
    r = _reliability(channels=(2, 3, 4))
    features = (torch.rand(1, 2, 16, 20), torch.rand(1, 3, 8, 10), torch.rand(1, 4, 4, 5))
    rows = r.net.stack(features)
    assert rows.shape == (80, 9)
    second = features[1].permute(0, 2, 3, 1).reshape(80, 3)
    assert torch.equal(rows[:, 2:5], second)
    coarse = F.interpolate(features[2], size=(8, 10), mode="bilinear", align_corners=False)
    torch.testing.assert_close(rows[:, 5:], coarse.permute(0, 2, 3, 1).reshape(80, 4))


@pytest.mark.parametrize("size", [(16, 20), (15, 19), (8, 10)])
def test_label_of_any_stride_is_read_at_the_features_grid(size: tuple[int, int]) -> None:
    r = _reliability(channels=(2, 3))
    features = (torch.rand(1, 2, 16, 20), torch.rand(1, 3, 8, 10))
    label = torch.randint(CLASSES, (1, *size))
    assert r.score(features, label).shape == (1, *size)
    assert bool(r.learn(features, label).isfinite())


def test_same_seed_gives_the_same_scores_and_another_does_not() -> None:
    scores = []
    for seed in (0, 0, 1):
        r = _reliability(seed=seed)
        r.score(*_toy(0))
        for step in range(3):
            r.learn(*_toy(step))
        scores.append(r.score(*_toy(9)))
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def _view(probs: torch.Tensor) -> TeacherView:
    confidence, label = probs.max(1)
    return TeacherView((torch.randn(1, 6, 4, 4),), probs, label, confidence)


def test_weight_of_an_even_picture_is_the_sum_of_log_odds() -> None:
    probs = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    r = torch.full((1, 8, 8), 0.2)
    odds = 3 * 3 * 0.25**0.25  # support is confidence here, at the border as well; the odds of .2 are 1 : 4
    torch.testing.assert_close(combined(_view(probs), r), torch.full((1, 8, 8), odds / (1 + odds)))


def test_speck_among_others_weighs_less_than_they_do_and_reliability_moves_a_weight() -> None:
    probs = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).repeat(1, 1, 9, 9)
    probs[0, :, 4, 4] = torch.tensor([0.1, 0.9])
    even = torch.full((1, 9, 9), 0.5)
    weight = combined(_view(probs), even)
    assert weight[0, 4, 4] < 0.65 < 0.95 < weight[0, 0, 0]
    doubted = even.clone()
    doubted[0, 0, 0] = 0.01
    lower = combined(_view(probs), doubted)
    assert lower[0, 0, 0] < weight[0, 0, 0]
    assert torch.equal(lower[0, 1:], weight[0, 1:])


def test_certainty_has_no_infinite_odds() -> None:
    probs = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    for r in (0.0, 1.0):
        assert torch.isfinite(combined(_view(probs), torch.full((1, 4, 4), r))).all()


def test_metric_network_reads_the_levels_and_then_the_log_probabilities() -> None:
    view = _view(torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 4, 4))
    *features, last = levels(view)
    assert [f is g for f, g in zip(features, view.features, strict=True)] == [True]
    assert last.shape == (1, 2, 4, 4)
    assert torch.isfinite(last).all()
