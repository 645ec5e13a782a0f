"""Accepted networks on disk: one folder a generation, whole or not there, and the way back.

    generations/
        0000/                       the source; always kept, never withdrawn
        0007/
            checkpoint.safetensors  weights and manifest
            report.json             why it was accepted
            model.onnx              whatever else the caller gives
            generation.json         number, and the hash of each file above
        0008.withdrawn/             rolled back from; kept to be looked at, never loaded

A number is given once, so a generation that was withdrawn never comes back under its name. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sfda import checkpoint
from edge_sfda.checkpoint import Checkpoint
from edge_sfda.errors import CheckpointError, UsageError, WriteError
from edge_sfda.files import (
    locked,
    new_folder,
    remove_folder,
    remove_unfinished,
    rename_folder,
    write_atomic,
    write_text_atomic,
)
from edge_sfda.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"
REPORT = "report.json"

_INDEX = "generation.json"
_FORMAT = 1
_WITHDRAWN = ".withdrawn"
_NAME = re.compile(rf"(\d{{4,}})({re.escape(_WITHDRAWN)})?")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generation:
    """One accepted network, verified when it was listed.

    Args:
        number: from 0, the source.
        path: its folder.
        manifest: of its checkpoint.
        report: what `accept` was given.
    """

    number: int
    path: Path
    manifest: Manifest
    report: Mapping[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's file."""
        return self.path / CHECKPOINT

    def load(self) -> Checkpoint:
        """Read the checkpoint, verified once more.

        Raises:
            CheckpointError: damaged or removed since it was listed.
        """
        return checkpoint.load(self.checkpoint)


