"""Atomic writes: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

from edge_sfda.errors import WriteError

# Some network and overlay file systems cannot sync a folder; the rename is still atomic there.
_CANNOT_SYNC_FOLDER = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


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
        temporary = target.parent / f".edge-sfda-{secrets.token_hex(8)}.tmp"
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
