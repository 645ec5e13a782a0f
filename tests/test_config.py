from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from edge_sfda import config
from edge_sfda.config import METHODS, AdaptConfig, BurstConfig, MixingConfig, ReliabilityConfig
from edge_sfda.errors import ConfigError


def _leaves() -> list[tuple[str, str, Any]]:
    """Return every setting as (section, name, default); the section of top-level ones is empty."""
    found = []
    for name, value in config.to_dict(AdaptConfig()).items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found += [(name, key, default) if key else ("", name, default) for key, default in inner]
    return found


NUMBERS = [(s, n, d) for s, n, d in _leaves() if isinstance(d, (int, float)) and not isinstance(d, bool)]


def _nested(section: str, name: str, value: object) -> dict[str, Any]:
    return {section: {name: value}} if section else {name: value}


def test_defaults_survive_toml_and_back(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(config.to_toml(AdaptConfig()), encoding="utf-8")
    assert config.load(tmp_path / "c.toml") == AdaptConfig()


def test_changed_settings_survive_toml_and_back(tmp_path: Path) -> None:
    changed = AdaptConfig(
        method="tent",
        seed=2**32 - 1,
        reliability=ReliabilityConfig(enabled=False, kappa=3.5),
        burst=BurstConfig(rate=1e-7, steps=0),
    )
    (tmp_path / "c.toml").write_text(config.to_toml(changed), encoding="utf-8")
    assert config.load(tmp_path / "c.toml") == changed


def test_toml_holds_every_setting() -> None:
    text = config.to_toml(AdaptConfig())
    assert all(f"{name} = " in text for _, name, _ in _leaves())


def test_from_dict_changes_what_is_given_and_leaves_the_rest() -> None:
    found = config.from_dict({"seed": 7, "burst": {"batch": 4}})
    assert found == AdaptConfig(seed=7, burst=BurstConfig(batch=4))


def test_from_dict_starts_from_its_base() -> None:
    base = AdaptConfig(seed=7, mixing=MixingConfig(memory=3))
    assert config.from_dict({"mixing": {"enabled": False}}, base=base) == AdaptConfig(
        seed=7, mixing=MixingConfig(enabled=False, memory=3)
    )


def test_integer_is_taken_for_a_float() -> None:
    kappa = config.from_dict({"reliability": {"kappa": 5}}).reliability.kappa
    assert kappa == 5.0
    assert isinstance(kappa, float)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_accepted(method: str) -> None:
    assert config.from_dict({"method": method}).method == method


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="method = 'dacs' is unknown; choose one of stvm, none, bn, tent, eata"):
        AdaptConfig(method="dacs")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"sed": 1}, "unknown setting sed; known here: burst, "),
        ({"burst": {"step": 1}}, r"unknown setting burst\.step; known here: affine_only, batch, "),
        ({"burst": 3}, "burst = 3 must be a table"),
        ({"burst": [1]}, r"burst = \[1\] must be a table"),
        ({"seed": 1.0}, r"seed = 1\.0 must be of type int"),
        ({"seed": True}, "seed = True must be of type int"),
        ({"seed": "1"}, "seed = '1' must be of type int"),
        ({"burst": {"rate": "fast"}}, r"burst\.rate = 'fast' must be of type float"),
        ({"burst": {"rate": True}}, r"burst\.rate = True must be of type float"),
        ({"mixing": {"enabled": 1}}, r"mixing\.enabled = 1 must be of type bool"),
        ({"method": 1}, "method = 1 must be of type str"),
    ],
)
def test_bad_key_or_type_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.from_dict(raw)


@pytest.mark.parametrize(("section", "name", "default"), NUMBERS)
def test_every_number_is_bounded_on_both_sides(section: str, name: str, default: float) -> None:
    dotted = f"{section}.{name}" if section else name
    for value in (-1, 10**12):
        with pytest.raises(ConfigError, match=rf"{dotted} = {value}.* must lie in"):
            config.from_dict(_nested(section, name, value))


@pytest.mark.parametrize(("section", "name", "default"), [row for row in NUMBERS if isinstance(row[2], float)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_non_finite(section: str, name: str, default: float, value: float) -> None:
    with pytest.raises(ConfigError, match=f"{name} = "):
        config.from_dict(_nested(section, name, value))


def test_bounds_are_met_exactly() -> None:
    edge = config.from_dict({"statistics": {"blend": 0}, "view": {"crop": 0.25, "blur": 1}, "burst": {"batch": 256}})
    assert (edge.statistics.blend, edge.view.crop, edge.view.blur, edge.burst.batch) == (0.0, 0.25, 1.0, 256)


def test_configurations_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AdaptConfig().seed = 1  # type: ignore[misc]


def test_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*none\.toml: No such file"):
        config.load(tmp_path / "none.toml")


@pytest.mark.parametrize("data", [b"seed = ", b"\xff\xfe", b"seed = 1\nseed = 2"])
def test_file_that_is_no_toml_raises(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.toml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"c\.toml is not TOML"):
        config.load(tmp_path / "c.toml")


def test_empty_file_is_the_base(tmp_path: Path) -> None:
    (tmp_path / "c.toml").touch()
    assert config.load(tmp_path / "c.toml", base=AdaptConfig(seed=9)) == AdaptConfig(seed=9)


@pytest.mark.parametrize("method", ["hamlet", "mean-teacher", "threshold"])
def test_self_training_peers_are_without_what_is_ours(method: str) -> None:
    found = config.preset(method)
    burst, consolidation = found.burst, found.consolidation
    assert found.method == method
    assert (burst.affine_only, burst.batch_statistics, burst.guard) == (False, False, False)
    assert (burst.entropy, burst.class_floor, burst.frozen_stride, found.statistics.prior) == (0.0, 0.0, 0, 0.0)
    assert (consolidation.share, consolidation.online_share) == (0.0, 0.0)
    assert burst.rate == 3e-5 != BurstConfig().rate
