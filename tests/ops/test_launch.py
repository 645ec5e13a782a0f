"""What a launch may be, how arguments are laid out, and which backend an operator gets."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from edge_sfda.errors import KernelError, UsageError
from edge_sfda.ops import launch as seam
from edge_sfda.ops import launchers
from edge_sfda.ops.launch import Kernel, Launch, arguments, dispatch, launch_all, requested_backend, settle

KERNEL = Kernel("some.cu", "some")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Recorder:
    """A launcher that notes what it is given, and fails where it is told to."""

    name = "recorder"

    def __init__(self, *, missing: str | None = None, error: str | None = None) -> None:
        self.reason, self.error = missing, error
        self.launches: list[Launch] = []

    def missing(self) -> str | None:
        return self.reason

    def prepare(self, kernel: Kernel, device: torch.device) -> None:
        if self.error is not None:
            raise KernelError(self.error)

    def launch(self, launch: Launch, device: torch.device) -> None:
        self.prepare(launch.kernel, device)
        self.launches.append(launch)


@pytest.fixture
def no_fallback_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_SFDA_OPS", raising=False)
    monkeypatch.setattr(seam._Fallback, "warned", False)


def run(backend: str | None, device: torch.device) -> str:
    """Dispatch an operator that only launches one kernel, and return which way it went."""

    def fused(launcher: seam.Launcher) -> str:
        launch_all(launcher, [Launch(KERNEL, (1, 1, 1), (32, 1, 1), 0, ())], device)
        return launcher.name

    return dispatch(backend, device, fused=fused, plain=lambda: "torch")


def test_arguments_are_laid_out_by_natural_alignment() -> None:
    pair = np.zeros(1, np.dtype([("a", np.int32), ("b", np.int64)], align=True))
    pair[0] = (7, 2**40)
    args = arguments(None, np.int32(5), pair[0], np.uint8(9), np.float32(1.5))
    buffer, offsets = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, args).packed
    assert offsets == (0, 8, 16, 32, 36)
    assert buffer == struct.pack("<QixxxxixxxxqBxxxf", 0, 5, 7, 2**40, 9, 1.5)


def test_arguments_take_a_tensor_by_its_address() -> None:
    x = torch.zeros(4)
    assert arguments(x[1:]) == (np.uint64(x.data_ptr() + 4),)


@pytest.mark.parametrize("value", [3, 1.5, "x"], ids=str)
def test_arguments_of_no_known_width_raise(value: object) -> None:
    with pytest.raises(UsageError, match="numpy scalar of the width"):
        arguments(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((1, 1, 1), (1025, 1, 1), 0),
        ((1, 1, 1), (32, 33, 1), 0),
        ((1, 1, 1), (1, 1, 65), 0),
        ((1, 1, 1), (0, 1, 1), 0),
        ((1, 65536, 1), (32, 1, 1), 0),
        ((-1, 1, 1), (32, 1, 1), 0),
        ((1, 1, 1), (32, 1, 1), 48 * 1024 + 1),
    ],
)
def test_launch_that_fits_no_gpu_raises(grid: tuple, block: tuple, shared: int) -> None:  # type: ignore[type-arg]
    with pytest.raises(KernelError, match="does not fit a GPU"):
        Launch(KERNEL, grid, block, shared, ())


def test_launch_of_too_many_arguments_raises() -> None:
    launch = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (np.int64(0),) * 513)
    with pytest.raises(KernelError, match="4104 bytes of arguments, at most 4096"):
        _ = launch.packed


def test_empty_launches_are_left_out() -> None:
    launcher = Recorder()
    empty, full = (Launch(KERNEL, (n, 1, 1), (1, 1, 1), 0, ()) for n in (0, 2))
    launch_all(launcher, [empty, full], CPU)
    assert launcher.launches == [full]


def test_backend_comes_from_the_call_then_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGE_SFDA_OPS", raising=False)
    assert requested_backend(None) == "auto"
    monkeypatch.setenv("EDGE_SFDA_OPS", "host")
    assert requested_backend(None) == "host"
    assert requested_backend("torch") == "torch"


@pytest.mark.parametrize(("backend", "variable", "named"), [("gpu", "", "backend"), (None, "gpu", "EDGE_SFDA_OPS")])
def test_unknown_backend_raises(
    backend: str | None, variable: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SFDA_OPS", variable)
    with pytest.raises(UsageError, match=f"^{named} is 'gpu': expected one of auto, torch, cuda, host"):
        requested_backend(backend)


@pytest.mark.usefixtures("no_fallback_yet")
def test_auto_on_a_cpu_is_torch_without_a_warning() -> None:
    assert run("auto", CPU) == "torch"
    assert run(None, CPU) == "torch"
    assert settle(None, CPU, KERNEL) == "torch"


@pytest.mark.parametrize(("backend", "device"), [("cuda", CPU), ("host", GPU)])
@pytest.mark.usefixtures("no_fallback_yet")
def test_backend_of_another_device_raises(backend: str, device: torch.device) -> None:
    with pytest.raises(UsageError, match=f"backend '{backend}' is for tensors on"):
        run(backend, device)
    with pytest.raises(UsageError, match=f"backend '{backend}' is for tensors on"):
        settle(backend, device, KERNEL)


@pytest.mark.usefixtures("no_fallback_yet")
def test_auto_takes_the_first_launcher_that_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Recorder(missing="no package"), Recorder()
    monkeypatch.setattr(launchers, "GPU", (first, second))
    assert run("auto", GPU) == "recorder"
    assert settle("auto", GPU, KERNEL) == "cuda"
    assert (len(first.launches), len(second.launches)) == (0, 1)


@pytest.mark.usefixtures("no_fallback_yet")
def test_auto_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "GPU", (Recorder(error="g++ failed: first error"),))
    with pytest.warns(RuntimeWarning, match="going on with plain torch .*: g\\+\\+ failed: first error") as caught:
        assert [run("auto", GPU), run("auto", GPU), settle("auto", GPU, KERNEL)] == ["torch"] * 3
    assert len(caught) == 1


@pytest.mark.usefixtures("no_fallback_yet")
def test_settling_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "GPU", (Recorder(error="does not compile"),))
    with pytest.warns(RuntimeWarning, match="does not compile") as caught:
        assert [settle("auto", GPU, KERNEL), settle("auto", GPU, KERNEL), run("auto", GPU)] == ["torch"] * 3
    assert len(caught) == 1


@pytest.mark.usefixtures("no_fallback_yet")
def test_cuda_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "GPU", (Recorder(error="does not compile"),))
    with pytest.raises(KernelError, match="does not compile"):
        run("cuda", GPU)
    assert not seam._Fallback.warned


@pytest.mark.usefixtures("no_fallback_yet")
def test_cuda_without_a_launcher_tells_what_each_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "GPU", (Recorder(missing="no package"), Recorder(missing="no driver")))
    with pytest.raises(KernelError, match="no launcher can use this GPU. recorder: no package; recorder: no driver"):
        run("cuda", GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_launchers_say_what_is_missing_here() -> None:
    reasons = {launcher.name: launcher.missing() for launcher in launchers.GPU}
    assert list(reasons) == ["pycuda", "cuda-core"]
    assert all(reason is not None and reason != "" for reason in reasons.values())
