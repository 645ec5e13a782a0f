from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edge_sfda import checkpoint
from edge_sfda.errors import CheckpointError, ConfigError, NetError
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build, load
from edge_sfda.nets.bring_your_own import Hooked
from edge_sfda.nets.fpn import FpnNet

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.head(self.encoder(x))}


FOREIGN = NetSpec(f"{__name__}:Plain", 0, "encoder")


def _manifest(spec: NetSpec, **provenance: object) -> Manifest:
    return Manifest(spec, CLASSES, Preprocessing(64, 64), provenance=provenance)


def _saved(path: Path, spec: NetSpec, **provenance: object) -> nn.Module:
    net = build(spec, 3, allow=spec.architecture)
    checkpoint.save(path, net.state_dict(), _manifest(spec, **provenance))
    return net


@pytest.mark.parametrize(("name", "stride"), [("lite0", 4), ("nano", 8)])
def test_built_in_networks_are_built_as_the_spec_says(name: str, stride: int) -> None:
    net = build(NetSpec(name, stride), 3)
    assert isinstance(net, FpnNet)
    assert net.classes == 3
    with torch.no_grad():
        assert net.eval()(torch.rand(1, 3, 64, 64)).logits.shape == (1, 3, 64 // stride, 64 // stride)


def test_weights_lie_channels_last() -> None:
    weight = build(NetSpec("nano"), 3).state_dict()["encoder._conv_stem.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_unknown_architecture_is_refused_with_the_known() -> None:
    with pytest.raises(NetError, match="'resnet'; built in are lite0, nano; your own is module:factory"):
        build(NetSpec("resnet"), 3)


def test_stride_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be 4 or 8"):
        build(NetSpec("nano", 5), 3)


def test_loaded_network_is_the_saved_one_in_eval_mode(tmp_path: Path) -> None:
    net = _saved(tmp_path / "a.safetensors", NetSpec("nano", 8))
    loaded, manifest = load(tmp_path / "a.safetensors")
    x = torch.rand(1, 3, 64, 64)
    assert not any(m.training for m in loaded.modules())
    assert manifest.classes == CLASSES
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, net.eval()(x).logits)


def test_checkpoint_cannot_make_code_of_others_run(tmp_path: Path) -> None:
    _saved(tmp_path / "a.safetensors", FOREIGN)
    with pytest.raises(NetError, match="if you trust it"):
        load(tmp_path / "a.safetensors")
    with pytest.raises(NetError, match="if you trust it"):
        load(tmp_path / "a.safetensors", allow="another:factory")


def test_allowed_network_of_others_is_loaded(tmp_path: Path) -> None:
    net = _saved(tmp_path / "a.safetensors", FOREIGN)
    loaded, _ = load(tmp_path / "a.safetensors", allow=FOREIGN.architecture)
    x = torch.rand(1, 3, 64, 64)
    assert isinstance(loaded, Hooked)
    with torch.no_grad():
        assert torch.equal(loaded(x).logits, net(x).logits)


def test_tensors_of_another_class_count_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, build(NetSpec("nano"), 5).state_dict(), _manifest(NetSpec("nano")))
    with pytest.raises(CheckpointError, match=r"a.safetensors does not fit nano of 3 classes: .*classifier"):
        load(path)


def test_tensors_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, build(NetSpec("nano"), 3).state_dict(), _manifest(NetSpec("lite0")))
    with pytest.raises(CheckpointError, match="does not fit lite0 of 3 classes"):
        load(path)


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = build(NetSpec("nano"), 3).state_dict()
    del state["classifier.bias"]
    checkpoint.save(path, state, _manifest(NetSpec("nano")))
    with pytest.raises(CheckpointError, match="classifier.bias"):
        load(path)


def test_state_of_an_unfinished_training_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "a.safetensors", NetSpec("nano"), kind="resume")
    with pytest.raises(CheckpointError, match="the state of an unfinished training"):
        load(tmp_path / "a.safetensors")
