from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_sfda.config import BudgetConfig
from edge_sfda.live.budget import Budget, hottest_celsius, resident_mb


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
    assert Budget(BudgetConfig(memory_mb=3000), root=tmp_path).refusal() == ""
    assert Budget(BudgetConfig(memory_mb=2000), root=tmp_path).refusal() == "2048 MB are in use, 2000 MB are allowed"


def test_heat_above_the_bound_refuses(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("91000\n")
    assert hottest_celsius(tmp_path) == 91.0
    assert Budget(BudgetConfig(celsius=85), root=tmp_path).refusal() == "91 °C, 85 °C are allowed"
    assert Budget(BudgetConfig(celsius=95), root=tmp_path).refusal() == ""


def test_machine_that_tells_nothing_refuses_nothing(tmp_path: Path) -> None:
    assert (resident_mb(tmp_path), hottest_celsius(tmp_path)) == (0.0, None)
    assert Budget(BudgetConfig(), root=tmp_path).refusal() == ""


def test_memory_of_this_process_is_read() -> None:
    assert 10 < resident_mb() < 100_000
    assert resident_mb(pid=str(os.getpid())) == pytest.approx(resident_mb(), rel=0.2)


@pytest.mark.parametrize(("share", "rest"), [(1.0, 0.0), (0.5, 2.0), (0.25, 6.0)])
def test_rest_keeps_the_share(share: float, rest: float) -> None:
    assert Budget(BudgetConfig(share=share)).rest_s(2.0) == pytest.approx(rest)
