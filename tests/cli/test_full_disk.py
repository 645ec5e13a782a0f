"""A disk that fills up: a limit on the size of a file stands in for it, in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

LIMIT = 100_000  # bytes a file may have: pictures and checkpoints of the run are larger, its settings are not


def test_full_disk_is_told_and_leaves_nothing_half_written(nano: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    frames = "scene:fog?frames=4&size=48x64"
    command = ["adapt", "--frames", frames, "--model", str(nano), "--steps", "1", "-o", str(out)]
    ran = subprocess.run(
        [sys.executable, "-m", "edge_sfda", *command],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT)),
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "error: cannot write" in ran.stderr
    assert "free some space" in ran.stderr
    left = {path.name for path in out.iterdir()}
    assert "adapted.safetensors" not in left
    assert not [name for name in left if name.startswith(".")]
    assert "config.toml" in left
