from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from edge_sfda.errors import CheckpointError, ConfigError, EdgeSfdaError
from edge_sfda.manifest import IMAGENET_MEAN, IMAGENET_STD, Classes, Manifest, NetSpec, Preprocessing

MANIFEST = Manifest(
    net=NetSpec("mine:factory", stride=0, encoder_layer="body.2", options={"width": 8}),
    classes=Classes(("road", "car"), ((128, 64, 128), (0, 0, 142)), 11),
    preprocessing=Preprocessing(48, 64, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    class_weight=(1.0, 2.5),
    provenance={"kind": "source", "losses": [0.5, 0.25]},
    tensors_sha256="ab",
)


def _raw(**changes: Any) -> str:
    return json.dumps({**json.loads(MANIFEST.to_json()), **changes})


def test_json_and_back_is_equal() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


def test_json_and_back_is_equal_without_options() -> None:
    plain = Manifest(NetSpec("nano"), Classes(("a", "b"), ((0, 0, 0), (1, 1, 1))), Preprocessing(8, 8192))
    assert Manifest.from_json(plain.to_json()) == plain
    assert plain.class_weight is None
    assert plain.preprocessing.mean == IMAGENET_MEAN
    assert plain.preprocessing.std == IMAGENET_STD
    assert plain.classes.ignore_id == 255


def test_json_is_one_line_with_sorted_keys() -> None:
    text = MANIFEST.to_json()
    assert "\n" not in text
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert text.startswith('{"class_weight": [1.0, 2.5], "classes": {"ignore_id": 11, "names": ["road", "car"]')


def test_json_refuses_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        dataclasses.replace(MANIFEST, provenance={"miou": float("nan")}).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"text"',
        "{}",
        _raw(net=None),
        _raw(net={}),
        _raw(net={"architecture": "nano", "depth": 3}),
        _raw(classes=[]),
        _raw(classes={"names": ["a", "b"]}),
        _raw(classes={"names": ["a", "b"], "palette": [[0, 0], [1, 1]], "ignore_id": 255}),
        _raw(classes={"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "ignore_id": 1}),
        _raw(classes={"names": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "ignore_id": "none"}),
        _raw(preprocessing={"height": 48}),
        _raw(preprocessing={"height": 4, "width": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}),
        _raw(preprocessing={"height": 48, "width": 64, "mean": [0, 0, 0], "std": [1, 0, 1]}),
        _raw(preprocessing={"height": 48, "width": 64, "mean": 0, "std": [1, 1, 1]}),
        _raw(preprocessing={"height": 48, "width": 64, "mean": "abc", "std": [1, 1, 1]}),
        _raw(preprocessing={"height": 48, "width": 64, "mean": [0, 0, 0], "std": [1, 1, float("nan")]}),
        _raw(preprocessing={"height": 48, "width": 64, "mean": [0, 0, float("inf")], "std": [1, 1, 1]}),
        _raw(class_weight=[1.0]),
        _raw(class_weight=[1.0, "2"]),
        _raw(class_weight=[1.0, float("nan")]),
        _raw(class_weight=1.0),
        _raw(further="key"),
    ],
)
def test_json_of_another_form_raises(text: str) -> None:
    with pytest.raises(CheckpointError, match="unreadable manifest"):
        Manifest.from_json(text)


def test_later_format_asks_for_an_update() -> None:
    with pytest.raises(CheckpointError, match="manifest of format 2, this version reads 1; update edge-sfda"):
        Manifest.from_json(_raw(format=2))


def test_derive_names_the_parent_and_drops_its_hash_and_story() -> None:
    child = MANIFEST.derive(kind="adapted", steps=80)
    assert child.provenance == {"parent": "ab", "kind": "adapted", "steps": 80}
    assert child.tensors_sha256 == ""
    assert dataclasses.replace(child, provenance=MANIFEST.provenance, tensors_sha256="ab") == MANIFEST


def test_class_weights_must_match_the_classes() -> None:
    with pytest.raises(ConfigError, match="3 class weights for 2 classes"):
        dataclasses.replace(MANIFEST, class_weight=(1.0, 1.0, 1.0))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_class_weights_must_be_finite_and_not_negative(weight: float) -> None:
    with pytest.raises(ConfigError, match="must be finite and not below 0"):
        dataclasses.replace(MANIFEST, class_weight=(1.0, weight))


def test_class_weight_of_zero_is_accepted() -> None:
    assert dataclasses.replace(MANIFEST, class_weight=(1.0, 0.0)).class_weight == (1.0, 0.0)


@pytest.mark.parametrize(
    ("names", "palette", "ignore_id", "message"),
    [
        ((), (), 255, "got 0 names, expected 2 to 255"),
        (("a",), ((0, 0, 0),), 255, "got 1 names, expected 2 to 255"),
        (tuple(map(str, range(256))), ((0, 0, 0),) * 256, 255, "got 256 names"),
        (("a", "a"), ((0, 0, 0),) * 2, 255, "names repeat in"),
        (("a", "b"), ((0, 0, 0),), 255, "2 names but 1 palette colours"),
        (("a", "b"), ((0, 0, 0), (0, 0, 256)), 255, r"must hold RGB triples of 0\.\.255"),
        (("a", "b"), ((0, 0, 0), (0, -1, 0)), 255, r"must hold RGB triples of 0\.\.255"),
        (("a", "b"), ((0, 0, 0), (0, 0)), 255, r"must hold RGB triples of 0\.\.255"),
        (("a", "b"), ((0, 0, 0),) * 2, 1, r"ignore_id 1 must lie in 2\.\.255"),
        (("a", "b"), ((0, 0, 0),) * 2, 256, r"ignore_id 256 must lie in 2\.\.255"),
        (("a", "b"), ((0, 0, 0),) * 2, -1, r"ignore_id -1 must lie in 2\.\.255"),
    ],
)
def test_classes_out_of_range_raise(names: Any, palette: Any, ignore_id: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Classes(names, palette, ignore_id)


def test_classes_at_their_limits_are_accepted() -> None:
    assert len(Classes(tuple(map(str, range(255))), ((0, 0, 0),) * 255, 255)) == 255
    assert Classes(("a", "b"), ((0, 0, 0), (255, 255, 255)), 2).ignore_id == 2


@pytest.mark.parametrize(("height", "width"), [(7, 64), (48, 7), (8193, 64), (48, 8193), (-48, 64), (0, 0)])
def test_preprocessing_size_out_of_range_raises(height: int, width: int) -> None:
    with pytest.raises(ConfigError, match=f"size {height}x{width} must lie in 8..8192"):
        Preprocessing(height, width)


@pytest.mark.parametrize("std", [(1.0, 1.0, 0.0), (1.0, -1.0, 1.0), (1.0, 1.0)])
def test_preprocessing_std_must_be_three_values_above_zero(std: Any) -> None:
    with pytest.raises(ConfigError, match="must be three values, std above 0"):
        Preprocessing(48, 64, std=std)


def test_every_error_is_one_of_the_package_and_says_how_to_exit() -> None:
    assert issubclass(ConfigError, EdgeSfdaError)
    assert issubclass(ConfigError, ValueError)
    assert ConfigError.exit_code == 2
    assert CheckpointError.exit_code == 1
