"""The compilers of kernel sources: g++ for the host emulation, nvcc and NVRTC for GPUs.

Each turns (kernel, architecture) into a cached file; all are told the same definitions.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

from edge_sfda.errors import KernelError
from edge_sfda.ops.compile_cache import Source, cached, read_source, source_folder
from edge_sfda.ops.launch import Kernel

HOST_HEADER = "host_emulator.hpp"
# -ffp-contract=off: x86 and ARM shall round alike. No strict aliasing: kernels view shared memory as they like.
# Hidden symbols: the loader would otherwise share the emulation's inline variables, the table of kernels among them,
# between all libraries in a process, and run one operator's kernel for another.
HOST_OPTIONS = (
    *("-std=c++20", "-O2", "-pthread", "-shared", "-fPIC"),
    *("-fvisibility=hidden", "-fno-gnu-unique", "-ffp-contract=off", "-fno-strict-aliasing"),
)
# -ftz: an exponential would otherwise take three more instructions, for results below 1e-38.
DEVICE_OPTIONS = ("-std=c++17", "-ftz=true")
_ERROR = re.compile(r"\berror\b", re.IGNORECASE)


def host_library(kernel: Kernel, *, extra: tuple[str, ...] = ()) -> Path:
    """Return the shared library that holds the kernel's source compiled for the host emulation.

    Args:
        kernel: any of the source's kernels.
        extra: more options for the compiler, such as `-fsanitize=thread`.

    Raises:
        KernelError: no compiler, or the source does not compile.
    """
    program = host_compiler()
    if program is None:
        raise KernelError("no C++ compiler: install g++ 11 or later, or name one in CXX")
    folder = source_folder()
    # The emulation is no include of the sources (a GPU never sees it), yet it is part of what is compiled.
    source = read_source(kernel.source, before=(HOST_HEADER,))
    options = HOST_OPTIONS + extra + _definitions(kernel, "-D")

    def compile_to(path: Path) -> None:
        before = ("-x", "c++", "-I", str(folder), "-include", str(folder / HOST_HEADER))
        _run([program, *options, *before, str(source.path), "-o", str(path)])

    return cached(source, compiler=_version(program), options=options, suffix=".so", compile_to=compile_to)


def cubin(kernel: Kernel, architecture: str) -> Path:
    """Return the file that holds the kernel's source compiled for a GPU, by nvcc where it is installed, else by NVRTC.

    Args:
        kernel: any of the source's kernels.
        architecture: such as "sm_87".

    Raises:
        KernelError: no compiler, or the source does not compile.
    """
    if device_compiler() is not None:
        return nvcc_cubin(kernel, architecture)
    reason = nvrtc_missing()
    if reason is not None:
        raise KernelError(f"no compiler for {architecture}: nvcc is not on PATH, and NVRTC is missing ({reason})")
    return nvrtc_cubin(kernel, architecture)


def nvcc_cubin(kernel: Kernel, architecture: str) -> Path:
    """Return the file that nvcc compiles the kernel's source to; see `cubin`."""
    program = device_compiler()
    if program is None:
        raise KernelError("nvcc is not on PATH: install the CUDA toolkit")
    source = read_source(kernel.source)
    options = (*DEVICE_OPTIONS, f"-arch={architecture}", *_definitions(kernel, "-D"))

    def compile_to(path: Path) -> None:
        _run([program, "-cubin", *options, "-I", str(source_folder()), str(source.path), "-o", str(path)])

    return cached(source, compiler=_version(program), options=options, suffix=".cubin", compile_to=compile_to)


def nvrtc_cubin(kernel: Kernel, architecture: str) -> Path:
    """Return the file that NVRTC compiles the kernel's source to; see `cubin`."""
    from cuda.bindings import nvrtc

    source = read_source(kernel.source)
    options = (*DEVICE_OPTIONS, f"--gpu-architecture={architecture}", *_definitions(kernel, "-D"))
    version = "nvrtc " + ".".join(map(str, _nvrtc(nvrtc.nvrtcVersion())))

    def compile_to(path: Path) -> None:
        path.write_bytes(_compile_with_nvrtc(source, options, version))

    return cached(source, compiler=version, options=options, suffix=".cubin", compile_to=compile_to)


def host_compiler() -> str | None:
    """Return the path of the C++ compiler named by CXX, else g++, or None."""
    return shutil.which(os.environ.get("CXX") or "g++")


def device_compiler() -> str | None:
    """Return the path of nvcc, or None."""
    return shutil.which("nvcc")


def nvrtc_missing() -> str | None:
    """Return why NVRTC cannot be used, or None."""
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        return f"{error}: pip install cuda-python nvidia-cuda-nvrtc"
    try:
        _nvrtc(nvrtc.nvrtcVersion())
    # cuda-python raises its own subclass of RuntimeError where the library is not found
    except (RuntimeError, KernelError) as error:
        return f"{str(error).splitlines()[0]}: pip install nvidia-cuda-nvrtc"
    return None


def _compile_with_nvrtc(source: Source, options: tuple[str, ...], version: str) -> bytes:
    from cuda.bindings import nvrtc

    names = list(source.headers)
    program = _nvrtc(
        nvrtc.nvrtcCreateProgram(
            source.text.encode(),
            source.path.name.encode(),
            len(names),
            [source.headers[name].encode() for name in names],
            [name.encode() for name in names],
        )
    )[0]
    try:
        status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(_nvrtc(nvrtc.nvrtcGetProgramLogSize(program))[0])
            _nvrtc(nvrtc.nvrtcGetProgramLog(program, log))
            raise _failed(version, [*options, str(source.path)], log.rstrip(b"\0").decode("utf-8", "replace"))
        image = bytearray(_nvrtc(nvrtc.nvrtcGetCUBINSize(program))[0])
        _nvrtc(nvrtc.nvrtcGetCUBIN(program, image))
        return bytes(image)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what an NVRTC call gave besides its status.

    Raises:
        KernelError: the call failed.
    """
    status, *values = result
    if int(status) != 0:
        raise KernelError(f"NVRTC failed: {getattr(status, 'name', status)}")
    return tuple(values)


def _definitions(kernel: Kernel, flag: str) -> tuple[str, ...]:
    return tuple(f"{flag}{name}={value}" for name, value in kernel.defines)


@lru_cache(maxsize=8)
def _version(program: str) -> str:
    return program + " " + _run([program, "--version"])


def _run(command: list[str]) -> str:
    """Run a compiler and return what it printed.

    Raises:
        KernelError: it does not start, or fails; with its command and its first error.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelError(f"{command[0]} does not start: {error.strerror}") from error
    if done.returncode != 0:
        raise _failed(command[0], command[1:], done.stderr + done.stdout)
    return done.stdout


def _failed(compiler: str, options: list[str], log: str) -> KernelError:
    lines = [line.strip() for line in log.splitlines() if line.strip()] or ["no message"]
    first = next((line for line in lines if _ERROR.search(line)), lines[0])
    return KernelError(f"{compiler} failed: {first}\n  command: {' '.join([compiler, *options])}")
