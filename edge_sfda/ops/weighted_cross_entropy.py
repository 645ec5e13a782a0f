"""Weighted cross-entropy of bilinearly upsampled logits: one operator, the full-size logits never in memory.

    loss = (1/N) * sum_i w_i * c_{y_i} * CE(bilinear_upsample(logits)_i, y_i),     N = pixels that are not ignored

Weighting each pixel's gradient by reliability is the paper's (abstract); dividing by N and never by sum(w), so that a
frame that is unreliable everywhere takes a small step, is ours.

The forward pass works out loss and gradient in one sweep; the backward pass scales the gradient. Where labels have the
logits' size, the forward pass keeps each pixel's softmax denominator instead, and the backward pass recomputes. On a
CPU nothing is won there, so torch's own cross-entropy is called: chunks of rows took 1.3 to 2.5 times as long.

    weighted_cross_entropy_reference   plain and obviously right, for the tests
    weighted_cross_entropy_rows        torch by chunks of rows: the CPU implementation, and the one without kernels
    weighted_cross_entropy_fused       launches of cuda_kernels/weighted_cross_entropy.cu
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edge_sfda.errors import UsageError
from edge_sfda.ops import weighted_cross_entropy_fused as fused
from edge_sfda.ops import weighted_cross_entropy_rows as rows
from edge_sfda.ops.launch import SCALARS, Settled, launcher_of, requested_backend, settle
from edge_sfda.ops.weighted_cross_entropy_reference import weighted_cross_entropy_reference

LABEL_TYPES = (torch.uint8, torch.int64)
LOGITS_TYPES = (*SCALARS, torch.float64)


def weighted_cross_entropy(
    logits: Tensor,
    label: Tensor,
    weight: Tensor,
    *,
    class_weight: Tensor | None = None,
    ignore_id: int = 255,
    backend: str | None = None,
) -> Tensor:
    """Return the scalar loss.

    The gradient to `logits` is deterministic, and differentiable no further. Sums are taken in float32 (in float64 for
    float64 logits), whatever the logits' type and under autocast.

    Not a number: a NaN or +inf logit of a pixel that counts makes the loss NaN and spreads in the gradient of that
    frame; -inf is a class ruled out where labels have the logits' size, and NaN where they are upsampled. A NaN weight
    makes the loss NaN.

    Args:
        logits: float32, float16, bfloat16 or float64 [B, C, h, w], in any layout; bilinearly upsampled
            (align_corners=False) to the label's size where that is larger.
        label: uint8 or int64 [B, H, W], 0..C-1 or `ignore_id`. Any other id raises on a CPU. On a CUDA device it is
            never used as an index, and loss and gradient become NaN: raising would wait for the device.
        weight: float [B, H, W], or any smaller size (bilinearly upsampled); no gradient flows into it.
        class_weight: float [C], or None for ones; no gradient flows into it.
        ignore_id: label of pixels that count neither in the sum nor in N.
        backend: "auto" (kernels on a CUDA device, else torch), "torch", "cuda" or "host" (the kernels emulated on the
            CPU); None for the variable EDGE_SFDA_OPS, else "auto".

    Returns:
        float32 scalar (float64 for float64 logits); 0 when every pixel is ignored.

    Raises:
        UsageError: shapes, types or devices that do not fit, or a weight that requires a gradient.
        LabelError: on a CPU, a label that is neither a class nor `ignore_id`.
        KernelError: the kernels were asked for and cannot be used.
    """
    _check(logits, label, weight, class_weight)
    settled = _settle(backend, logits.device, logits.dtype)
    if settled == "torch" and logits.device.type == "cpu" and logits.shape[-2:] == label.shape[-2:]:
        return _same_size_on_cpu(rows.LossInputs(logits, label, weight, class_weight, ignore_id))
    with_gradient = logits.requires_grad and torch.is_grad_enabled()
    loss: Tensor
    loss, _ = _forward(logits, label, weight, class_weight, ignore_id, with_gradient, settled)
    return loss


def _same_size_on_cpu(inputs: rows.LossInputs) -> Tensor:
    """Return the loss by torch's cross-entropy.

    Raises:
        LabelError: a label that is neither a class nor ignored.
    """
    dtype = _accumulate_type(inputs.logits)  # which autocast leaves alone in all that follows
    class_weight = None if inputs.class_weight is None else inputs.class_weight.to(dtype)
    logits, weight = inputs.logits.to(dtype), inputs.weight.to(dtype)
    try:
        return weighted_cross_entropy_reference(
            logits, inputs.label, weight, class_weight=class_weight, ignore_id=inputs.ignore_id
        )
    except IndexError:  # torch looks at every label anyway; looking before would cost time in each step
        rows.check_labels(inputs)
        raise


def _check(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor | None) -> None:
    """Refuse what does not fit together.

    Raises:
        UsageError: with all shapes, types and devices.
    """
    given = {"logits": logits, "label": label, "weight": weight}
    if class_weight is not None:
        given["class_weight"] = class_weight
    problem = _problem(logits, label, weight, class_weight)
    if problem is not None:
        got = ", ".join(f"{name} {str(t.dtype)[6:]} {list(t.shape)} on {t.device}" for name, t in given.items())
        raise UsageError(f"weighted_cross_entropy: {problem}; got {got}")


def _problem(logits: Tensor, label: Tensor, weight: Tensor, class_weight: Tensor | None) -> str | None:
    """Return what does not fit, or None."""
    others = (label, weight) if class_weight is None else (label, weight, class_weight)
    if logits.ndim != 4 or label.ndim != 3 or weight.ndim != 3:
        return "expected logits [B, C, h, w], label [B, H, W], weight [B, H, W] or smaller"
    if not logits.shape[0] == label.shape[0] == weight.shape[0]:
        return "expected one number of frames B"
    if logits.shape[1] < 2:
        return "expected at least 2 classes C"
    if logits.shape[2] > label.shape[1] or logits.shape[3] > label.shape[2]:
        return "expected logits no larger than the label"
    if weight.shape[1] > label.shape[1] or weight.shape[2] > label.shape[2]:
        return "expected a weight no larger than the label"
    if label.numel() > 0 and (logits.numel() == 0 or weight.numel() == 0):
        return "expected logits and weight that are not empty where the label is not"
    if class_weight is not None and class_weight.shape != (logits.shape[1],):
        return "expected class_weight [C]"
    if logits.dtype not in LOGITS_TYPES:
        return "expected float32, float16, bfloat16 or float64 logits"
    if label.dtype not in LABEL_TYPES:
        return "expected uint8 or int64 labels"
    if not all(t.dtype.is_floating_point for t in others[1:]):
        return "expected floating-point weights"
    if any(t.device != logits.device for t in others):
        return "expected all on one device"
    if any(t.requires_grad for t in others):
        return "no gradient flows into the weights: detach them"
    return None


def _settle(backend: str | None, device: torch.device, dtype: torch.dtype) -> Settled:
    """Choose the backend; the kernels know no float64.

    Raises:
        UsageError, KernelError: as `launch.settle`; also for float64 where kernels are asked for.
    """
    name = requested_backend(backend)
    if name == "torch" or (dtype not in SCALARS and name == "auto"):
        return "torch"
    if dtype not in SCALARS:
        raise UsageError(f"weighted_cross_entropy: backend {name!r} takes no {dtype} logits: use 'torch'")
    return settle(name, device, fused.kernel("sweep", dtype))


def _kept_elements(logits: Tensor, label: Tensor) -> int:
    """Return how many numbers the forward pass keeps for the backward pass, for every backend.

    kept[0] is a scale (1/N for the kernels). Then, at one size, the maximum and the sum of each pixel's softmax; else
    the kernels' partial gradients, or the gradient at logits size, which has fewer numbers.
    """
    if logits.shape[-2:] == label.shape[-2:]:
        return 1 + 2 * label.numel()
    return 1 + fused.partial_elements(logits.shape, label.shape)


def _accumulate_type(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


@torch.library.custom_op("edge_sfda::weighted_cross_entropy", mutates_args=())
def _forward(
    logits: Tensor,
    label: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    ignore_id: int,
    with_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return the loss, and what the backward pass needs (see `_kept_elements`; empty without a gradient)."""
    kept = logits.new_empty(_kept_elements(logits, label) if with_gradient else 0, dtype=_accumulate_type(logits))
    if label.numel() == 0:
        return kept.new_zeros(()), kept.zero_()
    weight, class_weight = weight.to(kept.dtype), None if class_weight is None else class_weight.to(kept.dtype)
    inputs = rows.LossInputs(logits, label, weight, class_weight, ignore_id)
    if backend == "torch":
        return rows.forward(inputs, kept), kept
    rows.check_labels(inputs)
    launcher = launcher_of("host" if backend == "host" else "cuda")
    return fused.forward(launcher, inputs, kept), kept


