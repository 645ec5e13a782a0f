"""What must be known of an ONNX file before anything loads it, read from its wire format: no protobuf, no onnx package.

A model may name files that hold its weights. ONNX Runtime opens them while it loads, so the names are looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protobuf

# Message -> field number -> message inside. Fields that lead to no tensor and no record are left out.
_INSIDE: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 14: "Property", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "External"},
}
_DEEPEST = 32  # messages inside each other; a graph within a loop within a branch has 12


@dataclass(frozen=True)
class OnnxHead:
    """What a model says besides its computation.

    Args:
        properties: its metadata.
        external: the files that hold weights, as the model names them.
    """

    properties: Mapping[str, str]
    external: tuple[str, ...]


def read_head(data: bytes) -> OnnxHead:
    """Return metadata and names of external files of a model.

    Raises:
        ValueError: the bytes are no protobuf message, or end too early.
    """
    properties: dict[str, str] = {}
    external: dict[str, None] = {}
    for kind, message in _messages(memoryview(data), "Model", 0):
        key, value = _pair(message)
        if kind == "Property":
            properties[key] = value
        elif key == "location":
            external[value] = None
    return OnnxHead(properties, tuple(external))


def _messages(data: memoryview, kind: str, depth: int) -> Iterator[tuple[str, memoryview]]:
    """Yield every `Property` and `External` entry in a message."""
    if depth > _DEEPEST:
        raise ValueError("messages nested too deep for a model")
    inside = _INSIDE[kind]
    for field, value in _fields(data):
        within = inside.get(field)
        if within is None or value is None:
            continue
        if within in ("Property", "External"):
            yield within, value
        else:
            yield from _messages(value, within, depth + 1)


def _pair(data: memoryview) -> tuple[str, str]:
    texts = {field: bytes(value).decode("utf-8") for field, value in _fields(data) if value is not None}
    return texts.get(1, ""), texts.get(2, "")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Yield number and content of each field; None for numbers, whose values do not matter here."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise ValueError("no protobuf message: a field of number 0")
        if wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError(f"it ends after {len(data)} bytes in the midst of a field")
            yield field, data[position : position + length]
            position += length
        elif wire == _VARINT:
            _, position = _varint(data, position)
            yield field, None
        elif wire in (_FIXED64, _FIXED32):
            position += 8 if wire == _FIXED64 else 4
            if position > len(data):
                raise ValueError(f"it ends after {len(data)} bytes in the midst of a number")
            yield field, None
        else:
            raise ValueError(f"no protobuf message: a field of wire type {wire}")


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError(f"it ends after {len(data)} bytes in the midst of a number")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise ValueError("no protobuf message: a number of more than ten bytes")
