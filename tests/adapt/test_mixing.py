from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt.mixing import DonorMemory
from edge_sfda.config import MixingConfig

CLASSES = 6
CPU = torch.device("cpu")


def _memory(*, size: int = 4, fraction: float = 0.5, seed: int = 0) -> DonorMemory:
    return DonorMemory(MixingConfig(memory=size, fraction=fraction), CLASSES, seed=seed, device=CPU)


def _enlarge(cells: Tensor, height: int, width: int, stride: int) -> Tensor:
    return cells.repeat_interleave(stride, -2)[..., :height, :].repeat_interleave(stride, -1)[..., :width]


def _batch(
    values: list[int], classes: list[int], *, height: int = 16, width: int = 24, stride: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Frames whose every pixel, label and weight tell of which frame and class they are.

    Frame `v` shows `16 * v + class` in all channels, and weighs the same over 256.
    """
    rng = torch.Generator().manual_seed(sum(values))
    h, w = -(-height // stride), -(-width // stride)
    picks = torch.randint(len(classes), (len(values), h, w), generator=rng)
    picks.flatten(1)[:, : len(classes)] = torch.arange(len(classes))  # each occurs
    label = torch.tensor(classes)[picks]
    code = label + 16 * torch.tensor(values).view(-1, 1, 1)
    frames = _enlarge(code, height, width, stride).to(torch.uint8)[:, None].expand(-1, 3, -1, -1).contiguous()
    return frames, label, code / 256


def _decode(frames: Tensor, label: Tensor, weight: Tensor, stride: int = 4) -> tuple[Tensor, Tensor]:
    """Return the frame and class each cell comes from, after a look that image, label and weight agree."""
    code = (weight * 256).round().long()
    assert torch.equal(code % 16, label)
    height, width = frames.shape[-2:]
    for channel in range(3):
        assert torch.equal(frames[:, channel].long(), _enlarge(code, height, width, stride))
    return code // 16, code % 16


def test_first_batch_comes_back_as_it_is() -> None:
    batch = _batch([1, 2], [0, 1])
    assert all(a is b for a, b in zip(_memory().mix(*batch), batch, strict=True))


@pytest.mark.parametrize(
    ("height", "width", "stride"), [(16, 24, 4), (18, 26, 4), (17, 23, 4), (40, 45, 8), (12, 12, 1), (21, 21, 2)]
)
def test_image_label_and_weight_are_pasted_together(height: int, width: int, stride: int) -> None:
    memory = _memory()
    memory.push(*_batch([9], [3, 4, 5], height=height, width=width, stride=stride))
    target = _batch([1, 2], [0, 1], height=height, width=width, stride=stride)
    sources, _ = _decode(*memory.mix(*target), stride=stride)
    assert {int(s) for s in sources[0].unique()} == {1, 9}
    assert {int(s) for s in sources[1].unique()} == {2, 9}


def test_grid_that_was_rounded_down_stays_aligned() -> None:
    memory = _memory(fraction=1.0)
    label = torch.zeros(1, 8, 10, dtype=torch.int64)
    label[0, 7, 9] = 1  # the last cell
    weight = torch.where(label == 1, 1.0, 0.0)
    memory.config = dataclasses.replace(memory.config, fraction=0.5)  # one of two: the one that weighs
    memory.push(torch.full((1, 3, 35, 43), 9, dtype=torch.uint8), label, weight)
    frames, mixed, _ = memory.mix(torch.zeros(1, 3, 35, 43, dtype=torch.uint8), torch.full_like(label, 2), weight)
    assert torch.equal(mixed == 1, label == 1)
    expected = torch.zeros(35, 43, dtype=torch.uint8)
    expected[28:, 36:] = 9  # and the pixels left over, which have no cell of their own
    assert torch.equal(frames[0, 0], expected)


def test_class_is_pasted_whole_and_the_rest_is_untouched() -> None:
    memory = _memory()
    donor = _batch([9], [3, 4, 5])
    memory.push(*donor)
    target = _batch([1], [0, 1])
    source, label = _decode(*memory.mix(*target))
    pasted = source == 9
    chosen = label[pasted].unique()
    assert torch.equal(pasted, torch.isin(donor[1], chosen))
    assert torch.equal(label[~pasted], target[1][~pasted])


def test_no_class_is_pasted_that_the_donor_lacks() -> None:
    memory = _memory(fraction=1.0)
    memory.push(*_batch([9], [2, 5]))
    for seed in range(5):
        source, label = _decode(*memory.mix(*_batch([seed], [0, 1])))
        assert set(label[source == 9].unique().tolist()) == {2, 5}


@pytest.mark.parametrize(
    ("fraction", "classes", "pasted"), [(0.0, 4, 0), (0.5, 4, 2), (0.5, 3, 2), (0.1, 4, 1), (0.5, 1, 1), (1.0, 4, 4)]
)
def test_number_of_classes_is_the_fraction_rounded_up(fraction: float, classes: int, pasted: int) -> None:
    memory = _memory(fraction=fraction)
    memory.push(*_batch([9], list(range(1, classes + 1))))
    source, label = _decode(*memory.mix(*_batch([1], [0])))
    assert len(label[source == 9].unique()) == pasted


def test_classes_of_higher_weight_are_drawn_more_often() -> None:
    memory = _memory(size=1, fraction=0.3)  # one of three
    label = torch.tensor([[[1, 2, 3]]])
    weight = torch.tensor([[[0.6, 0.3, 0.1]]])
    memory.push(torch.zeros(1, 3, 4, 12, dtype=torch.uint8), label, weight)
    many = 3000
    target = torch.zeros(many, 3, 4, 12, dtype=torch.uint8), torch.zeros(many, 1, 3).long(), torch.zeros(many, 1, 3)
    _, mixed, _ = memory.mix(*target)
    shares = [float((mixed == c).any(2).float().mean()) for c in (1, 2, 3)]
    # odds by weight; a share of 0.6 over 3000 draws has a standard deviation below 0.01
    assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.035)


def test_mean_weight_decides_and_not_the_number_of_pixels() -> None:
    memory = _memory(size=1, fraction=0.5)  # one of two
    label = torch.tensor([[[1] * 9 + [2]]])
    weight = torch.where(label == 2, 0.9, 0.1)
    memory.push(torch.zeros(1, 3, 4, 40, dtype=torch.uint8), label, weight)
    many = 1000
    target = torch.zeros(many, 3, 4, 40, dtype=torch.uint8), torch.zeros(many, 1, 10).long(), torch.zeros(many, 1, 10)
    _, mixed, _ = memory.mix(*target)
    assert float((mixed == 2).any(2).float().mean()) == pytest.approx(0.9, abs=0.05)


def test_donor_that_weighs_nothing_is_pasted_with_its_zero_weight() -> None:
    memory = _memory(fraction=1.0)
    frames, label, weight = _batch([9], [3, 4])
    memory.push(frames, label, torch.zeros_like(weight))
    _, mixed, mixed_weight = memory.mix(*_batch([1], [0]))
    assert torch.equal(mixed, label)
    assert not mixed_weight.any()


def test_ring_holds_the_latest_and_draws_from_all_of_them() -> None:
    memory = _memory(size=3, fraction=1.0)
    for value in range(1, 6):
        memory.push(*_batch([value], [1, 2]))
        assert len(memory) == min(value, 3)
    seen = {int(s) for _ in range(30) for s in _decode(*memory.mix(*_batch([0], [0])))[0].unique()}
    assert seen == {3, 4, 5}


def test_batch_larger_than_the_ring_leaves_its_last_frames() -> None:
    memory = _memory(size=2, fraction=1.0)
    memory.push(*_batch([1, 2, 3], [1, 2]))
    seen = {int(s) for _ in range(20) for s in _decode(*memory.mix(*_batch([0], [0])))[0].unique()}
    assert seen == {2, 3}


def test_before_the_ring_is_full_only_what_was_pushed_is_drawn() -> None:
    memory = _memory(size=8, fraction=1.0)
    memory.push(*_batch([5], [1, 2]))
    for _ in range(10):
        assert _decode(*memory.mix(*_batch([0], [0])))[0].unique().tolist() == [5]


def test_frames_of_a_batch_have_donors_of_their_own() -> None:
    memory = _memory(size=4, fraction=1.0)
    memory.push(*_batch([1, 2, 3, 4], [1, 2]))
    source, _ = _decode(*memory.mix(*_batch([0] * 12, [0])))
    assert all(len(s.unique()) == 1 for s in source)
    assert set(source.unique().tolist()) == {1, 2, 3, 4}


def test_draws_repeat_with_the_seed_and_differ_without() -> None:
    mixed = []
    for seed in (0, 0, 1):
        memory = _memory(seed=seed)
        memory.push(*_batch([1, 2, 3], [1, 2, 3, 4]))
        mixed.append([memory.mix(*_batch([0, 0], [0]))[1] for _ in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(mixed[0], mixed[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(mixed[0], mixed[2], strict=True))


def test_what_is_given_is_neither_changed_nor_kept() -> None:
    memory = _memory(fraction=1.0)
    donor, target = _batch([9], [3, 4]), _batch([1], [0, 1])
    before = [part.clone() for part in target]
    memory.push(*donor)
    donor[0].zero_()
    donor[1].zero_()
    source, _ = _decode(*memory.mix(*target))
    assert source.unique().tolist() == [9]
    assert all(torch.equal(a, b) for a, b in zip(target, before, strict=True))


def test_types_stay_as_they_came() -> None:
    memory = _memory()
    memory.push(*_batch([9], [3, 4]))
    frames, label, weight = memory.mix(*_batch([1], [0]))
    assert (frames.dtype, label.dtype, weight.dtype) == (torch.uint8, torch.int64, torch.float32)
