from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_sfda import files
from edge_sfda.errors import WriteError
from edge_sfda.files import write_atomic, write_text_atomic


@contextmanager
def _disk_of(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writes then fail in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


@contextmanager
def _another_user() -> Iterator[None]:
    """Drop root's right to write anywhere; nothing to do for other users."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_write_atomic_creates_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.bin", b"\x00\x01\r\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\x01\r\n"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_write_atomic_replaces_longer_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"long old content")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


def test_write_atomic_leaves_open_reader_its_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        write_atomic(path, b"new")
        assert reader.read() == b"old"


def test_write_atomic_honours_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a.bin", b"x")
    finally:
        os.umask(previous)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o640


def test_write_atomic_takes_name_as_long_as_the_file_system_does(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_write_atomic_follows_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(b"old")
    (tmp_path / "link.bin").symlink_to("real.bin")
    write_atomic(tmp_path / "link.bin", b"new")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"new"


def test_write_text_atomic_writes_utf8_without_changing_line_ends(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a.txt", "é\r\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\r\nb\n"


def test_full_disk_raises_and_keeps_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with _disk_of(4096), pytest.raises(WriteError, match="cannot write .*a.bin: .*; free some space"):
        write_atomic(path, b"x" * 10_000)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_interrupt_removes_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(descriptor: int) -> None:
        assert len(os.listdir(tmp_path)) == 2  # the old file and the temporary one
        raise KeyboardInterrupt

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_folder_without_permission_raises(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with _another_user(), pytest.raises(WriteError, match="Permission denied; choose a folder that you may write to"):
        write_atomic(folder / "a.bin", b"x")
    assert os.listdir(folder) == []


def test_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="No such file or directory; create its folder first"):
        write_atomic(tmp_path / "none" / "a.bin", b"x")


def test_file_in_the_place_of_a_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(WriteError, match="Not a directory; create its folder first"):
        write_atomic(tmp_path / "file" / "a.bin", b"x")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_folder_in_the_place_of_the_file_raises(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(WriteError, match="it exists and is no regular file"):
        write_atomic(tmp_path / "a.bin", b"x")


def test_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match="no regular file"):
        write_atomic(tmp_path / "pipe", b"x")
    assert (tmp_path / "pipe").is_fifo()


def test_new_folder_appears_whole_with_what_was_written(tmp_path: Path) -> None:
    with files.new_folder(tmp_path / "a") as folder:
        write_atomic(folder / "x", b"1")
        assert not (tmp_path / "a").exists()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a" / "x").read_bytes() == b"1"


def test_new_folder_vanishes_when_its_body_fails(tmp_path: Path) -> None:
    def interrupted() -> None:
        with files.new_folder(tmp_path / "a") as folder:
            write_atomic(folder / "x", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [[], ["old"]])
def test_new_folder_replaces_none(tmp_path: Path, content: list[str]) -> None:
    (tmp_path / "a").mkdir()
    for name in content:
        (tmp_path / "a" / name).touch()
    with pytest.raises(WriteError, match="exists already"), files.new_folder(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == ["a"]
    assert os.listdir(tmp_path / "a") == content


def test_new_folder_without_a_parent_raises(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="create its folder first"), files.new_folder(tmp_path / "none" / "a"):
        pass


def test_folder_is_removed_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    files.remove_folder(tmp_path / "a")
    assert os.listdir(tmp_path) == []
    with pytest.raises(WriteError, match="cannot remove"):
        files.remove_folder(tmp_path / "a")


def test_only_unfinished_work_is_removed(tmp_path: Path) -> None:
    for name in (".edge-sfda-1.tmp", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    (tmp_path / ".edge-sfda-2.tmp").touch()
    files.remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_lock_keeps_others_out_until_it_is_left(tmp_path: Path) -> None:
    probe = (
        "import fcntl, sys\n"
        "try:\n    fcntl.flock(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n    sys.exit(7)\n"
    )
    command = [sys.executable, "-c", probe, str(tmp_path / ".lock")]
    with files.locked(tmp_path):
        assert subprocess.run(command).returncode == 7
    assert subprocess.run(command).returncode == 0
    with pytest.raises(WriteError, match="cannot lock"), files.locked(tmp_path / "none"):
        pass
