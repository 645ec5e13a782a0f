"""The emulation of CUDA's execution model, by a kernel made for it, and ThreadSanitizer's view of all kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sfda.errors import KernelError
from edge_sfda.ops.compilers import host_compiler
from edge_sfda.ops.launch import Kernel, Launch, arguments
from edge_sfda.ops.launchers.host import HostLauncher

HOST = HostLauncher()
CPU = torch.device("cpu")
SEAM = Path(__file__).parents[1] / "seam_check.cu"
SCALE = np.dtype([("by", np.int32), ("offset", np.int64)], align=True)

pytestmark = pytest.mark.skipif(HOST.missing() is not None, reason=f"the host emulation: {HOST.missing()}")


def seam_kernel(scalar: str = "float", *, sync: str = "__syncthreads()", name: str = "seam_sum") -> Kernel:
    return Kernel(str(SEAM), name, (("SCALAR", scalar), ("SEAM_SYNC", sync)))


def seam_sum(x: torch.Tensor, kernel: Kernel, *, by: int = 2, offset: int = 10) -> tuple[list[float], int]:
    """Return the sums of blocks of 64, and how many blocks were counted."""
    blocks = -(-x.numel() // 64)
    out, done = torch.zeros(blocks), torch.zeros(1, dtype=torch.int32)
    scale = np.zeros(1, SCALE)
    scale[0] = (by, offset)
    args = arguments(x, out, np.int64(x.numel()), scale[0], done)
    HOST.launch(Launch(kernel, (blocks, 1, 1), (64, 1, 1), 64 * 4, args), CPU)
    return out.tolist(), int(done)


@pytest.mark.parametrize(
    ("scalar", "dtype"), [("float", torch.float32), ("Half", torch.float16), ("BFloat16", torch.bfloat16)]
)
def test_blocks_warps_shuffles_and_atomics_add_up(scalar: str, dtype: torch.dtype) -> None:
    x = torch.arange(150).to(dtype)
    # sums of 0..63, 64..127 and 128..149, twice, plus 10
    assert seam_sum(x, seam_kernel(scalar)) == ([4042.0, 12234.0, 6104.0], 3)


def test_libraries_keep_their_kernels_apart() -> None:
    # both define seam_sum; a process-wide table would run the last one loaded for both
    x = torch.arange(64.0)
    assert seam_sum(x, seam_kernel("float"))[0] == [4042.0]
    assert seam_sum(x.half(), seam_kernel("Half"))[0] == [4042.0]
    assert seam_sum(x, seam_kernel("float"))[0] == [4042.0]


def test_dynamic_shared_memory_starts_as_nan() -> None:
    # the slot past the last one, which nobody wrote
    x = torch.ones(64)
    sums, _ = seam_sum(
        x, seam_kernel(sync="__syncthreads(); if (threadIdx.x == 0) value[0] = value[64]; __syncthreads()")
    )
    assert np.isnan(sums[0])


def test_barrier_that_not_all_threads_reach_raises() -> None:
    kernel = seam_kernel(sync="if (threadIdx.x < 40) __syncthreads()")
    with pytest.raises(
        KernelError, match=r"block \(0, 0, 0\): its threads wait at barriers that not all of them reach"
    ):
        seam_sum(torch.ones(64), kernel)


def test_launch_after_a_failed_one_is_right() -> None:
    with pytest.raises(KernelError):
        seam_sum(torch.ones(64), seam_kernel(sync="if (threadIdx.x < 40) __syncthreads()"))
    assert seam_sum(torch.ones(64), seam_kernel())[0] == [138.0]


def test_argument_of_another_width_raises() -> None:
    args = arguments(None, None, np.int32(64), None, None)
    with pytest.raises(KernelError, match="seam_sum: argument 2 has 4 bytes, the kernel declares 8"):
        HOST.launch(Launch(seam_kernel(), (1, 1, 1), (64, 1, 1), 256, args), CPU)


def test_missing_argument_raises() -> None:
    args = arguments(None, None, np.int64(64), np.zeros(1, SCALE)[0])
    with pytest.raises(KernelError, match="seam_sum: argument 4 has 0 bytes, the kernel declares 8"):
        HOST.launch(Launch(seam_kernel(), (1, 1, 1), (64, 1, 1), 256, args), CPU)


def test_unknown_kernel_raises() -> None:
    with pytest.raises(KernelError, match="no kernel absent: does EDGE_SFDA_KERNEL"):
        HOST.launch(Launch(seam_kernel(name="absent"), (1, 1, 1), (64, 1, 1), 256, ()), CPU)


def test_gpu_memory_is_refused() -> None:
    with pytest.raises(KernelError, match="reads CPU memory, the tensors are on cuda:0"):
        HOST.launch(Launch(seam_kernel(), (1, 1, 1), (64, 1, 1), 256, ()), torch.device("cuda", 0))


@lru_cache(maxsize=1)
def sanitizer() -> Path | None:
    """Return ThreadSanitizer's runtime library, or None."""
    compiler = host_compiler()
    assert compiler is not None
    found = subprocess.run([compiler, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=False)
    path = Path(found.stdout.strip())
    return path if path.is_absolute() and path.exists() else None


def under_sanitizer(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which `HOST` compiles kernels with ThreadSanitizer."""
    library = sanitizer()
    if library is None:
        pytest.skip("g++ has no ThreadSanitizer here")
    start = 'from edge_sfda.ops.launchers.host import HostLauncher\nHOST = HostLauncher(("-fsanitize=thread", "-g"))\n'
    environment = os.environ | {"LD_PRELOAD": str(library), "TSAN_OPTIONS": "exitcode=66", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", start + script], capture_output=True, text=True, check=False, env=environment
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot map its memory here (address space randomisation)")
    return done


RACE = """
import numpy as np, torch
from edge_sfda.ops.launch import Kernel, Launch, arguments
x, out, done = torch.ones(64), torch.zeros(1), torch.zeros(1, dtype=torch.int32)
scale = np.zeros(1, np.dtype([("by", np.int32), ("offset", np.int64)], align=True))[0]
kernel = Kernel({source!r}, "seam_sum", (("SCALAR", "float"), ("SEAM_SYNC", {sync!r})))
args = arguments(x, out, np.int64(64), scale, done)
HOST.launch(Launch(kernel, (1, 1, 1), (64, 1, 1), 256, args), torch.device("cpu"))
"""


def test_sanitizer_finds_a_missing_barrier() -> None:
    done = under_sanitizer(RACE.format(source=str(SEAM), sync=""))
    assert done.returncode == 66
    assert "data race" in done.stderr
    assert "seam_sum" in done.stderr


def test_sanitizer_is_silent_with_the_barrier() -> None:
    done = under_sanitizer(RACE.format(source=str(SEAM), sync="__syncthreads()"))
    assert (done.returncode, done.stderr) == (0, "")


LOSS = """
import torch
from edge_sfda.ops import weighted_cross_entropy_fused as fused
from edge_sfda.ops.weighted_cross_entropy_rows import LossInputs

for classes, logits, label in ((9, (5, 7), (20, 41)), (3, (2, 2), (70, 20)), (3, (6, 33), (6, 33))):
    x, y = torch.randn(2, classes, *logits), torch.randint(classes, (2, *label))
    inputs = LossInputs(x, y, torch.rand(2, 2, 2), None, 255)
    kept = torch.empty(1 + (2 * y.numel() if inputs.same_size else fused.partial_elements(x.shape, y.shape)))
    loss = fused.forward(HOST, inputs, kept)
    grad = fused.backward(HOST, inputs, kept, torch.ones(()), torch.empty_like(x))
    print(bool(loss > 0), bool(grad.abs().sum() > 0))
"""


def test_sanitizer_finds_no_race_in_the_weighted_loss() -> None:
    done = under_sanitizer(LOSS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True True\n" * 3
