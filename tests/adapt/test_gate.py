from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from edge_sfda.adapt import vetoes
from edge_sfda.adapt.gate import Gate
from edge_sfda.adapt.probes import LabelledProbes
from edge_sfda.adapt.votes import Predict
from edge_sfda.cli.adapt import BUILT_IN_MODEL
from edge_sfda.config import GateConfig
from edge_sfda.data.frames import to_input
from edge_sfda.data.sources import open_source
from edge_sfda.errors import ConfigError, UsageError
from edge_sfda.manifest import Manifest
from edge_sfda.nets import load
from edge_sfda.nets.inference import Normaliser
from edge_sfda.nets.normalisation import batch_norms, estimate

COLOURS = torch.tensor([[40.0, 40, 40], [220, 60, 60], [60, 220, 60], [60, 60, 220]])  # of classes a, b, c, d


def _street(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return frames of coloured blocks, uint8 [N, 3, 64, 64], with a camera's noise, and their labels [N, 64, 64]."""
    rng = torch.Generator().manual_seed(seed)
    blocks = torch.randint(4, (count, 4, 4), generator=rng)
    label = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    noise = torch.randn(count, 3, 64, 64, generator=rng) * 10
    frames = (COLOURS[label].permute(0, 3, 1, 2) + noise).round().clamp(0, 255).to(torch.uint8)
    return frames, label.to(torch.uint8)


def _by_colour(sharpness: float, *, classes: tuple[int, ...] = (0, 1, 2, 3), grain: float = 0.0) -> Predict:
    """Return a network that knows the colours: how surely, under which names, and with how much noise of its own."""

    def predict(frames: Tensor) -> Tensor:
        small = F.avg_pool2d(frames, 4)
        apart = (small[:, None] - COLOURS[list(classes)].view(1, 4, 3, 1, 1)).square().sum(2) / 255**2
        wobble = torch.sin(small.sum(1, keepdim=True) * torch.tensor([7.0, 11, 13, 17]).view(1, 4, 1, 1))
        return sharpness * (grain * wobble - apart)

    return predict


SOURCE = _by_colour(4, grain=0.6)  # unsure, and easily upset
GOOD = _by_colour(40)
FRAMES, LABELS = _street(12)


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def gate(make_manifest: Callable[..., Manifest], clock: _Clock) -> Gate:
    return Gate(GateConfig(), make_manifest(), clock=clock)


def test_better_candidate_is_accepted(gate: Gate) -> None:
    decision = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD}, FRAMES)
    assert (decision.accepted, decision.changes) == ("average", True)
    assert decision.reason == "average is surer and more diverse than deployed, and no vote is against it"
    assert set(decision.votes["average"].values()) == {"for"}
    assert decision.vetoes == {}
    assert decision.scores["average"]["nuclear"] > decision.scores["deployed"]["nuclear"]


def test_same_network_again_is_not_accepted(gate: Gate) -> None:
    decision = gate.judge({"source": GOOD, "deployed": GOOD, "average": GOOD}, FRAMES)
    assert (decision.accepted, decision.changes) == ("deployed", False)
    assert "average lacks consistency, information, nuclear" in decision.reason


def test_decision_is_one_line_of_json(gate: Gate) -> None:
    broken = _by_colour(float("nan"))
    decision = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD, "late": broken}, FRAMES)
    line = decision.to_json()
    assert "\n" not in line
    found = json.loads(line)
    assert found["accepted"] == "average"
    assert found["vetoes"] == {"late": ["predictions are not finite"]}
    assert found["scores"]["average"].keys() == {"agreement", "consistency", "information", "nuclear", "density"}
    assert (found["probes"], found["labelled"], found["evidence"]) == (12, 0, [])


def _collapsed(frames: Tensor) -> Tensor:
    logits = torch.zeros(len(frames), 4, 16, 16)
    logits[:, 2] = 50
    return logits


