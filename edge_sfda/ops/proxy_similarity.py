"""Proxy similarity: from embeddings and proxies to reliability, and the metric loss that trains both.

    z_i = e_i / |e_i|      p_c = P_c / |P_c|      s_ic = z_i . p_c
    reliability r_i = softmax_c(kappa * s_i)[y_i]           nearest proxy = argmax_c s_ic
    loss = mean over classes of (1 / W_c) * sum_{i: y_i = c} w_i * CE(scale * s_i, c),   W_c = sum_{i: y_i = c} w_i

Proxy-based metric learning for reliability is the paper's idea (abstract); these formulas are ours, the loss after
Proxy-NCA++ on unit vectors.

Classes without weight are left out of the mean.

One operator, `edge_sfda::proxy_similarity`, and its backward. Embeddings are read once each way; neither normalised
embeddings nor similarities outlive a call, unless the latter are asked for. No gradient flows through reliability.

What the operator does with odd values, the same on every backend:

- A pixel that is ignored has reliability 0 and counts nowhere; one that is ignored or of weight 0 gives and takes no
  gradient, whatever its embedding holds.
- An embedding or proxy not longer than 1e-12, or whose squared length leaves float32 while its length does not, has
  no direction: all its cosines and its gradient are 0.
- NaN or infinity in an embedding makes that pixel's reliability, its class's sum and, where it has weight, the loss
  NaN. In a proxy it makes everything NaN but the counts, gradients too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.errors import UsageError
from edge_sfda.ops import proxy_similarity_fused as fused
from edge_sfda.ops.launch import dispatch, requested_backend
from edge_sfda.ops.proxy_similarity_reference import (
    Outputs,
    check_labels,
    empty_outputs,
    reference_backward,
    reference_forward,
    reference_reliability,
)

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class ProxySimilarity:
    """What one pass gives; None where it was not asked for. Gradients flow through `loss` only."""

    loss: Tensor | None  # float32 scalar; 0 when no pixel has weight
    reliability: Tensor | None  # float32 [B, h, w], 0..1; 0 where ignored
    nearest: Tensor | None  # int64 [B, h, w], the proxy with the largest cosine, the first of equals or of NaN
    sums: Tensor | None  # float32 [C], of reliability over the pixels of each class
    counts: Tensor | None  # int64 [C], of pixels
    cosine: Tensor | None  # float32 [B, C, h, w], -1..1


def proxy_similarity(
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    *,
    kappa: float | None = 10.0,
    scale: float | None = 18.0,
    weight: Tensor | None = None,
    ignore_id: int = 255,
    with_nearest: bool = True,
    with_cosine: bool = False,
    backend: str | None = None,
) -> ProxySimilarity:
    """Score labels by the embeddings under them, and compute the class-balanced metric loss, in one pass.

    Args:
        embedding: float [B, D, h, w], of any length; float16, bfloat16, float32 (or float64 on plain torch).
        proxies: float [C, D], of any length.
        label: int64 or uint8 [B, h, w], 0..C-1 or `ignore_id`. On a GPU, where reading them would stall the step, other
            values count as ignored.
        kappa: temperature of the reliability softmax over cosines; None for no reliability, sums and counts.
        scale: of the metric loss; None for no loss.
        weight: float or bool [B, h, w], >= 0: of each pixel in its class's mean, for one a mask of samples; None for
            ones. No gradient flows into it.
        ignore_id: label of pixels that count nowhere; outside 0..C-1.
        with_nearest: also return the nearest proxies; costs a CPU a fifth more time.
        with_cosine: also return the cosines.
        backend: see `ops.launch.dispatch`. The kernels take C 2..256 and D 8..256; "auto" goes to plain torch beyond.

    Returns:
        See `ProxySimilarity`; where the embedding is float64, so are its floats.

    Raises:
        UsageError: shapes, dtypes or devices do not fit, the weight requires a gradient, (on a CPU) a label is neither
            a class nor `ignore_id`, or the backend is unknown or cannot take these sizes.
        KernelError: the kernels fail, and the backend is not "auto".
    """
    _check(embedding, proxies, label, weight, kappa=kappa, scale=scale, ignore_id=ignore_id)
    loss, reliability, nearest, sums, counts, cosine, _, _ = torch.ops.edge_sfda.proxy_similarity(
        embedding, proxies, label, weight, kappa, scale, ignore_id, with_nearest, with_cosine, backend
    )
    scored = kappa is not None
    return ProxySimilarity(
        loss=loss if scale is not None else None,
        reliability=reliability if scored else None,
        nearest=nearest if with_nearest else None,
        sums=sums if scored else None,
        counts=counts if scored else None,
        cosine=cosine if with_cosine else None,
    )


def reliability(embedding: Tensor, proxies: Tensor, label: Tensor, *, kappa: float) -> Tensor:
    """Return how much each pixel's embedding speaks for its label.

    Args:
        embedding: float [B, D, h, w], of any length.
        proxies: float [C, D], of any length.
        label: int64 [B, h, w], 0..C-1.
        kappa: temperature of the softmax over cosines.

    Returns:
        float32 [B, h, w], 0..1, without gradient.
    """
    if embedding.device.type == "cpu":  # the operator's other results and its call cost up to as much again
        return reference_reliability(embedding.detach(), proxies.detach(), label, kappa)
    scores = proxy_similarity(embedding, proxies, label, kappa=kappa, scale=None, ignore_id=-1, with_nearest=False)
    assert scores.reliability is not None
    return scores.reliability


def metric_loss(embedding: Tensor, proxies: Tensor, label: Tensor, valid: Tensor, *, scale: float) -> Tensor:
    """Return the class-averaged cross-entropy of scaled cosines on sampled pixels.

    Args:
        embedding: float [C, K, D], K sampled pixels of each class.
        proxies: float [C, D].
        label: int64 [C, K].
        valid: bool [C, K]; False where a class had fewer than K pixels.
        scale: of the cosines.

    Returns:
        float32 scalar; 0 when nothing is valid.
    """
    if embedding.device.type == "cpu":
        # A thousand pixels are all overhead of calls: the operator takes 1.6 times as long as autograd over these.
        cosine = F.normalize(embedding.float(), dim=-1) @ F.normalize(proxies.float(), dim=1).T
        pixel = F.cross_entropy((scale * cosine).flatten(0, 1), label.flatten(), reduction="none").view_as(label)
        counts = valid.sum(1)
        per_class = (pixel * valid).sum(1) / counts.clamp(min=1)
        return per_class.sum() / (counts > 0).sum().clamp(min=1)
    pixels = embedding.permute(2, 0, 1)[None]  # the samples as one picture of C x K pixels, without a copy
    result = proxy_similarity(
        pixels, proxies, label[None], kappa=None, scale=scale, weight=valid[None], ignore_id=-1, with_nearest=False
    )
    assert result.loss is not None
    return result.loss


def _check(
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    *,
    kappa: float | None,
    scale: float | None,
    ignore_id: int,
) -> None:
    """Raise UsageError for what the operator cannot take; reads no values."""
    pixels = (embedding.shape[0], *embedding.shape[2:])
    if embedding.ndim != 4 or proxies.ndim != 2 or embedding.shape[1] != proxies.shape[1] or proxies.shape[0] < 1:
        problem = "expected embedding [B, D, h, w] and proxies [C, D] of the same D, with C >= 1"
    elif label.shape != pixels or (weight is not None and weight.shape != pixels):
        problem = f"expected label and weight [B, h, w] = {tuple(pixels)}, the embedding's size"
    elif embedding.dtype not in _FLOATS or proxies.dtype not in _FLOATS:
        problem = "expected a floating embedding and floating proxies"
    elif label.dtype not in (torch.int64, torch.uint8):
        problem = "expected a label of int64 or uint8"
    elif weight is not None and weight.dtype not in (*_FLOATS, torch.bool):
        problem = "expected a floating or bool weight"
    elif any(t.device != embedding.device for t in (proxies, label, weight) if t is not None):
        problem = "expected all tensors on one device"
    elif weight is not None and weight.requires_grad:
        problem = "no gradient flows into the weight: pass weight.detach()"
    elif not all(value is None or 0 < value < float("inf") for value in (kappa, scale)):
        problem = f"kappa is {kappa} and scale {scale}, expected finite and above 0, or None to leave that part out"
    elif 0 <= ignore_id < proxies.shape[0]:
        problem = f"ignore_id {ignore_id} is one of the classes 0..{proxies.shape[0] - 1}: name another, -1 for none"
    else:
        return
    tensors = {"embedding": embedding, "proxies": proxies, "label": label, "weight": weight}
    got = [f"{n} {t.dtype} {tuple(t.shape)} on {t.device}" for n, t in tensors.items() if t is not None]
    raise UsageError(f"{problem}; got {'; '.join(got)}")


# --- the operator: schema, implementations, fake, autograd -----------------------------------------------------------


@torch.library.custom_op(
    "edge_sfda::proxy_similarity",
    mutates_args=(),
    schema="(Tensor embedding, Tensor proxies, Tensor label, Tensor? weight, float? kappa, float? scale, "
    "int ignore_id, bool with_nearest, bool with_cosine, str? backend) -> (Tensor loss, Tensor reliability, "
    "Tensor nearest, Tensor sums, Tensor counts, Tensor cosine, Tensor lse, Tensor mass)",
)
def _forward(
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    kappa: float | None,
    scale: float | None,
    ignore_id: int,
    with_nearest: bool,
    with_cosine: bool,
    backend: str | None,
) -> Outputs:
    """Return also what backward needs: lse [B, h, w], log-sum-exp of scale * cosines, and mass [C], the W_c."""
    tensors = embedding, proxies, label, weight

    def plain() -> Outputs:
        with torch.autocast(embedding.device.type, enabled=False):  # lengths and softmaxes stay in float32
            return reference_forward(*tensors, kappa, scale, with_nearest, with_cosine)

    check_labels(label, len(proxies), ignore_id)
    return dispatch(
        _backend(backend, embedding, proxies),
        embedding.device,
        fused=lambda launcher: fused.forward(launcher, *tensors, kappa, scale, with_nearest, with_cosine),
        plain=plain,
    )


def _backend(backend: str | None, embedding: Tensor, proxies: Tensor) -> str:
    """Return the backend to dispatch to: "torch" for "auto" where the kernels can't take these tensors."""
    name = requested_backend(backend)
    problem = None if name == "torch" else fused.unfit(embedding, proxies)
    if problem is not None and name != "auto":
        raise UsageError(f"backend {name!r} cannot run this: {problem}; use 'auto'")
    return name if problem is None else "torch"


