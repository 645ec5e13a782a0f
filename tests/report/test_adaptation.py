from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sfda import config
from edge_sfda.adapt.session import Outcome, Session, Slice, Watch
from edge_sfda.data.frames import read_image
from edge_sfda.data.labels import labels_of
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import build, load
from edge_sfda.report.adaptation import Origin, write
from edge_sfda.report.run_folder import RunFolder

SPEC = "scene:fog?frames=4&size=48x64"
ORIGIN = Origin("source.safetensors", SPEC, "the frames learned from", online=False)


def _adapt(run: RunFolder, *, labelled: bool, method: str = "stvm") -> Outcome:
    torch.manual_seed(0)
    manifest = Manifest(NetSpec("nano"), SCENE_CLASSES, Preprocessing(48, 64))
    settings = config.from_dict({"method": method, "burst": {"steps": 2}, "reliability": {"warm_up": 1}})
    labels = labels_of(SPEC, None, None, SCENE_CLASSES) if labelled else None
    session = Session(build(manifest.net, 10), manifest, settings, labels=labels, watch=Watch(row=run.add_row))
    return session.offline(learn=Slice(SPEC), measure=Slice(SPEC))


def test_write_leaves_a_checkpoint_that_predicts_as_the_adapted_network(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    outcome = _adapt(run, labelled=True)
    write(run, outcome, ORIGIN)
    net, manifest = load(tmp_path / "adapted.safetensors")
    assert manifest.provenance["kind"] == "adapted"
    x = torch.zeros(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(net(x).logits, outcome.method.deployed.eval()(x).logits)


def test_write_leaves_report_rows_curves_and_strip(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    report = write(run, _adapt(run, labelled=True), ORIGIN)
    on_disk = json.loads((tmp_path / "report.json").read_text())
    assert on_disk["labelled"]["after"]["miou"] == report["labelled"]["after"]["miou"]
    assert list(on_disk["labelled"]["classes"]) == list(SCENE_CLASSES.names)
    assert on_disk["labelled"]["frames"] == 4
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 3
    assert read_image(tmp_path / "curves.png").shape[2] == 3
    assert read_image(tmp_path / "strip.png").shape[1] > 1000


def test_report_without_labels_says_what_changed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    outcome = _adapt(run, labelled=False)
    report = write(run, outcome, ORIGIN)
    assert report["labelled"] is None
    changed = np.mean([sample.before != sample.after for sample in outcome.samples])
    assert report["unlabelled"]["changed"] == pytest.approx(changed)
    for side in ("before", "after"):
        assert sum(share[side] for share in report["unlabelled"]["shares"].values()) == pytest.approx(1)


def test_method_without_steps_leaves_no_curves(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write(run, _adapt(run, labelled=True, method="bn"), ORIGIN)
    assert not (tmp_path / "curves.png").exists()
    assert (tmp_path / "strip.png").exists()


@pytest.mark.parametrize(
    ("frames", "place"),
    [("scene:dusk?frames=3", "scene:dusk"), ("/data/camvid/0001TP/images", "0001TP/images"), ("a.mp4", "a.mp4")],
)
def test_place_is_the_source_in_short(frames: str, place: str) -> None:
    assert Origin("m", frames, "", online=False).place == place
