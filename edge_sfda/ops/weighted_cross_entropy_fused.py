"""Launches of the weighted cross-entropy kernels: sizes, grids and arguments, worked out once for every launcher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_sfda.errors import KernelError
from edge_sfda.ops.launch import SCALARS, Kernel, Launch, Launcher, arguments, launch_all
from edge_sfda.ops.weighted_cross_entropy_rows import LossInputs

# As in cuda_kernels/weighted_cross_entropy.cu.
RUN = 8  # rows per thread, at most
COLUMNS = 32
BATCH = 8
PITCH = COLUMNS + 1
MAX_SIDE = 16384  # keeps the kernels' pixel arithmetic in 32 bits
MAX_FRAMES = 65535
MAX_PLANE_BYTES = 2**32 - 1
THREADS = 256

GEOMETRY = np.dtype(
    [
        ("logits_stride", np.int64, 4),
        ("grad_stride", np.int64, 4),
        ("label_stride", np.int64, 3),
        ("weight_stride", np.int64, 3),
        ("ignore_id", np.int64),
        ("sizes", np.int32, 7),  # C, h, w, H, W, weight_h, weight_w
        ("label_bytes", np.int32),
        ("intervals", np.int32),
        ("runs", np.int32),
        ("run", np.int32),
        ("nodes", np.int32),
    ],
    align=True,
)


@dataclass(frozen=True)
class Tiling:
    """How the sweep cuts a label's pixels into tiles of one block each."""

    slots: int  # warps of a block; each takes a run of rows in all the tile's columns
    run: int  # rows of a run, at most RUN
    runs: int  # in an interval between two rows of logits
    intervals: int  # in a tile
    nodes: int  # columns of logits that a tile may touch
    tiles_y: int
    tiles_x: int

    @staticmethod
    def of(logits: Sequence[int], label: Sequence[int]) -> Tiling:
        """Return the tiling for logits [B, C, h, w] and label [B, H, W].

        A tile has about 1000 pixels: enough blocks for every multiprocessor, and few nodes that two tiles share.
        """
        (_, _, h, w), (_, height, width) = logits, label
        rows = -(-height // h)  # of an interval, at most
        runs = -(-rows // RUN)
        slots = 8 if rows <= RUN // 2 and width >= 2 * w else 4  # the kernel knows these two; more would not fit
        intervals = min(max(slots // runs, 1), h + 1)
        return Tiling(
            slots=slots,
            run=-(-rows // runs),
            runs=runs,
            intervals=intervals,
            # the interval of a pixel moves on by at most floor(31 * w / W) + 1 along a tile, and each has two nodes
            nodes=(COLUMNS - 1) * w // width + 3,
            tiles_y=-(-(h + 1) // intervals),
            tiles_x=-(-width // COLUMNS),
        )


def partial_elements(logits: Sequence[int], label: Sequence[int]) -> int:
    """Return the number of floats in all tiles' partial gradients, no fewer than the logits; 0 without pixels."""
    if 0 in label or 0 in logits:
        return 0
    t = Tiling.of(logits, label)
    return logits[0] * logits[1] * t.tiles_y * t.tiles_x * (t.intervals + 1) * t.nodes


def kernel(name: str, dtype: torch.dtype) -> Kernel:
    """Return the kernel `weighted_cross_entropy_<name>` for logits of a type in `launch.SCALARS`."""
    return Kernel("weighted_cross_entropy.cu", f"weighted_cross_entropy_{name}", (("SCALAR", SCALARS[dtype]),))


def forward(launcher: Launcher, inputs: LossInputs, kept: Tensor) -> Tensor:
    """Return the loss, and fill `kept` (unless it is empty) with the scale and what `backward` needs.

    Raises:
        KernelError: sizes beyond what the kernels index, or a launch that fails.
    """
    device, with_gradient = inputs.logits.device, kept.numel() > 0
    grid = _grid(inputs)
    blocks = grid[0] * grid[1] * grid[2]
    losses = torch.empty(blocks, device=device)
    counts = torch.empty(2 * blocks, device=device, dtype=torch.int32)
    results = torch.empty(2, device=device)  # loss, scale
    scale = kept[:1] if with_gradient else results[1:]
    common = (inputs.logits, inputs.label, inputs.weight, inputs.class_weight, losses, counts)
    dtype = inputs.logits.dtype
    if inputs.same_size:
        state = kept[1:].view(2, -1) if with_gradient else (None, None)
        args = arguments(*common, state[0], state[1], _geometry(inputs))
        sweep = Launch(kernel("same_size", dtype), grid, (THREADS, 1, 1), 0, args)
    else:
        tiling = Tiling.of(inputs.logits.shape, inputs.label.shape)
        args = arguments(*common, kept[1:] if with_gradient else None, _geometry(inputs))
        floats = BATCH * tiling.slots * (2 * PITCH + 4 * (tiling.nodes - 1)) + COLUMNS + tiling.nodes
        sweep = Launch(kernel("sweep", dtype), grid, (COLUMNS, tiling.slots, 1), 4 * floats, args)
    finish = arguments(losses, counts, results, scale, np.int64(blocks))
    launch_all(launcher, (sweep, Launch(kernel("finish", dtype), (1, 1, 1), (THREADS, 1, 1), 0, finish)), device)
    return results[0].clone()


def backward(launcher: Launcher, inputs: LossInputs, kept: Tensor, grad_loss: Tensor, grad: Tensor) -> Tensor:
    """Fill `grad`, [B, C, h, w] in the logits' type and any layout, and return it.

    Raises:
        KernelError: as `forward`.
    """
    scale, upstream = kept[:1], grad_loss.to(torch.float32)
    geometry, dtype = _geometry(inputs, grad), inputs.logits.dtype
    if inputs.same_size:
        state = kept[1:].view(2, -1)
        common = (inputs.logits, inputs.label, inputs.weight, inputs.class_weight)
        args = arguments(*common, state[0], state[1], scale, upstream, grad, geometry)
        launch = Launch(kernel("same_size_backward", dtype), _grid(inputs), (THREADS, 1, 1), 0, args)
    else:
        tiling = Tiling.of(inputs.logits.shape, inputs.label.shape)
        tiles = np.int32(tiling.tiles_y), np.int32(tiling.tiles_x)
        args = arguments(kept[1:], scale, upstream, grad, *tiles, geometry)
        frames, classes, h, w = inputs.logits.shape
        launch = Launch(kernel("gather", dtype), (-(-h * w // THREADS), classes, frames), (THREADS, 1, 1), 0, args)
    launch_all(launcher, (launch,), inputs.logits.device)
    return grad


def _grid(inputs: LossInputs) -> tuple[int, int, int]:
    """Return the forward sweep's grid.

    Raises:
        KernelError: a side or the number of frames is beyond what the kernels index.
    """
    frames, height, width = inputs.label.shape
    _, _, down, right = inputs.logits.stride()
    h, w = inputs.logits.shape[-2:]
    plane_bytes = ((h - 1) * down + (w - 1) * right + 1) * inputs.logits.element_size()
    if max(height, width) > MAX_SIDE or frames > MAX_FRAMES or plane_bytes > MAX_PLANE_BYTES:
        raise KernelError(
            f"weighted_cross_entropy: label {[frames, height, width]}, logits of strides {inputs.logits.stride()} are "
            f"beyond what the kernels index, {MAX_FRAMES} frames of side {MAX_SIDE}, {MAX_PLANE_BYTES} bytes from one "
            "class's first logit to its last: use backend='torch'"
        )
    if inputs.same_size:
        return -(-width // THREADS), height, frames
    tiling = Tiling.of(inputs.logits.shape, inputs.label.shape)
    return tiling.tiles_x, tiling.tiles_y, frames


def _geometry(inputs: LossInputs, grad: Tensor | None = None) -> np.void:
    tiling = Tiling.of(inputs.logits.shape, inputs.label.shape)
    _, classes, h, w = inputs.logits.shape
    value: np.void = np.zeros(1, GEOMETRY)[0]
    value["logits_stride"] = inputs.logits.stride()
    value["grad_stride"] = (0, 0, 0, 0) if grad is None else grad.stride()
    value["label_stride"] = inputs.label.stride()
    value["weight_stride"] = inputs.weight.stride()
    value["ignore_id"] = inputs.ignore_id
    value["sizes"] = (classes, h, w, *inputs.label.shape[1:], *inputs.weight.shape[1:])
    value["label_bytes"] = inputs.label.element_size()
    for name in ("intervals", "runs", "run", "nodes"):
        value[name] = getattr(tiling, name)
    return value
