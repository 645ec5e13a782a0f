"""Proxy similarity in plain torch: what the kernels are held against, and the implementation on a CPU.

Formulas and the treatment of odd values stand in `ops.proxy_similarity`, arguments and results in its schema.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edge_sfda.errors import UsageError

EPS = 1e-12  # that of F.normalize; shorter vectors have no direction

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def empty_outputs(
    embedding: Tensor, proxies: Tensor, scored: bool, trained: bool, with_nearest: bool, with_cosine: bool
) -> Outputs:
    """Allocate the outputs; those that nobody asked for are empty."""
    batch, _, h, w = embedding.shape
    classes = proxies.shape[0]
    pixels, none = (batch, h, w), (0,)
    dtype = _accumulator(embedding)
    return (
        embedding.new_empty((), dtype=dtype),
        embedding.new_empty(pixels if scored else none, dtype=dtype),
        embedding.new_empty(pixels if with_nearest else none, dtype=torch.int64),
        embedding.new_empty((classes,) if scored else none, dtype=dtype),
        embedding.new_empty((classes,) if scored else none, dtype=torch.int64),
        # class by class, as both the kernel and the matrix product write it
        embedding.new_empty((classes, *pixels) if with_cosine else (0, *pixels), dtype=dtype).transpose(0, 1),
        embedding.new_empty(pixels if trained else none, dtype=dtype),
        embedding.new_empty((classes,) if trained else none, dtype=dtype),
    )


def reference_forward(
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    kappa: float | None,
    scale: float | None,
    with_nearest: bool,
    with_cosine: bool,
) -> Outputs:
    """Compute the operator in plain torch; arguments and results as in the schema."""
    classes, pixels, dtype = len(proxies), label.shape, _accumulator(embedding)
    target, valid = _target(label, classes)
    similarity = _similarity(embedding, proxies)
    loss = similarity.new_zeros(())
    nearest = similarity.max(0).indices.view(pixels) if with_nearest else target.new_empty(0)
    cosine = similarity.view(classes, *pixels) if with_cosine else similarity.new_empty((0, *pixels))
    reliability, sums, lse, mass = (similarity.new_empty(0) for _ in range(4))
    counts = target.new_empty(0)
    if kappa is not None:
        r = _of_label((kappa * similarity).softmax(0), target).masked_fill_(~valid, 0)
        reliability, sums = r.view(pixels), _per_class(r, target, classes)
        counts = torch.zeros_like(sums, dtype=torch.int64).index_add_(0, target, valid.long())
    if scale is not None:
        logits = scale * similarity
        log_prob = _of_label(logits.log_softmax(0), target)
        lse = (_of_label(logits, target) - log_prob).view(pixels)
        w = _weight(weight, valid, dtype)
        mass = _per_class(w, target, classes)
        totals = _per_class(-w * log_prob.masked_fill_(w == 0, 0), target, classes)
        loss = torch.where(mass != 0, totals / mass, 0).sum() / _present(mass)
    return loss, reliability, nearest, sums, counts, cosine.transpose(0, 1), lse, mass


def reference_reliability(embedding: Tensor, proxies: Tensor, label: Tensor, kappa: float) -> Tensor:
    """Return the reliability alone, [B, h, w]; every label must be a class."""
    probs = (kappa * _similarity(embedding, proxies)).softmax(0)
    return _of_label(probs, label.flatten()).view(label.shape)


def reference_backward(
    grad: Tensor,
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Compute the gradient of the loss in plain torch; arguments and results as in the schema.

    ds_ic = grad * scale * w_i / (W_{y_i} * present classes) * (softmax(scale * s_i)_c - [c = y_i])
    de_i = (sum_c ds_ic p_c - z_i sum_c ds_ic s_ic) / |e_i|, and the same for proxies over i
    """
    dtype = _accumulator(embedding)
    target, valid = _target(label, len(proxies))
    w = _weight(weight, valid, dtype)
    share = (grad * scale / (mass * _present(mass)))[target].mul_(w).masked_fill_(w == 0, 0)
    rows = _rows(embedding, dtype)
    length = _length(rows)
    if rows.is_cuda or not bool(length.isfinite().all()):  # NaN times a share of 0 would be NaN; on a GPU, don't wait
        active = (share != 0)[:, None]
        rows, length = torch.where(active, rows, 0), torch.where(active, length, torch.inf)
    proxy_length = _length(proxies.to(dtype))
    p = proxies.to(dtype) / proxy_length
    similarity = (p @ rows.T).div_(length.T)
    ds = (scale * similarity).sub_(lse.flatten()).exp_()
    ds.scatter_add_(0, target[None], ds.new_full((1, 1), -1.0).expand(1, len(target)))
    ds = ds.mul_(share).masked_fill_(share == 0, 0).div_(length.T)  # by |e_i| here: C is smaller than D
    of_proxies = ds @ rows
    of_proxies.sub_(p * (of_proxies * p).sum(1, keepdim=True)).div_(proxy_length)
    radial = ((ds * similarity).sum(0) / length[:, 0]).view(*label.shape, 1)
    grad_embedding = torch.empty_like(embedding)
    size = (*label.shape, embedding.shape[1])
    out = grad_embedding.movedim(1, -1)
    torch.addcmul((ds.T @ p).view(size), rows.view(size), radial, value=-1, out=out)
    return grad_embedding, of_proxies.to(proxies.dtype)


