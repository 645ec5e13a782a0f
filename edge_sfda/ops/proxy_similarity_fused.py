"""Launches of the proxy similarity kernels: sizes, grids and arguments, worked out once for every launcher.

`cuda_kernels/proxy_similarity.cu` states what the kernels compute; the limits here are those of its constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_sfda.ops.launch import MAX_SHARED_BYTES, SCALARS, Kernel, Launch, Launcher, arguments, launch_all
from edge_sfda.ops.proxy_similarity_reference import Outputs, empty_outputs

CLASSES, CHANNELS = (2, 256), (8, 256)  # C and D that the kernels take
MAX_PIXELS = 2**31 - 33  # so that no index of a last, partly filled tile overflows

_SOURCE = "proxy_similarity.cu"
_THREADS, _TOTAL_THREADS = 128, 256
_TILES = (32, 16, 8)  # pixels a block holds at a time, largest first
_GROUP = 4  # classes a thread takes at once
_STATIC_BYTES = 16  # shared memory that the kernels declare themselves
# Blocks at most; each then takes several tiles. So much parallel work fills any GPU, and more would only write more
# partial sums: 4 * C * D bytes a block in the backward pass, which together stay under 16 MB.
_FORWARD_BLOCKS, _BACKWARD_BLOCKS, _PARTIAL_NUMBERS = 1024, 256, 2**22

_SIZES = np.dtype(
    [
        ("batch_stride", np.int64),
        ("channel_stride", np.int64),
        ("pixel_stride", np.int64),
        ("pixels", np.int32),
        ("per_image", np.int32),
        ("classes", np.int32),
        ("channels", np.int32),
        ("tile", np.int32),
        ("chunk", np.int32),
        ("label_bytes", np.int32),
        ("kappa", np.float32),
        ("scale", np.float32),
    ],
    align=True,
)


@dataclass(frozen=True)
class Plan:
    """How a call is cut into blocks."""

    tile: int
    """Pixels a block holds at a time."""
    chunk: int
    """Classes whose proxies it holds at a time."""
    shared_bytes: int
    forward_blocks: int
    backward_blocks: int


def plan(pixels: int, classes: int, channels: int) -> Plan:
    """Return the plan for sizes within `CLASSES` and `CHANNELS`.

    The largest tile that leaves room for all proxies, so that they are loaded once a block; else the one that lets most
    threads work at a time, each on one pixel and a group of the classes at hand.
    """
    padded = -(-classes // _GROUP) * _GROUP
    chunks = {tile: min(padded, _room(tile, classes, channels)) for tile in _TILES}
    tile = next((t for t in _TILES if chunks[t] == padded), max(_TILES, key=lambda t: t * chunks[t]))
    tiles = -(-pixels // tile)
    return Plan(
        tile=tile,
        chunk=chunks[tile],
        shared_bytes=_shared_bytes(tile, chunks[tile], classes, channels),
        forward_blocks=min(tiles, _FORWARD_BLOCKS),
        backward_blocks=min(tiles, _BACKWARD_BLOCKS, max(1, _PARTIAL_NUMBERS // (classes * channels))),
    )


def _shared_bytes(tile: int, chunk: int, classes: int, channels: int) -> int:
    """Return what `Shared` of the kernels lays out."""
    return 4 * (2 * _TILES[0] + channels * chunk + (channels + classes) * (tile + 1) + _THREADS + 5 * tile)


def _room(tile: int, classes: int, channels: int) -> int:
    """Return how many classes' proxies fit beside a tile, a multiple of the group."""
    left = MAX_SHARED_BYTES - _STATIC_BYTES - _shared_bytes(tile, 0, classes, channels)
    return max(0, left) // (4 * channels * _GROUP) * _GROUP


def unfit(embedding: Tensor, proxies: Tensor) -> str | None:
    """Return why the kernels can't take these tensors, or None."""
    classes, channels = proxies.shape
    pixels = embedding.numel() // channels if channels else 0
    if embedding.dtype not in SCALARS:
        return f"embedding is {embedding.dtype}, the kernels take {', '.join(map(str, SCALARS))}"
    if not (CLASSES[0] <= classes <= CLASSES[1] and CHANNELS[0] <= channels <= CHANNELS[1]):
        return f"C {classes} and D {channels}, the kernels take C {CLASSES} and D {CHANNELS}"
    if pixels > MAX_PIXELS:
        return f"{pixels} pixels, the kernels take {MAX_PIXELS}"
    return None


