"""The launches of the kernels: how a call is cut, what nvcc makes of the source, races, labels that nobody checked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge_sfda.ops import proxy_similarity_fused as fused
from edge_sfda.ops.compile_cache import source_folder
from edge_sfda.ops.launchers import HOST

needs_compiler = pytest.mark.skipif(HOST.missing() is not None, reason=str(HOST.missing()))
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc on PATH")


@pytest.mark.parametrize(
    ("pixels", "classes", "channels", "tile", "chunk", "shared_bytes", "forward_blocks", "backward_blocks"),
    [
        (8192, 19, 64, 32, 20, 17484, 256, 256),
        (1, 2, 8, 32, 4, 2856, 1, 1),
        (33, 11, 64, 32, 12, 14380, 2, 2),
        (2**20, 11, 64, 32, 12, 14380, 1024, 256),
        (10**6, 256, 256, 8, 28, 48032, 1024, 64),
        (100, 20, 256, 16, 20, 40336, 7, 7),
        (100, 61, 256, 16, 24, 47220, 7, 7),
        (0, 19, 64, 32, 20, 17484, 0, 0),
    ],
)
def test_plan_equals_literals(
    pixels: int,
    classes: int,
    channels: int,
    tile: int,
    chunk: int,
    shared_bytes: int,
    forward_blocks: int,
    backward_blocks: int,
) -> None:
    want = fused.Plan(tile, chunk, shared_bytes, forward_blocks, backward_blocks)
    assert fused.plan(pixels, classes, channels) == want


def test_every_size_fits_a_gpu_without_opting_in() -> None:
    for classes in range(2, 257):
        for channels in range(8, 257):
            cut = fused.plan(1000, classes, channels)
            assert cut.shared_bytes + 16 <= 48 * 1024
            assert cut.chunk >= 4
            assert cut.chunk % 4 == 0


@needs_compiler
@pytest.mark.parametrize("odd", [5, 255, -7, 2**40])
def test_kernels_ignore_labels_that_are_no_class(odd: int) -> None:
    # what a GPU does, where the values are not checked before the launch
    rng = torch.Generator().manual_seed(0)
    embedding, proxies = torch.randn(1, 16, 3, 7, generator=rng), torch.randn(5, 16, generator=rng)
    label = (torch.arange(21) % 6 - 1).view(1, 3, 7)
    strange = torch.where(label == -1, odd, label)
    want = fused.forward(HOST, embedding, proxies, label, None, 10.0, 18.0, True, False)
    got = fused.forward(HOST, embedding, proxies, strange, None, 10.0, 18.0, True, False)
    for value, expected in zip(got, want, strict=True):
        assert torch.equal(value, expected)
    want_grads = fused.backward(HOST, torch.ones(()), embedding, proxies, label, None, want[6], want[7], 18.0)
    got_grads = fused.backward(HOST, torch.ones(()), embedding, proxies, strange, None, want[6], want[7], 18.0)
    assert torch.equal(got_grads[0], want_grads[0])
    assert torch.equal(got_grads[1], want_grads[1])
    assert not got_grads[0].movedim(1, -1)[label == -1].any()


# registers a thread and bytes of static shared memory, the same for float, Half and BFloat16
NVCC_OF_TABLE = "release 13.0"
KERNELS = ("forward", "forward_total", "backward", "backward_total")
RESOURCES = {
    "sm_75": ((64, 0), (64, 5120), (64, 16), (50, 3072)),
    "sm_87": ((64, 0), (40, 5120), (64, 16), (40, 3072)),
    "sm_90": ((64, 0), (32, 5120), (64, 16), (32, 3072)),
    "sm_110": ((64, 0), (40, 5120), (64, 16), (40, 3072)),
}
USED = re.compile(
    r"Compiling entry function 'proxy_similarity_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers(?:.*?, (\d+) bytes smem)?[^\n]*",
    re.DOTALL,
)


@needs_nvcc
@pytest.mark.parametrize(
    ("architecture", "scalar"),
    [("sm_75", "float"), ("sm_87", "float"), ("sm_87", "Half"), ("sm_90", "BFloat16"), ("sm_110", "float")],
)
def test_nvcc_compiles_without_spills(architecture: str, scalar: str, tmp_path: Path) -> None:
    known = subprocess.check_output(["nvcc", "--list-gpu-code"], text=True).split()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    folder = source_folder()
    command = ["nvcc", "-cubin", "-std=c++17", f"-arch={architecture}", f"-DSCALAR={scalar}", "-Xptxas", "-v"]
    command += ["-I", str(folder), str(folder / "proxy_similarity.cu"), "-o", str(tmp_path / "out.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    found = {}
    for part in done.stderr.split("Compiling entry function")[1:]:
        match = USED.search("Compiling entry function" + part)
        assert match is not None, part
        name, *spilled, registers, shared = match.groups()
        assert spilled == ["0", "0", "0"], name
        found[name] = (int(registers), int(shared or 0))
    assert found.keys() == set(KERNELS)
    if NVCC_OF_TABLE in subprocess.check_output(["nvcc", "--version"], text=True):
        assert found == dict(zip(KERNELS, RESOURCES[architecture], strict=True))


RACE_CHECK = """
import torch
from edge_sfda.ops import proxy_similarity_fused as fused
from edge_sfda.ops.launchers.host import HostLauncher

launcher = HostLauncher(("-fsanitize=thread",))
fused._FORWARD_BLOCKS = fused._BACKWARD_BLOCKS = 2  # each takes several tiles
for batch, classes, channels, side in ((2, 5, 9, 7), (1, 200, 70, 5)):  # proxies at once, and in chunks
    embedding, proxies = torch.randn(batch, channels, side, side), torch.randn(classes, channels)
    label = torch.randint(classes, (batch, side, side))
    found = fused.forward(launcher, embedding, proxies, label, None, 10.0, 18.0, True, True)
    fused.backward(launcher, torch.ones(()), embedding, proxies, label, None, found[6], found[7], 18.0)
print("finished")
"""


def _race_detector() -> Path | None:
    """Return the run-time library that has to be loaded before a sanitised one, or None."""
    if HOST.missing() is not None or shutil.which("g++") is None:
        return None
    path = Path(subprocess.check_output(["g++", "-print-file-name=libtsan.so"], text=True).strip())
    return path if path.is_absolute() and path.exists() else None


@pytest.mark.skipif(_race_detector() is None, reason="no ThreadSanitizer beside g++")
def test_no_barrier_is_missing() -> None:
    detector = {"LD_PRELOAD": str(_race_detector()), "TSAN_OPTIONS": "exitcode=66", "OMP_NUM_THREADS": "1"}
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", RACE_CHECK],
        env=os.environ | detector | paths,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr[:4000]
    assert (done.returncode, done.stdout) == (0, "finished\n"), done.stderr[-2000:]
