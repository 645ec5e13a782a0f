"""The papers' benchmarks on data that you have: one command a pair, rows in results/paper_PAIR.jsonl.

    python benchmarks/paper_protocol.py gta5-cityscapes    --source source.safetensors --target CITYSCAPES
    python benchmarks/paper_protocol.py synthia-cityscapes --source source.safetensors --target CITYSCAPES
    python benchmarks/paper_protocol.py cityscapes-acdc    --source source.safetensors --target ACDC [--parts night fog]
    python benchmarks/paper_protocol.py cityscapes-nthu    --source source.safetensors --target NTHU [--parts Rio]

Instead of --source, --source-data GTA5 (SYNTHIA, Cityscapes) trains EfficientNet-Lite0 first. `paper_protocol.md` tells
the rules, where data and weights come from, and which conventions differ between papers.

The source learns nothing more; each method adapts to the target's training images, without labels, and is measured on
its validation images at the labels' own size. Target labels measure, and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rows
import torch

from edge_sfda import config as configs
from edge_sfda.adapt.session import Session, Slice
from edge_sfda.config import AdaptConfig, TrainConfig
from edge_sfda.data import class_maps
from edge_sfda.data.datasets import LabelledSet, Renumbered, Subset, open_dataset
from edge_sfda.errors import EdgeSfdaError, UsageError
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import Predictor, SegmentationNet, build, load
from edge_sfda.nets.device import resolve
from edge_sfda.nets.fpn import FpnNet
from edge_sfda.nets.pretrained import load_imagenet
from edge_sfda.train.evaluation import Evaluation, evaluate
from edge_sfda.train.supervised import Trainer, prepare, split


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One benchmark.

    Args:
        source_map: class map of the source's labels.
        source: folder of the source's training images in its copy.
        target_map: class map of the target's labels.
        learn: folder of the target's training images in its copy; `{part}` stands for a condition or city.
        measure: folder of its validation images.
        parts: conditions or cities, each a target of its own; one that is empty stands for the whole.
        over: class maps whose classes the mean IoU is over, by the name of its column.
    """

    source_map: str
    source: str
    target_map: str
    learn: str
    measure: str
    parts: tuple[str, ...] = ("",)
    over: Mapping[str, str]


PAIRS = {
    "gta5-cityscapes": Pair(
        source_map="gta5",
        source="",
        target_map="cityscapes",
        learn="leftImg8bit/train",
        measure="leftImg8bit/val",
        over={"miou_19": "cityscapes"},
    ),
    "synthia-cityscapes": Pair(
        source_map="synthia",
        source="",
        target_map="cityscapes-16",
        learn="leftImg8bit/train",
        measure="leftImg8bit/val",
        over={"miou_16": "cityscapes-16", "miou_13": "cityscapes-13"},
    ),
    "cityscapes-acdc": Pair(
        source_map="cityscapes",
        source="leftImg8bit/train",
        target_map="cityscapes",
        learn="rgb_anon/{part}/train",
        measure="rgb_anon/{part}/val",
        parts=("fog", "night", "rain", "snow"),
        over={"miou_19": "cityscapes"},
    ),
    "cityscapes-nthu": Pair(
        source_map="cityscapes-13",
        source="leftImg8bit/train",
        target_map="cityscapes-13",
        learn="{part}/Images/Train",
        measure="{part}/Images/Test",
        parts=("Rio", "Rome", "Taipei", "Tokyo"),
        over={"miou_13": "cityscapes-13"},
    ),
}


def open_target(folder: Path, pair: Pair, manifest: Manifest) -> LabelledSet:
    """Return the validation images with labels in the network's ids; the network may know more classes than they."""
    target = open_dataset([str(folder)], classes=pair.target_map)
    return target if target.classes.names == manifest.classes.names else Renumbered(target, manifest.classes)


def means(result: Evaluation, pair: Pair, manifest: Manifest) -> dict[str, Any]:
    """Return the mean IoU over each set of classes, and the IoU of every class; shares of 0..1."""
    names = manifest.classes.names
    measured = class_maps.resolve(pair.target_map).classes.names
    mious = {
        column: result.confusion.miou([names.index(name) for name in class_maps.resolve(over).classes.names])
        for column, over in pair.over.items()
    }
    iou = dict(zip(names, result.confusion.iou(), strict=True))
    return {column: round(value, 4) for column, value in mious.items()} | {
        "iou": {name: round(float(iou[name]), 4) for name in measured}
    }


def settings(methods: list[str], seeds: list[int], steps: int | None) -> Iterator[AdaptConfig]:
    """Yield every method's own settings for every seed; `none` draws nothing and runs once."""
    for method in methods:
        base = configs.preset(method)
        if steps is not None:
            base = configs.from_dict({"burst": {"steps": steps}}, base=base)
        for seed in seeds[:1] if method == "none" else seeds:
            yield dataclasses.replace(base, seed=seed)


