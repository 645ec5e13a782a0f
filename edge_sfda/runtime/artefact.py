"""What an exported artefact says about itself: inside an ONNX model, and beside an engine. No torch, no ONNX.

An ONNX model carries it as JSON in its `metadata_props` under `METADATA_KEY`. Its input is `frame`, uint8 [B, H, W, 3];
its outputs are `mask`, uint8 [B, H, W] at the frame's size, and as `ArtefactInfo.outputs` says `confidence`, float32
[B, H, W] at the frame's size (softmax probability of the winner), and `logits`, float32 [B, C, h, w] at logits size.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from edge_sfda.errors import ArtefactError, ConfigError
from edge_sfda.manifest import Classes

METADATA_KEY = "edge_sfda"
FORMAT = 1

INPUT = "frame"
OUTPUTS = ("mask", "confidence", "logits")
COLOUR_ORDERS = ("bgr", "rgb")
PRECISIONS = ("fp32", "fp16", "int8")

_SIDES = (8, 8192)  # pixels; as for a checkpoint's `Preprocessing`


@dataclass(frozen=True, kw_only=True)
class ArtefactInfo:
    """What whoever runs an artefact must know.

    Args:
        classes: names, palette and void id, in the order of the logits.
        colour_order: `bgr` or `rgb`: of the frame that goes in.
        frame_size: H, W of the frames; None where height and width are dynamic.
        network_size: H, W that the network sees; frames of another size are resized inside the artefact.
        outputs: `mask`, then any of `confidence` and `logits`.
        precision: `fp32`, `fp16` or `int8`, of the network inside.
        checkpoint_sha256: `Manifest.tensors_sha256` of the weights.
        min_side: the smallest H or W of a frame, in pixels.
        producer: program and version that exported it.
        format: of this record.

    Raises:
        ArtefactError: a value is not one of those.
    """

    classes: Classes
    colour_order: str
    frame_size: tuple[int, int] | None
    network_size: tuple[int, int]
    outputs: tuple[str, ...]
    precision: str
    checkpoint_sha256: str
    min_side: int
    producer: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ArtefactError(
                f"artefact of format {self.format}, this version reads {FORMAT}; update edge-sfda or export again"
            )
        _one_of("colour_order", self.colour_order, COLOUR_ORDERS)
        _one_of("precision", self.precision, PRECISIONS)
        if self.outputs[:1] != OUTPUTS[:1] or list(self.outputs) != [o for o in OUTPUTS if o in self.outputs]:
            raise ArtefactError(f"outputs {list(self.outputs)} must be mask, then any of confidence, logits")
        for name, size in (("frame_size", self.frame_size), ("network_size", self.network_size)):
            if size is not None and not (len(size) == 2 and all(_SIDES[0] <= side <= _SIDES[1] for side in size)):
                raise ArtefactError(f"{name} {size} must be height and width of {_SIDES[0]}..{_SIDES[1]} pixels")
        if not 1 <= self.min_side <= _SIDES[1]:
            raise ArtefactError(f"min_side {self.min_side} must lie in 1..{_SIDES[1]} pixels")

    def to_json(self) -> str:
        """Return the record as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> ArtefactInfo:
        """Read what `to_json` wrote.

        Raises:
            ArtefactError: not JSON, a field is missing or unknown, or a value is out of range.
        """
        try:
            raw = json.loads(text)
            classes = raw.pop("classes")
            frame_size = raw.pop("frame_size")
            return ArtefactInfo(
                classes=Classes(
                    tuple(str(name) for name in classes["names"]),
                    tuple((int(r), int(g), int(b)) for r, g, b in classes["palette"]),
                    int(classes["ignore_id"]),
                ),
                frame_size=None if frame_size is None else _size(frame_size),
                network_size=_size(raw.pop("network_size")),
                outputs=tuple(raw.pop("outputs")),
                **raw,
            )
        except ArtefactError:
            raise
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise ArtefactError(
                f"unreadable artefact record ({type(error).__name__}: {error}); was the file exported by edge-sfda?"
            ) from error


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ArtefactError(f"{name} {value!r} is not known; expected one of {', '.join(known)}")


def _size(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)
