from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edge_sfda.data import class_maps, street_classes
from edge_sfda.errors import LabelError

VOID = 255
# cityscapesscripts.helpers.labels: name -> labelId, trainId
OFFICIAL = {
    "road": (7, 0), "sidewalk": (8, 1), "building": (11, 2), "wall": (12, 3), "fence": (13, 4), "pole": (17, 5),
    "traffic light": (19, 6), "traffic sign": (20, 7), "vegetation": (21, 8), "terrain": (22, 9), "sky": (23, 10),
    "person": (24, 11), "rider": (25, 12), "car": (26, 13), "truck": (27, 14), "bus": (28, 15), "train": (31, 16),
    "motorcycle": (32, 17), "bicycle": (33, 18),
}  # fmt: skip
# README of SYNTHIA-RAND-CITYSCAPES, in its words
SYNTHIA = {
    "void": 0, "sky": 1, "building": 2, "road": 3, "sidewalk": 4, "fence": 5, "vegetation": 6, "pole": 7, "car": 8,
    "traffic sign": 9, "pedestrian": 10, "bicycle": 11, "motorcycle": 12, "parking-slot": 13, "road-work": 14,
    "traffic light": 15, "terrain": 16, "rider": 17, "truck": 18, "bus": 19, "train": 20, "wall": 21,
    "lanemarking": 22,
}  # fmt: skip
THIRTEEN = [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]  # train ids
SIXTEEN = sorted([*THIRTEEN, 3, 4, 5])


def _row(path: Path, ids: list[int]) -> Path:
    cv2.imwrite(str(path), np.array([ids], np.uint8))
    return path


def _read(map_name: str, path: Path) -> list[int | None]:
    label = class_maps.resolve(map_name).read(path)
    return [None if value == VOID else int(value) for value in label[0]]


def _names(map_name: str, path: Path) -> list[str | None]:
    names = class_maps.resolve(map_name).classes.names
    return [None if value is None else names[value] for value in _read(map_name, path)]


def test_cityscapes_ids_and_order_are_the_official_ones(tmp_path: Path) -> None:
    assert street_classes.CITYSCAPES.names == tuple(OFFICIAL)
    train_ids = dict(OFFICIAL.values())
    path = _row(tmp_path / "l.png", list(range(34)))
    assert _read("cityscapes", path) == [train_ids.get(i) for i in range(34)]


def test_cityscapes_agrees_with_the_makers_package() -> None:
    helpers = pytest.importorskip(
        "cityscapesscripts.helpers.labels", reason="extra cityscapes: its old dependency `typing` is built from source"
    )
    evaluated = [label for label in helpers.labels if not label.ignoreInEval]
    classes = street_classes.CITYSCAPES
    assert {label.name: (label.id, label.trainId) for label in evaluated} == OFFICIAL
    assert [label.color for label in sorted(evaluated, key=lambda label: label.trainId)] == list(classes.palette)
    ids = street_classes.label_ids(classes)
    assert {label.id: label.trainId for label in helpers.labels if label.id >= 0} == ids
    void = {label.color for label in helpers.labels if label.ignoreInEval} - set(classes.palette)
    assert set(street_classes.GTA5_VOID) - {(20, 20, 20)} == void


@pytest.mark.parametrize(("count", "kept"), [(16, SIXTEEN), (13, THIRTEEN)])
def test_subsets_of_cityscapes_are_those_of_the_literature(tmp_path: Path, count: int, kept: list[int]) -> None:
    names = [name for name, (_, train) in OFFICIAL.items() if train in kept]
    label_ids = [OFFICIAL[name][0] for name in names]
    assert class_maps.resolve(f"cityscapes-{count}").classes.names == tuple(names)
    path = _row(tmp_path / "l.png", [*range(34), 255])
    expected = [label_ids.index(i) if i in label_ids else None for i in range(34)]
    assert _read(f"cityscapes-{count}", path) == [*expected, None]
    path = _row(tmp_path / "t.png", [*range(19), 255])
    assert _read(f"cityscapes-{count}-train-ids", path) == [
        *[kept.index(i) if i in kept else None for i in range(19)],
        None,
    ]


def test_subset_keeps_its_classes_colours() -> None:
    whole = dict(zip(street_classes.CITYSCAPES.names, street_classes.CITYSCAPES.palette, strict=True))
    for part in (street_classes.CITYSCAPES_16, street_classes.CITYSCAPES_13):
        assert [whole[name] for name in part.names] == list(part.palette)


@pytest.mark.parametrize("sixteen", [True, False])
def test_synthia_ids_mean_cityscapes_classes(tmp_path: Path, sixteen: bool) -> None:
    # as it is published: 16 bits, class in the first channel, instance in the second
    stored = np.zeros((1, 23, 3), np.uint16)
    stored[0, :, 2] = range(23)  # OpenCV writes BGR
    stored[0, :, 1] = 4000
    cv2.imwrite(str(tmp_path / "l.png"), stored)
    wanted = SIXTEEN if sixteen else THIRTEEN
    renamed = {"pedestrian": "person"}
    expected = []
    for name in SYNTHIA:
        name = renamed.get(name, name)
        expected.append(name if name in OFFICIAL and OFFICIAL[name][1] in wanted else None)
    assert _names("synthia" if sixteen else "synthia-13", tmp_path / "l.png") == expected
    assert sum(name is not None for name in expected) == (16 if sixteen else 13)


def test_synthia_reads_copies_of_one_channel(tmp_path: Path) -> None:
    assert _names("synthia", _row(tmp_path / "l.png", [3, 21, 0])) == ["road", "wall", None]


def test_synthia_refuses_an_id_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="holds id 23"):
        _read("synthia", _row(tmp_path / "l.png", [3, 23]))


def test_gta5_palette_holds_label_ids_and_the_plate_is_void(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([range(35)], np.uint8)).convert("P")
    picture.putpalette([0, 0, 0] * 256)  # one colour for all: only indices can tell
    picture.putdata(list(range(35)))
    picture.save(tmp_path / "l.png")
    train_ids = dict(OFFICIAL.values())
    assert _read("gta5", tmp_path / "l.png") == [train_ids.get(i) for i in range(35)]


def test_gta5_copies_in_colour_are_read_by_colour(tmp_path: Path) -> None:
    colours = [*street_classes.CITYSCAPES.palette, *street_classes.GTA5_VOID]
    Image.fromarray(np.array([colours], np.uint8)).save(tmp_path / "l.png")
    assert _read("gta5", tmp_path / "l.png") == [*range(19), *[None] * len(street_classes.GTA5_VOID)]


def test_gta5_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="holds id 35"):
        _read("gta5", _row(tmp_path / "l.png", [7, 35]))
    Image.fromarray(np.array([[(1, 2, 3)]], np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(LabelError, match=r"holds RGB colour \(1, 2, 3\)"):
        _read("gta5", tmp_path / "c.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(LabelError, match=r"no\.png cannot be decoded"):
        _read("gta5", tmp_path / "no.png")
