from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("onnxscript", reason="the exporter needs onnxscript")
from onnx import ModelProto, numpy_helper

from edge_sfda.data.frames import Frame
from edge_sfda.errors import ArtefactError, FrameError
from edge_sfda.nets import Predictor
from edge_sfda.runtime.export import ExportConfig, describe, to_onnx
from edge_sfda.runtime.parity import Parity, as_input, measure, open_session, samples

GOOD = Parity(
    precision="fp16",
    frames=4,
    agreement=0.9999,
    miou_between=0.999,
    max_logit_error=0.01,
    max_logit=12.0,
    max_confidence_error=0.002,
    host_agreement=0.9998,
    resized=False,
    miou_torch=None,
    miou_artefact=None,
    labelled=0,
    layers_asked={"fp16": 9},
    layers_reached={"fp32": 9},
    artefact_ms=(1.0, 2.0, 3.0),
    torch_ms=(4.0, 5.0, 6.0),
)


class _Given:
    """Labels that are right where the network is."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def of(self, frame: Frame) -> np.ndarray | None:
        return self.predictor(frame.image)[0] if frame.seq else None


@pytest.mark.parametrize(
    ("settings", "agreement", "logit_error"),
    [({}, 0.9999, 1e-3), ({"precision": "fp16"}, 0.998, 0.2), ({"precision": "int8"}, 0.97, 5.0)],
)
def test_each_precision_of_the_scenes_network_keeps_its_bound(
    exported, scene_net, scene_frames, settings: dict[str, Any], agreement: float, logit_error: float
) -> None:
    model = exported(**settings)
    info = describe(*scene_net, ExportConfig(**settings))
    parity = measure(model, *scene_net, samples(scene_frames(), info))
    assert parity.problems() == []
    assert parity.agreement >= agreement
    assert 0 < parity.max_logit_error < logit_error
    assert parity.frames == 4
    assert not parity.resized
    assert parity.max_confidence_error is not None
    assert parity.miou_between > 0.9
    assert parity.miou_lost is None
    assert all(ms > 0 for ms in (*parity.artefact_ms, *parity.torch_ms))


def test_model_of_any_size_is_compared_at_each_frames_size(exported, scene_net, scene_frames) -> None:
    info = describe(*scene_net, ExportConfig(dynamic=True))
    frames = samples([*scene_frames(1, 192, 256), *scene_frames(1, 150, 301)], info)
    assert [sample.image.shape[:2] for sample in frames] == [(192, 256), (150, 301)]
    parity = measure(exported(dynamic=True), *scene_net, frames)
    assert parity.problems() == []
    assert parity.resized
    assert parity.agreement > 0.9999
    assert 0.98 < parity.host_agreement < 1


def _spoilt(model: ModelProto, how: Any) -> ModelProto:
    spoilt = ModelProto()
    spoilt.CopyFrom(model)
    for tensor in spoilt.graph.initializer:
        if tensor.name.endswith("head.weight"):
            values = how(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    assert spoilt != model, "the classifier's weights have another name"
    return spoilt


@pytest.mark.parametrize("how", [lambda w: -w, lambda w: w * np.nan])
def test_model_with_other_weights_is_told(make_small, noise, how: Any) -> None:
    net, manifest = make_small()
    config = ExportConfig(logits=True)
    frames = samples([Frame(noise(48, 64), 0, 0.0)], describe(net, manifest, config))
    model = to_onnx(net, manifest, config)
    assert measure(model, net, manifest, frames).problems() == []
    parity = measure(_spoilt(model, how), net, manifest, frames)
    assert any("% of the pixels have the checkpoint's class, fp32 must reach 99.9 %" in p for p in parity.problems())
    assert parity.max_logit_error > 1


def test_labels_tell_the_miou_lost(make_small, noise) -> None:
    net, manifest = make_small()
    config = ExportConfig(colour_order="rgb")
    frames = [Frame(noise(48, 64, seed), seed, 0.0) for seed in range(3)]
    found = samples(frames, describe(net, manifest, config), _Given(Predictor(net, manifest)))
    assert [sample.label is None for sample in found] == [True, False, False]
    model = to_onnx(net, manifest, config)
    parity = measure(model, net, manifest, found)
    assert parity.labelled == 2
    assert parity.miou_torch == 1.0
    assert parity.miou_artefact == pytest.approx(1.0, abs=0.01)
    assert parity.problems() == []
    spoilt = measure(_spoilt(model, lambda w: -w), net, manifest, found)
    assert spoilt.miou_lost is not None
    assert spoilt.miou_lost > 0.1
    assert any("points of mIoU are lost, at most 1.0 may be" in problem for problem in spoilt.problems())


def test_frames_and_labels_are_brought_to_the_artefacts_size(make_small, noise) -> None:
    net, manifest = make_small(48, 64)
    info = describe(net, manifest, ExportConfig(frame_size=(96, 128)))

    class Halves:
        def of(self, frame: Frame) -> np.ndarray:
            return np.repeat(np.array([[0], [3]], np.uint8), 50, 0).repeat(100, 1)

    (sample,) = samples([Frame(noise(100, 100), 0, 0.0)], info, Halves())
    assert sample.image.shape == (96, 128, 3)
    assert sample.label is not None
    assert sample.label.shape == (96, 128)
    assert set(np.unique(sample.label)) == {0, 3}
    assert (sample.label[:48] == 0).all()


def test_no_frames_and_frames_that_are_none_are_refused(make_small) -> None:
    info = describe(*make_small(), ExportConfig(dynamic=True))
    with pytest.raises(ArtefactError, match="no frames to hold the artefact against"):
        samples([], info)
    with pytest.raises(FrameError, match="too small"):
        samples([Frame(np.zeros((31, 64, 3), np.uint8), 0, 0.0)], info)


def test_frame_in_the_artefacts_colour_order_is_contiguous(noise) -> None:
    image = noise(16, 16)
    assert as_input(image, "bgr") is image or np.array_equal(as_input(image, "bgr"), image)
    np.testing.assert_array_equal(as_input(image, "rgb"), cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    assert as_input(image, "rgb").flags.c_contiguous


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(ArtefactError, match="ONNX Runtime refuses the model"):
        open_session(b"no model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"agreement": 0.995}, ""),
        ({"agreement": 0.9949}, "99.490 % of the pixels have the checkpoint's class, fp16 must reach 99.5 %"),
        ({"agreement": float("nan")}, "nan % of the pixels"),
        ({"precision": "fp32", "agreement": 0.998}, "fp32 must reach 99.9 %"),
        ({"precision": "int8", "agreement": 0.971}, ""),
        ({"precision": "int8", "agreement": 0.969}, "int8 must reach 97.0 %"),
        ({"miou_torch": 0.60, "miou_artefact": 0.595}, ""),
        ({"miou_torch": 0.60, "miou_artefact": 0.61}, ""),
        ({"miou_torch": 0.60, "miou_artefact": 0.58}, "2.00 points of mIoU are lost"),
        ({"miou_torch": 0.60, "miou_artefact": float("nan")}, "points of mIoU are lost"),
        ({"host_agreement": 0.9}, "90.00 % of the pixels have the class that the host's resize gives"),
    ],
)
def test_bounds_are_those_that_were_promised(changes: dict[str, Any], message: str) -> None:
    problems = replace(GOOD, **changes).problems()
    assert len(problems) == bool(message)
    assert message in "".join(problems)
