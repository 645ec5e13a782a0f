"""Train the built-in source model: the nano network on the scene by day, as shipped in `edge_sfda/assets`.

    python benchmarks/train_scene_source.py -o edge_sfda/assets/scene_day_nano.safetensors

About 10 minutes on two cores. Training frames and validation frames come from different streets (seeds).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from edge_sfda.config import TrainConfig
from edge_sfda.data.datasets import LabelledSet, open_dataset
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build
from edge_sfda.train.supervised import Epoch, Trainer, prepare

TRAIN = [f"scene:day?frames=75&seed={seed}&fps=2" for seed in range(100, 112)]
VAL = [f"scene:day?frames=20&seed={seed}&fps=2" for seed in (200, 201, 202)]


class InMemory:
    """A labelled set that renders every frame once: 200 MB here, and half of the training's time saved."""

    def __init__(self, labelled: LabelledSet) -> None:
        self.classes: Classes = labelled.classes
        self.names: list[str] = labelled.names
        self._items = [labelled[i] for i in range(len(labelled))]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        return self._items[index]

    def label(self, index: int) -> npt.NDArray[np.uint8]:
        return self._items[index][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    config = TrainConfig(epochs=arguments.epochs, batch=16, rate=4e-3, encoder_rate_scale=1.0, seed=arguments.seed)
    train, val = InMemory(open_dataset(TRAIN)), InMemory(open_dataset(VAL))
    manifest = Manifest(NetSpec("nano", 4), train.classes, Preprocessing(192, 256), class_weight=prepare(train, config))
    trainer = Trainer(build(manifest.net, len(train.classes)), manifest, train, val, config=config, out=arguments.out)
    trainer.fit(on_epoch=_show)


def _show(epoch: Epoch) -> None:
    print(f"epoch {epoch.epoch:3}  loss {epoch.loss:.4f}  val mIoU {epoch.val_miou:.4f}", flush=True)


if __name__ == "__main__":
    main()
