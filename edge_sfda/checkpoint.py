"""The only disk format: one safetensors file with the manifest in its header, written atomically, verified on load.

    8 bytes   length of the header, little-endian
    header    JSON: tensors (dtype, shape, offsets), and under __metadata__
                  edge_sfda_manifest   the manifest as JSON
                  manifest_sha256      of that text
    data      tensors, little-endian; their hash stands in the manifest

Any safetensors reader can read the tensors. Nothing is ever unpickled. Hashes find damage, not malice: who can write
the file can write its hashes too.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import safetensors

from edge_sfda.errors import CheckpointError, DivergenceError
from edge_sfda.files import write_atomic
from edge_sfda.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST_KEY = "edge_sfda_manifest"
MANIFEST_HASH_KEY = "manifest_sha256"

_MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit
# safetensors' name -> torch's name, bytes a value, how to read it as numbers (None: integers, always finite)
_DTYPES: Mapping[str, tuple[str, int, str | None]] = {
    "F64": ("float64", 8, "<f8"),
    "F32": ("float32", 4, "<f4"),
    "F16": ("float16", 2, "<f2"),
    "BF16": ("bfloat16", 2, "bfloat16"),
    "I64": ("int64", 8, None),
    "I32": ("int32", 4, None),
    "I16": ("int16", 2, None),
    "I8": ("int8", 1, None),
    "U8": ("uint8", 1, None),
    "BOOL": ("bool", 1, None),
}
_PICKLE = (
    "which is not opened, since unpickling runs code; load it where it was made and write the weights with "
    "edge_sfda.checkpoint.save(path, net.state_dict(), manifest)"
)
_SIGNATURES = (
    (b"PK\x03\x04", f"a zip archive, as PyTorch's .pt files are: a PyTorch pickle, {_PICKLE}"),
    (b"\x80", f"a pickle, as old PyTorch .pt files are, {_PICKLE}"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file itself with `git lfs pull`"),
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A verified file in memory: what the network is, and its tensors by name, on the CPU."""

    manifest: Manifest
    state: dict[str, Tensor]


@dataclass(frozen=True)
class _Stored:
    """A tensor as it lies in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray


def save(path: str | Path, state: Mapping[str, Tensor], manifest: Manifest) -> Manifest:
    """Write `state` and `manifest` to `path`; the same input gives the same bytes.

    Args:
        path: the file, as a rule `*.safetensors`; an old one is replaced at once and whole.
        state: tensors by name, on any device, of any strides; as `state_dict()` gives them.
        manifest: everything else; its `tensors_sha256` is filled in.

    Returns:
        The manifest as written.

    Raises:
        DivergenceError: a tensor holds values that are not finite; nothing is written.
        CheckpointError: a tensor's dtype or layout, or a value in the manifest, is not one that the format holds.
        WriteError: the file cannot be written; an old one is untouched.
    """
    tensors = [_stored(name, tensor) for name, tensor in sorted(state.items())]
    bad = _first_not_finite(tensors)
    if bad is not None:
        raise DivergenceError(f"not saved to {path}: tensor {bad} holds values that are not finite; training diverged")
    manifest = replace(manifest, tensors_sha256=_hash_tensors(tensors))
    write_atomic(path, _encode(tensors, manifest))
    return manifest


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return the hash that a manifest would hold of these tensors (`tensors_sha256`).

    Raises:
        CheckpointError: as for `save`.
    """
    return _hash_tensors(_stored(name, tensor) for name, tensor in state.items())


