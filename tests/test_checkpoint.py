from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edge_sfda import checkpoint
from edge_sfda.errors import CheckpointError, DivergenceError, WriteError
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing

MANIFEST = Manifest(
    net=NetSpec("nano", stride=8),
    classes=Classes(("road", "car"), ((128, 64, 128), (0, 0, 142))),
    preprocessing=Preprocessing(48, 64),
    class_weight=(1.0, 2.5),
    provenance={"kind": "source", "epoch": 3},
)


def _state() -> dict[str, Tensor]:
    return {
        "encoder.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        "encoder.bias": torch.tensor([1.5, -2.5], dtype=torch.float64),
        "norm.batches": torch.tensor(12),
        "half": torch.tensor([0.1, 65504.0], dtype=torch.float16),
        "brain": torch.tensor([0.1, 3e38], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "nothing": torch.empty(0, 3),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a good checkpoint."""
    checkpoint.save(tmp_path / "net.safetensors", _state(), MANIFEST)
    return tmp_path / "net.safetensors"


def _parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _write_parts(path: Path, header: object, data: bytes) -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def _with_manifest(path: Path, text: str) -> None:
    """Put another manifest into the file, with a hash that fits."""
    header, data = _parts(path)
    digest = hashlib.sha256(text.encode()).hexdigest()
    header["__metadata__"] = {"edge_sfda_manifest": text, "manifest_sha256": digest}
    _write_parts(path, header, data)


def test_load_returns_what_was_saved(path: Path) -> None:
    loaded = checkpoint.load(path)
    assert sorted(loaded.state) == sorted(_state())
    for name, tensor in _state().items():
        assert loaded.state[name].dtype == tensor.dtype
        assert loaded.state[name].shape == tensor.shape
        assert torch.equal(loaded.state[name], tensor)
    assert replace(loaded.manifest, tensors_sha256="") == MANIFEST


def test_loaded_tensors_can_be_trained_in_place(path: Path) -> None:
    first, second = checkpoint.load(path), checkpoint.load(path)
    first.state["encoder.weight"].add_(1)
    assert torch.equal(second.state["encoder.weight"], _state()["encoder.weight"])


def test_save_returns_manifest_with_the_hash_of_names_dtypes_shapes_and_bytes(tmp_path: Path) -> None:
    saved = checkpoint.save(
        tmp_path / "a", {"b": torch.tensor([1.0]), "a": torch.tensor(2, dtype=torch.uint8)}, MANIFEST
    )
    expected = hashlib.sha256(b'["a", "U8", []]\n\x02["b", "F32", [1]]\n\x00\x00\x80\x3f').hexdigest()
    assert saved.tensors_sha256 == expected
    assert checkpoint.read_manifest(tmp_path / "a") == saved


def test_other_readers_of_safetensors_read_the_file(path: Path) -> None:
    found = safetensors.torch.load_file(path)
    assert sorted(found) == sorted(_state())
    assert all(torch.equal(found[name], tensor) for name, tensor in _state().items())


def test_file_of_another_writer_of_safetensors_loads(path: Path, tmp_path: Path) -> None:
    metadata = _parts(path)[0]["__metadata__"]
    safetensors.torch.save_file(_state(), tmp_path / "theirs.safetensors", metadata)
    assert torch.equal(checkpoint.load(tmp_path / "theirs.safetensors").state["half"], _state()["half"])


def test_same_input_gives_the_same_bytes_in_any_order(path: Path, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "again", dict(reversed(_state().items())), MANIFEST)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("letters", range(0, 256, 8))
def test_no_length_of_the_header_is_taken_for_a_pickle(tmp_path: Path, letters: int) -> None:
    manifest = replace(MANIFEST, provenance={"note": "n" * letters})  # 32 lengths, so one of them starts with 0x80
    checkpoint.save(tmp_path / "a", {}, manifest)
    assert checkpoint.read_manifest(tmp_path / "a").provenance == manifest.provenance


def test_tensor_data_are_aligned_to_eight_bytes(path: Path) -> None:
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0
    assert _parts(path)[0]["encoder.bias"]["data_offsets"][0] % 8 == 0


def test_views_shared_and_strided_tensors_are_saved_as_values(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"turned": base.t(), "part": base[1:, ::2], "same": base, "grad": base.clone().requires_grad_()}
    checkpoint.save(tmp_path / "a", state, MANIFEST)
    loaded = checkpoint.load(tmp_path / "a").state
    assert loaded["turned"].tolist() == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert loaded["part"].tolist() == [[4, 6], [8, 10]]
    assert torch.equal(loaded["same"], base)
    assert not loaded["grad"].requires_grad


def test_channels_last_weights_are_saved_as_values(tmp_path: Path) -> None:
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path / "a", {"w": weight}, MANIFEST)
    assert torch.equal(checkpoint.load(tmp_path / "a").state["w"], weight)


def test_checkpoint_without_tensors_loads(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "a", {}, MANIFEST)
    assert checkpoint.load(tmp_path / "a").state == {}


def test_read_manifest_imports_no_torch(path: Path) -> None:
    code = (
        "import sys; from edge_sfda.checkpoint import read_manifest; m = read_manifest(sys.argv[1]); "
        "print(m.classes.names, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "('road', 'car') False"


@pytest.mark.parametrize("name", ["encoder.weight", "encoder.bias", "half", "brain"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_save_refuses_values_that_are_not_finite_and_keeps_the_old_file(path: Path, name: str, value: float) -> None:
    before = path.read_bytes()
    state = _state()
    state[name].reshape(-1)[1] = value
    with pytest.raises(DivergenceError, match=f"tensor {name} holds values that are not finite"):
        checkpoint.save(path, state, MANIFEST)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [
        ("F64", struct.pack("<d", float("nan"))),
        ("F32", struct.pack("<f", float("-inf"))),
        ("F16", struct.pack("<e", float("nan"))),
        ("BF16", struct.pack("<H", 0x7F80)),
        ("BF16", struct.pack("<H", 0xFFC0)),
    ],
)
def test_load_names_the_first_tensor_that_is_not_finite(path: Path, dtype: str, bits: bytes) -> None:
    good = {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}
    bad = {"dtype": dtype, "shape": [1], "data_offsets": [8, 8 + len(bits)]}
    data = b"\xff" * 8 + bits
    digest = hashlib.sha256(
        b'["a.good", "I64", [1]]\n' + data[:8] + f'["b.bad", "{dtype}", [1]]\n'.encode() + bits
    ).hexdigest()
    _write_parts(path, {"a.good": good, "b.bad": bad}, data)
    _with_manifest(path, replace(MANIFEST, tensors_sha256=digest).to_json())
    with pytest.raises(CheckpointError, match=r"tensor b\.bad holds values that are not finite"):
        checkpoint.load(path)


@pytest.mark.parametrize("tensor", [torch.tensor([1j]), torch.eye(2).to_sparse()])
def test_save_refuses_what_the_format_does_not_hold(tmp_path: Path, tensor: Tensor) -> None:
    with pytest.raises(CheckpointError, match=r"cannot save tensor 'w' .*; expected"):
        checkpoint.save(tmp_path / "a", {"w": tensor}, MANIFEST)
    assert not (tmp_path / "a").exists()


def test_save_refuses_the_name_of_the_metadata(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name other than __metadata__"):
        checkpoint.save(tmp_path / "a", {"__metadata__": torch.zeros(1)}, MANIFEST)


def test_save_refuses_provenance_that_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="provenance takes finite JSON values"):
        checkpoint.save(tmp_path / "a", {}, replace(MANIFEST, provenance={"miou": float("nan")}))


def test_full_disk_keeps_the_old_checkpoint(path: Path) -> None:
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores the signal; write fails with EFBIG
    try:
        with pytest.raises(WriteError, match=r"cannot write .*net\.safetensors"):
            checkpoint.save(path, {"w": torch.zeros(4096)}, MANIFEST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_folder_that_is_missing_raises(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="create its folder first"):
        checkpoint.save(tmp_path / "none" / "a", {}, MANIFEST)


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*: No such file or directory"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_path_with_a_nul_raises() -> None:
    with pytest.raises(CheckpointError, match="cannot read checkpoint"):
        checkpoint.load("a\0b")


def test_folder_and_pipe_raise(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it must not wait for a writer
    for name in ("", "pipe"):
        with pytest.raises(CheckpointError, match="is no regular file"):
            checkpoint.load(tmp_path / name)


def test_symbolic_links_are_followed_and_loops_raise(path: Path) -> None:
    link, loop = path.with_name("link"), path.with_name("loop")
    link.symlink_to(path.name)
    loop.symlink_to("loop")
    assert checkpoint.load(link).manifest.classes == MANIFEST.classes
    with pytest.raises(CheckpointError, match="cannot read checkpoint .*loop"):
        checkpoint.load(loop)


def test_endless_device_raises() -> None:
    with pytest.raises(CheckpointError, match="is no regular file"):
        checkpoint.load("/dev/zero")


class _Bomb:
    """Raise when unpickled: proof that nothing is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickle_is_named_and_not_opened(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "net.pt").write_bytes(pickle.dumps(_Bomb(), protocol=protocol))
    with pytest.raises(CheckpointError, match=r"is a pickle, .* unpickling runs code; .* write the weights with"):
        checkpoint.load(tmp_path / "net.pt")


def test_torch_save_archive_is_named_and_not_opened(tmp_path: Path) -> None:
    torch.save({"weight": _Bomb()}, tmp_path / "net.pt")
    for read in (checkpoint.load, checkpoint.read_manifest):
        with pytest.raises(CheckpointError, match="PyTorch pickle"):
            read(tmp_path / "net.pt")


def test_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        checkpoint.load(tmp_path / "a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00" * 7,
        b"\x00" * 100,
        b"\xff" * 100,
        struct.pack("<q", -1) + b"{}",
        struct.pack("<Q", 2**63) + b"{}" * 50,
        struct.pack("<Q", 1) + b"{}",
        struct.pack("<Q", 20) + b"not json" * 5,
        b"<html><body>404: not found</body></html>",
    ],
)
def test_bytes_that_are_no_safetensors_raise(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match="is no safetensors file"):
        checkpoint.load(tmp_path / "a")


def test_every_truncation_raises(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, 60), *range(60, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"truncated|no safetensors file"):
            checkpoint.load(path)


def test_appended_bytes_raise(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(CheckpointError, match="longer than it should be"):
        checkpoint.load(path)


def test_every_flipped_bit_of_the_data_raises(path: Path) -> None:
    good = path.read_bytes()
    start = len(good) - len(_parts(path)[1])
    assert len(good) - start == 16 + 8 + 24 + 4 + 4 + 3 + 2
    for position in range(start, len(good)):
        data = bytearray(good)
        data[position] ^= 0x10
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="tensors do not match the hash"):
            checkpoint.load(path)


@given(data=st.data())
def test_no_damaged_header_gets_further_than_a_checkpoint_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    checkpoint.save(path, {"w": torch.ones(2)}, MANIFEST)
    good = path.read_bytes()
    header_end = len(good) - 8
    position = data.draw(st.integers(0, header_end - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[position]))
    path.write_bytes(good[:position] + bytes([byte]) + good[position + 1 :])
    try:
        state = checkpoint.load(path).state
    except CheckpointError:
        return
    assert state["w"].tolist() == [1, 1]  # white space may change, tensors may not


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [1], "data_offsets": []},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, "x"]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, None]},
    ],
)
def test_header_entry_of_another_form_raises(path: Path, entry: object) -> None:
    header, data = _parts(path)
    _write_parts(path, {**header, "encoder.weight": entry}, data)
    with pytest.raises(CheckpointError, match="damaged header"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-2, -3]},
        {"shape": [2, 4]},
        {"shape": [2**62, 2**62]},
        {"dtype": "F99"},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [0, 4]},
    ],
)
def test_header_entry_that_does_not_fit_its_data_raises(path: Path, change: dict[str, Any]) -> None:
    header, data = _parts(path)
    header["encoder.weight"] |= change
    _write_parts(path, header, data)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)


