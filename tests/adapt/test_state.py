from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edge_sfda import config, nets
from edge_sfda.adapt import run, state
from edge_sfda.adapt.method import Method
from edge_sfda.adapt.state import State
from edge_sfda.checkpoint import fingerprint
from edge_sfda.config import AdaptConfig
from edge_sfda.errors import CheckpointError, DivergenceError
from edge_sfda.manifest import Manifest

STEPS, CUT = 20, 10
METHODS = ["stvm", "tent", "eata", "sar", "rdumb", "roid", "cotta", "hamlet", "mean-teacher", "threshold", "bn"]

Make = Callable[[], Method]


def _settings(method: str, **more: object) -> AdaptConfig:
    quick = {"burst": {"steps": STEPS, "batch": 2}, "reliability": {"warm_up": 4}, "statistics": {"frames": 4}}
    strong = {"view": {"strength": 1.0}, "mixing": {"memory": 6}}  # every draw that there is
    return config.from_dict({"method": method, **quick, **strong, **more}, base=config.preset(method))


@pytest.fixture
def maker(make_nano, make_toy, make_manifest) -> Callable[[AdaptConfig], Make]:
    """Return a function from settings to one that makes the method anew, over the same source network."""
    whole, small = make_nano(), make_toy()
    manifest = make_manifest(class_weight=(1.0, 2.0, 1.0, 0.5)).derive()

    def of(settings: AdaptConfig) -> Make:
        # the peers share the method's parts; what is told of their states needs no deep network
        net = whole if settings.method == "stvm" else small
        return lambda: run.make(copy.deepcopy(net), manifest, settings)

    return of


def _through_a_file(method: Method, fresh: Method, path: Path) -> Method:
    state.save(path, method.state(), method.manifest)
    torch.manual_seed(99)  # another process has drawn other numbers
    fresh.load_state(state.load(path, fresh.manifest))
    return fresh


def _everything(method: Method) -> tuple[str, str, str]:
    found = method.state()
    return fingerprint(found.tensors), json.dumps(found.facts), fingerprint(method.deployed.state_dict())


@pytest.mark.parametrize("method", METHODS)
def test_stream_goes_on_bit_for_bit(maker, make_frames, tmp_path: Path, method: str) -> None:
    make, frames = maker(_settings(method)), make_frames(STEPS)
    whole = make()
    whole.begin(())
    for frame in frames:
        run.learn_online(whole, frame)
    first = make()
    first.begin(())
    for frame in frames[:CUT]:
        run.learn_online(first, frame)
    second = _through_a_file(first, make(), tmp_path / "state.safetensors")
    for frame in frames[CUT:]:
        run.learn_online(second, frame)
    assert _everything(second) == _everything(whole)
    if method != "bn":
        assert _everything(first) != _everything(whole)


def test_stream_goes_on_at_the_same_frame_where_not_all_are_learned_from(maker, make_frames, tmp_path: Path) -> None:
    settings = dataclasses.replace(_settings("stvm"), burst=dataclasses.replace(_settings("stvm").burst, every=2))
    make, frames = maker(settings), make_frames(4)
    whole, first = make(), make()
    for method in (whole, first):
        method.begin(())
    for frame in frames:
        run.learn_online(whole, frame)
    run.learn_online(first, frames[0])
    second = _through_a_file(first, make(), tmp_path / "state.safetensors")
    assert [run.learn_online(second, frame) is not None for frame in frames[1:]] == [False, True, False]
    assert _everything(second) == _everything(whole)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("method", [m for m in METHODS if m != "bn"])
@pytest.mark.parametrize("affine_only", [True, False])
def test_burst_goes_on_bit_for_bit(maker, make_frames, tmp_path: Path, method: str, affine_only: bool) -> None:
    settings = config.from_dict({"burst": {"affine_only": affine_only}}, base=_settings(method))
    make, frames = maker(settings), make_frames(6)
    whole = make()
    run.offline(whole, frames)
    first, path = make(), tmp_path / "state.safetensors"

    def kill(step: int, report: object) -> None:
        if step == CUT:
            state.save(path, first.state(), first.manifest)
            raise _Killed

    with pytest.raises(_Killed):
        run.offline(first, frames, on_step=kill)
    second = make()
    second.load_state(state.load(path, second.manifest))
    steps: list[int] = []
    run.offline(second, frames, done=CUT, on_step=lambda step, report: steps.append(step))
    assert steps == list(range(CUT + 1, STEPS + 1))
    assert _everything(second) == _everything(whole)


def test_share_of_the_burst_to_deploy_is_kept(maker, make_frames, tmp_path: Path) -> None:
    make, frames = maker(_settings("stvm")), make_frames(6)
    outcomes = []
    for _ in range(2):
        method = make()
        method.begin(frames)
        method.step(torch.stack(frames[:2]))
        method.share = 0.25  # as under a mild shift
        if outcomes:
            method = _through_a_file(method, make(), tmp_path / "state.safetensors")
            method.rejoin(frames)
        method.finish()
        outcomes.append(fingerprint(method.deployed.state_dict()))
    assert outcomes[0] == outcomes[1]


