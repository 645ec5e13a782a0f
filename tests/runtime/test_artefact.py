from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from edge_sfda.errors import ArtefactError
from edge_sfda.manifest import Classes
from edge_sfda.runtime.artefact import ArtefactInfo

INFO = ArtefactInfo(
    classes=Classes(("road", "car"), ((128, 64, 128), (0, 0, 142))),
    colour_order="bgr",
    frame_size=(360, 480),
    network_size=(180, 240),
    outputs=("mask", "confidence"),
    precision="fp16",
    checkpoint_sha256="ab" * 32,
    min_side=32,
    producer="edge-sfda 0.1.0",
)


@pytest.mark.parametrize("info", [INFO, replace(INFO, frame_size=None, outputs=("mask", "confidence", "logits"))])
def test_record_comes_back_from_json_as_it_was(info: ArtefactInfo) -> None:
    text = info.to_json()
    assert ArtefactInfo.from_json(text) == info
    assert "\n" not in text


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "update edge-sfda"),
        ("colour_order", "gbr", "'gbr' is not known; expected one of bgr, rgb"),
        ("precision", "fp8", "expected one of fp32, fp16, int8"),
        ("outputs", ["confidence"], "must be mask, then"),
        ("outputs", ["mask", "logits", "confidence"], "must be mask, then"),
        ("outputs", ["mask", "boxes"], "must be mask, then"),
        ("outputs", [], "must be mask, then"),
        ("frame_size", [4, 480], "frame_size"),
        ("frame_size", [4], "unreadable artefact record"),
        ("network_size", [360, 9000], "network_size"),
        ("network_size", None, "unreadable artefact record"),
        ("min_side", 0, "min_side 0"),
        ("classes", {"names": ["road"], "palette": [[0, 0, 0]], "ignore_id": 255}, "expected 2 to 255"),
        ("classes", {}, "unreadable artefact record"),
        ("surprise", 1, "surprise"),
    ],
)
def test_record_that_is_wrong_is_named(field: str, value: Any, message: str) -> None:
    raw = json.loads(INFO.to_json())
    raw[field] = value
    with pytest.raises(ArtefactError, match=message):
        ArtefactInfo.from_json(json.dumps(raw))


@pytest.mark.parametrize("text", ["", "[]", "null", '"text"', "{", "{}", "[" * 100_000])
def test_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ArtefactError, match="was the file exported by edge-sfda"):
        ArtefactInfo.from_json(text)


@pytest.mark.parametrize("field", list(json.loads(INFO.to_json())))
def test_record_without_a_field_is_refused(field: str) -> None:
    raw = json.loads(INFO.to_json())
    del raw[field]
    if field == "format":
        assert ArtefactInfo.from_json(json.dumps(raw)) == INFO
    else:
        with pytest.raises(ArtefactError, match=field):
            ArtefactInfo.from_json(json.dumps(raw))
