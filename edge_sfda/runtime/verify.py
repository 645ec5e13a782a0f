"""An engine that can run here, held against its checkpoint: after it is built, and again after a refit.

Parity of the ONNX model says nothing of what TensorRT made of it: a half layer that overflows, a bias lost in a refit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edge_sfda.manifest import Manifest
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.runtime.engine import Engine, EngineConfig, open_engine, warm
from edge_sfda.runtime.engine_file import EngineFile
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.parity import AGREEMENT, Sample, as_input


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What an engine came to on real frames; shares are of 0..1.

    Args:
        precision: asked for.
        frames: compared.
        agreement: share of pixels with the class of the torch module of the same graph, in float32 on the CPU.
        miou_between: mean IoU of the engine's masks against that module's.
        engine_ms: 20th, 50th and 80th percentile of one frame, copies included.
        runs_on: in words.
    """

    precision: str
    frames: int
    agreement: float
    miou_between: float
    engine_ms: tuple[float, float, float]
    runs_on: str

    def problems(self) -> list[str]:
        """Return in words which bounds are not kept; empty for an engine that may leave."""
        bound = AGREEMENT[self.precision]
        if self.agreement >= bound:
            return []
        return [
            f"{100 * self.agreement:.3f} % of the pixels of the engine have the checkpoint's class, {self.precision} "
            f"must reach {100 * bound:.1f} %"
        ]


def verify(engine: Engine, net: SegmentationNet, manifest: Manifest, frames: Sequence[Sample]) -> Verification:
    """Run frames through an engine and through the network.

    Args:
        engine: loaded.
        net: on the CPU, in float32.
        manifest: of that network.
        frames: from `parity.samples`, one or more.

    Raises:
        EngineError: it does not run.
    """
    info = engine.info
    graph = FrameGraph(net, manifest.preprocessing, colour_order=info.colour_order, frame_size=info.frame_size).eval()
    between = ConfusionMatrix(len(manifest.classes), manifest.classes.ignore_id)
    height, width = frames[0].image.shape[:2]
    warm(engine, (1, height, width, 3))
    seconds = []
    for sample in frames:
        frame = as_input(sample.image, info.colour_order)[None]
        start = time.perf_counter()
        mask = engine.run(frame, info.outputs).mask
        seconds.append(time.perf_counter() - start)
        with torch.inference_mode():
            between.update(mask, graph(torch.from_numpy(frame))[0].numpy())
    low, middle, high = (float(q) for q in np.percentile(1e3 * np.array(seconds), (20, 50, 80)))
    return Verification(
        precision=info.precision,
        frames=len(frames),
        agreement=between.accuracy(),
        miou_between=between.miou(),
        engine_ms=(low, middle, high),
        runs_on=engine.runs_on,
    )


def verify_built(
    data: bytes, record: EngineFile, net: SegmentationNet, manifest: Manifest, frames: Sequence[Sample]
) -> tuple[EngineFile, Verification]:
    """Load an engine's bytes on this machine's GPU and verify them.

    Returns:
        the record, `verified_on_gpu` true where the bounds are kept, and what was found.

    Raises:
        EngineError: it does not load or run here.
    """
    with tempfile.TemporaryDirectory(prefix="edge-sfda-") as folder:
        path = Path(folder) / "built.engine"
        record.write(path, data)
        engine = open_engine(path, EngineConfig(device="cuda"))
        try:
            found = verify(engine, net, manifest, frames)
        finally:
            engine.close()
    return replace(record, verified_on_gpu=not found.problems()), found
