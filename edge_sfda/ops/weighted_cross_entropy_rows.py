"""Weighted cross-entropy in plain torch by chunks of rows: the CPU implementation, and the one without kernels.

A chunk of full-size rows is interpolated from the rows of logits it touches, turned into loss and gradient while it is
in cache, and its gradient brought back to the logits' size. Nothing else of full size exists but label and weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.errors import LabelError

# Of full-size logits in a chunk: a few such buffers stay in a core's second-level cache.
CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class LossInputs:
    """What both passes read; checked by the operator."""

    logits: Tensor  # float [B, C, h, w]
    label: Tensor  # uint8 or int64 [B, H, W]
    weight: Tensor  # float32 (float64 for float64 logits) [B, h', w']
    class_weight: Tensor | None  # of the same type, [C]
    ignore_id: int

    @property
    def same_size(self) -> bool:
        """Whether nothing is upsampled."""
        return self.logits.shape[-2:] == self.label.shape[-2:]


def check_labels(inputs: LossInputs) -> None:
    """Refuse labels that are neither a class nor ignored; on a CUDA device nothing is checked, for it would wait.

    Raises:
        LabelError: with the offending range.
    """
    label, classes = inputs.label, inputs.logits.shape[1]
    if label.is_cuda or label.numel() == 0:
        return
    lowest, highest = (int(v) for v in torch.where(label == inputs.ignore_id, 0, label).aminmax())
    if lowest < 0 or highest >= classes:
        raise LabelError(
            f"weighted_cross_entropy: labels reach from {lowest} to {highest}, expected 0..{classes - 1} or the "
            f"ignored id {inputs.ignore_id}: map the ids to classes; got label {list(label.shape)}, logits "
            f"{list(inputs.logits.shape)}"
        )


def forward(inputs: LossInputs, kept: Tensor) -> Tensor:
    """Return the loss, and fill `kept` (unless it is empty) with what `backward` needs."""
    check_labels(inputs)
    pixels = _Pixels(inputs, kept.dtype)
    with torch.autocast(inputs.logits.device.type, enabled=False):
        if inputs.same_size:
            return _forward_same_size(inputs, pixels, kept)
        return _forward_upsampled(inputs, pixels, kept)


def backward(inputs: LossInputs, kept: Tensor, grad_loss: Tensor, grad: Tensor) -> Tensor:
    """Fill `grad`, [B, C, h, w] in the logits' type, and return it."""
    with torch.autocast(inputs.logits.device.type, enabled=False):
        if not inputs.same_size:
            return torch.mul(kept[1 : 1 + grad.numel()].view(grad.shape), grad_loss, out=grad)
        return _backward_same_size(inputs, kept, grad_loss, grad)


