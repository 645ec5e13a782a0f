"""The kernels' sources travel with the package, and compile from where it is installed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edge_sfda.ops.launchers import HOST

ROOT = Path(__file__).parents[2]

LOSS = """
import torch, edge_sfda
from edge_sfda import profile
from edge_sfda.ops.compile_cache import source_folder
from edge_sfda.ops.weighted_cross_entropy import weighted_cross_entropy

print(edge_sfda.__file__)
print(source_folder())
print(profile.folder(), profile.load("cpu").input.width)
print(weighted_cross_entropy(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 4).long(), torch.ones(1, 4, 4)).item())
"""


@pytest.mark.skipif(HOST.missing() is not None, reason=f"the host emulation: {HOST.missing()}")
@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="hatchling, the build backend, is missing")
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="pip is missing")
def test_installed_wheel_finds_and_compiles_its_kernels(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip + build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("edge_sfda-*.whl")
    shipped = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "_cuda_kernels/" in name}
    kept = {path.name for path in (ROOT / "cuda_kernels").iterdir() if path.is_file()}
    assert shipped == kept
    profiles = {Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "_profiles/" in name}
    assert profiles == {path.name for path in (ROOT / "deploy" / "profiles").iterdir()}

    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)], check=True)
    # a fresh interpreter elsewhere, with the package from the wheel in front of any other
    environment = os.environ | {
        "PYTHONPATH": str(site),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "EDGE_SFDA_OPS": "host",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOSS], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    package, folder, profiles_folder, loss = done.stdout.splitlines()
    assert package == str(site / "edge_sfda" / "__init__.py")
    assert folder == str(site / "edge_sfda" / "_cuda_kernels")
    assert profiles_folder == f"{site / 'edge_sfda' / '_profiles'} 480"
    assert float(loss) == pytest.approx(0.693147, abs=1e-6)
    assert len(list((tmp_path / "cache" / "edge-sfda" / "kernels").glob("*.so"))) == 1