@_forward.register_fake
def _(
    logits: Tensor,
    label: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    ignore_id: int,
    with_gradient: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dtype = _accumulate_type(logits)
    elements = _kept_elements(logits, label) if with_gradient else 0
    return logits.new_empty((), dtype=dtype), logits.new_empty(elements, dtype=dtype)


@torch.library.custom_op("edge_sfda::weighted_cross_entropy_backward", mutates_args=())
def _backward(
    grad_loss: Tensor,
    kept: Tensor,
    logits: Tensor,
    label: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    ignore_id: int,
    backend: str,
) -> Tensor:
    """Return the gradient to the logits, in their type and layout. No gradient is defined for this operator."""
    grad = torch.empty_like(logits)
    if label.numel() == 0:
        return grad.zero_()
    weight, class_weight = weight.to(kept.dtype), None if class_weight is None else class_weight.to(kept.dtype)
    inputs = rows.LossInputs(logits, label, weight, class_weight, ignore_id)
    if backend == "torch":
        return rows.backward(inputs, kept, grad_loss, grad)
    launcher = launcher_of("host" if backend == "host" else "cuda")
    return fused.backward(launcher, inputs, kept, grad_loss, grad)


@_backward.register_fake
def _(
    grad_loss: Tensor,
    kept: Tensor,
    logits: Tensor,
    label: Tensor,
    weight: Tensor,
    class_weight: Tensor | None,
    ignore_id: int,
    backend: str,
) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, label, weight, class_weight, ctx.ignore_id, _, ctx.backend = inputs
    ctx.save_for_backward(output[1], logits, label, weight, class_weight)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    grad = None if grad_loss is None else _backward(grad_loss, *ctx.saved_tensors, ctx.ignore_id, ctx.backend)
    return grad, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_setup_context)