def forward(
    launcher: Launcher,
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    kappa: float | None,
    scale: float | None,
    with_nearest: bool,
    with_cosine: bool,
) -> Outputs:
    """Launch the operator; arguments and results as in its schema."""
    scored, trained = kappa is not None, scale is not None
    outputs = empty_outputs(embedding, proxies, scored, trained, with_nearest, with_cosine)
    loss, reliability, nearest, sums, counts, cosine, lse, mass = outputs
    source, strides = _joined(embedding)
    cut, sizes = _sizes(source, strides, proxies, label, kappa or 0.0, scale or 0.0)
    proxies, label, weight = _plain(proxies), label.contiguous(), None if weight is None else _plain(weight)
    partial = embedding.new_empty((cut.forward_blocks, 3, len(proxies)), dtype=torch.float32)
    partial_counts = embedding.new_empty((cut.forward_blocks, len(proxies)), dtype=torch.int32)
    if not trained:
        loss.zero_()
    asked = (
        reliability if scored else None,
        nearest if with_nearest else None,
        cosine if with_cosine else None,
        lse if trained else None,
    )
    pixels = Launch(
        _kernel("proxy_similarity_forward", embedding),
        (cut.forward_blocks, 1, 1),
        (_THREADS, 1, 1),
        cut.shared_bytes,
        arguments(source, proxies, label, weight, sizes, *asked, partial, partial_counts),
    )
    total = Launch(
        _kernel("proxy_similarity_forward_total", embedding),
        (1, 1, 1),
        (_TOTAL_THREADS, 1, 1),
        0,
        arguments(
            partial,
            partial_counts,
            np.int32(cut.forward_blocks),
            np.int32(len(proxies)),
            loss if trained else None,
            sums if scored else None,
            mass if trained else None,
            counts if scored else None,
        ),
    )
    launch_all(launcher, (pixels, total), embedding.device)
    return outputs


def backward(
    launcher: Launcher,
    grad: Tensor,
    embedding: Tensor,
    proxies: Tensor,
    label: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    mass: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Launch the gradient of the loss; arguments and results as in its schema."""
    grad_embedding = torch.empty_like(embedding)
    source, strides = _joined(embedding)
    target, own_strides = _joined(grad_embedding)
    if target is not grad_embedding or own_strides != strides:  # a layout that the kernel cannot write
        source, target = embedding.contiguous(), grad_embedding.new_empty(embedding.shape)
        _, strides = _joined(source)
    cut, sizes = _sizes(source, strides, proxies, label, 0.0, scale)
    rows, label, weight = _plain(proxies), label.contiguous(), None if weight is None else _plain(weight)
    grad_proxies = torch.empty_like(rows)
    partial = embedding.new_empty((cut.backward_blocks, *rows.shape), dtype=torch.float32)
    grad, lse, mass = _plain(grad), _plain(lse), _plain(mass)
    pixels = Launch(
        _kernel("proxy_similarity_backward", embedding),
        (cut.backward_blocks, 1, 1),
        (_THREADS, 1, 1),
        cut.shared_bytes,
        arguments(grad, source, rows, label, weight, lse, mass, sizes, target, partial),
    )
    total = Launch(
        _kernel("proxy_similarity_backward_total", embedding),
        (len(rows), 1, 1),
        (_TOTAL_THREADS, 1, 1),
        0,
        arguments(partial, rows, *map(np.int32, (cut.backward_blocks, *rows.shape)), grad_proxies),
    )
    launch_all(launcher, (pixels, total), embedding.device)
    if target is not grad_embedding:
        grad_embedding.copy_(target)
    return grad_embedding, grad_proxies.to(proxies.dtype)


def _kernel(name: str, embedding: Tensor) -> Kernel:
    return Kernel(_SOURCE, name, (("SCALAR", SCALARS[embedding.dtype]),))


def _plain(tensor: Tensor) -> Tensor:
    """Return float32, contiguous; the same tensor where it is so already."""
    return tensor.to(torch.float32).contiguous()


def _joined(embedding: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Return the embedding and its strides from image to image, channel to channel, and pixel to pixel.

    A kernel steps through all pixels of an image with one stride, and wants pixels or channels next to each other. An
    embedding of another layout is copied.
    """
    batch, channel, row, column = embedding.stride()
    h, w = embedding.shape[2:]
    pixel = row if w == 1 else column
    if (h == 1 or w == 1 or row == w * column) and 1 in (channel, pixel):
        return embedding, (batch, channel, pixel)
    return embedding.contiguous(), (embedding.shape[1] * h * w, h * w, 1)


def _sizes(
    embedding: Tensor, strides: tuple[int, int, int], proxies: Tensor, label: Tensor, kappa: float, scale: float
) -> tuple[Plan, np.void]:
    batch, channels, h, w = embedding.shape
    classes = len(proxies)
    cut = plan(batch * h * w, classes, channels)
    numbers = (
        *strides,
        batch * h * w,
        h * w,
        classes,
        channels,
        cut.tile,
        cut.chunk,
        label.element_size(),
        kappa,
        scale,
    )
    return cut, np.array([numbers], dtype=_SIZES)[0]
