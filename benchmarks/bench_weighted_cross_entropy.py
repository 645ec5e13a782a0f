"""The weighted loss, forward and backward: the operator against eager, compiled and chunked torch; time and memory.

    python benchmarks/bench_weighted_cross_entropy.py [--device cpu] [--rounds 15] [--dtype float32]

One frame, the weight at the logits' size, three pictures; and labels at the logits' size, as adaptation has them on a
CPU. `chunked` upsamples everything and then turns chunks of rows into loss and gradient in place (as Liger does for a
language model's logits). On a GPU the operator is its CUDA kernels, on a CPU rows of torch. Checked first: against
float64 the operator errs at most twice as much as eager torch, and the others are the same function.

On a GPU a row also says what share of its ceiling the operator reaches. The ceiling is the longer of two times: bytes
that must move at the measured copy bandwidth, and instructions at 128 lanes a clock and multiprocessor, as many as the
head of cuda_kernels/weighted_cross_entropy.cu counts (the exponentials alone would take half of that).
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

from edge_sfda.ops.weighted_cross_entropy import weighted_cross_entropy
from edge_sfda.ops.weighted_cross_entropy_reference import weighted_cross_entropy_reference

IGNORE = 255
CHUNK_ROWS = 16
INSTRUCTIONS = 30  # per pixel and class, counted in the sweep's machine code; see the kernel's head


@dataclass(frozen=True)
class Picture:
    height: int
    width: int
    classes: int
    stride: int
    frames: int = 1

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width} C={self.classes} stride {self.stride}"


PICTURES = (
    Picture(360, 480, 11, 4),
    Picture(512, 1024, 19, 8),
    Picture(1024, 2048, 19, 8),
    Picture(90, 120, 11, 1, frames=4),
)


@dataclass(frozen=True)
class Inputs:
    logits: Tensor  # [B, C, h, w]
    label: Tensor  # int64 [B, H, W]
    weight: Tensor  # float32 [B, h, w]


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_inputs(picture: Picture, *, dtype: torch.dtype, device: torch.device) -> Inputs:
    rng = torch.Generator().manual_seed(0)
    h, w = picture.height // picture.stride, picture.width // picture.stride
    label = torch.randint(picture.classes, (picture.frames, picture.height, picture.width), generator=rng)
    label[torch.rand(label.shape, generator=rng) < 0.05] = IGNORE
    logits = 3 * torch.randn(picture.frames, picture.classes, h, w, generator=rng)
    weight = torch.rand(picture.frames, h, w, generator=rng)
    return Inputs(logits.to(device, dtype), label.to(device), weight.to(device))


def eager(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Torch as a user writes it: half logits become float32 before the softmax."""
    precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return weighted_cross_entropy_reference(logits.to(precision), label, weight.to(precision))


class Chunked(torch.autograd.Function):
    """Full-size logits once, and their gradient in the same memory, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        size = label.shape[-2:]
        full = logits.to(precision)
        full = (
            F.interpolate(full, size=size, mode="bilinear", align_corners=False)
            if full.shape[-2:] != size
            else full.clone()
        )
        factor = F.interpolate(weight.to(precision)[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        ignored = label == IGNORE
        factor = factor.masked_fill(ignored, 0) / (~ignored).sum().clamp(min=1)
        target = label.masked_fill(ignored, 0)[:, None]
        loss = full.new_zeros(())
        for start in range(0, size[0], CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            log_probs = full[:, :, part].log_softmax(1)
            loss -= (log_probs.gather(1, target[:, :, part])[:, 0] * factor[:, part]).sum()
            gradient = log_probs.exp_().mul_(factor[:, None, part])
            full[:, :, part] = gradient.scatter_add_(1, target[:, :, part], -factor[:, None, part])
        ctx.shape, ctx.dtype, ctx.size = logits.shape, logits.dtype, size
        ctx.save_for_backward(full)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (full,) = ctx.saved_tensors
        full.mul_(grad_loss)
        if ctx.shape[-2:] != ctx.size:
            full = torch.ops.aten.upsample_bilinear2d_backward(full, ctx.size, ctx.shape, False)
        return full.to(ctx.dtype), None, None


def step(loss: Loss, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Return loss and gradient."""
    logits = inputs.logits.detach().requires_grad_()
    value = loss(logits, inputs.label, inputs.weight)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


