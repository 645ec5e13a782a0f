"""Where sources are found and compiled kernels are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_sfda.errors import KernelError
from edge_sfda.ops import compile_cache
from edge_sfda.ops.compile_cache import Source, cache_folder, cached, read_source, source_folder

SOURCE = Source(Path("some.cu"), "text", {"a.hpp": "one", "b.hpp": "two"})


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "edge-sfda" / "kernels"


class Compiler:
    """Writes what it is told to, and counts."""

    def __init__(self, result: bytes = b"binary") -> None:
        self.result, self.runs = result, 0

    def __call__(self, path: Path) -> None:
        self.runs += 1
        path.write_bytes(self.result)


def compiled(source: Source, compile_to: Compiler, *, compiler: str = "g++ 12", options: tuple[str, ...] = ()) -> Path:
    return cached(source, compiler=compiler, options=options, suffix=".so", compile_to=compile_to)


def test_second_request_does_not_compile_again(empty_cache: Path) -> None:
    compiler = Compiler()
    first, second = compiled(SOURCE, compiler), compiled(SOURCE, compiler)
    assert first == second
    assert compiler.runs == 1
    assert first.read_bytes() == b"binary"
    assert list(empty_cache.iterdir()) == [first]


@pytest.mark.parametrize(
    ("source", "compiler", "options"),
    [
        (Source(SOURCE.path, "text ", SOURCE.headers), "g++ 12", ()),
        (Source(SOURCE.path, "text", {"a.hpp": "one", "b.hpp": "2"}), "g++ 12", ()),
        (Source(SOURCE.path, "text", {"a.hpp": "onet", "b.hpp": "wo"}), "g++ 12", ()),
        (SOURCE, "g++ 13", ()),
        (SOURCE, "g++ 12", ("-arch=sm_87",)),
    ],
    ids=["source", "header", "moved text", "compiler", "options"],
)
def test_anything_that_changes_the_result_compiles_again(
    source: Source, compiler: str, options: tuple[str, ...]
) -> None:
    counter = Compiler()
    assert compiled(SOURCE, counter) != compiled(source, counter, compiler=compiler, options=options)
    assert counter.runs == 2


def test_failed_compilation_leaves_nothing(empty_cache: Path) -> None:
    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise KernelError("no")

    with pytest.raises(KernelError, match="no"):
        cached(SOURCE, compiler="", options=(), suffix=".so", compile_to=fail)
    assert list(empty_cache.iterdir()) == []


def test_result_appears_only_when_it_is_complete(empty_cache: Path) -> None:
    seen: list[list[str]] = []

    def look(path: Path) -> None:
        path.write_bytes(b"done")
        seen.append([p.name for p in empty_cache.iterdir() if p != path])

    path = cached(SOURCE, compiler="", options=(), suffix=".so", compile_to=look)
    assert seen == [[]]
    assert path.read_bytes() == b"done"


def test_cache_that_cannot_be_made_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(KernelError, match="make it writable, or name another place in XDG_CACHE_HOME"):
        compiled(SOURCE, Compiler())


@pytest.mark.parametrize("value", ["", "relative/path"])
def test_cache_variable_that_is_no_absolute_path_is_ignored(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "edge-sfda" / "kernels"


def test_sources_of_a_checkout_are_at_its_top() -> None:
    assert source_folder().name == "cuda_kernels"
    assert (source_folder() / "weighted_cross_entropy.cu").is_file()


def test_source_brings_its_headers() -> None:
    source = read_source("weighted_cross_entropy.cu")
    assert source.headers.keys() == {"kernel.hpp"}
    assert "struct Half" in source.headers["kernel.hpp"]


def test_headers_are_followed_through_their_includes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "source_folder", lambda: tmp_path)
    (tmp_path / "k.cu").write_text('#include "a.hpp"\n#include <system>\n')
    (tmp_path / "a.hpp").write_text('  # include "b.hpp"\n')
    (tmp_path / "b.hpp").write_text('#include "a.hpp"\n')
    assert read_source("k.cu").headers.keys() == {"a.hpp", "b.hpp"}


def test_missing_source_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "source_folder", lambda: tmp_path)
    with pytest.raises(KernelError, match="absent.cu cannot be read"):
        read_source("absent.cu")
