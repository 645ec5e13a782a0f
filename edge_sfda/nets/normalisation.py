"""BatchNorm layers of a network: found, and their statistics shared, estimated and blended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edge_sfda.errors import FrameError, NetError


def batch_norms(net: nn.Module) -> list[_BatchNorm]:
    """Return the layers whose running statistics describe a domain; empty for a network without BatchNorm."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the running mean and variance of a layer that `batch_norms` returned: the tensors themselves, [C] each."""
    assert layer.running_mean is not None, "batch_norms keeps only layers with running statistics"
    assert layer.running_var is not None, "they come together"
    return layer.running_mean, layer.running_var


def secure_group_norms(net: nn.Module) -> None:
    """Keep torch from crashing on a CPU where a GroupNorm is trained and what lies before it is not.

    Its backward pass over `channels_last` writes a gradient of the input that nobody asked for through a null pointer
    (torch 2.13). From now on such a layer is given its input in the plain layout.
    """
    for layer in net.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.register_forward_pre_hook(_plain_layout)


def _plain_layout(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    x = inputs[0]
    if not torch.is_grad_enabled() or x.device.type != "cpu" or x.requires_grad:
        return None  # as in every forward of inference
    if not any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
        return None
    return (x.contiguous(), *inputs[1:])


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
    old = [tuple(statistic.clone() for statistic in running(layer)) for layer in layers]
    with _collecting(net, None):  # momentum None: the plain average over batches
        for layer in layers:
            layer.reset_running_stats()
        for x in batches:
            net(x)
    for layer, before in zip(layers, old, strict=True):
        for statistic, value in zip(running(layer), before, strict=True):
            statistic.lerp_(value, 1 - blend)


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


class _SeenError(Exception):
    """Carries what a layer is given out of a forward that is cut short."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x


@torch.no_grad()
def given_to(layer: nn.Module, net: nn.Module, x: Tensor) -> Tensor:
    """Return what `layer` of `net` is given for the input `x`; what lies behind it does not run."""

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _SeenError(inputs[0])

    # while it lasts: a hook that stayed would be copied with every copy of the network
    stopping = layer.register_forward_pre_hook(stop)
    try:
        net(x)
    except _SeenError as seen:
        return seen.x
    finally:
        stopping.remove()
    raise NetError(f"{type(layer).__name__} of {type(net).__name__} takes no part in its forward")


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance, float32 [C] each, of what a layer sees, [B, C, H, W]."""
    seen = x.float()
    return seen.mean((0, 2, 3)), seen.var((0, 2, 3))


def divergence(mean: Tensor, var: Tensor, other_mean: Tensor, other_var: Tensor) -> Tensor:
    """Return Jeffreys' divergence in nats of normal distributions, [C] each: its mean over channels, a scalar."""
    var, other_var = var.clamp(min=1e-6), other_var.clamp(min=1e-6)
    square = (mean - other_mean).square()
    return 0.5 * ((var + square) / other_var + (other_var + square) / var - 2).mean()


@torch.no_grad()
def distances(layer: nn.Module, net: nn.Module, x: Tensor, *known: tuple[Tensor, Tensor]) -> list[float]:
    """Return how far what `layer` of `net` is given for `x` lies from each known mean and variance, in nats a channel.

    Runs the network up to that layer, and waits for the device.
    """
    seen = moments(given_to(layer, net, x))
    found: list[float] = torch.stack([divergence(*seen, *statistics) for statistics in known]).tolist()
    return found


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
