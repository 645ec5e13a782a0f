"""Turn published DeepLabV2 weights (a torch state dict, .pth) into a checkpoint of this package.

    python benchmarks/import_deeplabv2.py gta5_source.pth -o source.safetensors --classes cityscapes --bgr

The file is read with `weights_only=True`: tensors alone, no code. Wrappers around the state dict (`state_dict`, ...)
and prefixes (`module.`, `Scale.`, ...) are taken off; an auxiliary classifier on `layer3` is left out. Whatever else
does not fit is an error that names it.

--bgr is for weights that want BGR of 0..255 minus Caffe's mean (AdaptSegNet and what descends from it): the channels of
the first layer are turned round and the checkpoint's normalisation does the rest. Without it: RGB of 0..1 with
ImageNet's mean and deviation.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from deeplabv2 import RESNET_101, deeplabv2
from torch import Tensor

from edge_sfda import checkpoint
from edge_sfda.data import class_maps
from edge_sfda.errors import CheckpointError, EdgeSfdaError, UsageError
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build

FACTORY = "deeplabv2:deeplabv2"
CAFFE_MEAN_RGB = (122.67891434, 116.66876762, 104.00698793)  # of 0..255
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "Scale.", "model.", "net.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a published file under this network's names.

    Raises:
        CheckpointError: it cannot be read, or holds more than tensors.
    """
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; check the path") from error
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} is not a file of tensors alone ({reason}); load it where it was made and save its state_dict() by "
            "itself"
        ) from error
    while isinstance(raw, Mapping) and (inner := next((raw[key] for key in _WRAPPERS if key in raw), None)) is not None:
        raw = inner
    if not isinstance(raw, Mapping) or not all(isinstance(value, Tensor) for value in raw.values()):
        raise CheckpointError(f"{path} holds a {type(raw).__name__}, expected a state dict of tensors by name")
    return _rename(dict(raw))


def _rename(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    while raw and (prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in raw)), None)):
        raw = {name.removeprefix(prefix): value for name, value in raw.items()}
    if any(name.startswith("layer6.") for name in raw):  # two classifiers: layer5 is the auxiliary one
        raw = {name: value for name, value in raw.items() if not name.startswith("layer5.")}
    return {name.replace("layer5.", "layer6.", 1): value for name, value in raw.items() if not name.startswith("fc.")}


def to_checkpoint(
    weights: Mapping[str, Tensor],
    out: Path,
    *,
    classes: Classes,
    size: tuple[int, int] = (512, 1024),
    bgr: bool = False,
    branches: int = 4,
    width: int = 64,
    blocks: tuple[int, ...] = RESNET_101,
) -> Manifest:
    """Write a checkpoint from renamed weights; returns its manifest.

    Args:
        weights: see `read_weights`.
        out: the checkpoint.
        classes: in the order of the logits.
        size: of the network's input, height and width.
        bgr: whether the weights want BGR of 0..255 minus Caffe's mean.
        branches: of the classifier that were summed in training.
        width: of the first stage.
        blocks: of the four stages.

    Raises:
        CheckpointError: the weights are of another network or another number of classes.
    """
    options = {"classes": len(classes), "width": width, "blocks": list(blocks), "branches": branches}
    if bgr:
        mean = (CAFFE_MEAN_RGB[0] / 255, CAFFE_MEAN_RGB[1] / 255, CAFFE_MEAN_RGB[2] / 255)
        pre = Preprocessing(*size, mean=mean, std=(1 / 255, 1 / 255, 1 / 255))
    else:
        pre = Preprocessing(*size)
    manifest = Manifest(NetSpec(FACTORY, 0, "layer4", options), classes, pre, provenance={"kind": "imported"})
    inner = deeplabv2(len(classes), width, blocks, branches)
    state = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    if bgr and "conv1.weight" in state:
        state["conv1.weight"] = state["conv1.weight"].flip(1)
    try:
        # files older than num_batches_tracked lack it; nothing here reads it
        state = {**{k: v for k, v in inner.state_dict().items() if k.endswith("num_batches_tracked")}, **state}
        inner.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit DeepLabV2 of {len(classes)} classes: {error}") from error
    net = build(manifest.net, len(classes), allow=FACTORY)
    net.net.load_state_dict(inner.state_dict())  # type: ignore[operator, union-attr]
    checkpoint.save(out, net.state_dict(), manifest)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--classes", default="cityscapes", help="class map whose classes the logits are, in order")
    parser.add_argument("--size", default="512x1024", help="network input, HEIGHTxWIDTH")
    parser.add_argument("--bgr", action="store_true", help="weights for BGR of 0..255 minus Caffe's mean")
    parser.add_argument("--branches", type=int, choices=(1, 2, 3, 4), default=4, help="of the classifier, summed")
    arguments = parser.parse_args()
    try:
        try:
            height, width = (int(side) for side in arguments.size.lower().split("x"))
        except ValueError as error:
            raise UsageError(f"--size {arguments.size!r} must be HEIGHTxWIDTH, for example 512x1024") from error
        classes = class_maps.resolve(arguments.classes).classes
        to_checkpoint(
            read_weights(arguments.weights),
            arguments.out,
            classes=classes,
            size=(height, width),
            bgr=arguments.bgr,
            branches=arguments.branches,
        )
    except EdgeSfdaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"checkpoint {arguments.out}, {len(classes)} classes; use it with --net {FACTORY} and PYTHONPATH=benchmarks")


if __name__ == "__main__":
    main()