@_forward.register_fake
def _(
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    kappa: float | None,
    scale: float | None,
    ignore_id: int,
    with_nearest: bool,
    with_cosine: bool,
    backend: str | None,
) -> Outputs:
    return empty_outputs(embedding, proxies, kappa is not None, scale is not None, with_nearest, with_cosine)


@torch.library.custom_op(
    "edge_sfda::proxy_similarity_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor embedding, Tensor proxies, Tensor label, Tensor? weight, Tensor lse, Tensor mass, "
    "float scale, str? backend) -> (Tensor grad_embedding, Tensor grad_proxies)",
)
def _backward(
    grad: Tensor,
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    scale: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    tensors = grad, embedding, proxies, label, weight, lse, mass

    def plain() -> tuple[Tensor, Tensor]:
        with torch.autocast(embedding.device.type, enabled=False):
            return reference_backward(*tensors, scale)

    return dispatch(
        _backend(backend, embedding, proxies),
        embedding.device,
        fused=lambda launcher: fused.backward(launcher, *tensors, scale),
        plain=plain,
    )


@_backward.register_fake
def _(
    grad: Tensor,
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    scale: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(embedding), torch.empty_like(proxies)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    embedding, proxies, label, weight, _, scale, *_, backend = inputs
    _, *others, lse, mass = output
    ctx.mark_non_differentiable(*others, lse, mass)
    ctx.save_for_backward(embedding, proxies, label, weight, lse, mass)
    ctx.scale, ctx.backend = scale, backend


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.scale is None:  # nothing that was asked for has a gradient
        return (None,) * 10
    grads = torch.ops.edge_sfda.proxy_similarity_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.backend)
    return (*grads, *(None,) * 8)


_forward.register_autograd(_differentiate, setup_context=_setup_context)