def test_state_of_a_method_that_has_taken_no_step_can_be_kept(maker, make_frames, tmp_path: Path) -> None:
    make = maker(_settings("stvm"))
    fresh = make()
    fresh.begin(())
    second = _through_a_file(fresh, make(), tmp_path / "state.safetensors")
    run.learn_online(second, make_frames(1)[0])
    assert bool(torch.isfinite(second.state().tensors["adapter.usual_weight"]))


def test_teacher_and_student_still_share_their_statistics_after_loading(maker, make_frames, tmp_path: Path) -> None:
    make = maker(_settings("stvm"))
    second = _through_a_file(make(), make(), tmp_path / "state.safetensors")
    run.learn_online(second, make_frames(1)[0])
    deployed, student = second.deployed.state_dict(), second.net.state_dict()
    assert all(torch.equal(deployed[k], student[k]) for k in student if "running_" in k)


def test_rate_still_follows_the_weights_after_loading(maker, make_frames, tmp_path: Path) -> None:
    make = maker(_settings("stvm"))
    first = make()
    first.begin(())
    run.learn_online(first, make_frames(1)[0])
    second = _through_a_file(first, make(), tmp_path / "state.safetensors")
    assert second.optimizer.param_groups[0]["lr"] is second.rate


def test_other_settings_are_told(maker, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    first = maker(_settings("stvm"))()
    state.save(path, first.state(), first.manifest)
    for other in (_settings("tent"), _settings("stvm", seed=3)):
        with pytest.raises(CheckpointError, match="with other settings"):
            maker(other)().load_state(state.load(path, first.manifest))


def test_state_of_another_network_is_told(maker, make_manifest, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    first = maker(_settings("stvm"))()
    state.save(path, first.state(), first.manifest)
    other = Manifest(**{**vars(first.manifest), "tensors_sha256": "f" * 64})
    with pytest.raises(CheckpointError, match="adaptation of another network"):
        state.load(path, other)


def test_network_and_state_are_not_mistaken_for_each_other(maker, make_nano, make_manifest, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    first = maker(_settings("stvm"))()
    state.save(path, first.state(), first.manifest)
    with pytest.raises(CheckpointError, match="state of an unfinished"):
        nets.load(path)
    from edge_sfda import checkpoint

    checkpoint.save(path, make_nano().state_dict(), make_manifest())
    with pytest.raises(CheckpointError, match="no saved state of an adaptation"):
        state.load(path, make_manifest())


def _without(found: State, name: str) -> State:
    return State(
        {k: v for k, v in found.tensors.items() if k != name}, {k: v for k, v in found.facts.items() if k != name}
    )


@pytest.mark.parametrize(
    "name",
    [
        "method.config", "method.observed", "method.random", "net.norm", "teacher.count.updates", "memory.pushed",
        "memory.random", "view.random", "reliability.own.random", "reliability.own.standardised", "adapter.steps",
        "adapter.begun", "adapter.share",
    ],
)  # fmt: skip
def test_state_that_lacks_a_part_is_told(maker, make_frames, name: str) -> None:
    make = maker(_settings("stvm"))
    method = make()
    found = method.state()
    if name == "net.norm":
        name = next(key for key in found.tensors if key.startswith("net."))
    assert name in {**found.tensors, **found.facts}
    with pytest.raises(CheckpointError, match="start anew"):
        make().load_state(_without(found, name))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("view.random", {"bit_generator": "PCG64"}, "draws cannot be read"),
        ("memory.pushed", 5, "has no frames"),
    ],
)
def test_value_that_does_not_fit_is_told(maker, name: str, value: object, words: str) -> None:
    make = maker(_settings("stvm"))
    found = make().state()
    with pytest.raises(CheckpointError, match=words):
        make().load_state(State(found.tensors, {**found.facts, name: value}))


def test_moments_of_another_shape_are_told(maker, make_frames) -> None:
    make = maker(_settings("stvm"))
    method = make()
    method.begin(())
    run.learn_online(method, make_frames(1)[0])
    found = method.state()
    wrong: dict[str, Tensor] = {**found.tensors, "optimizer.0.exp_avg": torch.zeros(1, 2, 3)}
    with pytest.raises(CheckpointError, match="a moment of shape"):
        make().load_state(State(wrong, found.facts))


def test_state_that_is_not_finite_is_not_written(maker, tmp_path: Path) -> None:
    method = maker(_settings("stvm"))()
    with torch.no_grad():
        next(method.net.parameters()).fill_(torch.nan)
    with pytest.raises(DivergenceError):
        state.save(tmp_path / "state.safetensors", method.state(), method.manifest)
    assert list(tmp_path.iterdir()) == []
