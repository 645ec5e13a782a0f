from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_sfda import checkpoint, nets
from edge_sfda.adapt import baselines, hamlet, roid, run, tent
from edge_sfda.adapt.adapter import Adapter
from edge_sfda.adapt.method import Method, StepReport
from edge_sfda.config import METHODS, AdaptConfig, BurstConfig, ReliabilityConfig, StatisticsConfig
from edge_sfda.errors import DataError, DivergenceError, FrameError
from edge_sfda.manifest import Manifest, NetSpec

Make = Callable[..., Any]


class Plain(nn.Module):
    """As third parties write them: logits at full size in a mapping, and nothing known of this package."""

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        kinds = {"batch": nn.BatchNorm2d(8), "group": nn.GroupNorm(2, 8)}
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), kinds[norm], nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.head, self.aux = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        nn.init.normal_(self.head.weight, std=10)  # sure of itself, or the threshold would let nothing through

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.backbone(x)
        size = x.shape[-2:]
        return {
            "out": F.interpolate(self.head(y), size=size, mode="bilinear", align_corners=False),
            "aux": F.interpolate(self.aux(y), size=size, mode="bilinear", align_corners=False),
        }


class Recorder(Method):
    """Learns nothing and writes down what it was called with, in order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls: list[tuple[str, list[int]]] = []

    def begin(self, frames: Sequence[Tensor]) -> None:
        self.calls.append(("begin", [int(f[0, 0, 0]) for f in frames]))

    def observe(self, frames: Tensor) -> None:
        self.calls.append(("observe", frames[:, 0, 0, 0].tolist()))

    def step(self, frames: Tensor) -> StepReport:
        assert frames.dtype == torch.uint8
        self.calls.append(("step", frames[:, 0, 0, 0].tolist()))
        return StepReport(torch.zeros(()))

    def finish(self) -> None:
        self.calls.append(("finish", []))


def _numbered(count: int) -> list[Tensor]:
    return [torch.full((3, 64, 64), i, dtype=torch.uint8) for i in range(count)]


def _config(
    name: str = "stvm", *, seed: int = 0, steps: int = 2, batch: int = 2, affine: bool = False, every: int = 1
) -> AdaptConfig:
    return AdaptConfig(
        method=name,
        seed=seed,
        statistics=StatisticsConfig(frames=4),
        reliability=ReliabilityConfig(embedding=8, per_class=16, warm_up=2),
        burst=BurstConfig(
            steps=steps,
            batch=batch,
            rate=1e-3,
            warm_up=0,
            affine_only=affine,
            batch_statistics=affine,
            entropy=0.5 if affine else 0.0,
            every=every,
        ),
    )


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def recorder(make_toy: Make, make_manifest: Make) -> Make:
    return lambda **settings: Recorder(make_toy(), make_manifest(), _config(**settings))


def test_every_method_of_the_configuration_is_made(make_toy: Make, make_manifest: Make) -> None:
    made = {name: type(run.make(make_toy(), make_manifest(), _config(name))) for name in METHODS}
    assert made == {
        "stvm": Adapter,
        "none": baselines.Source,
        "bn": baselines.Statistics,
        "tent": tent.Tent,
        "eata": tent.Eata,
        "sar": tent.Sar,
        "rdumb": tent.RDumb,
        "roid": roid.Roid,
        "cotta": baselines.Cotta,
        "hamlet": hamlet.Hamlet,
        "mean-teacher": baselines.MeanTeacher,
        "threshold": baselines.ThresholdTeacher,
    }


def test_burst_begins_steps_and_finishes(recorder: Make) -> None:
    method = recorder(steps=3, batch=2)
    told: list[int] = []
    run.offline(method, _numbered(5), on_step=lambda step, report: told.append(step))
    assert [name for name, _ in method.calls] == ["begin", "step", "step", "step", "finish"]
    assert method.calls[0][1] == [0, 1, 2, 3, 4]
    assert told == [1, 2, 3]


@pytest.mark.parametrize(("frames", "batch"), [(5, 2), (3, 4), (1, 2), (4, 4)])
def test_every_frame_is_learned_from_equally_often(frames: int, batch: int, recorder: Make) -> None:
    method = recorder(steps=2 * frames, batch=batch)  # as many draws as fill 2 * batch permutations
    run.offline(method, _numbered(frames))
    seen = [i for name, drawn in method.calls if name == "step" for i in drawn]
    assert Counter(seen) == dict.fromkeys(range(frames), 2 * batch)
    for first in range(0, len(seen), frames):
        assert sorted(seen[first : first + frames]) == list(range(frames))


def test_order_of_the_frames_comes_from_the_seed(recorder: Make) -> None:
    orders = []
    for seed in (0, 0, 1):
        method = recorder(seed=seed, steps=6)
        run.offline(method, _numbered(12))
        orders.append(method.calls)
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


@pytest.mark.parametrize("name", ["none", "bn"])
def test_methods_without_a_gradient_take_no_step(name: str, recorder: Make) -> None:
    method = recorder(name=name, steps=5)
    method.trains = run._METHODS[name].trains
    run.offline(method, _numbered(3))
    assert [call for call, _ in method.calls] == ["begin", "finish"]


def test_no_frames_are_refused_before_anything_is_done(recorder: Make) -> None:
    method = recorder()
    with pytest.raises(DataError, match="got no frames to adapt to; check the source"):
        run.offline(method, [])
    assert method.calls == []


def test_frame_of_a_stream_is_observed_and_then_learned_from(recorder: Make) -> None:
    method = recorder()
    run.learn_online(method, _numbered(8)[7])
    assert method.calls == [("observe", [7]), ("step", [7])]


def test_every_frame_of_a_stream_is_observed_and_some_are_learned_from(recorder: Make) -> None:
    method = recorder(every=3)
    reports = [run.learn_online(method, frame) for frame in _numbered(5)]
    assert [number for name, (number,) in method.calls if name == "observe"] == [0, 1, 2, 3, 4]
    assert [number for name, (number,) in method.calls if name == "step"] == [0, 3]
    assert [report is not None for report in reports] == [True, False, False, True, False]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "frame",
    [torch.zeros(3, 96, 64, dtype=torch.uint8), torch.zeros(3, 64, 64), torch.zeros(64, 64, dtype=torch.uint8)],
    ids=["size", "type", "shape"],
)
def test_frame_that_does_not_fit_leaves_a_stream_s_network_as_it_was(
    name: str, frame: Tensor, make_toy: Make, make_manifest: Make
) -> None:
    method = run.make(make_toy(), make_manifest(), _config(name))
    method.begin(())
    before = _state(method.net), _state(method.deployed)
    with pytest.raises(FrameError):
        run.learn_online(method, frame)
    assert _same(_state(method.net), before[0])
    assert _same(_state(method.deployed), before[1])


@pytest.mark.parametrize("name", METHODS)
def test_frames_of_several_sizes_are_refused(name: str, make_toy: Make, make_manifest: Make) -> None:
    frames = [*_numbered(3), torch.zeros(3, 96, 64, dtype=torch.uint8)]
    method = run.make(make_toy(), make_manifest(), _config(name, steps=4))
    if name == "none":
        run.offline(method, frames)  # looks at no frame
        return
    with pytest.raises(FrameError):
        run.offline(method, frames)


@pytest.mark.parametrize("name", METHODS)
def test_seed_decides_everything(name: str, make_toy: Make, make_manifest: Make, make_frames: Make) -> None:
    states = []
    for seed in (0, 0, 1):
        method = run.make(make_toy(), make_manifest(), _config(name, seed=seed, steps=3))
        run.offline(method, make_frames(6))
        states.append(_state(method.deployed))
    assert _same(states[0], states[1])
    assert _same(states[0], states[2]) == (name in ("none", "bn"))


@pytest.mark.parametrize("name", METHODS)
def test_weights_that_are_not_finite_end_every_method(
    name: str, make_toy: Make, make_manifest: Make, make_frames: Make
) -> None:
    net = make_toy()
    with torch.no_grad():
        net.classifier.weight[0] = math.nan
    with pytest.raises(DivergenceError, match="is not finite after adaptation; lower burst.rate"):
        run.offline(run.make(net, make_manifest(), _config(name)), make_frames(4))


@pytest.mark.parametrize("affine", [False, True], ids=["all weights", "affine"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", METHODS)
def test_network_of_your_own_is_adapted_saved_and_loaded(
    name: str, norm: str, affine: bool, make_manifest: Make, make_frames: Make, tmp_path: Path
) -> None:
    spec = NetSpec(f"{__name__}:Plain", 0, "backbone", {"norm": norm})
    manifest = make_manifest(66, 90, spec=spec, class_weight=(0.5, 1.0, 2.0, 4.0))
    torch.manual_seed(0)
    net = nets.build(spec, 4, allow=spec.architecture)
    before = _state(net)
    method = run.make(net, manifest, _config(name, affine=affine))
    run.offline(method, make_frames(4, 66, 90))
    learned = {n for n, p in method.deployed.named_parameters() if not torch.equal(p, before[n])}
    assert bool(learned) == (name not in ("none", "bn"))
    _assert_round_trip(method, manifest, tmp_path / "adapted.safetensors")


def _assert_round_trip(method: Method, manifest: Manifest, path: Path) -> None:
    checkpoint.save(path, method.deployed.state_dict(), manifest)
    loaded, read = nets.load(path, allow=manifest.net.architecture)
    image = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    mask, confidence = nets.Predictor(loaded, read)(image)
    expected = nets.Predictor(method.deployed, manifest)(image)
    assert mask.shape == (100, 120)
    np.testing.assert_array_equal(mask, expected[0])
    np.testing.assert_array_equal(confidence, expected[1])


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", METHODS)
def test_network_of_your_own_follows_a_stream(name: str, norm: str, make_manifest: Make, make_frames: Make) -> None:
    spec = NetSpec(f"{__name__}:Plain", 0, "backbone", {"norm": norm})
    torch.manual_seed(0)
    net = nets.build(spec, 4, allow=spec.architecture)
    before = _state(net)
    method = run.make(net, make_manifest(spec=spec), _config(name))
    method.begin(())
    for frame in make_frames(3):
        report = run.learn_online(method, frame)
        assert math.isfinite(float(report.loss)) == (name not in ("none", "bn"))
    method.finish()
    still = name == "none" or (name == "bn" and norm == "group")
    assert _same(_state(method.deployed), before) == still


def test_report_is_read_as_numbers() -> None:
    report = StepReport(torch.tensor(0.5), {"rate": torch.tensor(2.0), "weight": torch.tensor(0.25)})
    assert run.check_report(3, report, trains=True) == {"loss": 0.5, "rate": 2.0, "weight": 0.25}


def test_loss_that_a_method_does_not_have_is_nan() -> None:
    assert math.isnan(run.check_report(1, StepReport(torch.tensor(math.nan)), trains=False)["loss"])


@pytest.mark.parametrize("loss", [math.inf, -math.inf, math.nan])
def test_loss_that_is_not_finite_is_a_divergence(loss: float) -> None:
    with pytest.raises(DivergenceError, match="the loss of step 7 is (-?inf|nan); lower burst.rate"):
        run.check_report(7, StepReport(torch.tensor(loss)), trains=True)
