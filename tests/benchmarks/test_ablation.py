from __future__ import annotations

from pathlib import Path

import pairs
import pytest
import torch
from ablation import FULL, PARTS, Task, finished, measure, table
from pairs import Pair, scene

from edge_sfda import config as configs
from edge_sfda.adapt import run
from edge_sfda.nets import load

MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_a_setting_and_differs_from_the_full_method(part: str) -> None:
    assert (configs.from_dict(PARTS[part]) == configs.AdaptConfig()) == (part == FULL)


def test_burst_goes_on_as_if_nobody_had_looked() -> None:
    manifest = load(MODEL)[1]
    frames = scene("dusk", 43).learn(manifest)[:8]
    settings = configs.from_dict(
        {"burst": {"steps": 3, "batch": 2}, "statistics": {"frames": 4}, "reliability": {"warm_up": 1}}
    )
    plain, watched = (run.make(load(MODEL)[0], manifest, settings) for _ in range(2))
    mid = []

    def look(step: int, report: object) -> None:
        with finished(watched) as net:
            mid.append({name: value.clone() for name, value in net.state_dict().items()})

    run.offline(plain, frames)
    run.offline(watched, frames, on_step=look)
    end = watched.deployed.state_dict()
    assert all(torch.equal(value, end[name]) for name, value in plain.deployed.state_dict().items())
    assert all(torch.equal(value, end[name]) for name, value in mid[-1].items())  # after the last step it is the end
    assert not all(torch.equal(value, end[name]) for name, value in mid[0].items())


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    def first(domain: str, street: int) -> Pair:
        whole = scene(domain, street)
        return Pair(whole.name, _First(whole.drive, 6), whole.rare)

    monkeypatch.setattr("pairs.scene", first)
    monkeypatch.setitem(PARTS, "short", {"burst": {"steps": 2, "batch": 2}, "reliability": {"warm_up": 1}})


@pytest.mark.usefixtures("few")
def test_row_tells_the_course_of_the_burst() -> None:
    row = measure(Task("short", "fog", 0, MODEL, None, 43, 1))
    assert list(row["along"]) == [1, 2]
    assert row["along"][2] == row["miou"]
    assert row["end_less_peak"] == pytest.approx(row["miou"] - max(row["along"].values()), abs=1e-6)


@pytest.mark.usefixtures("few")
def test_row_of_a_stream_is_of_all_its_frames_each_predicted_first() -> None:
    row = measure(Task("short", "fog", 0, MODEL, None, 43, 1, online=True))
    manifest = load(MODEL)[1]
    method = run.make(load(MODEL)[0], manifest, configs.from_dict(PARTS["short"]))
    whole = pairs.scene("fog", 43)
    assert {name: row[name] for name in ("miou", "rare")} == whole.scores(pairs.online(method, manifest, whole))
    assert list(row["along"].values()) == [row["miou"]]


class _First:
    """The first few of a labelled set."""

    def __init__(self, whole: object, count: int) -> None:
        self.whole, self.count = whole, count

    def __len__(self) -> int:
        return self.count

    def __getattr__(self, name: str) -> object:
        return getattr(self.whole, name)

    def __getitem__(self, index: int) -> object:
        return self.whole[index]  # type: ignore[index]


def test_table_holds_each_run_against_the_full_method_of_its_own_place() -> None:
    def row(part: str, pair: str, miou: float) -> dict[str, object]:
        return {
            "part": part, "pair": pair, "street": 7, "seed": 0, "source": "s", "miou": miou, "rare": 0.2,
            "along": {1: 0.5, 2: miou}, "end_less_peak": miou - max(0.5, miou),
        }  # fmt: skip

    lines = table([row(FULL, "fog", 0.5), row(FULL, "dusk", 0.3), row("no", "fog", 0.51), row("no", "dusk", 0.27)])
    assert lines.splitlines()[2] == "| full method | 0.400 |  |  | 0.200 | -10.0 | 2 |"
    assert lines.splitlines()[3] == "| no | -1.0 | -3.0 | +1.0 | +0.0 | -11.5 | 2 |"
