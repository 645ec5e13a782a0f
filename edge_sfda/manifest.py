"""What a network is, apart from its weights: classes, input, architecture, provenance.

Pure data, no torch: checkpoints, exported artefacts and the inference API all read it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edge_sfda.errors import CheckpointError, ConfigError

FORMAT = 1

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Classes:
    """The classes of a network, in the order of its logits.

    Args:
        names: one name a class, unique.
        palette: one RGB triple a class, each 0..255.
        ignore_id: the label id that is never counted (void); outside 0..len(names)-1, at most 255.

    Raises:
        ConfigError: lengths differ, names repeat, a colour or `ignore_id` is out of range.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_id: int = 255

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 255:
            raise ConfigError(f"classes: got {len(self.names)} names, expected 2 to 255")
        if len(set(self.names)) != len(self.names):
            raise ConfigError(f"classes: names repeat in {list(self.names)}; give each class a name of its own")
        if len(self.palette) != len(self.names):
            raise ConfigError(
                f"classes: {len(self.names)} names but {len(self.palette)} palette colours; give one each"
            )
        if any(len(c) != 3 or not all(0 <= v <= 255 for v in c) for c in self.palette):
            raise ConfigError(f"classes: palette {self.palette} must hold RGB triples of 0..255")
        if not len(self.names) <= self.ignore_id <= 255:
            raise ConfigError(f"classes: ignore_id {self.ignore_id} must lie in {len(self.names)}..255")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Preprocessing:
    """How a frame becomes the network's input: resize to `height` x `width`, to RGB 0..1, minus mean, over std."""

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not (8 <= self.height <= 8192 and 8 <= self.width <= 8192):
            raise ConfigError(f"preprocessing: size {self.height}x{self.width} must lie in 8..8192 pixels a side")
        finite = all(math.isfinite(v) for v in (*self.mean, *self.std))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ConfigError(f"preprocessing: mean {self.mean} and std {self.std} must be three values, std above 0")


@dataclass(frozen=True)
class NetSpec:
    """Which network the weights belong to.

    Args:
        architecture: `lite0`, `nano`, or `module:factory` for a network of your own.
        stride: of the logits, 4 or 8 (the built-in networks; 0 for your own: found by running it).
        encoder_layer: your own network only: the dotted name of the module whose output is the encoder feature.
        options: your own network only: keyword arguments of its factory.
    """

    architecture: str
    stride: int = 4
    encoder_layer: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything about a checkpoint but its tensors.

    `class_weight` are the weights the source's cross-entropy was trained with, in class order, or None when unknown or
    all one; with them adaptation can undo the prior that training put in (see `adapt.prior`). `provenance` says what
    made the weights. `tensors_sha256` covers names, dtypes, shapes and bytes; it is filled in on saving.
    """

    net: NetSpec
    classes: Classes
    preprocessing: Preprocessing
    class_weight: tuple[float, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    tensors_sha256: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise CheckpointError(f"manifest of format {self.format}, this version reads {FORMAT}; update edge-sfda")
        if self.class_weight is not None and len(self.class_weight) != len(self.classes):
            raise ConfigError(f"{len(self.class_weight)} class weights for {len(self.classes)} classes")
        if self.class_weight is not None and not all(0 <= w < math.inf for w in self.class_weight):
            raise ConfigError(f"class weights {self.class_weight} must be finite and not below 0")

    def to_json(self) -> str:
        """Return the manifest as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Manifest:
        """Read what `to_json` wrote.

        Raises:
            CheckpointError: not JSON, a field is missing or unknown, or a value is out of range.
        """
        try:
            raw = json.loads(text)
            classes = raw.pop("classes")
            pre = raw.pop("preprocessing")
            weight = raw.pop("class_weight", None)
            return Manifest(
                net=NetSpec(**raw.pop("net")),
                classes=Classes(
                    tuple(classes["names"]), tuple((r, g, b) for r, g, b in classes["palette"]), classes["ignore_id"]
                ),
                preprocessing=Preprocessing(pre["height"], pre["width"], tuple(pre["mean"]), tuple(pre["std"])),
                class_weight=None if weight is None else tuple(weight),
                **raw,
            )
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"unreadable manifest ({error}); was the file written by edge-sfda?") from error

    def derive(self, **provenance: Any) -> Manifest:
        """Return a manifest for weights made from these: same network, new provenance that names the parent's hash."""
        return replace(self, provenance={"parent": self.tensors_sha256, **provenance}, tensors_sha256="")
