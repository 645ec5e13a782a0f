"""Kernel sources, and what they compile to, kept under the user's cache folder.

The key is the hash of the source with every header it includes, the compiler with its version, all options and the
architecture: a changed source or compiler never meets an old binary. Files are written beside their final name and
renamed, so that two processes may compile the same kernel at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_sfda.errors import KernelError

CACHE_VARIABLE = "XDG_CACHE_HOME"
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A kernel source with the headers it includes by quoted name."""

    path: Path
    text: str
    headers: dict[str, str]
    """Text of each header by the name in its include line."""


def source_folder() -> Path:
    """Return the folder of the kernel sources: in a wheel beside the package's modules, else at the checkout's top.

    Raises:
        KernelError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    candidates = package / "_cuda_kernels", package.parent / "cuda_kernels"
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise KernelError(f"no kernel sources in {' or '.join(map(str, candidates))}: reinstall edge-sfda")


def read_source(name: str, *, before: tuple[str, ...] = ()) -> Source:
    """Return a source with its headers, followed through their own includes.

    Args:
        name: of a file in `cuda_kernels/`, or an absolute path.
        before: headers that the compiler is told to include first.

    Raises:
        KernelError: a file is missing.
    """
    folder = source_folder()
    text = _read(folder / name)
    headers: dict[str, str] = {}
    waiting = [*before, *_INCLUDE.findall(text)]
    while waiting:
        header = waiting.pop()
        if header not in headers:
            headers[header] = _read(folder / header)
            waiting += _INCLUDE.findall(headers[header])
    return Source(folder / name, text, headers)


def cached(
    source: Source, *, compiler: str, options: tuple[str, ...], suffix: str, compile_to: Callable[[Path], None]
) -> Path:
    """Return the file that holds the compiled source, compiling it when the cache has none.

    Args:
        source: what is compiled.
        compiler: its name and version.
        options: all that changes the result, the architecture among them.
        suffix: of the file, such as `.so`.
        compile_to: writes the result to the path it is given, or raises KernelError.

    Raises:
        KernelError: the compiler failed, or the cache folder cannot be written.
    """
    path = cache_folder() / f"{source.path.stem}-{_digest(source, compiler, options)}{suffix}"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=suffix)
        os.close(handle)
    except OSError as error:
        raise KernelError(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror}): make it writable, or name "
            f"another place in {CACHE_VARIABLE}"
        ) from error
    unfinished = Path(name)
    try:
        compile_to(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def cache_folder() -> Path:
    """Return where compiled kernels are kept: `$XDG_CACHE_HOME/edge-sfda/kernels`, by default under `~/.cache`."""
    root = os.environ.get(CACHE_VARIABLE, "")
    # XDG: a relative path is invalid and must be ignored.
    base = Path(root) if Path(root).is_absolute() else Path.home() / ".cache"
    return base / "edge-sfda" / "kernels"


def _digest(source: Source, compiler: str, options: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    parts = [compiler, *options, source.path.name, source.text]
    for name in sorted(source.headers):
        parts += [name, source.headers[name]]
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()[:32]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise KernelError(f"kernel source {path} cannot be read ({error.strerror}): reinstall edge-sfda") from error