def test_two_tensors_over_the_same_bytes_raise(path: Path) -> None:
    header, data = _parts(path)
    _write_parts(path, {**header, "twin": header["encoder.bias"]}, data)
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"a":' * 100_000, b"{" + b"\xff" * 50, b'{"a": Infinity}'])
def test_header_that_breaks_parsers_raises(path: Path, header: bytes) -> None:
    _write_parts(path, header, b"")
    with pytest.raises(CheckpointError, match=r"damaged header|no safetensors file"):
        checkpoint.load(path)


def test_offset_far_beyond_the_file_raises_without_reading(path: Path) -> None:
    header, data = _parts(path)
    header["encoder.weight"]["data_offsets"] = [0, 10**30]
    _write_parts(path, header, data)
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {}, [], "text", {"format": "pt"}, {"edge_sfda_manifest": 5}])
def test_safetensors_without_a_manifest_raises(path: Path, metadata: object) -> None:
    header, data = _parts(path)
    _write_parts(path, {**header, "__metadata__": metadata}, data)
    for read in (checkpoint.load, checkpoint.read_manifest):
        with pytest.raises(CheckpointError, match="safetensors without a manifest"):
            read(path)


def test_altered_manifest_raises(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"road", b"raod"))
    for read in (checkpoint.load, checkpoint.read_manifest):
        with pytest.raises(CheckpointError, match="manifest does not match its hash"):
            read(path)


