"""Atomic writes: a reader sees the old file or folder or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sfda.errors import WriteError

# Some network and overlay file systems cannot sync a folder; the rename is still atomic there.
_CANNOT_SYNC_FOLDER = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}

_TEMPORARY = ".edge-sfda-"  # how the names of what is not finished begin


def write_atomic(path: str | Path, data: bytes | bytearray | memoryview) -> None:
    """Replace the file at `path` by `data`: temporary file beside it, fsync, rename, fsync of the folder.

    A symbolic link is followed, so its target is replaced and the link stays. The folder must exist.

    Raises:
        WriteError: the folder is missing or not writable, the disk is full, or `path` is no regular file. The old file
            is then untouched and no temporary file is left.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            # os.replace would put a plain file in the place of /dev/null when run as root
            raise WriteError(f"cannot write {path}: it exists and is no regular file; choose another name")
        # the target's own name is left out: it may be as long as the file system allows
        temporary = _temporary_beside(target)
        try:
            _write_through(temporary, data)
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C must not leave the temporary file either
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; {_advice(error)}") from error


def write_text_atomic(path: str | Path, text: str) -> None:
    """Replace the file at `path` by `text` in UTF-8, line ends as they are; see `write_atomic`."""
    write_atomic(path, text.encode("utf-8"))


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty folder to write into; it becomes `path` when the body ends well, and vanishes when it does not.

    What the body writes must be synced by itself, as `write_atomic` does. The parent folder must exist, `path` not.

    Raises:
        WriteError: `path` exists, or the folder cannot be made; no trace is left.
    """
    target = Path(path)
    temporary = _temporary_beside(target)
    try:
        temporary.mkdir()
        try:
            yield temporary
            _sync_folder(temporary)
            if target.exists():  # os.rename would replace an empty folder
                raise WriteError(f"cannot write {path}: it exists already; remove it or choose another name")
            os.rename(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}; {_advice(error)}") from error


def remove_folder(path: str | Path) -> None:
    """Remove a folder: it is gone at once and as a whole, also for a process that is killed meanwhile.

    Raises:
        WriteError: it cannot be removed.
    """
    target = Path(path)
    doomed = _temporary_beside(target)
    try:
        os.rename(target, doomed)
        _sync_folder(target.parent)
        shutil.rmtree(doomed)
    except OSError as error:
        raise WriteError(f"cannot remove {path}: {error.strerror or error}; {_advice(error)}") from error


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes left in `folder`; only for who holds its `locked`."""
    for left in Path(folder).glob(f"{_TEMPORARY}*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let one process at a time change what is in `folder`; others wait. The lock dies with its process.

    Raises:
        WriteError: the folder is missing or not writable, or its file system has no locks.
    """
    import fcntl  # POSIX alone has it

    try:
        descriptor = os.open(Path(folder) / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise WriteError(f"cannot lock {folder}: {error.strerror}; {_advice(error)}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise WriteError(f"cannot lock {folder}: {error.strerror}; choose a local disk") from error
        yield
    finally:
        os.close(descriptor)


def rename_folder(old: str | Path, new: str | Path) -> None:
    """Rename a folder and sync its parent.

    Raises:
        WriteError: it cannot be renamed.
    """
    try:
        os.rename(old, new)
        _sync_folder(Path(new).parent)
    except OSError as error:
        raise WriteError(f"cannot rename {old} to {new}: {error.strerror or error}; {_advice(error)}") from error


def _temporary_beside(target: Path) -> Path:
    return target.parent / f"{_TEMPORARY}{secrets.token_hex(8)}.tmp"


def _write_through(path: Path, data: bytes | bytearray | memoryview) -> None:
    # not tempfile.mkstemp: its mode 0600 would hide the result from the user who serves it
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # no folder handles there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC_FOLDER:
            raise
    finally:
        os.close(descriptor)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "create its folder first"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space or choose another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write to"
    return "choose another place"