@pytest.mark.parametrize(
    ("candidate", "words"),
    [
        (_collapsed, "class histogram moved by 0.7"),
        (_by_colour(float("inf")), "not finite"),
        # never says d, which every eighth pixel or more is
        (lambda x: GOOD(x) - 1e3 * F.one_hot(torch.tensor(3), 4).view(1, 4, 1, 1), "class 3 is all but lost"),
    ],
)
def test_ruined_candidate_is_ruled_out(gate: Gate, candidate: Predict, words: str) -> None:
    decision = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": candidate}, FRAMES)
    assert decision.accepted == "deployed"
    assert words in "; ".join(decision.vetoes["average"])


def test_sure_and_steady_but_contradicted_candidate_is_refused(gate: Gate) -> None:
    swapped = _by_colour(40, classes=(1, 2, 3, 0))
    decision = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": swapped}, FRAMES)
    assert decision.accepted == "deployed"
    assert decision.votes["average"] == {
        "agreement": "against", "consistency": "for", "information": "for", "nuclear": "for"
    }  # fmt: skip


def test_source_that_the_ensemble_sides_with_is_accepted_when_a_stream_comes_home(gate: Gate) -> None:
    # as sure as the source, but of what it makes out of noise
    away = _by_colour(40, classes=(0, 1, 3, 2), grain=0.3)
    decision = gate.judge({"source": GOOD, "deployed": away, "average": GOOD}, FRAMES)
    assert decision.accepted == "source"
    assert decision.reason == "the candidates' ensemble sides with source against deployed, and it is steadier"
    assert decision.votes["source"]["nuclear"] == "abstains"


def test_going_back_to_the_source_needs_one_vote_less_than_going_on(make_manifest: Callable[..., Manifest]) -> None:
    gate = Gate(GateConfig(cool_down_s=0, nuclear=1.0, sided=1000), make_manifest())
    home = gate.judge({"source": GOOD, "deployed": SOURCE}, FRAMES)
    assert home.accepted == "source"
    assert home.reason == "most votes are for going back to the source from deployed, and none is against it"
    assert home.votes["source"]["nuclear"] == "abstains"
    on = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD}, FRAMES)
    assert on.accepted == "deployed"
    assert on.votes["average"] == home.votes["source"]
    contradicted = _by_colour(40, classes=(1, 2, 3, 0))
    assert gate.judge({"source": contradicted, "deployed": SOURCE, "average": SOURCE}, FRAMES).accepted == "deployed"


def test_network_that_stands_twice_is_run_once(gate: Gate) -> None:
    runs = []

    def counted(frames: Tensor) -> Tensor:
        runs.append(len(frames))
        return SOURCE(frames)

    gate.judge({"source": counted, "deployed": counted}, FRAMES)
    assert sum(runs) == len(FRAMES) * 5  # the probe and four changed views


def test_best_of_several_is_accepted(gate: Gate) -> None:
    candidates = {"source": SOURCE, "deployed": SOURCE, "step 10": _by_colour(15), "average": GOOD}
    assert gate.judge(candidates, FRAMES).accepted == "average"


def test_source_competes(gate: Gate) -> None:
    decision = gate.judge({"source": GOOD, "deployed": SOURCE}, FRAMES)
    assert decision.accepted == "source"


@pytest.mark.parametrize(
    ("probes", "words"),
    [
        (FRAMES[:0], "0 of 0 probes differ, 8 are needed"),
        (FRAMES[:7], "7 of 7 probes differ"),
        (FRAMES[:1].expand(12, -1, -1, -1), "1 of 12 probes differ"),
    ],
)
def test_probes_that_are_no_evidence_change_nothing(gate: Gate, probes: Tensor, words: str) -> None:
    decision = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD}, probes)
    assert decision.accepted == "deployed"
    assert words in decision.reason
    assert len(decision.evidence) == 1