def test_renamed_tensor_raises(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"half"', b'"hulf"'))
    with pytest.raises(CheckpointError, match="tensors do not match the hash"):
        checkpoint.load(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"a":' * 100_000, '"\\ud800"'])
def test_manifest_of_another_form_raises_and_names_the_file(path: Path, text: str) -> None:
    _with_manifest(path, text)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: .*manifest"):
        checkpoint.load(path)


def test_manifest_of_a_later_format_asks_for_an_update(path: Path) -> None:
    raw = json.loads(MANIFEST.to_json())
    _with_manifest(path, json.dumps({**raw, "format": 2}))
    with pytest.raises(CheckpointError, match="manifest of format 2, this version reads 1; update edge-sfda"):
        checkpoint.read_manifest(path)


def test_dtype_that_torch_half_knows_is_refused(path: Path) -> None:
    digest = hashlib.sha256(b'["w", "U64", [1]]\n' + b"\x01" * 8).hexdigest()
    _write_parts(path, {"w": {"dtype": "U64", "shape": [1], "data_offsets": [0, 8]}}, b"\x01" * 8)
    _with_manifest(path, replace(MANIFEST, tensors_sha256=digest).to_json())
    with pytest.raises(CheckpointError, match="tensor w is of dtype U64; known are float64"):
        checkpoint.load(path)