def check(alternatives: dict[str, Loss], inputs: Inputs) -> None:
    """Stop where the operator errs more than twice as much as eager torch beyond one rounding, another ten times."""
    exact = step(eager, Inputs(inputs.logits.double(), inputs.label, inputs.weight.double()))
    usual = step(eager, inputs)
    for name, loss in alternatives.items():
        for got, want, plain in zip(step(loss, inputs), exact, usual, strict=True):
            rounding = torch.finfo(got.dtype).eps * want.abs().max()
            factor = 2 if name == "operator" else 10
            error, allowed = (got - want).abs().max(), factor * ((plain - want).abs().max() + rounding)
            assert error <= allowed, f"{name}: error {error} above {allowed}"


def ceiling(inputs: Inputs, device: torch.device, took_ms: float) -> dict[str, float]:
    """Return the two times that bound a GPU, and the share of the longer one that was reached; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    low = inputs.logits.numel()
    # logits in and gradient out; partial gradients out and in, about 1.6 floats a logit; label and weight in
    moved = (
        low * (2 * inputs.logits.element_size() + 2 * 4 * 1.6) + inputs.label.numel() * 8 + inputs.weight.numel() * 4
    )
    memory_ms = moved / measure.copy_bandwidth(device) * 1e3
    properties = torch.cuda.get_device_properties(device)
    issued = INSTRUCTIONS * inputs.label.numel() * inputs.logits.shape[1]
    clock_hz = properties.clock_rate * 1e3
    arithmetic_ms = issued / (128 * properties.multi_processor_count * clock_hz) * 1e3
    reached = max(memory_ms, arithmetic_ms) / took_ms
    return {
        "memory_ms": round(memory_ms, 5),
        "arithmetic_ms": round(arithmetic_ms, 5),
        "of_ceiling": round(reached, 3),
    }


def compare(picture: Picture, options: argparse.Namespace) -> list[dict[str, Any]]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    inputs = make_inputs(picture, dtype=dtype, device=device)
    alternatives: dict[str, Loss] = {
        "eager": eager,
        "compiled": torch.compile(eager, dynamic=False),
        "chunked": Chunked.apply,
        "operator": lambda *tensors: weighted_cross_entropy(*tensors, ignore_id=IGNORE),
    }
    check(alternatives, inputs)
    calls = {name: (lambda loss=loss: step(loss, inputs)) for name, loss in alternatives.items()}
    times = measure.take_turns(calls, device=device, rounds=options.rounds)
    peaks = {name: measure.peak_bytes(call, device) for name, call in calls.items()}
    found = []
    for name, timing in times.items():
        row = {
            "picture": str(picture),
            "what": name,
            "backend": "cuda kernels" if device.type == "cuda" and name == "operator" else "torch",
            "dtype": options.dtype,
            "rounds": options.rounds,
            "threads": torch.get_num_threads(),
            **asdict(timing),
            "of_eager": round(timing.median_ms / times["eager"].median_ms, 3),
            "cpu_of_eager": round(timing.cpu_ms / times["eager"].cpu_ms, 3),
            "peak_mib": round(peaks[name] / 2**20, 3),
            "peak_of_eager": round(peaks[name] / peaks["eager"], 3),
        }
        if name == "operator":
            row |= ceiling(inputs, device, timing.median_ms)
        found.append(row)
        print(
            f"{row['picture']:28} {name:9} {timing.median_ms:9.3f} ms ({timing.p20_ms:.3f} to {timing.p80_ms:.3f}), "
            f"{row['of_eager']:.2f} of eager; CPU {timing.cpu_ms:.3f} ms, {row['cpu_of_eager']:.2f}; peak "
            f"{row['peak_mib']:.2f} MiB, {row['peak_of_eager']:.3f}",
            flush=True,
        )
    return found


def main() -> None:
    options = measure.options(__doc__, rounds=15)
    results = [row for picture in PICTURES for row in compare(picture, options)]
    print(rows.write(f"weighted_cross_entropy_{options.device}", results))


if __name__ == "__main__":
    main()
