from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sfda import config
from edge_sfda.adapt import run
from edge_sfda.adapt.session import Keep, Outcome, Session, Slice, Watch
from edge_sfda.config import AdaptConfig
from edge_sfda.data.frames import Frame, to_input
from edge_sfda.data.labels import labels_of
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.errors import CheckpointError, DataError, DivergenceError, FrameError, LabelError, WriteError
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import SegmentationNet, build

SPEC = "scene:dusk?frames=6&size=48x64&seed=3&fps=2"
SHORT = config.from_dict({"burst": {"steps": 3}, "reliability": {"warm_up": 4}, "statistics": {"frames": 4}})
MANIFEST = Manifest(
    NetSpec("nano"), SCENE_CLASSES, Preprocessing(48, 64), class_weight=tuple(1.0 + i for i in range(10))
)


def _net() -> SegmentationNet:
    torch.manual_seed(0)
    return build(MANIFEST.net, len(SCENE_CLASSES))


def _session(settings: AdaptConfig = SHORT, *, labelled: bool = True, watch: Watch | None = None) -> Session:
    labels = labels_of(SPEC, None, None, SCENE_CLASSES) if labelled else None
    return Session(_net(), MANIFEST, settings, labels=labels, watch=watch)


def _weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return outcome.method.deployed.state_dict()


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_offline_learns_measures_and_keeps_samples() -> None:
    rows: list[dict[str, float]] = []
    outcome = _session(watch=Watch(row=rows.append)).offline(learn=Slice(SPEC, 0, 4), measure=Slice(SPEC, 4))
    assert (outcome.steps, outcome.frames, outcome.labelled, outcome.stopped) == (3, 4, 2, False)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert outcome.before is not None
    assert outcome.after is not None
    assert outcome.before.confusion.counts.sum() == outcome.after.confusion.counts.sum() == 2 * 48 * 64
    assert [sample.frame.seq for sample in outcome.samples] == [4, 5]
    for sample in outcome.samples:
        assert sample.before.shape == sample.after.shape == (48, 64)
        assert sample.label is not None
        assert sample.reliability is not None
        assert 0 <= sample.reliability.min() <= sample.reliability.max() <= 1


def test_labels_never_change_what_is_learned() -> None:
    with_labels = _session().offline(learn=Slice(SPEC), measure=Slice(SPEC))
    without = _session(labelled=False).offline(learn=Slice(SPEC), measure=())
    assert without.before is None
    assert _equal(_weights(with_labels), _weights(without))
    assert _equal(_weights(_session().online(Slice(SPEC))), _weights(_session(labelled=False).online(Slice(SPEC))))


def test_pictures_never_change_what_is_learned() -> None:
    outcome = _session().online(Slice(SPEC))
    method = run.make(_net(), MANIFEST, SHORT)
    method.begin(())
    for frame in Slice(SPEC):
        run.learn_online(method, torch.from_numpy(to_input(frame.image, MANIFEST.preprocessing)))
    method.finish()
    assert outcome.samples
    assert _equal(_weights(outcome), method.deployed.state_dict())


def test_before_is_the_source_network_untouched() -> None:
    adapted = _session().offline(learn=Slice(SPEC), measure=Slice(SPEC))
    source = _session(config.preset("none")).offline(learn=Slice(SPEC), measure=Slice(SPEC))
    assert adapted.before is not None
    assert source.after is not None
    assert np.array_equal(adapted.before.confusion.counts, source.after.confusion.counts)


def test_online_predicts_each_frame_before_it_learns_from_it() -> None:
    first = Slice(SPEC, 0, 1)
    outcome = _session(config.preset("tent")).online(first, total=1)
    assert outcome.before is not None
    assert outcome.after is not None
    assert np.array_equal(outcome.before.confusion.counts, outcome.after.confusion.counts)


