from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data.datasets import SceneSet
from edge_sfda.data.frames import Frame
from edge_sfda.data.labels import labels_of
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.data.sources import open_source
from edge_sfda.data.street_classes import CITYSCAPES_13
from edge_sfda.errors import LabelError, UsageError
from edge_sfda.manifest import Classes

CLASSES = Classes(("road", "car"), ((1, 2, 3), (4, 5, 6)), ignore_id=200)
FRAME = Frame(np.zeros((4, 6, 3), np.uint8), 0, 0.0, "a")


def _write(folder: Path, label: np.ndarray, classes: str = 'names = ["road", "car"]\nignore_id = 9\n') -> str:
    folder.mkdir(exist_ok=True)
    cv2.imwrite(str(folder / "a.png"), label)
    (folder / "classes.toml").write_text(classes)
    return str(folder)


def test_folder_label_is_found_by_the_frames_name_with_the_networks_void(tmp_path: Path) -> None:
    label = np.zeros((4, 6), np.uint8)
    label[0, :2] = (1, 9)
    labels = labels_of("frames", _write(tmp_path / "l", label), None, CLASSES)
    assert labels is not None
    found = labels.of(FRAME)
    assert found is not None
    assert found.dtype == np.uint8
    assert found[0, :3].tolist() == [1, 200, 0]


def test_frame_without_a_label_has_none(tmp_path: Path) -> None:
    labels = labels_of("frames", _write(tmp_path / "l", np.zeros((4, 6), np.uint8)), None, CLASSES)
    assert labels is not None
    assert labels.of(Frame(FRAME.image, 1, 0.1, "b")) is None


@pytest.mark.parametrize("folder", ["", "gt", "gt/fog/val"])
def test_frames_of_a_published_set_find_their_labels_by_its_root_or_a_folder(tmp_path: Path, folder: str) -> None:
    for sequence, value in (("GOPR0475", 13), ("GP010475", 0)):
        stem = f"fog/val/{sequence}/{sequence}_frame_000041"
        for path, array in (
            (f"rgb_anon/{stem}_rgb_anon.png", np.zeros((4, 6, 3), np.uint8)),
            (f"gt/{stem}_gt_labelTrainIds.png", np.full((4, 6), value, np.uint8)),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / path), array)
    frames = str(tmp_path / "rgb_anon/fog/val")
    labels = labels_of(frames, str(tmp_path / folder), None, CITYSCAPES_13)
    assert labels is not None
    with open_source(frames) as source:
        found = [labels.of(frame) for frame in source]
    assert [None if label is None else int(label[0, 0]) for label in found] == [9, 0]  # car is the tenth of 13


def test_folder_label_of_another_size_is_refused(tmp_path: Path) -> None:
    labels = labels_of("frames", _write(tmp_path / "l", np.zeros((6, 4), np.uint8)), None, CLASSES)
    assert labels is not None
    with pytest.raises(LabelError, match="label of 6x4 for an image of 4x6"):
        labels.of(FRAME)


def test_folder_labels_of_other_classes_are_refused(tmp_path: Path) -> None:
    folder = _write(tmp_path / "l", np.zeros((4, 6), np.uint8), 'names = ["sky", "car"]\n')
    with pytest.raises(LabelError, match="labels of classes sky, car where road, car"):
        labels_of("frames", folder, None, CLASSES)


def test_missing_folder_of_labels_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of labels"):
        labels_of("frames", str(tmp_path / "nothing"), None, CLASSES)


def test_frames_other_than_the_scene_have_no_labels_of_their_own() -> None:
    assert labels_of("frames", None, None, CLASSES) is None


def test_scene_labels_are_those_of_its_frames() -> None:
    spec = "scene:dusk?frames=3&seed=4&size=48x64&start=5"
    labels = labels_of(spec, None, None, SCENE_CLASSES)
    assert labels is not None
    with open_source(spec) as source:
        for index, frame in enumerate(source):
            assert np.array_equal(labels.of(frame), SceneSet(spec)[index][1])


def test_scene_labels_for_a_network_of_other_classes_are_refused() -> None:
    with pytest.raises(LabelError, match="where road, car are expected"):
        labels_of("scene:dusk", None, None, CLASSES)
