from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from deeplabv2 import DeepLabV2, deeplabv2
from import_deeplabv2 import CAFFE_MEAN_RGB, FACTORY, main, read_weights, to_checkpoint

from edge_sfda.cli import main as cli
from edge_sfda.data.street_classes import CITYSCAPES_13
from edge_sfda.errors import CheckpointError
from edge_sfda.nets import Predictor, load

TINY = {"width": 4, "blocks": (1, 1, 1, 1)}
SIZE = (64, 128)


@pytest.fixture
def published() -> DeepLabV2:
    torch.manual_seed(0)
    net = deeplabv2(13, **TINY)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    return net.eval()


def _save(net: DeepLabV2, path: Path, *, prefix: str = "", wrapper: str = "") -> Path:
    state = {prefix + name: value for name, value in net.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    return path


@pytest.mark.parametrize(
    ("prefix", "wrapper"), [("", ""), ("module.", ""), ("module.Scale.", ""), ("", "state_dict"), ("net.", "model")]
)
def test_published_names_are_brought_to_ours(published: DeepLabV2, tmp_path: Path, prefix: str, wrapper: str) -> None:
    read = read_weights(_save(published, tmp_path / "w.pth", prefix=prefix, wrapper=wrapper))
    assert read.keys() == published.state_dict().keys()


def test_auxiliary_classifier_is_left_out_and_a_lone_one_is_the_classifier(tmp_path: Path) -> None:
    one = torch.ones(1)
    torch.save({"layer5.conv2d_list.0.bias": one, "layer6.conv2d_list.0.bias": 2 * one}, tmp_path / "two.pth")
    torch.save({"layer5.conv2d_list.0.bias": one, "fc.weight": one}, tmp_path / "one.pth")
    assert read_weights(tmp_path / "two.pth") == {"layer6.conv2d_list.0.bias": 2 * one}
    assert read_weights(tmp_path / "one.pth") == {"layer6.conv2d_list.0.bias": one}


def test_checkpoint_predicts_as_the_published_network(published: DeepLabV2, tmp_path: Path) -> None:
    out = tmp_path / "rgb.safetensors"
    to_checkpoint(published.state_dict(), out, classes=CITYSCAPES_13, size=SIZE, **TINY)
    net, manifest = load(out, allow=FACTORY)
    x = torch.randn(1, 3, *SIZE)
    torch.testing.assert_close(net(x).logits, published(x))
    assert manifest.classes == CITYSCAPES_13
    assert net.feature_channels == (4 * 32,)


def test_weights_for_bgr_see_the_frame_as_in_caffe(published: DeepLabV2, tmp_path: Path) -> None:
    out = tmp_path / "bgr.safetensors"
    to_checkpoint(published.state_dict(), out, classes=CITYSCAPES_13, size=SIZE, bgr=True, **TINY)
    predictor = Predictor(*load(out, allow=FACTORY))
    frame = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    caffe = torch.from_numpy(frame.astype(np.float32) - np.float32(CAFFE_MEAN_RGB[::-1])).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = torch.nn.functional.interpolate(published(caffe), size=SIZE, mode="bilinear", align_corners=False)
    confidence = logits.softmax(1).amax(1)[0]
    torch.testing.assert_close(torch.from_numpy(predictor(frame)[1]), confidence, rtol=1e-4, atol=1e-5)


def test_weights_without_batch_counters_load(published: DeepLabV2, tmp_path: Path) -> None:
    old = {name: value for name, value in published.state_dict().items() if not name.endswith("num_batches_tracked")}
    to_checkpoint(old, tmp_path / "old.safetensors", classes=CITYSCAPES_13, size=SIZE, **TINY)
    assert load(tmp_path / "old.safetensors", allow=FACTORY)[1].classes == CITYSCAPES_13


def test_weights_of_another_network_are_refused(published: DeepLabV2, tmp_path: Path) -> None:
    weights = published.state_dict()
    del weights["layer4.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"do not fit DeepLabV2 of 13 classes: .*[\s\S]*layer4\.0\.conv1\.weight"):
        to_checkpoint(weights, tmp_path / "x.safetensors", classes=CITYSCAPES_13, **TINY)
    assert not (tmp_path / "x.safetensors").exists()


def test_file_with_code_is_refused_without_running_it(tmp_path: Path) -> None:
    class Opens:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"a": Opens()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="is not a file of tensors alone"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"w\.pth is not a file of tensors alone"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="No such file"):
        read_weights(tmp_path / "none.pth")


def test_command_refuses_bad_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, code in ((["--size", "big"], 2), (["--classes", "kitti"], 2), ([], 1)):
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "none.pth"), "-o", str(tmp_path / "o"), *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "Traceback" not in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("method", ["stvm", "tent"])
def test_whole_adaptation_runs_over_deeplabv2(published: DeepLabV2, tmp_path: Path, method: str) -> None:
    source = tmp_path / "source.safetensors"
    to_checkpoint(published.state_dict(), source, classes=CITYSCAPES_13, size=SIZE, bgr=True, **TINY)
    rng = np.random.default_rng(0)
    for i in range(4):
        image = tmp_path / f"Rio/Images/{'Test' if i == 3 else 'Train'}/pano_{i}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(image), rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    label = tmp_path / "Rio/Labels/Test/pano_3_eval.png"
    label.parent.mkdir(parents=True)
    cv2.imwrite(str(label), np.full(SIZE, 7, np.uint8))
    (tmp_path / "few.toml").write_text("[reliability]\nwarm_up = 1\n[burst]\nbatch = 2\nguard = false\n")
    common = ["--net", FACTORY, "--model", str(source), "--config", str(tmp_path / "few.toml")]
    frames = ["--frames", str(tmp_path / "Rio/Images/Train"), "--steps", "2", "--method", method]
    with pytest.raises(SystemExit) as stop:
        cli(["adapt", *common, *frames, "-o", str(tmp_path / "run"), "--json"])
    assert stop.value.code == 0
    adapted = next((tmp_path / "run").glob("*.safetensors"))
    with pytest.raises(SystemExit) as stop:
        cli(["evaluate", str(adapted), str(tmp_path / "Rio"), "--net", FACTORY])
    assert stop.value.code == 0
    before, after = (load(path, allow=FACTORY)[0].state_dict() for path in (source, adapted))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.endswith("bn1.weight"))
