"""`edge-sfda train-source`: supervised training of a source network on labelled frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge_sfda.cli import options
from edge_sfda.cli.screen import OUT, keeping, note, percent, print_json, progress, say
from edge_sfda.errors import UsageError

if TYPE_CHECKING:
    from edge_sfda.data.datasets import LabelledSet
    from edge_sfda.manifest import NetSpec, Preprocessing
    from edge_sfda.nets import SegmentationNet
    from edge_sfda.train.supervised import Epoch, Trainer

EXAMPLES = options.examples(
    "edge-sfda train-source camvid/0016E5 camvid/0006R0 --classes camvid -o source.safetensors",
    "edge-sfda train-source cityscapes/ -o source.safetensors --size 512x1024 --epochs 60",
    "edge-sfda train-source gta5/ --classes gta5 -o gta5.safetensors --size 512x1024",
    "edge-sfda train-source 'scene:day?frames=300' -o small.safetensors --arch nano",
    "# stopped with Ctrl-C? The same command goes on from its last whole epoch.",
)

_HEIGHT = 512  # of an input whose size nobody chose, at most: what a small board can afford


def train_source(
    data: Annotated[list[str], typer.Argument(help="Labelled folders, or scene:DOMAIN.", show_default=False)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Checkpoint to write.", show_default=False)],
    classes: options.ClassMap = None,
    val: Annotated[
        list[str] | None,
        typer.Option(help="Labelled folder that chooses the best epoch; else a tenth of DATA.", show_default=False),
    ] = None,
    arch: Annotated[str, typer.Option(help="lite0 (3.1 M parameters), nano (< 0.6 M), or module:factory.")] = "lite0",
    encoder_layer: Annotated[
        str, typer.Option(help="With module:factory, the name of its encoder's last layer.", show_default=False)
    ] = "",
    stride: Annotated[int, typer.Option(help="Of the output of lite0 and nano: 4 or 8.")] = 4,
    size: Annotated[
        str | None,
        typer.Option(help="Network input, HEIGHTxWIDTH; else the first frame's, at most 512 high.", show_default=False),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 20,
    batch: Annotated[int, typer.Option(help="Frames a step.")] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate at its peak.")] = 2e-3,
    balance: Annotated[float, typer.Option(help="Class weights: 0 all one, 1 fully balanced.")] = 0.5,
    imagenet: Annotated[
        bool, typer.Option(help="Start lite0's encoder from ImageNet weights (extra: pretrained).")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Train a source network on labelled frames; the epoch that is best on the validation frames is kept."""
    from edge_sfda.config import TrainConfig
    from edge_sfda.data.datasets import check_same_classes, open_dataset
    from edge_sfda.manifest import Manifest, NetSpec
    from edge_sfda.report.run_folder import make_folder
    from edge_sfda.train.supervised import Trainer, prepare, split

    if out.is_dir():
        raise UsageError(
            f"-o {out} is a folder; name the checkpoint to write, for example {out / 'source.safetensors'}"
        )
    config = TrainConfig(epochs=epochs, batch=batch, rate=rate, balance=balance, seed=seed)
    labelled = open_dataset(data, classes=classes)
    train, chooses = (labelled, open_dataset(val, classes=classes)) if val else split(labelled, 0.1)
    check_same_classes(chooses.classes, labelled.classes)
    spec = NetSpec(arch, 0 if ":" in arch else stride, encoder_layer)
    pre = _preprocessing(size, labelled)
    net = _build(spec, len(labelled.classes), imagenet=imagenet, seed=seed, device=device)
    make_folder(out.parent)  # an unwritable place is known before the first epoch, not after it
    manifest = Manifest(spec, labelled.classes, pre, class_weight=prepare(train, config))
    trainer = Trainer(net, manifest, train, chooses, config=config, out=out)
    if trainer.resume():
        note(f"going on after epoch {len(trainer.history)} of {trainer.state_path}")
    _fit(trainer, epochs, _curves_path(out))
    _report(trainer, out, as_json=as_json)


def _preprocessing(size: str | None, labelled: LabelledSet) -> Preprocessing:
    from edge_sfda.manifest import Preprocessing

    if size is None:
        height, width = labelled[0][0].shape[:2]
        scale = min(1.0, _HEIGHT / height)
        return Preprocessing(round(height * scale), round(width * scale))
    try:
        height, width = (int(side) for side in size.lower().split("x"))
    except ValueError as error:
        raise UsageError(f"--size {size!r} must be HEIGHTxWIDTH in pixels, for example 360x480") from error
    return Preprocessing(height, width)


def _build(spec: NetSpec, classes: int, *, imagenet: bool, seed: int, device: str) -> SegmentationNet:
    import torch

    from edge_sfda.nets import build
    from edge_sfda.nets.device import resolve
    from edge_sfda.nets.fpn import FpnNet
    from edge_sfda.nets.pretrained import load_imagenet

    torch.manual_seed(seed)
    net = build(spec, classes, allow=spec.architecture)  # the user named it on this very command line
    if imagenet and spec.architecture == "lite0":
        assert isinstance(net, FpnNet)
        load_imagenet(net)
    return net.to(resolve(device))


def _fit(trainer: Trainer, epochs: int, curves_path: Path) -> None:
    from edge_sfda.data.frames import write_png
    from edge_sfda.report.curves import curves

    with keeping("the same command goes on after the last whole epoch"), progress("training") as step:

        def on_step(done: int, total: int) -> None:
            epoch = len(trainer.history)
            step(epoch * total + done, epochs * total, f"epoch {epoch + 1} of {epochs}")

        def on_epoch(epoch: Epoch) -> None:
            note(f"epoch {epoch.epoch:3d}   loss {epoch.loss:.4f}   validation mIoU {percent(epoch.val_miou)} %")
            history = [vars(past) for past in trainer.history]
            write_png(curves_path, curves(history, title="Training of the source network"))

        trainer.fit(on_epoch=on_epoch, on_step=on_step)


def _report(trainer: Trainer, out: Path, *, as_json: bool) -> None:
    best = max(trainer.history, key=lambda epoch: epoch.val_miou)
    parameters = sum(parameter.numel() for parameter in trainer.net.parameters())
    if as_json:
        print_json(
            {
                "checkpoint": out,
                "curves": _curves_path(out),
                "best_epoch": best.epoch,
                "val_miou": best.val_miou,
                "parameters": parameters,
                "history": [vars(epoch) for epoch in trainer.history],
            }
        )
        return
    OUT.print(f"[bold]mIoU {percent(best.val_miou)} %[/bold] on the validation frames, after epoch {best.epoch}")
    say(f"checkpoint {out}   ({parameters / 1e6:.2f} M parameters)\ncurves     {_curves_path(out)}")


def _curves_path(out: Path) -> Path:
    return out.with_suffix(".curves.png")
