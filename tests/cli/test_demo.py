from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_sfda import config
from edge_sfda.cli.adapt import BUILT_IN_MODEL
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.nets import load


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo with a burst that a test can wait for."""
    whole = config.from_dict
    short = config.from_dict({"burst": {"steps": 2}, "reliability": {"warm_up": 1}, "statistics": {"frames": 4}})
    monkeypatch.setattr(config, "from_dict", lambda raw: whole(raw, base=short))


@pytest.mark.usefixtures("hasty")
def test_demo_adapts_and_prints_before_and_after_of_each_class(run_cli, nano: Path, tmp_path: Path) -> None:
    ran = run_cli("demo", "--model", nano, "-o", tmp_path / "demo", "--domain", "fog")
    assert ran.code == 0
    assert "measured on 48 frames: another street of the same domain" in ran.out
    names = [line.split()[0] for line in ran.out.splitlines() if line and line.split()[0] in ("sky", "fence", "mIoU")]
    assert names == ["sky", "fence", "mIoU"]
    assert str(tmp_path / "demo" / "strip.png") in ran.out
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["source"].startswith("scene:fog")
    assert report["frames"] == 96


def test_unknown_domain_is_wrong_usage(run_cli, nano: Path, tmp_path: Path) -> None:
    ran = run_cli("demo", "--model", nano, "-o", tmp_path / "demo", "--domain", "mars")
    assert ran.code == 2
    assert "unknown scene domain 'mars'" in ran.err
    assert not (tmp_path / "demo").exists()


def test_built_in_source_network_is_small_and_knows_the_scene() -> None:
    assert BUILT_IN_MODEL.stat().st_size < 3_000_000
    assert load(BUILT_IN_MODEL)[1].classes == SCENE_CLASSES
