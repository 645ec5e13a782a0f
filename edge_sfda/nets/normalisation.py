"""BatchNorm layers of a network: found, and their statistics shared, estimated and blended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edge_sfda.errors import FrameError


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Return the layers whose running statistics describe a domain; empty for a network without BatchNorm."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def _collecting(net: nn.Module, momentum: float | None) -> Iterator[list[_BatchNorm]]:
    """BatchNorm layers, and they alone, in train mode with `momentum`; all as before afterwards."""
    layers = batch_norms(net)
    before = [(layer.training, layer.momentum) for layer in layers]
    for layer in layers:
        layer.train()
        layer.momentum = momentum
    try:
        yield layers
    except ValueError as error:  # torch's word for a batch of one value a channel
        raise FrameError(f"no statistics from these frames: {error}; give larger frames, or several") from error
    finally:
        for layer, (training, old) in zip(layers, before, strict=True):
            layer.train(training)
            layer.momentum = old


@torch.no_grad()
def estimate(net: nn.Module, batches: Iterable[Tensor], *, blend: float) -> None:
    """Replace the share `blend` of the running statistics by the batches' own, in place.

    Args:
        net: run in eval mode but for its BatchNorm layers.
        batches: normalised float [B, 3, H, W], B of 4 or so: a single frame is too narrow a sample.
        blend: 0 leaves the statistics alone, 1 forgets the old ones.

    Raises:
        FrameError: a layer sees one value a channel, as from a single frame of the deepest stride's size.
    """
    layers = batch_norms(net)
    if blend == 0 or not layers:
        return
    old = [(_stat(m.running_mean).clone(), _stat(m.running_var).clone()) for m in layers]
    with _collecting(net, None):  # momentum None: the plain average over batches
        for layer in layers:
            layer.reset_running_stats()
        for x in batches:
            net(x)
    for layer, (mean, var) in zip(layers, old, strict=True):
        _stat(layer.running_mean).lerp_(mean, 1 - blend)
        _stat(layer.running_var).lerp_(var, 1 - blend)


@contextmanager
def batch_statistics(net: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """In the body, normalise by each batch's own statistics; the running ones stay as they are."""
    if not enabled:
        yield
        return
    with _collecting(net, 0.0):
        yield


@torch.no_grad()
def observe(net: nn.Module, x: Tensor, *, momentum: float) -> None:
    """Move the running statistics towards those of `x` by `momentum`, in place; the outputs are dropped.

    Raises:
        FrameError: see `estimate`.
    """
    with _collecting(net, momentum):
        net(x)


def share_statistics(net: nn.Module, owner: nn.Module) -> None:
    """Let `net` read the running statistics of `owner`: one set of tensors for student and teacher.

    Statistics belong to the domain, not to the weights, and student and teacher see the same one.
    """
    for mine, theirs in zip(batch_norms(net), batch_norms(owner), strict=True):
        mine.running_mean, mine.running_var = theirs.running_mean, theirs.running_var
        mine.num_batches_tracked = theirs.num_batches_tracked


def affine_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Return scale and shift of every normalisation layer that has them (BatchNorm, GroupNorm, LayerNorm)."""
    kinds = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
    return [p for m in net.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False)]


def _stat(value: Tensor | None) -> Tensor:
    assert value is not None, "batch_norms keeps only layers with running statistics"
    return value
