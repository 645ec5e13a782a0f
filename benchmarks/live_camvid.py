"""CamVid's dusk sequence as a camera: each frame predicted, then learned from; the running mIoU beside the source's.

    python benchmarks/live_camvid.py --data DIR --source CHECKPOINT [--every 10] [--seeds 0 1 2]

What is asked: at every checkpoint of the run the running mIoU is above the source's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import rows
import torch
from pairs import SEQUENCES

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.data.datasets import open_dataset
from edge_sfda.data.frames import to_input
from edge_sfda.metrics import ConfusionMatrix
from edge_sfda.nets import Predictor, load


def measure(source: Path, data: Path, seed: int, every: int) -> list[dict[str, Any]]:
    """Return a row for every so many frames, and for the last."""
    target = open_dataset([str(data / SEQUENCES["dusk"])], classes="camvid")
    net, manifest = load(source)
    before = Predictor(load(source)[0], manifest)
    method = run.make(net, manifest, dataclasses.replace(configs.AdaptConfig(), seed=seed))
    method.begin(())
    counts = [ConfusionMatrix(len(manifest.classes), manifest.classes.ignore_id) for _ in range(2)]
    results = []
    for index in range(len(target)):
        image, label = target[index]
        for confusion, predict in zip(counts, (before, Predictor(method.deployed, manifest)), strict=True):
            confusion.update(predict(image)[0], label)
        run.learn_online(method, torch.from_numpy(to_input(image, manifest.preprocessing)))
        done = index + 1
        if done % every == 0 or done == len(target):
            none, ours = (round(confusion.miou(), 4) for confusion in counts)
            results.append({"seed": seed, "frames": done, "source": none, "stvm": ours, "gain": round(ours - none, 4)})
            print(results[-1], flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the CamVid sequences")
    parser.add_argument("--source", type=Path, required=True, help="checkpoint")
    parser.add_argument("--every", type=int, default=10, help="frames between two checkpoints of the run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = [
        row for seed in arguments.seeds for row in measure(arguments.source, arguments.data, seed, arguments.every)
    ]
    print(rows.write("live_camvid", results))
    print(f"least gain {min(row['gain'] for row in results)}")


if __name__ == "__main__":
    main()