class Generations:
    """The generations in `folder`.

    Several processes may read; those that write wait for each other. Everything is looked up on disk at each call, so a
    rollback by another process is seen at once.

    Args:
        folder: holds nothing but generations.
        keep: how many accepted ones, and how many withdrawn ones, are kept beside the source.

    Raises:
        UsageError: `keep` is below 2.
    """

    def __init__(self, folder: str | Path, *, keep: int = 5) -> None:
        if keep < 2:
            # with one, the network in use would be removed as its successor comes
            raise UsageError(f"keep = {keep} generations; expected 2 or more, or there is nothing to go back to")
        self.folder = Path(folder)
        self.keep = keep

    def start(self, state: Mapping[str, Tensor], manifest: Manifest) -> Generation:
        """Make the folder and keep the source as generation 0; nothing happens where it is kept already.

        Raises:
            CheckpointError: the folder's generations come from another source, or generation 0 is damaged.
            DivergenceError, WriteError: see `accept`.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WriteError(f"cannot make the folder {self.folder}: {error.strerror}; choose another") from error
        with locked(self.folder):
            remove_unfinished(self.folder)
            if not (self.folder / _name(0)).exists():
                if self._numbers():
                    raise CheckpointError(f"{self.folder} has generations but no source (0000); choose another folder")
                self._write(0, state, manifest, {"reason": "the source network"}, {})
            source = self._read(self.folder / _name(0))
        mine = checkpoint.fingerprint(state)
        if source.manifest.tensors_sha256 != mine:
            raise CheckpointError(
                f"{self.folder} holds generations of another source ({source.manifest.tensors_sha256[:12]}, this one "
                f"is {mine[:12]}); choose another folder"
            )
        return source

    def accept(
        self,
        state: Mapping[str, Tensor],
        manifest: Manifest,
        *,
        report: Mapping[str, Any],
        files: Mapping[str, bytes] | None = None,
    ) -> Generation:
        """Keep a network as the newest generation, then remove what is older than the newest `keep`.

        Args:
            state: its tensors by name.
            manifest: of the network; `tensors_sha256` is filled in.
            report: JSON values, such as the gate's decision.
            files: more files by plain name, such as `model.onnx`.

        Raises:
            DivergenceError: a tensor is not finite.
            CheckpointError: the report holds what JSON has not, a tensor cannot be stored, or `start` was never called.
            UsageError: a file's name is taken or no plain name.
            WriteError: the disk is full or not writable. In all cases the generations are as before.
        """
        extra = dict(files or {})
        for name in extra:
            if not _FILE_NAME.fullmatch(name) or name in (CHECKPOINT, REPORT, _INDEX):
                raise UsageError(f"cannot keep a file as {name!r}; expected a plain name that no generation has yet")
        with locked(self.folder):
            remove_unfinished(self.folder)
            if 0 not in self._accepted():
                raise CheckpointError(f"{self.folder} has no source to go back to; keep it first, with `start`")
            number = max(self._numbers(), default=0) + 1
            self._write(number, state, manifest, report, extra)
            generation = self._read(self.folder / _name(number))
            self._prune()
        return generation

    def all(self) -> tuple[Generation, ...]:
        """Return the whole generations, oldest first; a damaged one is left out with a warning in the log."""
        found = (self._whole(number) for number in sorted(self._accepted()))
        return tuple(generation for generation in found if generation is not None)

    def newest(self) -> Generation:
        """Return the newest whole generation; damaged ones are passed over with a warning in the log.

        Raises:
            CheckpointError: there is none.
        """
        for number in sorted(self._accepted(), reverse=True):
            generation = self._whole(number)
            if generation is not None:
                return generation
        raise CheckpointError(f"{self.folder} holds no whole generation; start again from the source checkpoint")

    def rollback(self, steps: int = 1) -> Generation:
        """Withdraw the newest `steps` generations and return the one that is the newest now.

        Raises:
            UsageError: fewer can be withdrawn: the source always stays.
            CheckpointError: nothing older is whole; nothing is withdrawn.
            WriteError: a folder cannot be renamed; the newer ones are withdrawn already.
        """
        with locked(self.folder):
            numbers = sorted(self._accepted() - {0}, reverse=True)
            if not numbers:
                raise UsageError(f"{self.folder} has no generation after the source; there is nothing to go back from")
            if not 1 <= steps <= len(numbers):
                raise UsageError(
                    f"cannot go back {steps} generations: {self.folder} has {len(numbers)} after the source; give 1 to "
                    f"{len(numbers)}"
                )
            return self._withdraw(numbers[:steps])

    def return_to(self, number: int) -> Generation:
        """Withdraw all generations after `number`; 0 is the source. Returns the newest whole one now.

        Raises:
            UsageError: there is no such generation.
            CheckpointError, WriteError: see `rollback`.
        """
        with locked(self.folder):
            accepted = self._accepted()
            if number not in accepted:
                known = ", ".join(map(str, sorted(accepted))) or "none"
                raise UsageError(f"{self.folder} has no generation {number}; it has {known}")
            return self._withdraw(sorted((n for n in accepted if n > number), reverse=True))

    def _withdraw(self, numbers: list[int]) -> Generation:
        left = sorted(self._accepted() - set(numbers), reverse=True)
        target = next((found for found in map(self._whole, left) if found is not None), None)
        if target is None:
            raise CheckpointError(f"{self.folder} holds nothing whole to go back to; start from the source checkpoint")
        for number in numbers:  # the newest first: a process killed in between leaves a shorter way back, no other one
            rename_folder(self.folder / _name(number), self.folder / (_name(number) + _WITHDRAWN))
        self._prune()
        return target

    def _prune(self) -> None:
        accepted, withdrawn = self._accepted() - {0}, self._numbers() - self._accepted()
        for numbers, suffix in ((accepted, ""), (withdrawn, _WITHDRAWN)):
            for number in sorted(numbers, reverse=True)[self.keep :]:
                remove_folder(self.folder / (_name(number) + suffix))

    def _write(
        self,
        number: int,
        state: Mapping[str, Tensor],
        manifest: Manifest,
        report: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> None:
        try:
            text = json.dumps(report, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"the report of generation {number} is not JSON ({error}); give finite values"
            ) from error
        with new_folder(self.folder / _name(number)) as folder:
            checkpoint.save(folder / CHECKPOINT, state, manifest)
            write_text_atomic(folder / REPORT, text + "\n")
            for name, data in files.items():
                write_atomic(folder / name, data)
            hashes = {name: _hash(folder / name) for name in sorted([CHECKPOINT, REPORT, *files])}
            index = {"format": _FORMAT, "number": number, "sha256": hashes}
            write_text_atomic(folder / _INDEX, json.dumps(index, sort_keys=True) + "\n")

    def _whole(self, number: int) -> Generation | None:
        try:
            return self._read(self.folder / _name(number))
        except CheckpointError as error:
            _log.warning("generation %d is passed over: %s", number, error)
            return None

    def _read(self, path: Path) -> Generation:
        try:
            index = json.loads((path / _INDEX).read_bytes())
            if index["format"] != _FORMAT or index["number"] != int(path.name):
                raise CheckpointError(f"{path / _INDEX} is of another format or number; accept the network again")
            hashes = {str(name): str(digest) for name, digest in index["sha256"].items()}
            if not {CHECKPOINT, REPORT} <= set(hashes) or not all(map(_FILE_NAME.fullmatch, hashes)):
                raise CheckpointError(f"{path / _INDEX} names other files than a generation has; it is damaged")
            for name, digest in hashes.items():
                if _hash(path / name) != digest:
                    raise CheckpointError(f"{path / name} does not match its hash; damaged or altered")
            report = json.loads((path / REPORT).read_bytes())
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror}; the generation is not whole") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path / _INDEX} is damaged ({type(error).__name__})") from error
        return Generation(int(path.name), path, checkpoint.read_manifest(path / CHECKPOINT), report)

    def _accepted(self) -> set[int]:
        return {number for number, withdrawn in self._listed() if not withdrawn}

    def _numbers(self) -> set[int]:
        return {number for number, _ in self._listed()}

    def _listed(self) -> list[tuple[int, bool]]:
        try:
            names = [_NAME.fullmatch(entry.name) for entry in self.folder.iterdir()]
        except OSError as error:
            raise CheckpointError(f"cannot list {self.folder}: {error.strerror}; check the path") from error
        return [(int(name[1]), name[2] is not None) for name in names if name is not None]


def _name(number: int) -> str:
    return f"{number:04d}"


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