def test_frozen_camera_with_noise_is_no_evidence(gate: Gate) -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 3, 64, 64, generator=rng) * 6
    frozen = (FRAMES[:1].float() + noise).clamp(0, 255).to(torch.uint8)
    assert gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD}, frozen).accepted == "deployed"


def test_walls_are_no_evidence(gate: Gate) -> None:
    walls = (torch.arange(12).view(12, 1, 1, 1) * 7 + 20).expand(12, 3, 64, 64).to(torch.uint8)
    decision = gate.judge({"source": GOOD, "deployed": GOOD, "average": _collapsed}, walls)
    assert decision.accepted == "deployed"
    assert "probes show too few classes" in decision.reason


def test_own_vetoes_are_asked_for_all_but_the_source(gate: Gate) -> None:
    asked: list[str] = []

    def parity(name: str) -> str | None:
        asked.append(name)
        return "export differs in 3 % of the pixels" if name == "average" else None

    decision = gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD}, FRAMES, more_vetoes=[parity])
    assert asked == ["deployed", "average"]
    assert decision.accepted == "deployed"
    assert decision.vetoes == {"average": ["export differs in 3 % of the pixels"]}


@pytest.mark.parametrize("probes", [FRAMES, FRAMES[:0]])
def test_deployed_network_that_is_ruled_out_gives_way_to_the_source(gate: Gate, probes: Tensor) -> None:
    decision = gate.judge({"source": SOURCE, "deployed": GOOD}, probes, more_vetoes=[lambda name: "too slow: 90 ms"])
    assert decision.accepted == "source"
    assert decision.reason == "the deployed network is ruled out (too slow: 90 ms); back to the source"


def test_deployed_network_that_is_ruled_out_gives_way_to_what_beats_the_source(gate: Gate, clock: _Clock) -> None:
    gate.judge({"source": SOURCE, "deployed": SOURCE, "average": GOOD}, FRAMES)
    clock.now = 1.0  # a veto does not wait for the cool-down
    decision = gate.judge({"source": SOURCE, "deployed": _collapsed, "average": GOOD}, FRAMES)
    assert decision.accepted == "average"


def test_next_swap_waits_for_the_cool_down(gate: Gate, clock: _Clock) -> None:
    candidates = {"source": SOURCE, "deployed": SOURCE, "average": GOOD}
    assert gate.judge(candidates, FRAMES).changes
    clock.now = 29.0
    decision = gate.judge(candidates, FRAMES)
    assert (decision.accepted, decision.reason) == ("deployed", "kept: 29 s after the last swap, 30 s are to pass")
    clock.now = 30.0
    assert gate.judge(candidates, FRAMES).changes


def test_labelled_probes_outrank_the_votes(gate: Gate) -> None:
    labelled = LabelledProbes(FRAMES[:2], LABELS[:2])
    sure_but_wrong = _by_colour(40, classes=(0, 1, 3, 2))
    right_but_unsure = _by_colour(0.5)
    decision = gate.judge(
        {"source": SOURCE, "deployed": sure_but_wrong, "average": right_but_unsure}, FRAMES, labelled=labelled
    )
    assert decision.accepted == "average"
    assert "mIoU on labelled probes" in decision.reason
    assert decision.scores["average"]["miou"] == pytest.approx(1.0, abs=0.02)
    assert decision.labelled == 2


def test_labelled_probes_do_not_outrank_vetoes(gate: Gate) -> None:
    labelled = LabelledProbes(FRAMES[:2], LABELS[:2])
    candidates = {"source": SOURCE, "deployed": SOURCE, "average": GOOD}
    veto = {"average": "too slow"}.get
    assert gate.judge(candidates, FRAMES, labelled=labelled, more_vetoes=[veto]).accepted == "deployed"


