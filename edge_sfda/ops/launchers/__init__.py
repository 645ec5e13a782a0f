"""The launchers, each a stateless face over one way to run a kernel; importing this imports none of their packages."""

from __future__ import annotations

from edge_sfda.ops.launch import Launcher
from edge_sfda.ops.launchers.cuda_core import CudaCoreLauncher
from edge_sfda.ops.launchers.host import HostLauncher
from edge_sfda.ops.launchers.pycuda import PyCudaLauncher

HOST = HostLauncher()
GPU: tuple[Launcher, ...] = (PyCudaLauncher(), CudaCoreLauncher())