def run_part(
    pair: Pair, target: Path, part: str, *, source: Path, net: str | None, device: str, runs: list[AdaptConfig]
) -> Iterator[dict[str, Any]]:
    """Adapt to one part of the target with every setting and yield a row each.

    Raises:
        EdgeSfdaError: weights or data cannot be used.
    """
    learn, measure = (target / path.format(part=part) for path in (pair.learn, pair.measure))
    for config in runs:
        network, manifest = load(source, allow=net, device=device)
        labelled = open_target(measure, pair, manifest)  # before the work, not after it
        adapted, facts = _adapt(network, manifest, config, learn)
        result = evaluate(Predictor(adapted, manifest), labelled)
        yield {
            "target": part or "all",
            "method": config.method,
            "seed": config.seed,
            "frames": len(labelled),
            "net": manifest.net.architecture,
            "size": [manifest.preprocessing.height, manifest.preprocessing.width],
            **means(result, pair, manifest),
            **facts,
        }


def _adapt(
    network: SegmentationNet, manifest: Manifest, config: AdaptConfig, learn: Path
) -> tuple[SegmentationNet, dict[str, Any]]:
    if config.method == "none":
        return network, {"steps": 0, "learned_from": 0, "seconds": 0.0}
    start = time.perf_counter()
    outcome = Session(network, manifest, config).offline(learn=Slice(str(learn)), measure=())
    seconds = round(time.perf_counter() - start, 1)  # reading the frames included
    return outcome.method.deployed, {"steps": outcome.steps, "learned_from": outcome.frames, "seconds": seconds}


def train_source(pair: Pair, data: Path, out: Path, *, size: tuple[int, int], epochs: int, device: str) -> None:
    """Train EfficientNet-Lite0 with ImageNet weights on the source's labelled images; resumes where it was stopped."""
    torch.manual_seed(0)
    config = TrainConfig(epochs=epochs, momentum=0.01)  # EfficientNet's own momentum
    whole = open_dataset([str(data / pair.source)], classes=pair.source_map)
    train, rest = split(whole, 0.1)
    # GTA5 would be validated on 2,500 images after every epoch; 500 tell epochs apart
    val = Subset(rest, range(0, len(rest), -(-len(rest) // 500)))
    manifest = Manifest(NetSpec("lite0", 4), whole.classes, Preprocessing(*size), class_weight=prepare(train, config))
    net = build(manifest.net, len(whole.classes))
    assert isinstance(net, FpnNet)
    load_imagenet(net)
    trainer = Trainer(net.to(device), manifest, train, val, config=config, out=out)
    trainer.resume()
    trainer.fit(on_epoch=lambda epoch: print(epoch, flush=True))


def table(results: list[dict[str, Any]], columns: list[str]) -> str:
    """Return the results as Markdown: the mean over seeds, and the worst seed, in percent."""
    head = ["target", "method", "seeds", *(f"{column} (worst)" for column in columns)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for target, method in dict.fromkeys((row["target"], row["method"]) for row in results):
        mine = [row for row in results if (row["target"], row["method"]) == (target, method)]
        cells = [
            f"{100 * sum(row[column] for row in mine) / len(mine):.1f} ({100 * min(row[column] for row in mine):.1f})"
            for column in columns
        ]
        lines.append(f"| {target} | {method} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options.

    Raises:
        UsageError: they contradict each other, or name no part of the pair.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--target", type=Path, required=True, help="copy of the target data set")
    parser.add_argument("--source", type=Path, help="source checkpoint")
    parser.add_argument("--source-data", type=Path, help="copy of the source data set, to train a network on")
    parser.add_argument("--net", help="module:factory of a network of your own that the checkpoint may run")
    parser.add_argument("--parts", nargs="+", help="conditions or cities; else all, each by itself")
    parser.add_argument("--methods", nargs="+", choices=configs.METHODS, default=list(configs.METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of the burst; else each method's own")
    parser.add_argument("--size", nargs=2, type=int, default=[512, 1024], help="input of a network to train")
    parser.add_argument("--epochs", type=int, default=20, help="of a network to train")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--append", action="store_true", help="keep the rows of earlier runs")
    options = parser.parse_args(arguments)
    if (options.source is None) == (options.source_data is None):
        raise UsageError("give one of --source (a checkpoint) and --source-data (data to train one on)")
    unknown = [part for part in options.parts or () if part not in PAIRS[options.pair].parts]
    if unknown:
        known = ", ".join(PAIRS[options.pair].parts) or "none"
        raise UsageError(f"--parts {unknown[0]!r} is no part of {options.pair}; it has {known}")
    return options


def measure_all(options: argparse.Namespace, pair: Pair, source: Path, device: str) -> list[dict[str, Any]]:
    """Return the rows of every part, method and seed; each is written as soon as it is known."""
    results: list[dict[str, Any]] = []
    runs = list(settings(options.methods, options.seeds, options.steps))
    for part in options.parts or pair.parts:
        found = run_part(pair, options.target, part, source=source, net=options.net, device=device, runs=runs)
        for row in found:
            results.append({"pair": options.pair, **row})
            path = rows.write(f"paper_{options.pair}", results[-1:], append=options.append or len(results) > 1)
            print({key: value for key, value in results[-1].items() if key != "iou"}, f"-> {path}", flush=True)
    return results


def main(arguments: list[str] | None = None) -> None:
    try:
        options = parse(arguments)
        pair, device = PAIRS[options.pair], resolve(options.device)
        source = options.source
        if source is None:
            source = Path(f"paper_{options.pair}_source.safetensors")
            size = (options.size[0], options.size[1])
            train_source(pair, options.source_data, source, size=size, epochs=options.epochs, device=device)
        results = measure_all(options, pair, source, device)
    except EdgeSfdaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(table(results, list(pair.over)))


if __name__ == "__main__":
    main()
