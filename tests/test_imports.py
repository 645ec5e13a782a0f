"""The rule of the package's architecture: imports go one way, and half of the package needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edge_sfda

PACKAGE = Path(edge_sfda.__file__).parent
# a room may import from its own row and the rows above
ROWS = (
    ("errors",),
    ("files", "manifest", "config", "profile"),
    ("ops",),
    ("data", "nets", "metrics", "checkpoint"),
    ("train", "adapt"),
    ("runtime",),
    ("live", "doctor"),
    ("report",),
    ("cli",),
    ("__main__",),
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
FACE = "__init__"  # of the package: loads names from anywhere on first use, so it has no row and may not be imported

TORCH_FREE_ROOMS = (
    "__init__",
    "errors",
    "files",
    "manifest",
    "config",
    "profile",
    "metrics",
    "checkpoint",
    "data",
    "report",
)
TORCH_FREE_FILES = tuple(  # of rooms where others need it
    f"runtime/{name}.py"
    for name in (
        "artefact",
        "device_memory",
        "engine",
        "engine_fake",
        "engine_file",
        "engine_onnx",
        "engine_tensorrt",
        "gpu",
        "intake",
        "latency",
        "onnx_wire",
        "predict",
    )
)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imported_rooms(source: str, is_room: set[str]) -> Iterator[tuple[int, str]]:
    """Give line and room of every import of this package, also those inside functions and for type checkers."""
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the whole name"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "edge_sfda":
                yield node.lineno, parts[1] if len(parts) > 1 and parts[1] in is_room else FACE


def _edges() -> list[tuple[str, int, str, str]]:
    """Return file, line, importing room and imported room of every import between rooms."""
    paths = sorted(PACKAGE.rglob("*.py"))
    rooms = {_room(path) for path in paths}
    return [
        (str(path.relative_to(PACKAGE)), line, _room(path), to)
        for path in paths
        for line, to in _imported_rooms(path.read_text(encoding="utf-8"), rooms)
        if to != _room(path)
    ]


def _against_order(edges: list[tuple[str, int, str, str]]) -> list[str]:
    return [
        f"{file}:{line}: {room} imports {to}"
        for file, line, room, to in edges
        if room != FACE and to != FACE and ROW[to] > ROW[room]
    ]


def _in_cycles(edges: list[tuple[str, int, str, str]]) -> set[str]:
    reach = {(room, to) for _, _, room, to in edges if FACE not in (room, to)}
    while True:
        longer = {(a, d) for a, b in reach for c, d in reach if b == c} - reach
        if not longer:
            return {a for a, b in reach if a == b}
        reach |= longer


def test_every_room_has_a_row() -> None:
    rooms = {_room(path) for path in PACKAGE.rglob("*.py")}
    assert sorted(rooms - set(ROW) - {FACE}) == []


def test_imports_follow_the_order() -> None:
    assert _against_order(_edges()) == []


def test_rooms_of_one_row_do_not_import_each_other_in_a_circle() -> None:
    assert _in_cycles(_edges()) == set()


def test_only_the_version_is_taken_from_the_face() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "edge_sfda":
                rooms = {_room(p) for p in PACKAGE.rglob("*.py")}
                found += [alias.name for alias in node.names if alias.name not in rooms]
    assert set(found) <= {"__version__"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import edge_sfda.cli", [(1, "cli")]),
        ("from edge_sfda.adapt.losses import loss", [(1, "adapt")]),
        ("from edge_sfda import nets, __version__", [(1, "nets"), (1, FACE)]),
        ("import numpy\ndef f():\n    from edge_sfda.live import loop", [(3, "live")]),
        ("import edge_sfda_other, os.path", []),
    ],
)
def test_reader_finds_each_form_of_import(source: str, expected: list[tuple[int, str]]) -> None:
    assert list(_imported_rooms(source, {"cli", "adapt", "nets", "live"})) == expected


def test_reader_tells_an_import_against_the_order_and_a_circle() -> None:
    assert _against_order([("data/x.py", 3, "data", "adapt")]) == ["data/x.py:3: data imports adapt"]
    assert _against_order([("adapt/x.py", 3, "adapt", "data"), ("nets/x.py", 1, "nets", "data")]) == []
    circle = [("", 1, "nets", "data"), ("", 1, "data", "checkpoint"), ("", 1, "checkpoint", "nets")]
    assert _in_cycles(circle) == {"nets", "data", "checkpoint"}


def test_torch_free_rooms_import_no_torch() -> None:
    modules = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if _room(path) in TORCH_FREE_ROOMS or path.relative_to(PACKAGE).as_posix() in TORCH_FREE_FILES:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert {"edge_sfda", "edge_sfda.manifest", "edge_sfda.data.frames", "edge_sfda.metrics"} <= set(modules)
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name + ' imports torch'\n"
    )
    result = subprocess.run([sys.executable, "-c", code, *modules], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