def test_stream_has_a_row_for_each_frame_that_was_learned_from() -> None:
    rows: list[dict[str, float]] = []
    settings = dataclasses.replace(SHORT, burst=dataclasses.replace(SHORT.burst, every=4))
    outcome = _session(settings, watch=Watch(row=rows.append)).online(Slice(SPEC))
    assert [row["step"] for row in rows] == [1, 5]
    assert (outcome.frames, outcome.steps, outcome.labelled) == (6, 2, 6)


def test_stream_whose_network_diverges_ends_at_that_step() -> None:
    rows: list[dict[str, float]] = []
    session = _session(watch=Watch(row=rows.append))

    def fed() -> Iterator[Frame]:
        for index, frame in enumerate(Slice(SPEC)):
            if index == 2:
                next(session.method.net.parameters()).data.fill_(math.nan)
            yield frame

    with pytest.raises(DivergenceError, match="the loss of step 3 is nan; lower burst.rate"):
        session.online(fed())
    assert [row["step"] for row in rows] == [1, 2]


def test_online_rows_hold_the_running_miou_of_both_networks() -> None:
    rows: list[dict[str, float]] = []
    outcome = _session(watch=Watch(row=rows.append)).online(Slice(SPEC))
    assert len(rows) == 6
    assert outcome.after is not None
    assert rows[-1]["miou"] == outcome.after.confusion.miou()
    assert {"loss", "reliability", "source_miou"} <= rows[0].keys()


@pytest.mark.parametrize("method", [m for m in config.METHODS if m != "stvm"])
def test_peers_have_no_reliability_to_show(method: str) -> None:
    settings = dataclasses.replace(SHORT, method=method)
    outcome = _session(settings).offline(learn=Slice(SPEC), measure=Slice(SPEC, 0, 1))
    assert [sample.reliability for sample in outcome.samples] == [None]
    assert outcome.steps == (0 if method in ("none", "bn") else 3)


def test_stop_ends_a_burst_after_the_step_with_a_network_that_is_whole() -> None:
    rows: list[dict[str, float]] = []
    watch = Watch(row=rows.append, stop=lambda: len(rows) >= 2)
    outcome = _session(watch=watch).offline(learn=Slice(SPEC), measure=Slice(SPEC))
    assert (outcome.steps, outcome.stopped, outcome.labelled) == (2, True, 0)
    assert all(torch.isfinite(value.float()).all() for value in _weights(outcome).values())


def test_stop_before_the_first_step_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt, match="nothing was learned yet"):
        _session(watch=Watch(stop=lambda: True)).offline(learn=Slice(SPEC), measure=Slice(SPEC))


def test_stop_ends_a_stream() -> None:
    rows: list[dict[str, float]] = []
    outcome = _session(watch=Watch(row=rows.append, stop=lambda: len(rows) == 2)).online(Slice(SPEC))
    assert (outcome.steps, outcome.stopped) == (2, True)


def _stream_that_breaks(after: int) -> Iterator[Frame]:
    yield from Slice(SPEC, 0, after)
    raise FrameError("the camera gave half a frame")


def test_stream_that_breaks_keeps_what_was_learned() -> None:
    outcome = _session().online(_stream_that_breaks(2))
    assert outcome.steps == 2
    assert str(outcome.failure) == "the camera gave half a frame"


def test_stream_that_breaks_at_once_is_an_error() -> None:
    with pytest.raises(FrameError, match="half a frame"):
        _session().online(_stream_that_breaks(0))


def test_no_frames_are_an_error() -> None:
    with pytest.raises(DataError, match="no frames"):
        _session(labelled=False).offline(learn=(), measure=())
    with pytest.raises(DataError, match="before its first frame"):
        _session().online(())


def test_frame_smaller_than_the_network_takes_is_told_before_the_work() -> None:
    small = [Frame(np.zeros((16, 200, 3), np.uint8), 0, 0.0)]
    with pytest.raises(FrameError, match="too small"):
        _session(labelled=False).offline(learn=small, measure=small)