def _accumulator(embedding: Tensor) -> torch.dtype:
    return torch.float64 if embedding.dtype == torch.float64 else torch.float32


def _similarity(embedding: Tensor, proxies: Tensor) -> Tensor:
    """Return cosines [C, N]; softmax is four times faster over the first dimension than over a short last one.

    The products are divided by the embeddings' lengths, not the embeddings: C numbers a pixel are fewer than D.
    """
    dtype = _accumulator(embedding)
    rows, p = _rows(embedding, dtype), proxies.to(dtype)
    return ((p / _length(p)) @ rows.T).div_(_length(rows).T)


def _of_label(values: Tensor, target: Tensor) -> Tensor:
    """Return values [C, N] at the class of each pixel, [N]."""
    return values.gather(0, target[None])[0]


def _rows(embedding: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [B * h * w, D]; a view of an embedding in channels-last order."""
    return embedding.movedim(1, -1).reshape(-1, embedding.shape[1]).to(dtype)


def _length(vectors: Tensor) -> Tensor:
    """Return the lengths [N, 1] of [N, D]; infinite without direction, so that what is divided by them vanishes."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return length.masked_fill_(length <= EPS, torch.inf)


def _target(label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the class of each pixel, int64 [B * h * w], any where it is ignored, and bool: where it is not."""
    flat = label.flatten().long()
    target = flat.clamp(0, classes - 1)
    return target, target == flat


def _weight(weight: Tensor | None, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of each pixel, [B * h * w], 0 where it is ignored."""
    return valid.to(dtype) if weight is None else weight.flatten().to(dtype).masked_fill(~valid, 0)


def _per_class(value: Tensor, target: Tensor, classes: int) -> Tensor:
    """Return the sum of value [N] over the pixels of each class, [C], summed in float64."""
    total = torch.zeros(classes, dtype=torch.float64, device=value.device)
    return total.index_add_(0, target, value.double()).to(value.dtype)


def _present(mass: Tensor) -> Tensor:
    """Return the number of classes that have weight, at least 1."""
    return (mass != 0).sum().clamp(min=1)


def check_labels(label: Tensor, classes: int, ignore_id: int) -> None:
    """Raise UsageError for a label that is neither a class nor `ignore_id`.

    Only on a CPU: on a GPU the step would wait for it, so there such pixels are simply ignored.
    """
    if label.device.type != "cpu" or label.numel() == 0:
        return
    low, high = map(int, label.aminmax())
    if low >= 0 and high < classes:
        return
    flat = label.flatten()
    odd = flat[((flat < 0) | (flat >= classes)) & (flat != ignore_id)]
    if odd.numel() > 0:
        raise UsageError(
            f"label {tuple(label.shape)} holds {int(odd[0])}, expected 0..{classes - 1} for {classes} proxies, or "
            f"ignore_id {ignore_id}: remap it, or name another ignore_id"
        )
