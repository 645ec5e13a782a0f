from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda import checkpoint, nets
from edge_sfda.config import TrainConfig
from edge_sfda.data.datasets import SceneSet
from edge_sfda.errors import CheckpointError, DivergenceError, LabelError, UsageError
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets.bring_your_own import Hooked
from edge_sfda.nets.contract import SegmentationNet
from edge_sfda.train.supervised import Epoch, Trainer, balanced_weights, prepare, split

CONFIG = TrainConfig(epochs=2, batch=4, rate=4e-3, crop=1.0)
MakeSet = Callable[..., Any]


class _Pointwise(SegmentationNet):
    def __init__(self) -> None:
        super().__init__()
        self.classes, self.feature_channels = 3, (3,)
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> nets.Prediction:
        return nets.Prediction(self.head(x), (x,))


def _trainer(
    out: Path,
    train: Any,
    val: Any,
    *,
    config: TrainConfig = CONFIG,
    net: SegmentationNet | None = None,
    spec: NetSpec = NetSpec("nano", 8),  # noqa: B008  frozen
    **manifest: Any,
) -> Trainer:
    torch.manual_seed(7)
    net = net or nets.build(spec, len(train.classes))
    size = manifest.pop("preprocessing", Preprocessing(64, 64))
    return Trainer(net, Manifest(spec, train.classes, size, **manifest), train, val, config=config, out=out)


def _fit(trainer: Trainer) -> list[Epoch]:
    epochs: list[Epoch] = []
    trainer.fit(on_epoch=epochs.append)
    return epochs


def _stop(epoch: Epoch) -> None:
    raise KeyboardInterrupt


def _interrupted(out: Path, in_memory: MakeSet, **settings: Any) -> Trainer:
    """A training stopped after its first epoch, whose state lies beside `out`."""
    trainer = _trainer(out, in_memory(8), in_memory(3), **settings)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(on_epoch=_stop)
    return trainer


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("balance", "expected"),
    [
        (0.0, (1, 1, 1, 1, 1)),
        (0.5, (math.sqrt(0.375), math.sqrt(0.75), math.sqrt(1.5), math.sqrt(1.5), 1)),
        (1.0, (0.375, 0.75, 1.5, 1.5, 1)),
    ],
)
def test_balanced_weights_equal_the_table(balance: float, expected: tuple[float, ...]) -> None:
    shares = np.array([0.5, 0.25, 0.125, 0.125, 0.0])  # median of those that occur: 0.1875
    assert balanced_weights(shares, balance) == pytest.approx(expected, rel=1e-12)


def test_balanced_weights_stop_at_ten() -> None:
    weights = balanced_weights(np.array([0.6, 0.399, 0.001]), 1.0)
    assert weights == pytest.approx((0.665, 1.0, 10.0))


def test_prepared_weights_are_those_of_the_labels(in_memory: MakeSet) -> None:
    data = in_memory(4)
    labels = np.stack([data.label(i) for i in range(4)])
    shares = np.array([(labels == c).mean() for c in range(3)])
    assert prepare(data, CONFIG) == balanced_weights(shares, CONFIG.balance)
    assert prepare(data, CONFIG)[2] == 1.0


def test_every_tenth_frame_validates(in_memory: MakeSet) -> None:
    train, val = split(in_memory(21), 0.1)
    assert val.names == ["9", "19"]
    assert len(train) == 19
    assert not set(train.names) & set(val.names)


def test_split_keeps_frames_to_train_on_at_any_share(in_memory: MakeSet) -> None:
    train, val = split(in_memory(4), 1.0)
    assert (train.names, val.names) == (["0", "2"], ["1", "3"])


def test_too_few_frames_to_split_are_refused(in_memory: MakeSet) -> None:
    with pytest.raises(UsageError, match="9 labelled frames are too few to keep a 10% share"):
        split(in_memory(9), 0.1)


