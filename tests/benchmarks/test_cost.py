from __future__ import annotations

from pathlib import Path
from typing import Any

import cost
import cv2
import pytest
import torch
from cost import PROFILES, Task, _macs, config_of, measure, multiplications, picture, table
from pairs import Pair, scene
from torch import nn

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.data.datasets import Subset
from edge_sfda.nets import load

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_a_setting(profile: str) -> None:
    assert config_of(profile).method in configs.METHODS


def test_tent_keeps_its_own_settings() -> None:
    assert config_of("TENT") == configs.preset("tent")


def test_row_of_a_short_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    short = {
        "burst": {"steps": 2, "batch": 2, "scale": 0.5},
        "reliability": {"warm_up": 1},
        "statistics": {"frames": 4},
    }
    monkeypatch.setitem(PROFILES, "short", (short, 2))
    monkeypatch.setitem(PROFILES, "whole", ({**short, "burst": {"steps": 2, "batch": 2}}, 2))

    def few(domain: str, street: int) -> Pair:
        whole = scene(domain, street)
        return Pair(whole.name, Subset(whole.drive, range(12)), whole.rare)

    monkeypatch.setattr("pairs.scene", few)
    small, whole = (measure(Task(name, "fog", 43, 0, MODEL)) for name in ("short", "whole"))
    assert (small["frames"], small["steps"]) == (3, 2)
    assert 0 < small["to_90_s"] <= small["seconds"]
    assert 0 < small["gmacs_per_frame"] < whole["gmacs_per_frame"]
    assert small["memory_mb"] >= 0


def test_multiplications_are_those_of_the_whole_burst() -> None:
    pair = scene("fog", 43)
    net, manifest = load(MODEL)
    learn = Pair(pair.name, Subset(pair.drive, range(8)), pair.rare).learn(manifest)
    config = configs.from_dict({"burst": {"steps": 5, "batch": 2, "scale": 0.5}, "reliability": {"warm_up": 1}})
    with multiplications() as counter:
        run.offline(run.make(net, manifest, config), learn)
    assert _macs(Task("full", "fog", 43, 0, MODEL), learn, config) == counter.get_total_flops() / 2


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("groups", [1, 4])
def test_each_gradient_of_a_convolution_costs_what_the_forward_did(kind: type[nn.Module], groups: int) -> None:
    layer, x = kind(8, 8, 3, stride=2, groups=groups, bias=False), torch.randn(2, 8, 9, 9, requires_grad=True)
    with multiplications() as forward:
        y = layer(x)
    with multiplications() as both:
        y.sum().backward()
    x.requires_grad_(False)
    with multiplications() as whole:
        layer(x).sum().backward()
    assert both.get_total_flops() == 2 * forward.get_total_flops() > 0
    assert whole.get_total_flops() == 2 * forward.get_total_flops()


def _row(profile: str, miou: float, macs: float) -> dict[str, Any]:
    return {"profile": profile, "domain": "dusk", "miou": miou, "rare": 0.25, "seconds": macs, "to_90_s": 1.0,
            "memory_mb": 9.0, "gmacs_per_frame": macs}  # fmt: skip


def test_table_holds_seconds_against_the_full_profile() -> None:
    lines = table([_row("full", 0.5, 8.0), _row("full", 0.6, 12.0), _row("cheap", 0.5, 2.5)]).splitlines()
    assert lines[2] == "| full | 0.550 | 0.250 | 10.0 | 1.00 | 1.0 s | 9 MB | 10.0 |"
    assert lines[3] == "| cheap | 0.500 | 0.250 | 2.5 | 0.25 | 1.0 s | 9 MB | 2.5 |"


def test_picture_is_drawn(tmp_path: Path) -> None:
    picture([_row("source", 0.3, 0.0), _row("full", 0.6, 9.0), _row("TENT", 0.5, 3.0)], tmp_path / "p.png")
    image = cv2.imread(str(tmp_path / "p.png"))
    assert image is not None
    assert image.std() > 5
    assert cost.PICTURE.name == "pareto.png"
