"""The launches of the kernels: how a call is cut, races, labels that nobody checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edge_sfda.ops import proxy_similarity_fused as fused
from edge_sfda.ops.launchers import HOST

needs_compiler = pytest.mark.skipif(HOST.missing() is not None, reason=str(HOST.missing()))


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


RACE_CHECK = """
import torch
from edge_sfda.ops import proxy_similarity_fused as fused
from edge_sfda.ops.launchers.host import HostLauncher

launcher = HostLauncher(("-fsanitize=thread",))
fused._FORWARD_BLOCKS = fused._BACKWARD_BLOCKS = 2  # each takes several tiles
for batch, classes, channels, side in ((2, 5, 9, 7), (1, 200, 70, 5)):  # proxies at once, and in chunks
    for layout in (torch.contiguous_format, torch.channels_last):
        embedding = torch.randn(batch, channels, side, side).contiguous(memory_format=layout)
        proxies, label = torch.randn(classes, channels), torch.randint(classes, (batch, side, side))
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
