"""Classes and raw label ids of the street data sets, as their makers publish them; `class_maps` builds maps from these.

    Cityscapes, ACDC    labelIds 0..33, of which 19 are evaluated (cityscapesscripts.helpers.labels)
    NTHU Cross-City     Cityscapes' labelIds, of which 13 classes are annotated
    GTA5                Cityscapes' labelIds as palette indices; 34 is the licence plate, -1 in Cityscapes
    SYNTHIA             ids of its own (README of SYNTHIA-RAND-CITYSCAPES), 16 of the 19 classes

Every id that is listed is known: those of classes that a set of classes lacks are void.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edge_sfda.manifest import Classes

CAMVID = Classes(  # the 11 classes and colours of the SegNet tutorial's copy
    names=(
        "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
    ),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
    ),
    ignore_id=11,
)  # fmt: skip

CITYSCAPES = Classes(  # the 19 evaluated classes, by train id
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
    ),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    ignore_id=255,
)  # fmt: skip


def _without(classes: Classes, *names: str) -> Classes:
    kept = [i for i, name in enumerate(classes.names) if name not in names]
    return Classes(tuple(classes.names[i] for i in kept), tuple(classes.palette[i] for i in kept), classes.ignore_id)


CITYSCAPES_16 = _without(CITYSCAPES, "terrain", "truck", "train")  # those that SYNTHIA has
CITYSCAPES_13 = _without(CITYSCAPES_16, "wall", "fence", "pole")  # SYNTHIA's second measure, and all that NTHU labels

# labelIds of the evaluated classes; every other one of the benchmark's 0..33 is void
_LABEL_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), CITYSCAPES.names, strict=True)
)
_TRAIN_IDS = dict(enumerate(CITYSCAPES.names))
# left out: 0 void, 13 parking slot, 14 road work, 22 lane marking; 16, 18 and 20 exist as ids but not in the images
_SYNTHIA_IDS = {
    1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation", 7: "pole", 8: "car",
    9: "traffic sign", 10: "person", 11: "bicycle", 12: "motorcycle", 15: "traffic light", 16: "terrain", 17: "rider",
    18: "truck", 19: "bus", 20: "train", 21: "wall",
}  # fmt: skip

# RGB of what GTA5 leaves without a class, for copies that are stored as colours. Two are lost in them: the licence
# plate has the car's colour there, and the group of poles that of the pole.
GTA5_VOID = (
    (0, 0, 0), (20, 20, 20), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
    (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip


def label_ids(classes: Classes, *, plate: bool = False) -> dict[int, int]:
    """Return Cityscapes' labelIds -> class id or `ignore_id`; `plate` adds GTA5's 34."""
    return _to_class_ids(_LABEL_IDS, range(35 if plate else 34), classes)


def train_ids(classes: Classes) -> dict[int, int]:
    """Return Cityscapes' labelTrainIds -> class id or `ignore_id`."""
    return _to_class_ids(_TRAIN_IDS, _TRAIN_IDS, classes)


def synthia_ids(classes: Classes) -> dict[int, int]:
    """Return SYNTHIA's ids -> class id or `ignore_id`."""
    return _to_class_ids(_SYNTHIA_IDS, range(23), classes)


def _to_class_ids(names: Mapping[int, str], known: Iterable[int], classes: Classes) -> dict[int, int]:
    places = {name: place for place, name in enumerate(classes.names)}
    return {raw: places.get(names.get(raw, ""), classes.ignore_id) for raw in known}
