"""Proxy similarity: the operator against eager and compiled torch, at stride 8; time and peak memory.

    python benchmarks/bench_proxy_similarity.py [--device cpu] [--rounds 60] [--dtype float32]

Two passes: `score`, the reliability of all pixels without a gradient, as each adaptation step needs it; and `train`,
all results, then the gradients of the loss to embeddings and proxies. On a GPU the operator is its CUDA kernels, on a
CPU plain torch with its gradient written out. Checked first: against float64 no alternative errs more than twice as
much as eager torch.

On a GPU a row of the operator also says how long the bytes that must move take at the measured copy bandwidth.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import measure
import rows
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.ops.proxy_similarity import proxy_similarity, reliability

KAPPA, SCALE, IGNORE = 10.0, 18.0, 255
CHANNELS, STRIDE = 64, 8
PICTURES = ((2, 360, 480, 11), (1, 360, 480, 11), (1, 512, 1024, 19), (1, 1024, 2048, 19))  # B, H, W, C


@dataclass(frozen=True)
class Inputs:
    embedding: Tensor  # [B, D, h, w], channels last, as the metric network makes them
    proxies: Tensor  # [C, D]
    teacher: Tensor  # int64 [B, h, w], a class for every pixel
    label: Tensor  # the same with ignored pixels
    weight: Tensor  # float32 [B, h, w]


Results = tuple[Tensor, ...]
Alternative = Callable[[Inputs], Results]


def make_inputs(picture: tuple[int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> Inputs:
    frames, height, width, classes = picture
    rng = torch.Generator().manual_seed(0)
    size = (frames, height // STRIDE, width // STRIDE)
    label = torch.randint(classes, size, generator=rng)
    proxies = torch.randn(classes, CHANNELS, generator=rng)
    embedding = proxies[label] + 3 * torch.randn(*size, CHANNELS, generator=rng)
    masked = torch.where(torch.rand(size, generator=rng) < 0.05, IGNORE, label)
    weight = torch.rand(size, generator=rng)
    rest = (t.to(device) for t in (proxies, label, masked, weight))
    return Inputs(embedding.to(device, dtype).permute(0, 3, 1, 2), *rest)


def cosines(embedding: Tensor, proxies: Tensor) -> Tensor:
    precision = torch.float64 if embedding.dtype == torch.float64 else torch.float32
    unit = F.normalize(embedding.to(precision), dim=1)
    return torch.einsum("bdhw,cd->bchw", unit, F.normalize(proxies.to(precision), dim=1))


def plain_scores(embedding: Tensor, proxies: Tensor, label: Tensor) -> Tensor:
    return (KAPPA * cosines(embedding, proxies)).softmax(1).gather(1, label[:, None])[:, 0]


def plain_all(embedding: Tensor, proxies: Tensor, label: Tensor, weight: Tensor) -> Results:
    """Return loss, reliability, sums and counts of each class, nearest proxy."""
    cosine = cosines(embedding, proxies)
    valid = label != IGNORE
    target = torch.where(valid, label, 0)
    r = (KAPPA * cosine.detach()).softmax(1).gather(1, target[:, None])[:, 0] * valid
    flat, zeros = target.flatten(), cosine.new_zeros(len(proxies))
    sums, counts = zeros.index_add(0, flat, r.flatten()), zeros.index_add(0, flat, valid.flatten().to(r.dtype))
    entropy = F.cross_entropy(SCALE * cosine, label, ignore_index=IGNORE, reduction="none")
    w = (weight * valid).to(r.dtype)
    mass, total = zeros.index_add(0, flat, w.flatten()), zeros.index_add(0, flat, (w * entropy).flatten())
    loss = (total / mass.clamp(min=1e-12)).sum() / (mass > 0).sum().clamp(min=1)
    return loss, r, sums, counts, cosine.detach().argmax(1)


def operator_scores(embedding: Tensor, proxies: Tensor, label: Tensor) -> Tensor:
    return reliability(embedding, proxies, label, kappa=KAPPA)


def operator_all(embedding: Tensor, proxies: Tensor, label: Tensor, weight: Tensor) -> Results:
    found = proxy_similarity(embedding, proxies, label, kappa=KAPPA, scale=SCALE, weight=weight)
    results = found.loss, found.reliability, found.sums, found.counts, found.nearest
    return tuple(t for t in results if t is not None)


def score_with(call: Callable[..., Tensor]) -> Alternative:
    def score(inputs: Inputs) -> Results:
        with torch.no_grad():
            return (call(inputs.embedding, inputs.proxies, inputs.teacher),)

    return score


def train_with(call: Callable[..., Results]) -> Alternative:
    def train(inputs: Inputs) -> Results:
        embedding, proxies = inputs.embedding.detach().requires_grad_(), inputs.proxies.detach().requires_grad_()
        loss, r, sums, *_ = call(embedding, proxies, inputs.label, inputs.weight)
        loss.backward()
        assert embedding.grad is not None
        assert proxies.grad is not None
        return loss.detach(), r, sums, embedding.grad, proxies.grad

    return train


def check(alternatives: dict[str, Alternative], inputs: Inputs) -> None:
    """Stop where an alternative errs more than twice as much as eager torch, by the root mean square."""
    double = inputs.embedding.double(), inputs.proxies.double(), inputs.teacher, inputs.label, inputs.weight.double()
    exact = alternatives["eager"](Inputs(*double))
    usual = alternatives["eager"](inputs)
    for name, alternative in alternatives.items():
        for i, (got, want, plain_) in enumerate(zip(alternative(inputs), exact, usual, strict=True)):
            # beyond one rounding of what it is made of, for the loss logits of up to 18: one number may err by luck
            largest = want.abs().max().clamp(min=SCALE if want.ndim == 0 else 0)
            error, usual_error = ((t - want).square().mean().sqrt() for t in (got, plain_))
            allowed = 2 * usual_error + (torch.finfo(got.dtype).eps * largest if want.ndim == 0 else 0)
            assert error <= allowed, f"{name}, result {i}: error {error} above {allowed}"


def ceiling(inputs: Inputs, device: torch.device, *, backward: bool) -> dict[str, float]:
    """Return the time that a GPU needs to move what must be moved; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    embedding, pixels = inputs.embedding.numel() * inputs.embedding.element_size(), inputs.label.numel()
    # score: label in, reliability out; train also nearest, lse and weight, and label, lse and weight once more
    moved = embedding + pixels * (8 + 4) + backward * (2 * embedding + pixels * (8 + 4 + 4 + 8 + 4 + 4))
    return {"memory_ms": round(moved / measure.copy_bandwidth(device) * 1e3, 5)}