def load(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint: format, length, both hashes, all values finite.

    Raises:
        CheckpointError: missing, unreadable, no safetensors (a pickle is named as such and never opened), truncated,
            without a manifest, altered, or with values that are not finite (the message names the tensor).
    """
    tensors, manifest = _read(path)
    return Checkpoint(manifest, {t.name: _to_torch(t) for t in tensors})


def read_manifest(path: str | Path) -> Manifest:
    """Read and verify the manifest alone: no tensor is read, no torch imported.

    Raises:
        CheckpointError: as for `load`, apart from what only the tensors show.
    """
    with _Opened(path) as stream:
        return _manifest(_read_header(stream, path), path)


def _read(path: str | Path) -> tuple[list[_Stored], Manifest]:
    with _Opened(path) as stream:
        header = _read_header(stream, path)
        manifest = _manifest(header, path)  # first: nothing large is read for a file that is none of ours
        stream.seek(0)
        data = stream.read()
    try:
        # the library's parser checks what ours does not: offsets without gaps or overlap, sizes that match shapes
        found = safetensors.deserialize(data)  # type: ignore[no-untyped-call, unused-ignore]
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}; copy it again") from error
    tensors = [_Stored(n, str(e["dtype"]), tuple(e["shape"]), e["data"]) for n, e in sorted(found, key=lambda f: f[0])]
    if _hash_tensors(tensors) != manifest.tensors_sha256:
        raise CheckpointError(
            f"{path}: tensors do not match the hash in the manifest; damaged or altered, copy it again"
        )
    for tensor in tensors:
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: tensor {tensor.name} is of dtype {tensor.dtype}; known are {_known_dtypes()}"
            )
    bad = _first_not_finite(tensors)
    if bad is not None:
        raise CheckpointError(f"{path}: tensor {bad} holds values that are not finite; the network cannot be used")
    return tensors, manifest


class _Opened:
    """Open a regular file for reading; operating system errors become `CheckpointError`."""

    def __init__(self, path: str | Path) -> None:
        self._path = path

    def __enter__(self) -> BinaryIO:
        try:
            # non-blocking: opening a pipe would wait for a writer
            descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            words = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"cannot read checkpoint {self._path}: {words}; check the path") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise CheckpointError(f"{self._path} is no regular file; expected a .safetensors checkpoint")
        self._stream = open(descriptor, "rb")
        return self._stream

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._stream.close()
        if isinstance(error, OSError):
            raise CheckpointError(f"cannot read checkpoint {self._path}: {error.strerror}; copy it again") from error


def _read_header(stream: BinaryIO, path: str | Path) -> dict[str, Any]:
    """Return the header as JSON; what it claims is held against the file's size before anything is read by it."""
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(32)
    length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 2 <= length <= _MAX_HEADER or start[8:9] != b"{":
        # only now: the length of a good header may begin with the bytes of a pickle
        for signature, words in _SIGNATURES:
            if start.startswith(signature):
                raise CheckpointError(f"{path} is {words}")
        raise CheckpointError(f"{path} is no safetensors file ({size} bytes); expected a checkpoint of edge-sfda")
    if 8 + length > size:
        raise CheckpointError(f"{path} is truncated: {size} bytes, its header alone takes {8 + length}; copy it again")
    stream.seek(8)
    try:
        header = json.loads(stream.read(length))
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path} has a damaged header ({type(error).__name__}); copy it again") from error
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        what = "truncated" if size < expected else "longer than it should be"
        raise CheckpointError(f"{path} is {what}: {size} bytes, its header promises {expected}; copy it again")
    assert isinstance(header, dict), ".items() came from a dict"
    return header


def _manifest(header: Mapping[str, Any], path: str | Path) -> Manifest:
    metadata = header.get("__metadata__")
    text = metadata.get(MANIFEST_KEY) if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(text, str):
        raise CheckpointError(
            f"{path} is safetensors without a manifest, so its classes and network are unknown; write it with "
            "edge_sfda.checkpoint.save(path, state, manifest)"
        )
    if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != metadata.get(MANIFEST_HASH_KEY):
        raise CheckpointError(f"{path}: the manifest does not match its hash; damaged or altered, copy it again")
    try:
        return Manifest.from_json(text)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except RecursionError as error:
        raise CheckpointError(f"{path}: the manifest is nested too deep to be one; copy it again") from error


def _encode(tensors: Iterable[_Stored], manifest: Manifest) -> bytes:
    # written here, not by the library: its metadata come in another order in every process
    try:
        text = manifest.to_json()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"manifest cannot be written ({error}); provenance takes finite JSON values") from error
    digest = hashlib.sha256(text.encode()).hexdigest()
    header: dict[str, Any] = {"__metadata__": {MANIFEST_KEY: text, MANIFEST_HASH_KEY: digest}}
    # wide values first, as the library orders them: each tensor is then aligned to its own values
    ordered = sorted(tensors, key=lambda t: (-_DTYPES[t.dtype][1], t.name))
    offset = 0
    for t in ordered:
        header[t.name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": (offset, offset + len(t.data))}
        offset += len(t.data)
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join([struct.pack("<Q", len(encoded)), encoded, *(t.data for t in ordered)])


def _hash_tensors(tensors: Iterable[_Stored]) -> str:
    digest = hashlib.sha256()
    for t in sorted(tensors, key=lambda t: t.name):
        digest.update(json.dumps([t.name, t.dtype, t.shape]).encode() + b"\n")
        digest.update(t.data)
    return digest.hexdigest()


def _first_not_finite(tensors: Iterable[_Stored]) -> str | None:
    for t in tensors:
        kind = _DTYPES[t.dtype][2]
        if kind is None:
            continue
        if kind == "bfloat16":  # numpy has none: all exponent bits set is infinity or NaN
            finite = (np.frombuffer(t.data, "<u2") & 0x7F80) != 0x7F80
        else:
            finite = np.isfinite(np.frombuffer(t.data, kind))
        if not finite.all():
            return t.name
    return None


def _stored(name: str, tensor: Tensor) -> _Stored:
    import torch

    known = {torch_name: dtype for dtype, (torch_name, _, _) in _DTYPES.items()}
    dtype = str(tensor.dtype).removeprefix("torch.")
    if name == "__metadata__" or dtype not in known or tensor.layout != torch.strided:
        raise CheckpointError(
            f"cannot save tensor {name!r} of dtype {dtype}, layout {tensor.layout}; expected a name other than "
            f"__metadata__, one of {_known_dtypes()}, and layout strided"
        )
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return _Stored(name, known[dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes())


def _to_torch(stored: _Stored) -> Tensor:
    import torch

    dtype = getattr(torch, _DTYPES[stored.dtype][0])
    if not stored.data:  # frombuffer takes no empty buffer
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(bytearray(stored.data), dtype=dtype).reshape(stored.shape)


def _known_dtypes() -> str:
    return ", ".join(torch_name for torch_name, _, _ in _DTYPES.values())
