from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt.losses import entropy, entropy_of, soft_cross_entropy


def _pixel(*values: float) -> Tensor:
    """One pixel: float64 [1, C, 1, 1]."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


# probabilities 3/4 and 1/4: entropy 2 ln 2 - 3/4 ln 3
TABLE = [
    ((0.0, 0.0), math.log(2)),
    ((5.0, 5.0, 5.0, 5.0), math.log(4)),
    ((math.log(3), 0.0), 2 * math.log(2) - 0.75 * math.log(3)),
    ((1000.0, 0.0), 0.0),
]


@pytest.mark.parametrize(("logits", "expected"), TABLE)
def test_entropy_equals_the_table(logits: tuple[float, ...], expected: float) -> None:
    assert float(entropy(_pixel(*logits))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("logits", "expected"), TABLE)
def test_entropy_of_probabilities_equals_the_table(logits: tuple[float, ...], expected: float) -> None:
    assert float(entropy_of(_pixel(*logits).softmax(1))) == pytest.approx(expected, abs=1e-12)


def test_entropy_of_a_certain_pixel_is_zero_and_not_nan() -> None:
    assert entropy_of(_pixel(1.0, 0.0, 0.0)).tolist() == [[[0.0]]]


@pytest.mark.parametrize(
    ("probs", "expected"),
    [
        ((1.0, 0.0), math.log(4 / 3)),
        ((0.0, 1.0), math.log(4)),
        ((0.5, 0.5), 0.5 * math.log(4 / 3) + 0.5 * math.log(4)),
    ],
)
def test_soft_cross_entropy_equals_the_table(probs: tuple[float, ...], expected: float) -> None:
    logits = _pixel(math.log(3), 0.0)
    assert float(soft_cross_entropy(logits, _pixel(*probs))) == pytest.approx(expected, rel=1e-12)


def test_soft_cross_entropy_against_itself_is_the_entropy() -> None:
    logits = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(soft_cross_entropy(logits, logits.softmax(1)), entropy(logits))


def test_losses_are_one_value_a_pixel_and_the_class_is_the_second_dimension() -> None:
    logits = torch.randn(2, 5, 3, 4)
    assert entropy(logits).shape == (2, 3, 4)
    assert soft_cross_entropy(logits, logits.softmax(1)).shape == (2, 3, 4)
    assert float(entropy(logits)[1, 2, 3]) == pytest.approx(float(entropy(logits[1:, :, 2:, 3:])), rel=1e-6)


def test_gradients_of_the_losses_are_those_of_finite_differences() -> None:
    logits = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    probs = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(entropy, (logits,))
    assert torch.autograd.gradcheck(lambda z: soft_cross_entropy(z, probs), (logits,))