class _NoLabels:
    def of(self, frame: Frame) -> None:
        return None


def test_labels_that_fit_no_frame_are_told_before_the_work() -> None:
    rows: list[dict[str, float]] = []
    session = Session(_net(), MANIFEST, SHORT, labels=_NoLabels(), watch=Watch(row=rows.append))
    with pytest.raises(LabelError, match="none of 6 frames has a label"):
        session.offline(learn=Slice(SPEC), measure=Slice(SPEC))
    assert rows == []


@pytest.mark.parametrize(
    ("method", "prior", "left"),
    [
        ("stvm", 1.0, None),
        ("stvm", 0.5, tuple((1.0 + i) ** 0.5 for i in range(10))),
        ("tent", 1.0, MANIFEST.class_weight),
    ],
)
def test_manifest_keeps_only_the_class_weights_that_are_still_in_the_network(method, prior, left) -> None:
    settings = config.from_dict(
        {"method": method, "statistics": {"prior": prior}, "burst": {"guard": False}}, base=SHORT
    )
    manifest = _session(settings).online(Slice(SPEC)).manifest()
    assert manifest.class_weight == (None if left is None else pytest.approx(left))
    assert manifest.provenance["method"] == method
    assert manifest.provenance["frames"] == 6


def test_manifest_of_a_burst_under_a_strong_shift_keeps_the_class_weights() -> None:
    settings = config.from_dict({"burst": {"guard": False}}, base=SHORT)
    manifest = _session(settings).offline(learn=Slice(SPEC), measure=Slice(SPEC, 0, 1)).manifest()
    assert manifest.class_weight == MANIFEST.class_weight


class _Killed(Exception):
    pass


def _stream_that_is_killed(after: int) -> Iterator[Frame]:
    yield from Slice(SPEC, 0, after)
    raise _Killed


def test_killed_stream_goes_on_from_its_last_state_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = _session().online(Slice(SPEC))
    keep = Keep(tmp_path / "state.safetensors", every=2)
    with pytest.raises(_Killed):
        _session().online(_stream_that_is_killed(5), keep=keep)
    rows: list[dict[str, float]] = []
    session = _session(watch=Watch(row=rows.append))
    assert session.resume(keep.path) == 4
    resumed = session.online(Slice(SPEC, 4), keep=keep)
    assert [row["step"] for row in rows] == [5, 6]
    assert _equal(_weights(whole), _weights(resumed))
    assert (resumed.steps, resumed.labelled) == (whole.steps, whole.labelled)
    for one, two in ((whole.before, resumed.before), (whole.after, resumed.after)):
        assert one is not None
        assert two is not None
        assert all(np.array_equal(value, two.counts()[name]) for name, value in one.counts().items())


def test_stream_that_had_ended_resumes_to_the_same_outcome(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "state.safetensors")
    first = _session().online(Slice(SPEC), keep=keep)
    again = _session()
    again.resume(keep.path)
    assert _equal(_weights(first), _weights(again.online((), keep=keep)))


def test_state_that_cannot_be_kept_is_a_warning_until_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep = Keep(tmp_path / "none" / "state.safetensors", every=2)
    rows: list[dict[str, float]] = []
    with pytest.raises(WriteError, match="create its folder first"):
        _session(watch=Watch(row=rows.append)).online(Slice(SPEC), keep=keep)
    assert len(rows) == 6
    told = [record.message.split(" is not kept")[0] for record in caplog.records]
    assert told == [f"the state of step {step}" for step in (2, 4, 6)]


def test_state_that_was_measured_otherwise_is_told(tmp_path: Path) -> None:
    keep = Keep(tmp_path / "state.safetensors")
    _session().online(Slice(SPEC, 0, 1), keep=keep)
    with pytest.raises(CheckpointError, match="measured with other labels"):
        _session(labelled=False).resume(keep.path)
