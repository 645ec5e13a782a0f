from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt import votes
from edge_sfda.adapt.votes import Ballot


def _one_hot(label: list[list[int]], classes: int = 4) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(label), classes).float()


def test_shared_iou_is_averaged_over_the_classes_that_either_has() -> None:
    label = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2], [0, 1, 2, 3]])
    other = torch.tensor([[0, 0, 0, 1], [2, 2, 2, 2], [1, 0, 3, 2]])
    assert votes.shared_iou(label, other, 4).tolist() == pytest.approx([(2 / 3 + 1 / 2) / 2, 1.0, 0.0])


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        (_one_hot([[0, 1, 2, 3]]), math.log(4)),  # sure and diverse
        (_one_hot([[0, 0, 0, 0]]), 0.0),  # collapsed
        (torch.full((1, 4, 4), 0.25), 0.0),  # unsure
        (_one_hot([[0, 0, 1, 1]]), math.log(2)),
    ],
)
def test_information_wants_sure_and_diverse(probs: Tensor, expected: float) -> None:
    assert votes.information(probs).tolist() == pytest.approx([expected], abs=1e-6)


def test_information_is_held_against_the_mean_of_all_probes() -> None:
    found = votes.information(_one_hot([[0, 0], [1, 1]]))
    assert found.tolist() == pytest.approx([math.log(2)] * 2)


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        (_one_hot([[0, 1, 2, 3]]), 1.0),
        (_one_hot([[0, 0, 0, 0]]), 0.5),  # one singular value of sqrt(4), of at most sqrt(4 x 4)
        (torch.full((1, 4, 4), 0.25), 0.25),
    ],
)
def test_nuclear_wants_sure_and_diverse(probs: Tensor, expected: float) -> None:
    assert votes.nuclear(probs).tolist() == pytest.approx([expected], abs=1e-6)


def test_density_counts_neighbours() -> None:
    alone = votes.density(_one_hot([[0, 1, 2, 3]]))  # all others equally unlike
    pairs = votes.density(_one_hot([[0, 0, 1, 1]]))  # one neighbour each
    assert alone.tolist() == pytest.approx([math.log(3)], abs=1e-5)
    assert pairs.tolist() == pytest.approx([0.0], abs=1e-5)


def test_snapshots_of_one_burst_count_as_one_in_the_ensemble() -> None:
    old, new = _one_hot([[0, 0]]), _one_hot([[1, 1]])
    ballots = {"source": Ballot(old, {}), "deployed": Ballot(old, {})}
    ballots |= {f"step {i}": Ballot(new, {}) for i in range(9)}
    assert votes.ensemble(ballots, held=("source", "deployed")).tolist() == [[0, 0]]
    del ballots["deployed"]
    del ballots["source"]
    assert votes.ensemble(ballots, held=("source", "deployed")).tolist() == [[1, 1]]


def _red(frames: Tensor) -> Tensor:
    """Logits at half the size: class 1 where a pixel is red, else class 0."""
    red = frames[:, :1, ::2, ::2] - 128
    return torch.cat((-red, red), 1)


def test_collect_mirrors_back_and_lets_each_candidate_see_the_same_noise() -> None:
    probes = torch.zeros(3, 3, 8, 16, dtype=torch.uint8)
    probes[:, 0, :, :8] = 250  # the left half is red
    one, two = (votes.collect(_red, probes, pixels=1000, seed=0) for _ in range(2))
    assert one.label.shape == (3, 32)
    assert torch.equal(one.label, one.views["mirror"])
    assert one.views.keys() == {"mirror", "darker", "lighter", "noise"}
    assert all(torch.equal(one.views[name], two.views[name]) for name in one.views)
    assert one.histogram.tolist() == [0.5, 0.5]
    scores = votes.scores(one, one.label)
    assert scores["agreement"].tolist() == scores["consistency"].tolist() == [1.0] * 3


def test_collect_looks_at_about_as_many_pixels_as_asked() -> None:
    probes = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    for pixels in (64, 256, 4096, 100_000):
        found = votes.collect(_red, probes, pixels=pixels, seed=0).probs.shape[1]
        assert min(pixels, 4096) / 2 <= found <= 2 * min(pixels, 4096)
