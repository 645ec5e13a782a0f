"""Your own network: any `nn.Module` by `module:factory`, its encoder feature taken by a hook.

A checkpoint may name any importable function, and building its network calls it. So a factory runs only when the caller
names it too (`--net module:factory`), never because a file says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edge_sfda.errors import NetError
from edge_sfda.manifest import NetSpec
from edge_sfda.nets.contract import Prediction, SegmentationNet
from edge_sfda.nets.normalisation import secure_group_norms

_LOGIT_KEYS = ("out", "logits", "sem_seg", "pred")  # torchvision, transformers, detectron2, others


class Hooked(SegmentationNet):
    """A foreign network behind the contract.

    Its output may be a tensor [B, C, h, w], a tuple or list that starts with one, or a mapping that holds one under
    `out`, `logits`, `sem_seg` or `pred`. An auxiliary output is ignored.

    Args:
        net: the network; called with normalised float RGB [B, 3, H, W].
        encoder_layer: dotted name of the module whose output [B, F, h, w] is the encoder feature.
        classes: C it must return.

    Raises:
        NetError: no such layer, or the first forward returns no logits of C classes or no feature map.
    """

    logit_offset: Tensor

    def __init__(self, net: nn.Module, *, encoder_layer: str, classes: int) -> None:
        super().__init__()
        self.net = net
        self.classes = classes
        self.register_buffer("logit_offset", torch.zeros(classes))
        self._feature: Tensor | None = None
        secure_group_norms(net)
        modules = dict(net.named_modules())
        if encoder_layer not in modules or not encoder_layer:
            near = ", ".join(sorted(name for name in modules if name and name.count(".") < 2)[:12])
            raise NetError(f"{type(net).__name__} has no layer {encoder_layer!r} to take features from; it has {near}")
        self.encoder_layer = encoder_layer
        modules[encoder_layer].register_forward_hook(self._keep)
        self.feature_channels = self._probe()

    def forward(self, x: Tensor) -> Prediction:
        """Return the network's own logits and the hooked feature for `x` [B, 3, H, W]."""
        logits = _find_logits(self.net(x))
        # before the offset is added, which would stretch logits of one class, or without a place, over all classes
        if logits.ndim != 4 or logits.shape[1] != self.classes:
            raise NetError(
                f"{type(self.net).__name__} returns logits {tuple(logits.shape)}, "
                f"expected [B, {self.classes}, h, w] for {self.classes} classes"
            )
        feature, self._feature = self._feature, None
        if feature is None:
            raise NetError(f"layer {self.encoder_layer!r} did not run or returned no tensor [B, F, h, w]")
        return Prediction(logits + self.logit_offset.view(1, -1, 1, 1), (feature,))

    def shift_logits(self, offset: Tensor) -> None:
        """Add `offset` [C] to the logits from now on; kept with the weights."""
        self.logit_offset.add_(offset)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Mapping):  # an encoder that returns a mapping of levels: the deepest
            output = next(reversed(list(output.values())), None)
        elif isinstance(output, (tuple, list)) and output:
            output = output[-1]
        self._feature = output if isinstance(output, Tensor) and output.ndim == 4 else None

    def _probe(self) -> tuple[int, ...]:
        was_training = self.net.training
        device = next((p.device for p in self.net.parameters()), torch.device("cpu"))
        self.net.eval()
        with torch.no_grad():
            try:
                out = self(torch.zeros(1, 3, 64, 64, device=device))
            except RuntimeError as error:
                raise NetError(f"{type(self.net).__name__} failed on a float [1, 3, 64, 64] input: {error}") from error
        self.net.train(was_training)
        return (int(out.features[0].shape[1]),)


def make(spec: NetSpec, classes: int, *, allow: str | None) -> Hooked:
    """Import and call the factory that `spec.architecture` names.

    Args:
        spec: architecture `module:factory`, encoder layer, and keyword arguments.
        classes: C.
        allow: the factory the caller consents to run; must equal the one in `spec`.

    Raises:
        NetError: not allowed, not importable, not callable, or not returning an `nn.Module`.
    """
    name = spec.architecture
    if allow != name:
        raise NetError(
            f"the checkpoint asks to run {name!r}, code outside this package; pass --net {name} if you trust it"
        )
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:  # TypeError: a relative name
        raise NetError(f"cannot import {name!r}: {error}; expected module:factory on the Python path") from error
    if not callable(factory):
        raise NetError(f"{name!r} is a {type(factory).__name__}, expected a function that returns an nn.Module")
    try:
        net = factory(**spec.options)
    except TypeError as error:
        raise NetError(f"{name}({', '.join(spec.options)}) failed: {error}") from error
    if not isinstance(net, nn.Module):
        raise NetError(f"{name} returned a {type(net).__name__}, expected an nn.Module")
    return Hooked(net, encoder_layer=spec.encoder_layer, classes=classes)


def _find_logits(output: Any) -> Tensor:
    if isinstance(output, Mapping):
        output = next((output[key] for key in _LOGIT_KEYS if key in output), None)
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise NetError(
            f"found no logits in the output; expected a tensor, a tuple, or a dict with one of {_LOGIT_KEYS}"
        )
    return output
