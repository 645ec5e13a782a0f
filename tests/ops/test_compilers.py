"""What each compiler says when it fails, and the numbers of kernel.hpp's conversions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sfda.errors import KernelError
from edge_sfda.ops import compilers
from edge_sfda.ops.launch import Kernel, Launch, arguments
from edge_sfda.ops.launchers import HOST

needs_host = pytest.mark.skipif(compilers.host_compiler() is None, reason="no C++ compiler")
needs_nvcc = pytest.mark.skipif(compilers.device_compiler() is None, reason="no nvcc on PATH")
needs_nvrtc = pytest.mark.skipif(compilers.nvrtc_missing() is not None, reason=f"{compilers.nvrtc_missing()}")

BROKEN = """#include "kernel.hpp"
extern "C" __global__ void broken(SCALAR* x) { x[0] = no_such_name; }
EDGE_SFDA_KERNEL(broken);
"""
CONVERT = """#include "kernel.hpp"
extern "C" __global__ void convert(const SCALAR* x, float* wide, const float* y, SCALAR* narrow) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    wide[i] = to_float(x[i]);
    narrow[i] = from_float<SCALAR>(y[i]);
}
EDGE_SFDA_KERNEL(convert);
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "broken.cu").write_text(BROKEN)
    return Kernel(str(tmp_path / "broken.cu"), "broken", (("SCALAR", "Half"),))


def assert_tells_all(error: KernelError, compiler: str, flag: str) -> None:
    first, second = str(error).split("\n")
    assert compiler in first
    assert "no_such_name" in first
    assert "error" in first
    assert second.startswith("  command: ")
    assert flag in second
    assert "-DSCALAR=Half" in second
    assert "broken.cu" in second


@needs_host
def test_host_compiler_that_fails_tells_its_command_and_first_error(broken: Kernel) -> None:
    with pytest.raises(KernelError) as caught:
        compilers.host_library(broken)
    assert_tells_all(caught.value, "++", "-std=c++20")


@needs_nvcc
def test_nvcc_that_fails_tells_its_command_and_first_error(broken: Kernel) -> None:
    with pytest.raises(KernelError) as caught:
        compilers.nvcc_cubin(broken, "sm_87")
    assert_tells_all(caught.value, "nvcc", "-arch=sm_87")


@needs_nvrtc
def test_nvrtc_that_fails_tells_its_options_and_first_error(broken: Kernel) -> None:
    with pytest.raises(KernelError) as caught:
        compilers.nvrtc_cubin(broken, "sm_87")
    assert_tells_all(caught.value, "nvrtc", "--gpu-architecture=sm_87")


@needs_nvrtc
@pytest.mark.parametrize("source", ["weighted_cross_entropy", "proxy_similarity"])
def test_nvrtc_compiles_the_kernels_without_any_cuda_header(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = Kernel(f"{source}.cu", "", (("SCALAR", "Half"),))
    assert compilers.nvrtc_cubin(kernel, "sm_87").read_bytes()[:4] == b"\x7fELF"


def test_missing_compilers_are_told(broken: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(KernelError, match="no C\\+\\+ compiler: install g\\+\\+ 11 or later, or name one in CXX"):
        compilers.host_library(broken)
    with pytest.raises(KernelError, match="nvcc is not on PATH"):
        compilers.nvcc_cubin(broken, "sm_87")
    monkeypatch.setattr(compilers, "nvrtc_missing", lambda: "no such package")
    with pytest.raises(KernelError, match="no compiler for sm_87: nvcc is not on PATH, and NVRTC is missing"):
        compilers.cubin(broken, "sm_87")


@needs_host
@pytest.mark.parametrize(("scalar", "dtype"), [("Half", torch.float16), ("BFloat16", torch.bfloat16)])
def test_conversions_agree_with_torch_on_every_bit_pattern(scalar: str, dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "convert.cu").write_text(CONVERT)
    kernel = Kernel(str(tmp_path / "convert.cu"), "convert", (("SCALAR", scalar),))
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype)
    # each value, its two neighbours in float32, and the ties between it and the next one
    near = every.float().view(torch.int32)
    inputs = torch.cat([near, near + 1, near - 1, near + (1 << (12 if scalar == "Half" else 15))]).view(torch.float32)
    x = every.repeat(4)
    wide, narrow = torch.empty(len(x)), torch.empty(len(x), dtype=dtype)
    args = arguments(x, wide, inputs, narrow)
    HOST.launch(Launch(kernel, (len(x) // 1024, 1, 1), (1024, 1, 1), 0, args), torch.device("cpu"))
    np.testing.assert_array_equal(wide.numpy(), x.float().numpy())
    expected = inputs.to(dtype)
    number = ~inputs.isnan()
    assert torch.equal(narrow[number].view(torch.int16), expected[number].view(torch.int16))
    assert narrow[~number].isnan().all()
