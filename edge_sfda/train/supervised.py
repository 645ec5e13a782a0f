"""Train a source network on a labelled set: class-balanced cross-entropy, resumable, best by validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edge_sfda import checkpoint
from edge_sfda.config import TrainConfig
from edge_sfda.data.datasets import LabelledSet, Subset, class_shares
from edge_sfda.data.frames import to_planes
from edge_sfda.errors import CheckpointError, DivergenceError, LabelError, UsageError
from edge_sfda.manifest import Manifest
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.nets.inference import Normaliser, Predictor
from edge_sfda.nets.normalisation import batch_norms
from edge_sfda.ops.weighted_cross_entropy import weighted_cross_entropy
from edge_sfda.train.augment import augment
from edge_sfda.train.evaluation import evaluate


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to: `loss` is the mean training loss, `val_miou` a share of 0..1, `rate` the last one."""

    epoch: int
    loss: float
    val_miou: float
    rate: float


def balanced_weights(shares: npt.NDArray[np.float64], balance: float) -> tuple[float, ...]:
    """Return class weights `(median share / share)^balance`, at most 10, 1 for a class that never occurs.

    Args:
        shares: pixel share of each class, float64 [C].
        balance: 0 leaves all weights at 1, 1 balances fully, 0.5 (the default) goes half the way.
    """
    present = shares > 0
    weights = np.ones_like(shares)
    weights[present] = np.minimum((np.median(shares[present]) / shares[present]) ** balance, 10.0)
    return tuple(float(w) for w in weights)