def compare(picture: tuple[int, int, int, int], options: argparse.Namespace) -> list[dict[str, Any]]:
    inputs = make_inputs(picture, dtype=getattr(torch, options.dtype), device=torch.device(options.device))
    compiled_scores, compiled_all = (torch.compile(f, dynamic=False) for f in (plain_scores, plain_all))
    passes = {
        "score": [score_with(f) for f in (plain_scores, compiled_scores, operator_scores)],
        "train": [train_with(f) for f in (plain_all, compiled_all, operator_all)],
    }
    return [
        row
        for name, calls in passes.items()
        for row in compare_pass(name, dict(zip(("eager", "compiled", "operator"), calls, strict=True)), inputs, options)
    ]


def compare_pass(
    name: str, alternatives: dict[str, Alternative], inputs: Inputs, options: argparse.Namespace
) -> list[dict[str, Any]]:
    device = inputs.embedding.device
    check(alternatives, inputs)
    calls = {what: (lambda call=call: call(inputs)) for what, call in alternatives.items()}
    times = measure.take_turns(calls, device=device, rounds=options.rounds)
    peaks = {what: measure.peak_bytes(call, device) for what, call in calls.items()}
    found = []
    for what, timing in times.items():
        row = {
            "pass": name,
            "what": what,
            "backend": "cuda kernels" if device.type == "cuda" and what == "operator" else "torch",
            "grid": "x".join(map(str, inputs.label.shape)),
            "classes": len(inputs.proxies),
            "channels": CHANNELS,
            "dtype": options.dtype,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            **asdict(timing),
            "of_eager": round(timing.median_ms / times["eager"].median_ms, 3),
            "cpu_of_eager": round(timing.cpu_ms / times["eager"].cpu_ms, 3),
            "peak_mib": round(peaks[what] / 2**20, 3),
            "peak_of_eager": round(peaks[what] / peaks["eager"], 3),
        }
        if what == "operator":
            row |= ceiling(inputs, device, backward=name == "train")
        found.append(row)
        print(
            f"{row['grid']:>9} C={row['classes']:<3} {name:5} {what:8} {timing.median_ms:8.3f} ms "
            f"({timing.p20_ms:.3f} to {timing.p80_ms:.3f}), {row['of_eager']:.2f} of eager; "
            f"CPU {timing.cpu_ms:.3f} ms, {row['cpu_of_eager']:.2f}; "
            f"peak {row['peak_mib']:.2f} MiB, {row['peak_of_eager']:.2f}",
            flush=True,
        )
    return found


def main() -> None:
    options = measure.options(__doc__, rounds=60)
    results = [row for picture in PICTURES for row in compare(picture, options)]
    print(rows.write(f"proxy_similarity_{options.device}", results))


if __name__ == "__main__":
    main()
