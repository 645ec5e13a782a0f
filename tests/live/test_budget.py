from __future__ import annotations

from pathlib import Path

import pytest

from edge_sfda.config import BudgetConfig
from edge_sfda.live.budget import Budget


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_hour_that_is_spent_refuses_until_it_has_passed(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(BudgetConfig(seconds_per_hour=60), root=tmp_path, clock=clock)
    budget.spend(40)
    clock.now = 1800
    budget.spend(25)
    assert budget.spent_s() == 65
    assert budget.refusal() == "65 s of learning in the last hour, 60 s are allowed"
    clock.now = 3600
    assert budget.spent_s() == 25
    assert budget.refusal() == ""


def test_memory_above_the_bound_refuses(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name: x\nVmRSS:\t 2097152 kB\n")
    assert Budget(BudgetConfig(memory_mb=3000), root=tmp_path).excess() == ""
    assert Budget(BudgetConfig(memory_mb=2000), root=tmp_path).excess() == "2048 MB are in use, 2000 MB are allowed"


def test_memory_of_the_worker_counts(tmp_path: Path) -> None:
    for pid, kilobytes in (("self", 1048576), ("77", 2097152)):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "status").write_text(f"Name: x\nVmRSS:\t {kilobytes} kB\n")
    budget = Budget(BudgetConfig(memory_mb=2000), root=tmp_path)
    assert budget.excess() == ""
    assert budget.excess(77) == "3072 MB are in use, 2000 MB are allowed"


def test_heat_above_the_bound_refuses(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("91000\n")
    assert Budget(BudgetConfig(celsius=85), root=tmp_path).refusal() == "91 °C, 85 °C are allowed"
    assert Budget(BudgetConfig(celsius=95), root=tmp_path).refusal() == ""


def test_power_above_the_bound_refuses(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon3"
    chip.mkdir(parents=True)
    for name, text in {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "2500"}.items():
        (chip / name).write_text(text + "\n")
    assert Budget(BudgetConfig(), root=tmp_path).refusal() == ""
    assert Budget(BudgetConfig(watts=12), root=tmp_path).refusal() == "12.5 W are drawn, 12 W are allowed"


def test_machine_that_tells_nothing_refuses_nothing(tmp_path: Path) -> None:
    budget = Budget(BudgetConfig(watts=0, celsius=0), root=tmp_path)
    assert (budget.refusal(), budget.excess()) == ("", "")


@pytest.mark.parametrize(("share", "rest"), [(1.0, 0.0), (0.5, 2.0), (0.25, 6.0)])
def test_rest_keeps_the_share(share: float, rest: float) -> None:
    assert Budget(BudgetConfig(share=share)).rest_s(2.0) == pytest.approx(rest)