class Trainer:
    """Trains `net` in place; `fit` may be called again after a resume.

    Args:
        net: on its device.
        manifest: of the network to be; its `class_weight` weighs the loss.
        train: labelled frames that train.
        val: labelled frames that choose the best epoch.
        config: of the training.
        out: where the best checkpoint goes; the state to resume from lies beside it.
    """

    def __init__(
        self,
        net: SegmentationNet,
        manifest: Manifest,
        train: LabelledSet,
        val: LabelledSet,
        *,
        config: TrainConfig,
        out: Path,
    ) -> None:
        self.net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.manifest = manifest
        for layer in batch_norms(self.net):
            layer.momentum = config.momentum
        self.train_set, self.val_set = train, val
        self.config = config
        self.out = out
        self.state_path = out.with_suffix(".resume.safetensors")
        self.history: list[Epoch] = []
        self.optimizer = torch.optim.AdamW(_parameter_groups(net, config), lr=config.rate)
        self.device = next(net.parameters()).device
        self.normaliser = Normaliser(manifest.preprocessing, self.device)
        weight = manifest.class_weight or (1.0,) * len(manifest.classes)
        self.class_weight = torch.tensor(weight, device=self.device)

    def fit(self, *, on_epoch: Callable[[Epoch], None], on_step: Callable[[int, int], None] | None = None) -> Manifest:
        """Train the epochs that are left, keep the best by validation mIoU at `out`, and return its manifest.

        Raises:
            DivergenceError: the loss is not finite.
            LabelError: there is no labelled pixel to validate on.
            WriteError: a checkpoint cannot be written.
        """
        best = max((epoch.val_miou for epoch in self.history), default=-1.0)
        for index in range(len(self.history), self.config.epochs):
            loss, rate = self._train_epoch(index, on_step)
            miou = evaluate(Predictor(self.net, self.manifest), self.val_set).confusion.miou()
            if math.isnan(miou):
                raise LabelError(f"all labels of {len(self.val_set)} validation frames are void; check the class map")
            self.history.append(Epoch(index + 1, loss, miou, rate))
            if miou > best:
                best = miou
                self._save_best(index + 1, miou)
            self._save_state()
            on_epoch(self.history[-1])
        self.state_path.unlink(missing_ok=True)
        return checkpoint.read_manifest(self.out)

    def resume(self) -> bool:
        """Go on from the state beside `out`, if there is one; returns whether there was.

        Raises:
            CheckpointError: the state belongs to another network, data or configuration.
        """
        if not self.state_path.exists():
            return False
        saved = checkpoint.load(self.state_path)
        if _without_provenance(saved.manifest) != _without_provenance(self.manifest) or (
            saved.manifest.provenance.get("kind"),
            saved.manifest.provenance.get("training"),
        ) != ("resume", self._identity()):
            raise CheckpointError(
                f"{self.state_path} belongs to a training of another network, data or settings; delete it to start anew"
            )
        named = dict(self.net.named_parameters())
        net_state = {k.removeprefix("net."): v for k, v in saved.state.items() if k.startswith("net.")}
        self.net.load_state_dict(net_state)
        for name, parameter in named.items():
            if f"step.{name}" not in saved.state:  # it never had a gradient: an auxiliary output's, or frozen
                continue
            self.optimizer.state[parameter] = {
                key: saved.state[f"{key}.{name}"].to(self.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.history = [Epoch(**epoch) for epoch in saved.manifest.provenance["history"]]
        return True

    def _train_epoch(self, epoch: int, on_step: Callable[[int, int], None] | None) -> tuple[float, float]:
        config = self.config
        rng = np.random.default_rng([config.seed, epoch])  # an epoch's draws depend on nothing before it: resumable
        order = rng.permutation(len(self.train_set))
        batches = max(1, len(order) // config.batch)
        self.net.train()
        total = torch.zeros((), device=self.device)
        rate = 0.0
        for index in range(batches):
            rate = self._set_rate(epoch * batches + index, config.epochs * batches)
            x, y = self._batch(order[index * config.batch : (index + 1) * config.batch], rng)
            loss = self._loss(x, y)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.net.parameters(), 10.0)
            self.optimizer.step()
            total += loss.detach()
            if on_step is not None:
                on_step(index + 1, batches)
        mean = float(total) / batches
        if not math.isfinite(mean):
            raise DivergenceError(f"the training loss of epoch {epoch + 1} is {mean}; lower --rate (now {config.rate})")
        return mean, rate

    def _batch(self, indices: npt.NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        pre, config = self.manifest.preprocessing, self.config
        crop = (round(pre.height * config.crop), round(pre.width * config.crop))
        images, labels = [], []
        for index in indices:
            image, label = self.train_set[int(index)]
            size = (pre.width, pre.height)
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
            label = np.asarray(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST), np.uint8)
            ignore = self.manifest.classes.ignore_id
            image, label = augment(
                image, label, rng, crop=crop, scale=config.scale, colour=config.colour, ignore_id=ignore
            )
            images.append(to_planes(image))
            labels.append(label)
        x = self.normaliser(torch.from_numpy(np.stack(images)).to(self.device))
        return x, torch.from_numpy(np.stack(labels)).to(self.device).long()

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.net(x).logits
        one = logits.new_ones(len(y), 1, 1)
        ignore = self.manifest.classes.ignore_id
        return weighted_cross_entropy(logits, y, one, class_weight=self.class_weight, ignore_id=ignore)

    def _set_rate(self, step: int, steps: int) -> float:
        warm_up = min(1.0, (step + 1) / max(1, round(0.05 * steps)))
        factor = warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate * factor * group["scale"]
        return self.config.rate * factor

    def _save_best(self, epoch: int, miou: float) -> None:
        manifest = self.manifest.derive(kind="source", epoch=epoch, val_miou=miou, training=self._identity())
        checkpoint.save(self.out, self.net.state_dict(), manifest)

    def _save_state(self) -> None:
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                state[f"{key}.{name}"] = value
        history = [vars(epoch) for epoch in self.history]
        checkpoint.save(
            self.state_path, state, self.manifest.derive(kind="resume", training=self._identity(), history=history)
        )

    def _identity(self) -> dict[str, Any]:
        """What a resumed training must share with the one it resumes, as JSON reads it back."""
        config = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.config).items()}
        return {"config": config, "train_frames": len(self.train_set), "val_frames": len(self.val_set)}


def _without_provenance(manifest: Manifest) -> str:
    return replace(manifest, provenance={}, tensors_sha256="").to_json()


def _parameter_groups(net: SegmentationNet, config: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay on matrices only; the encoder, which may be pretrained, at a lower rate than the decoder."""
    encoder = {id(parameter) for parameter in net.encoder_parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in net.parameters():
        groups.setdefault((id(parameter) in encoder, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if is_matrix else 0.0,
            "scale": config.encoder_rate_scale if is_encoder else 1.0,
        }
        for (is_encoder, is_matrix), parameters in groups.items()
    ]


def prepare(train: LabelledSet, config: TrainConfig) -> tuple[float, ...]:
    """Return the class weights `config.balance` gives on `train`; reads every label once."""
    return balanced_weights(class_shares(train), config.balance)


def split(labelled: LabelledSet, share: float) -> tuple[Subset, Subset]:
    """Split into training and validation: every n-th frame validates, n = 1 / `share`, so that all places are in both.

    Raises:
        UsageError: too few frames to have both.
    """
    every = max(2, round(1 / share))
    val = [i for i in range(len(labelled)) if i % every == every - 1]
    if not val:
        raise UsageError(f"{len(labelled)} labelled frames are too few to keep a {share:.0%} share for validation")
    chosen = set(val)
    return Subset(labelled, [i for i in range(len(labelled)) if i not in chosen]), Subset(labelled, val)
