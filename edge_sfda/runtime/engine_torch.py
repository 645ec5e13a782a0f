"""A checkpoint as an engine: what exported artefacts are held to, under the same contract. Needs torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import edge_sfda
from edge_sfda.errors import EngineError, UsageError
from edge_sfda.manifest import Manifest
from edge_sfda.nets import Predictor, SegmentationNet, load
from edge_sfda.runtime.artefact import ArtefactInfo
from edge_sfda.runtime.engine import Engine, EngineConfig, Outputs
from edge_sfda.runtime.graph import FrameGraph
from edge_sfda.runtime.intake import DeviceFrames, Frames

_MAX_BATCH = 1024


class TorchEngine(Engine):
    """A network in eager torch, for frames of any size.

    Frames in host memory are resized there by OpenCV, as adaptation and evaluation do; frames on a GPU are resized
    there, as an artefact exported for frames of any size does.

    Args:
        path: the checkpoint.
        config: device; threads are set for torch in the whole process; `net` allows a network of your own.

    Raises:
        CheckpointError, NetError: the file is damaged, or its network is not known here.
        EngineError: the device that was asked for is not here.
    """

    max_batch = _MAX_BATCH

    def __init__(self, path: Path, config: EngineConfig) -> None:
        place = _device(config)
        net, manifest = load(path, allow=config.net, device=str(place))
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.info = _describe(net, manifest)
        self.device = place.index or 0 if place.type == "cuda" else None
        self._predictor: Predictor | None = Predictor(net, manifest)
        self._graph: FrameGraph | None = None
        if self.device is not None:
            self._graph = FrameGraph(net.cpu(), manifest.preprocessing).to(place)
            net.to(place)
        where = f"GPU {self.device}" if self.device is not None else f"CPU, {torch.get_num_threads()} threads"
        self.runs_on = f"torch, {where}"

    def run(self, frames: Frames, outputs: tuple[str, ...]) -> Outputs:
        """Segment a batch; see `Engine.run`."""
        if self._predictor is None:
            raise EngineError("the engine is closed; load the artefact again")
        try:
            if isinstance(frames, DeviceFrames):
                mask, confidence, logits = self._on_gpu(frames)
            else:
                mask, confidence, logits = self._predictor.batch(frames)
        except (RuntimeError, MemoryError) as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise EngineError(f"torch failed on frames {list(frames.shape)}: {lines[0]}") from error
        return Outputs(
            mask,
            confidence if "confidence" in outputs else None,
            logits if "logits" in outputs else None,
        )

    def close(self) -> None:
        """Let the network go; see `Engine.close`."""
        self._predictor = None
        self._graph = None

    def _on_gpu(self, frames: DeviceFrames) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self._graph is not None, "frames on a GPU come to an engine on that GPU alone"
        owner = frames.owner[0] if isinstance(frames.owner, tuple) else frames.owner
        batch = owner if isinstance(owner, torch.Tensor) else torch.as_tensor(owner, device=f"cuda:{self.device}")
        with torch.inference_mode():
            found = self._graph(batch.view(frames.shape))
        mask, confidence, logits = (output.cpu().numpy() for output in found)
        return mask, confidence, logits


def _describe(net: SegmentationNet, manifest: Manifest) -> ArtefactInfo:
    pre = manifest.preprocessing
    return ArtefactInfo(
        classes=manifest.classes,
        colour_order="bgr",
        frame_size=None,
        network_size=(pre.height, pre.width),
        outputs=("mask", "confidence", "logits"),
        precision="fp32",
        checkpoint_sha256=manifest.tensors_sha256,
        min_side=net.min_side,
        producer=f"edge-sfda {edge_sfda.__version__}",
    )


def _device(config: EngineConfig) -> torch.device:
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=config.device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"device {config.device} was asked for and torch cannot use it ({reason}); choose the device cpu"
        ) from error
    except ValueError as error:
        raise UsageError(f"device {config.device!r}: {error}") from error
    return torch.device(config.device)