def test_labelled_probes_decide_where_there_is_no_other_evidence(gate: Gate) -> None:
    labelled = LabelledProbes(FRAMES, LABELS)
    candidates = {"source": SOURCE, "deployed": SOURCE, "average": GOOD}
    assert gate.judge(candidates, FRAMES[:0], labelled=labelled).accepted == "average"
    same = {"source": GOOD, "deployed": GOOD, "average": GOOD}
    assert gate.judge(same, FRAMES[:0], labelled=labelled).accepted == "deployed"


@pytest.mark.parametrize("missing", ["source", "deployed"])
def test_missing_candidate_is_told(gate: Gate, missing: str) -> None:
    candidates = {"source": SOURCE, "deployed": SOURCE, "average": GOOD}
    del candidates[missing]
    with pytest.raises(UsageError, match=f"{missing} must be among them"):
        gate.judge(candidates, FRAMES)


def test_weights_that_are_not_finite_or_far_away_are_ruled_out(gate: Gate, make_toy) -> None:
    source = make_toy()
    broken, far, near = (copy.deepcopy(source) for _ in range(3))
    with torch.no_grad():
        broken.norm.running_var[2] = torch.nan
        far.norm.weight.mul_(1.3)
        near.norm.weight.mul_(1.05)
    candidates = {"source": source, "deployed": source, "broken": broken, "far": far, "near": near}
    decision = gate.judge(candidates, FRAMES[:0])
    assert decision.vetoes["broken"] == ["norm.running_var is not finite"]
    assert "weights moved by 0.300, more than 0.15" in decision.vetoes["far"]
    assert "near" not in decision.vetoes


def test_distance_is_the_larger_of_scales_and_other_weights(make_toy) -> None:
    source, other = make_toy(), make_toy()
    with torch.no_grad():
        other.classifier.weight.mul_(1.2)
        other.classifier.bias.mul_(1.2)
        other.encoder.weight.mul_(1.2)
        for layer in batch_norms(other):
            layer.running_mean.add_(100)  # belongs to the domain
    assert vetoes.distance(other, source) == pytest.approx(0.2)
    assert vetoes.distance(source, source) == 0


def test_networks_are_judged_in_eval_mode_and_left_as_they_were(gate: Gate, make_toy) -> None:
    net = make_toy()
    before = copy.deepcopy(net.state_dict())
    net.norm.train()
    rng = torch.Generator().manual_seed(0)
    probes = torch.randint(256, (9, 3, 64, 64), generator=rng, dtype=torch.uint8)
    probes[:, :, :32] //= torch.arange(1, 10, dtype=torch.uint8).view(9, 1, 1, 1)
    gate.judge({"source": net, "deployed": net}, probes)
    assert net.norm.training
    assert not net.classifier.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("wrong", [{"least": 1}, {"moved": 1.5}, {"distance": -1.0}, {"pixels": 1}, {"seed": -1}])
def test_settings_out_of_range_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"gate.{next(iter(wrong))}"):
        GateConfig(**wrong)


def test_statistics_of_dusk_are_accepted_at_dusk_and_a_shaken_network_is_not() -> None:
    source, manifest = load(BUILT_IN_MODEL)
    frames = [
        torch.from_numpy(to_input(frame.image, manifest.preprocessing))
        for frame in open_source("scene:dusk?frames=16&seed=9&fps=1")
    ]
    learned, probes = torch.stack(frames[::2]), torch.stack(frames[1::2])
    better, shaken = copy.deepcopy(source), copy.deepcopy(source)
    normaliser = Normaliser(manifest.preprocessing, torch.device("cpu"))
    estimate(better, [normaliser(x) for x in torch.split(learned, 4)], blend=1.0)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=rng))
    gate = Gate(GateConfig(), manifest)
    assert gate.judge({"source": source, "deployed": source, "shaken": shaken}, probes).accepted == "deployed"
    candidates = {"source": source, "deployed": source, "shaken": shaken, "average": better}
    assert gate.judge(candidates, probes).accepted == "average"