def test_training_learns(in_memory: MakeSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=12, rate=0.3)
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(16), in_memory(3), config=config, net=_Pointwise())
    epochs = _fit(trainer)
    assert [e.epoch for e in epochs] == list(range(1, 13))
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert epochs[-1].val_miou > 0.95


def test_training_learns_the_scene(tmp_path: Path) -> None:
    data = SceneSet("scene:day?frames=8&size=64x96")
    config = TrainConfig(epochs=6, batch=4, rate=4e-3)
    trainer = _trainer(tmp_path / "n.safetensors", data, data, config=config, preprocessing=Preprocessing(64, 96))
    epochs = _fit(trainer)
    assert epochs[-1].loss < 0.85 * epochs[0].loss


def test_two_trainings_of_one_seed_give_identical_weights_and_another_seed_does_not(
    in_memory: MakeSet, tmp_path: Path
) -> None:
    states = []
    for run, seed in enumerate((0, 0, 1)):
        config = dataclasses.replace(CONFIG, epochs=1, seed=seed)
        trainer = _trainer(tmp_path / f"{run}.safetensors", in_memory(8), in_memory(3), config=config)
        _fit(trainer)
        states.append(trainer.net.state_dict())
    assert _same(states[0], states[1])
    assert not _same(states[0], states[2])


def test_first_step_s_loss_is_the_sum_of_weighted_pixels_over_their_number(in_memory: MakeSet, tmp_path: Path) -> None:
    data = in_memory(4, void=1)
    config = dataclasses.replace(CONFIG, epochs=1, scale=(1.0, 1.0), colour=0.0)
    trainer = _trainer(
        tmp_path / "n.safetensors", data, data, config=config, net=_Pointwise(), class_weight=(3.0, 0.5, 1.0)
    )
    images = torch.stack([torch.from_numpy(data[i][0][:, :, ::-1].copy()).permute(2, 0, 1) for i in range(4)])
    label = torch.stack([torch.from_numpy(data[i][1].copy()).long() for i in range(4)])
    # mirrored or not, and in which order, does not matter to a network that is one 1x1 convolution
    logits = trainer.net(trainer.normaliser(images)).logits
    valid = label != 255
    weight = torch.tensor([3.0, 0.5, 1.0])[label[valid]]
    picked = logits.log_softmax(1).permute(0, 2, 3, 1)[valid].gather(1, label[valid][:, None])[:, 0]
    expected = float(-(weight * picked).sum().detach() / valid.sum())
    (epoch,) = _fit(trainer)
    assert epoch.loss == pytest.approx(expected, rel=1e-4)


def test_rate_rises_and_then_falls_to_nothing(in_memory: MakeSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=10, batch=2, rate=1e-3, encoder_rate_scale=0.25)
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(8), in_memory(1), config=config)
    rates: dict[float, list[float]] = {0.25: [], 1.0: []}

    def on_step(done: int, total: int) -> None:
        for group in trainer.optimizer.param_groups:
            rates[group["scale"]].append(group["lr"])

    trainer.fit(on_epoch=lambda epoch: None, on_step=on_step)
    decoder = rates[1.0][::2]  # two groups of each scale: with and without decay
    assert len(decoder) == 40
    assert decoder[0] == pytest.approx(0.5e-3)  # 40 steps: two of warm-up
    assert decoder[20] == pytest.approx(0.5e-3)
    assert decoder[39] == pytest.approx(0.5e-3 * (1 + math.cos(math.pi * 39 / 40)))
    assert all(later < earlier for earlier, later in itertools.pairwise(decoder[1:]))
    assert rates[0.25][::2] == pytest.approx([0.25 * rate for rate in decoder])


def test_statistics_move_by_the_momentum_asked_for(in_memory: MakeSet, tmp_path: Path) -> None:
    means = []
    for momentum in (0.01, 0.1):
        config = dataclasses.replace(CONFIG, epochs=1, rate=1e-9, momentum=momentum)
        trainer = _trainer(tmp_path / "n.safetensors", in_memory(4), in_memory(2), config=config)
        _fit(trainer)
        means.append(trainer.net.state_dict()["encoder._bn0.running_mean"])
    torch.testing.assert_close(means[1], 10 * means[0], rtol=1e-3, atol=1e-6)  # one step, from zero


