"""From a specification or a checkpoint to a network in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from edge_sfda import checkpoint
from edge_sfda.errors import CheckpointError, NetError
from edge_sfda.manifest import Manifest, NetSpec
from edge_sfda.nets import bring_your_own, fpn
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.device import resolve

_BUILT_IN = {"lite0": fpn.lite0, "nano": fpn.nano}


def build(spec: NetSpec, classes: int, *, allow: str | None = None) -> SegmentationNet:
    """Return a network with fresh weights, channels last in memory.

    Args:
        spec: which network.
        classes: C.
        allow: `module:factory` that may be run; see `bring_your_own`.

    Raises:
        NetError: an unknown architecture, or one of your own that does not fit.
    """
    if ":" in spec.architecture:
        net: SegmentationNet = bring_your_own.make(spec, classes, allow=allow)
    elif spec.architecture in _BUILT_IN:
        net = _BUILT_IN[spec.architecture](classes, stride=spec.stride)
    else:
        known = ", ".join(_BUILT_IN)
        raise NetError(f"unknown architecture {spec.architecture!r}; built in are {known}; your own is module:factory")
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def load(path: str | Path, *, allow: str | None = None, device: str = "cpu") -> tuple[SegmentationNet, Manifest]:
    """Return the verified network of a checkpoint, in eval mode, and its manifest.

    Raises:
        CheckpointError: unreadable, damaged, or the tensors do not fit the architecture it names.
        NetError: see `build`.
        UsageError: the device, `auto` for a GPU where there is one, is not here.
    """
    place = resolve(device)
    loaded = checkpoint.load(Path(path))
    manifest = loaded.manifest
    if manifest.provenance.get("kind") == "resume":
        raise CheckpointError(f"{path} is the state of an unfinished training; give the checkpoint beside it")
    net = build(manifest.net, len(manifest.classes), allow=allow)
    try:
        net.load_state_dict(loaded.state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{path} does not fit {manifest.net.architecture} of {len(manifest.classes)} classes: {lines[-1].strip()}"
        ) from error
    return net.eval().to(place), manifest
