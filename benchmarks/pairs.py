"""The pairs that adaptation is judged on: unlabelled frames to learn from and labelled ones to measure by.

    scene       a domain of the built-in scene; the first half of a drive, then its second
    dusk        CamVid 0001TP, for a source trained by day on other sequences
    drive       CamVid Seq05VD: the same hour, another drive
    dark-drive  that drive with its colours moved to those of the unlabelled frames of 0001TP
    day         CamVid Seq05VD again, for a source trained at dusk, on 0001TP: the way back

Choices are made on the scene's street 7, on `drive` and on `dark-drive`; the labels of 0001TP are for the final table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_sfda.adapt import run
from edge_sfda.data.class_maps import Label
from edge_sfda.data.datasets import Image, LabelledSet, Subset, open_dataset
from edge_sfda.data.frames import to_input
from edge_sfda.manifest import Classes, Manifest
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets import Predictor, SegmentationNet
from edge_sfda.train.evaluation import evaluate

SCENE_FRAMES = 48  # of a drive to learn from, and as many to measure on
SEQUENCES = {"dusk": "0001TP", "drive": "Seq05VD", "dark-drive": "Seq05VD", "day": "Seq05VD"}
_RARE_SCENE = ("pole", "sign", "person")
_RARE_CAMVID = (2, 6, 9, 10)  # pole, sign symbol, pedestrian, bicyclist


@dataclass(frozen=True)
class Pair:
    """A target: its whole drive in order, of which the first half may be learned from offline."""

    name: str
    drive: LabelledSet
    rare: tuple[int, ...]  # class ids

    def learn(self, manifest: Manifest) -> list[Tensor]:
        """Return the frames to adapt to offline, uint8 RGB [3, H, W] each, of the network's input size."""
        half = len(self.drive) // 2
        return [torch.from_numpy(to_input(self.drive[i][0], manifest.preprocessing)) for i in range(half)]

    @property
    def held_out(self) -> Subset:
        """The labelled frames that are never learned from offline."""
        return Subset(self.drive, range(len(self.drive) // 2, len(self.drive)))

    def scores(self, confusion: ConfusionMatrix) -> dict[str, float]:
        """Return mIoU, and the mean IoU of the rare classes."""
        iou = confusion.iou()
        rare = float(np.nanmean(iou[list(self.rare)]))
        return {"miou": round(float(np.nanmean(iou)), 4), "rare": round(rare, 4)}


def scene(domain: str, street: int) -> Pair:
    """Return a domain of the built-in scene on the street of a seed."""
    drive = open_dataset([f"scene:{domain}?frames={2 * SCENE_FRAMES}&seed={street}&fps=2"])
    return Pair(domain, drive, tuple(drive.classes.names.index(name) for name in _RARE_SCENE))


def camvid(name: str, data: Path) -> Pair:
    """Return a CamVid pair; `data` is the folder of the sequences."""
    drive: LabelledSet = open_dataset([str(data / SEQUENCES[name])], classes="camvid")
    if name == "dark-drive":
        drive = Recoloured(drive, open_dataset([str(data / SEQUENCES["dusk"])], classes="camvid"))
    return Pair(name, drive, _RARE_CAMVID)


def offline(method: run.Method, manifest: Manifest, pair: Pair) -> ConfusionMatrix:
    """Adapt on the first half, and return the confusion on the second."""
    run.offline(method, pair.learn(manifest))
    return judged(method.deployed, manifest, pair)


def online(method: run.Method, manifest: Manifest, pair: Pair) -> ConfusionMatrix:
    """Return the confusion of predictions made in order, each before its frame is learned from."""
    method.begin(())
    confusion = ConfusionMatrix(len(manifest.classes), manifest.classes.ignore_id)
    for index in range(len(pair.drive)):
        image, label = pair.drive[index]
        confusion.update(Predictor(method.deployed, manifest)(image)[0], label)
        run.learn_online(method, torch.from_numpy(to_input(image, manifest.preprocessing)))
    return confusion


def judged(net: SegmentationNet, manifest: Manifest, pair: Pair) -> ConfusionMatrix:
    """Return the confusion of a network on the frames that were never learned from."""
    return evaluate(Predictor(net, manifest), pair.held_out).confusion


class Recoloured:
    """A labelled set with each colour channel's values spread as those of another set: its light, its camera.

    A little noise goes on top, as a short exposure has it. The other set's labels are never read.
    """

    def __init__(self, whole: LabelledSet, like: LabelledSet) -> None:
        self._whole = whole
        ranks = np.linspace(0, 1, 65)
        mine, theirs = (np.quantile(_colours(part), ranks, axis=0) for part in (whole, like))
        rising = np.maximum.accumulate(mine + np.arange(len(ranks))[:, None] * 1e-4)
        curves = [np.interp(np.arange(256), rising[:, c], theirs[:, c]) for c in range(3)]
        self._table = np.stack(curves, axis=-1)  # [256, 3]

    @property
    def classes(self) -> Classes:
        """The classes of the set."""
        return self._whole.classes

    @property
    def names(self) -> list[str]:
        """The names of the frames."""
        return self._whole.names

    def __len__(self) -> int:
        return len(self._whole)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        image, label = self._whole[index]
        noise = np.random.default_rng(index).normal(0, 3, image.shape)
        moved = self._table[image, np.arange(3)] + noise
        return np.clip(moved, 0, 255).astype(np.uint8), label

    def label(self, index: int) -> Label:
        """Return the label alone."""
        return self._whole.label(index)


def _colours(frames: LabelledSet) -> Image:
    """Return every eighth pixel each way of every fourth frame, uint8 BGR [N, 3]."""
    return np.concatenate([frames[i][0][::8, ::8].reshape(-1, 3) for i in range(0, len(frames), 4)])