def test_only_matrices_decay(in_memory: MakeSet, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(8), in_memory(1))
    decay = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(trainer.net.parameters()))
    assert {decay[id(p)] for p in trainer.net.parameters() if p.ndim == 1} == {0.0}
    assert {decay[id(p)] for p in trainer.net.parameters() if p.ndim > 1} == {CONFIG.weight_decay}


def test_every_epoch_takes_all_frames_in_an_order_of_its_own(in_memory: MakeSet, tmp_path: Path) -> None:
    data = in_memory(8)
    taken: list[int] = []
    read = data.__getitem__

    class Recorded(type(data)):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            taken.append(index)
            return read(index)

    trainer = _trainer(tmp_path / "n.safetensors", Recorded(8), in_memory(1), net=_Pointwise())
    _fit(trainer)
    assert sorted(taken[:8]) == sorted(taken[8:]) == list(range(8))
    assert taken[:8] != taken[8:]


def test_best_epoch_is_the_one_that_is_kept(in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    trainer = _trainer(out, in_memory(8), in_memory(3), config=dataclasses.replace(CONFIG, epochs=4))
    weights: list[dict[str, Tensor]] = []
    manifest = trainer.fit(
        on_epoch=lambda epoch: weights.append({k: v.clone() for k, v in trainer.net.state_dict().items()})
    )
    best = max(range(4), key=lambda i: trainer.history[i].val_miou)
    net, read = nets.load(out)
    assert manifest == read
    assert manifest.provenance["kind"] == "source"
    assert manifest.provenance["epoch"] == best + 1
    assert manifest.provenance["val_miou"] == trainer.history[best].val_miou
    assert _same(net.state_dict(), weights[best])


def test_interrupted_training_resumes_to_the_same_weights(in_memory: MakeSet, tmp_path: Path) -> None:
    whole = _trainer(tmp_path / "whole.safetensors", in_memory(8), in_memory(3))
    _fit(whole)
    out = tmp_path / "parts.safetensors"
    _interrupted(out, in_memory)
    second = _trainer(out, in_memory(8), in_memory(3))
    with torch.no_grad():
        for parameter in second.net.parameters():  # what it starts from is the state's alone
            parameter.zero_()
    assert second.resume()
    assert [e.epoch for e in second.history] == [1]
    _fit(second)
    assert _same(second.net.state_dict(), whole.net.state_dict())
    assert second.history == whole.history
    assert checkpoint.read_manifest(out) == checkpoint.read_manifest(tmp_path / "whole.safetensors")


def test_without_a_state_there_is_nothing_to_resume(in_memory: MakeSet, tmp_path: Path) -> None:
    assert not _trainer(tmp_path / "n.safetensors", in_memory(4), in_memory(1)).resume()


def test_state_lies_beside_the_result_until_the_training_is_complete(in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    _interrupted(out, in_memory)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["n.resume.safetensors", "n.safetensors"]
    trainer = _trainer(out, in_memory(8), in_memory(3))
    trainer.resume()
    _fit(trainer)
    assert [p.name for p in tmp_path.iterdir()] == ["n.safetensors"]


@pytest.mark.parametrize(
    "changed",
    [
        {"config": dataclasses.replace(CONFIG, rate=1e-3)},
        {"config": dataclasses.replace(CONFIG, seed=1)},
        {"spec": NetSpec("lite0", 8)},
        {"spec": NetSpec("nano", 4)},
        {"class_weight": (1.0, 2.0, 1.0)},
        {"preprocessing": Preprocessing(64, 96)},
    ],
    ids=["rate", "seed", "network", "stride", "class weight", "size"],
)
def test_state_of_another_training_is_refused(changed: dict[str, Any], in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    _interrupted(out, in_memory)
    trainer = _trainer(out, in_memory(8), in_memory(3), **changed)
    with pytest.raises(CheckpointError, match=r"n.resume.safetensors belongs to .* delete it to start anew"):
        trainer.resume()


@pytest.mark.parametrize("frames", [(9, 3), (8, 4)])
def test_state_of_a_training_on_other_frames_is_refused(
    frames: tuple[int, int], in_memory: MakeSet, tmp_path: Path
) -> None:
    out = tmp_path / "n.safetensors"
    _interrupted(out, in_memory)
    with pytest.raises(CheckpointError, match="another network, data or settings"):
        _trainer(out, in_memory(frames[0]), in_memory(frames[1])).resume()


def test_state_of_other_classes_is_refused(in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    _interrupted(out, in_memory)
    train, val = in_memory(8), in_memory(3)
    train.classes = Classes(("dark", "bright", "else"), train.classes.palette)
    with pytest.raises(CheckpointError, match="another network, data or settings"):
        _trainer(out, train, val).resume()


def test_finished_checkpoint_in_the_state_s_place_is_refused(in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    trainer = _trainer(out, in_memory(8), in_memory(3))
    _fit(trainer)
    out.rename(trainer.state_path)
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        _trainer(out, in_memory(8), in_memory(3)).resume()


def test_truncated_state_is_refused(in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    state = _interrupted(out, in_memory).state_path
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        _trainer(out, in_memory(8), in_memory(3)).resume()


class _WithUnused(nn.Module):
    """Has an auxiliary head that no loss reaches, as torchvision's networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, 4, 1)
        self.head, self.aux = nn.Conv2d(8, 3, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.encoder(x)
        return {"out": F.interpolate(self.head(y), x.shape[-2:]), "aux": self.aux(y)}


def test_network_with_unused_parameters_resumes_as_well(in_memory: MakeSet, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    spec = NetSpec("mine:net", 0, "encoder")

    def hooked() -> Hooked:
        torch.manual_seed(3)
        return Hooked(_WithUnused(), encoder_layer="encoder", classes=3)

    whole = _trainer(tmp_path / "whole.safetensors", in_memory(8), in_memory(3), net=hooked(), spec=spec)
    _fit(whole)
    _interrupted(out, in_memory, net=hooked(), spec=spec)
    second = _trainer(out, in_memory(8), in_memory(3), net=hooked(), spec=spec)
    assert second.resume()
    _fit(second)
    assert _same(second.net.state_dict(), whole.net.state_dict())


def test_loss_that_is_not_finite_ends_the_training_and_keeps_nothing(in_memory: MakeSet, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(4), in_memory(1))
    with torch.no_grad():
        next(trainer.net.parameters()).fill_(math.nan)
    with pytest.raises(DivergenceError, match="loss of epoch 1 is nan; lower --rate"):
        _fit(trainer)
    assert list(tmp_path.iterdir()) == []


def test_validation_frames_without_a_label_are_refused(in_memory: MakeSet, tmp_path: Path) -> None:
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(4), in_memory(2, void=2))
    with pytest.raises(LabelError, match="all labels of 2 validation frames are void"):
        _fit(trainer)


def test_batch_of_void_frames_moves_no_weight_to_nan(in_memory: MakeSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(4, void=4), in_memory(1), config=config)
    (epoch,) = _fit(trainer)
    assert epoch.loss == 0.0
    assert all(bool(value.isfinite().all()) for value in trainer.net.state_dict().values())


def test_fewer_frames_than_a_batch_still_train(in_memory: MakeSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1, batch=16)
    trainer = _trainer(tmp_path / "n.safetensors", in_memory(3), in_memory(1), config=config)
    before = {k: v.clone() for k, v in trainer.net.state_dict().items()}
    _fit(trainer)
    assert not _same(trainer.net.state_dict(), before)