class _Pixels:
    """Label and factor of the pixels, by rows."""

    def __init__(self, inputs: LossInputs, dtype: torch.dtype) -> None:
        self.inputs = inputs
        size = inputs.label.shape[-2:]
        self.weight = inputs.weight
        if self.weight.shape[-2:] != size:
            self.weight = F.interpolate(self.weight[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        self.count = (inputs.label != inputs.ignore_id).sum().clamp(min=1).to(dtype)

    def rows(self, frame: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return label int64 [1, r, W], 0 where it is no class; factor w * c / N [r, W], 0 where ignored; ignored."""
        label, classes = self.inputs.label[frame, start:stop].long(), self.inputs.logits.shape[1]
        ignored = label == self.inputs.ignore_id
        factor = (self.weight[frame, start:stop] / self.count).masked_fill_(ignored, 0)
        no_class = ignored
        if label.is_cuda:  # where no error can be raised
            no_class = (label < 0) | (label >= classes) | ignored
            factor.masked_fill_(no_class & ~ignored, torch.nan)
        label = label.masked_fill(no_class, 0)
        if self.inputs.class_weight is not None:
            factor = factor * self.inputs.class_weight[label]
        return label[None], factor, ignored


def _chunks(inputs: LossInputs) -> Iterator[tuple[int, int, int]]:
    """Yield (frame, first row, end) of chunks of full-size rows."""
    frames, height, width = inputs.label.shape
    step = max(1, CHUNK_BYTES // (inputs.logits.shape[1] * width * 4))
    for frame in range(frames):
        for start in range(0, height, step):
            yield frame, start, min(start + step, height)


def _forward_same_size(inputs: LossInputs, pixels: _Pixels, kept: Tensor) -> Tensor:
    losses = []
    for frame, start, stop in _chunks(inputs):
        label, factor, ignored = pixels.rows(frame, start, stop)
        x = inputs.logits[frame, :, start:stop].to(pixels.count.dtype)
        largest = x.amax(0)
        total = (x - largest).exp_().sum(0)
        pixel = total.log() + (largest - x.gather(0, label)[0])
        losses.append((pixel.masked_fill_(ignored, 0) * factor).sum())
        if kept.numel() > 0:
            kept[0] = 1
            top, denominator = kept[1:].view(2, *inputs.label.shape)
            top[frame, start:stop] = largest
            denominator[frame, start:stop] = total
    return torch.stack(losses).sum()


def _backward_same_size(inputs: LossInputs, kept: Tensor, grad_loss: Tensor, grad: Tensor) -> Tensor:
    pixels = _Pixels(inputs, kept.dtype)
    top, denominator = kept[1:].view(2, *inputs.label.shape)
    for frame, start, stop in _chunks(inputs):
        label, factor, _ = pixels.rows(frame, start, stop)
        factor = factor * grad_loss
        x = inputs.logits[frame, :, start:stop].to(kept.dtype)
        g = (x - top[frame, start:stop]).exp_().mul_(factor / denominator[frame, start:stop])
        grad[frame, :, start:stop] = g.scatter_add_(0, label, -factor[None])
    return grad


def _forward_upsampled(inputs: LossInputs, pixels: _Pixels, kept: Tensor) -> Tensor:
    shape, (height, width) = inputs.logits.shape, inputs.label.shape[-2:]
    gradient = None
    if kept.numel() > 0:
        gradient = kept.zero_()[1 : 1 + inputs.logits.numel()].view(shape)
    losses = []
    for frame, start, stop in _chunks(inputs):
        label, factor, ignored = pixels.rows(frame, start, stop)
        first, last, share = _touched(start, stop, shape[2], height, pixels.count)
        low = share @ inputs.logits[frame, :, first : last + 1].to(share.dtype)  # [C, r, w]
        x = low if shape[3] == width else F.interpolate(low, size=width, mode="linear", align_corners=False)
        at_label = x.gather(0, label)[0]
        largest = x.amax(0)
        x = x.sub_(largest).exp_()
        total = x.sum(0)
        pixel = total.log() + (largest - at_label)
        losses.append((pixel.masked_fill_(ignored, 0) * factor).sum())
        if gradient is not None:
            x.mul_(factor / total).scatter_add_(0, label, -factor[None])
            if shape[3] != width:
                x = torch.ops.aten.upsample_linear1d_backward(x, [width], list(low.shape), False)
            gradient[frame, :, first : last + 1] += share.T @ x
    return torch.stack(losses).sum()


def _touched(start: int, stop: int, nodes: int, pixels: int, like: Tensor) -> tuple[int, int, Tensor]:
    """Return the first and last of `nodes` rows that full-size rows start..stop-1 are interpolated from, and how.

    Row d of `pixels` lies at (d + 1/2) * nodes / pixels - 1/2, clamped to the nodes: align_corners=False.

    Returns:
        first, last, and the shares [stop - start, last - first + 1] in the type and on the device of `like`.
    """

    def position(d: int) -> int:  # in units of 1 / (2 * pixels) of a node
        return min(max((2 * d + 1) * nodes - pixels, 0), 2 * pixels * (nodes - 1))

    unit = 2 * pixels
    first, last = position(start) // unit, -(-position(stop - 1) // unit)
    # on the device: a table copied there would make it wait
    rows = torch.arange(start, stop, device=like.device, dtype=torch.float64)
    at = ((2 * rows + 1) * nodes - pixels).clamp_(0, unit * (nodes - 1)) / unit - first
    share = (1 - (at[:, None] - torch.arange(last - first + 1, device=like.device)).abs()).clamp_(min=0)
    return first, last, share.to(like.dtype)
