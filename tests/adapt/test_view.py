from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt.view import StrongView
from edge_sfda.config import ViewConfig

PLAIN = ViewConfig(strength=0.0, brightness=0.0, contrast=0.0, saturation=0.0, blur=0.0, crop=0.6)


def _painted(height: int, width: int, stride: int, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Labels without symmetry, painted into frames, and weights of a hundredth of them."""
    h, w = -(-height // stride), -(-width // stride)
    label = torch.randint(250, (count, h, w), generator=torch.Generator().manual_seed(0))
    painted = label.repeat_interleave(stride, 1)[:, :height].repeat_interleave(stride, 2)[:, :, :width]
    return painted[:, None].expand(-1, 3, -1, -1).to(torch.uint8), label, label / 100


def _flat(value: int, count: int = 1, size: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    label = torch.zeros(count, size // 4, size // 4, dtype=torch.int64)
    return torch.full((count, 3, size, size), value, dtype=torch.uint8), label, label.float()


@pytest.mark.parametrize(
    ("height", "width", "stride"),
    [
        (64, 96, 4),
        (128, 96, 8),
        (66, 98, 4),
        (65, 99, 4),
        (101, 99, 8),
        (90, 121, 8),
        (64, 80, 1),
        (130, 200, 16),
        (33, 64, 8),
        (64, 33, 8),
    ],
)
@pytest.mark.parametrize("crop", [0.6, 1.0])
def test_image_label_and_weight_stay_aligned(height: int, width: int, stride: int, crop: float) -> None:
    view = StrongView(dataclasses.replace(PLAIN, crop=crop), seed=0)
    given = _painted(height, width, stride)
    for _ in range(6):
        frames, label, weight = view(*given)
        assert torch.equal(weight, label / 100)
        enlarged = label.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
        assert frames.shape == (3, 3, *enlarged.shape[1:])
        torch.testing.assert_close(frames, enlarged[:, None].expand(-1, 3, -1, -1).float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("crop", [0.6, 1.0])
def test_grid_that_was_rounded_down_stays_aligned(crop: float) -> None:
    _, label, weight = _painted(64, 96, 4)
    painted = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    frames = torch.full((3, 3, 67, 99), 255, dtype=torch.uint8)  # the last three rows and columns have no cell
    frames[:, :, :64, :96] = painted[:, None].to(torch.uint8)
    view = StrongView(dataclasses.replace(PLAIN, crop=crop), seed=0)
    for _ in range(6):
        out, out_label, _ = view(frames, label, weight)
        enlarged = out_label.repeat_interleave(4, 1).repeat_interleave(4, 2)
        torch.testing.assert_close(out, enlarged[:, None].expand(-1, 3, -1, -1).float(), atol=1e-3, rtol=0)


def test_view_is_a_crop_of_the_frame_or_of_its_mirror_image() -> None:
    given = _painted(64, 96, 4, count=1)
    whole = given[1][0]
    view = StrongView(dataclasses.replace(PLAIN, crop=0.5), seed=0)
    seen = set()
    for _ in range(40):
        _, label, _ = view(*given)
        h, w = label.shape[1:]
        assert (h, w) == (8, 16)
        for mirrored in (False, True):
            cut = label[0].flip(-1) if mirrored else label[0]
            for top in range(16 - h + 1):
                for left in range(24 - w + 1):
                    if torch.equal(whole[top : top + h, left : left + w], cut):
                        seen.add((mirrored, top, left))
    assert {mirrored for mirrored, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == set(range(9))
    assert len({left for _, _, left in seen}) > 4


@pytest.mark.parametrize(
    ("size", "stride", "crop", "expected"),
    [
        ((128, 256), 4, 0.5, (64, 128)),
        ((128, 256), 4, 1.0, (128, 256)),
        ((128, 256), 8, 0.7, (96, 192)),  # 89.6 and 179.2 to multiples of 32
        ((64, 64), 4, 0.25, (32, 32)),
        ((40, 40), 8, 0.25, (32, 32)),
        ((130, 130), 4, 1.0, (128, 128)),  # the last cell is cut by the frame, and left out
    ],
)
def test_crop_has_the_share_of_the_side_in_multiples_of_32(
    size: tuple[int, int], stride: int, crop: float, expected: tuple[int, int]
) -> None:
    frames, label, weight = StrongView(dataclasses.replace(PLAIN, crop=crop), seed=0)(*_painted(*size, stride))
    assert tuple(frames.shape[-2:]) == expected
    assert tuple(label.shape[-2:]) == tuple(weight.shape[-2:]) == (expected[0] // stride, expected[1] // stride)


def test_view_switched_off_is_the_frame_itself() -> None:
    given = _painted(64, 96, 4)
    frames, label, weight = StrongView(ViewConfig(enabled=False), seed=0)(*given)
    assert frames.dtype == torch.float32
    assert torch.equal(frames, given[0].float())
    assert label is given[1]
    assert weight is given[2]


def test_draws_repeat_with_the_seed_and_differ_without() -> None:
    config = ViewConfig(strength=1.0, crop=0.6)
    given = _painted(64, 96, 4)
    views = [[StrongView(config, seed=seed)(*given) for _ in range(2)][-1] for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(views[0], views[1], strict=True))
    assert not torch.equal(views[0][0], views[2][0])


def test_frames_of_a_batch_have_views_of_their_own() -> None:
    one = _painted(64, 96, 4, count=1)
    same = tuple(part.expand(6, *part.shape[1:]) for part in one)
    _, label, _ = StrongView(PLAIN, seed=0)(*same)
    assert len({tuple(item.flatten().tolist()) for item in label}) > 1


def test_photometry_leaves_labels_and_weights_alone() -> None:
    given = _painted(64, 96, 4)
    config = ViewConfig(strength=2.0, brightness=0.3, contrast=0.3, saturation=0.3, blur=1.0, crop=1.0)
    frames, label, weight = StrongView(config, seed=0)(*given)
    assert torch.equal(weight, label / 100)
    assert not torch.equal(frames.round().long()[:, 0, ::4, ::4], label)


@pytest.mark.parametrize("strength", [1.0, 4.0])
def test_colours_stay_in_their_range(strength: float) -> None:
    config = ViewConfig(strength=strength, brightness=0.9, contrast=0.9, saturation=0.9, blur=0.5)
    frames = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    _, label, weight = _flat(0, 8)
    out, _, _ = StrongView(config, seed=0)(frames, label, weight)
    assert float(out.min()) >= 0
    assert float(out.max()) <= 255
    assert bool(out.isfinite().all())


def test_brightness_alone_scales_the_middle_by_a_factor_of_its_range() -> None:
    config = dataclasses.replace(PLAIN, strength=1.0, brightness=0.25)
    out, _, _ = StrongView(config, seed=0)(*_flat(128, 64))
    factors = out.flatten(1)[:, 0] / 128
    assert 0.75 <= float(factors.min()) < 0.8
    assert 1.2 < float(factors.max()) <= 1.25
    assert torch.allclose(out, out[:, :1, :1, :1])


def test_contrast_and_saturation_leave_middle_grey() -> None:
    config = dataclasses.replace(PLAIN, strength=1.0, contrast=0.5, saturation=0.5, blur=1.0)
    out, _, _ = StrongView(config, seed=0)(*_flat(128, 8))
    torch.testing.assert_close(out, torch.full_like(out, 128.0))


def test_saturation_keeps_the_luma() -> None:
    config = dataclasses.replace(PLAIN, strength=1.0, saturation=0.5)
    frames, label, weight = _flat(0, 16)
    frames[:, 0], frames[:, 1], frames[:, 2] = 120, 90, 100
    out, _, _ = StrongView(config, seed=0)(frames, label, weight)
    luma = (out * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    torch.testing.assert_close(luma, torch.full_like(luma, 0.299 * 120 + 0.587 * 90 + 0.114 * 100))
    assert len(out[:, 0, 0, 0].unique()) == 16


def test_blur_is_binomial() -> None:
    config = dataclasses.replace(PLAIN, strength=1.0, blur=1.0, crop=1.0)
    frames, label, weight = _flat(0)
    frames[0, :, 8, 8] = 160
    out, _, _ = StrongView(config, seed=0)(frames, label, weight)
    column = int(out[0, 0, 8].argmax())  # 8, or 23 in the mirror image
    expected = [[10.0, 20.0, 10.0], [20.0, 40.0, 20.0], [10.0, 20.0, 10.0]]
    torch.testing.assert_close(out[0, 0, 7:10, column - 1 : column + 2], torch.tensor(expected))
    assert float(out[0, 0].sum()) == pytest.approx(160)


def test_blur_falls_on_its_share_of_the_frames() -> None:
    config = dataclasses.replace(PLAIN, strength=1.0, blur=0.25, crop=1.0)
    frames, label, weight = _flat(0, 400)
    frames[:, :, 8, 8] = 160
    out, _, _ = StrongView(config, seed=0)(frames, label, weight)
    blurred = out.flatten(1).amax(1) < 100
    assert float(blurred.float().mean()) == pytest.approx(0.25, abs=0.07)  # three standard deviations
