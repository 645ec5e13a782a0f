"""Keep what the vendor installed: write the versions that pip must leave alone, and check that it has.

python3 vendor.py write FILE    with the system's Python, before anything is installed
python  vendor.py check FILE    with the virtual environment's Python, afterwards
"""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

MODULES = ("torch", "tensorrt", "cv2", "numpy")  # built for the board, or against what is


def write(path: Path) -> None:
    """Write name and version of every distribution as constraints, and where each module lies as a comment."""
    pinned = {f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]}
    places = [f"# {name} {_place(name)}" for name in MODULES]
    path.write_text("\n".join([*places, *sorted(pinned)]) + "\n")


def check(path: Path) -> list[str]:
    """Return what lies elsewhere than before."""
    before = dict(line[2:].split(" ", 1) for line in path.read_text().splitlines() if line.startswith("# "))
    return [f"{name}: was {old}, is {_place(name)}" for name, old in before.items() if old != _place(name)]


def _place(name: str) -> str:
    found = importlib.util.find_spec(name)
    return str(found.origin) if found else "nowhere"


if __name__ == "__main__":
    action, file = sys.argv[1], Path(sys.argv[2])
    if action == "write":
        write(file)
    elif moved := check(file):
        sys.exit("pip replaced what the vendor installed:\n" + "\n".join(moved))
