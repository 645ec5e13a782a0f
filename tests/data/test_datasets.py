from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data.datasets import (
    FileSet,
    Joined,
    LabelFolder,
    Renumbered,
    SceneSet,
    Subset,
    check_same_classes,
    check_same_size,
    class_shares,
    open_dataset,
)
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.data.sources import SceneSource
from edge_sfda.data.street_classes import CITYSCAPES_16
from edge_sfda.errors import ConfigError, FrameError, LabelError, SourceError, UsageError
from edge_sfda.manifest import Classes

ROAD_CAR = Classes(("road", "car"), ((128, 64, 128), (0, 0, 142)))
TOML = 'names = ["road", "car"]\npalette = [[128, 64, 128], [0, 0, 142]]\n'


def _sequence(folder: Path, labels: dict[str, list[list[int]]], *, toml: str | None = None) -> str:
    """Write one frame a label, blue of value 10, 20, ...; return the folder as the command line gives it."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number, (stem, rows) in enumerate(labels.items(), start=1):
        label = np.array(rows, np.uint8)
        cv2.imwrite(str(folder / f"labels/{stem}.png"), label)
        cv2.imwrite(str(folder / f"images/{stem}.png"), np.full((*label.shape, 3), (10 * number, 0, 0), np.uint8))
    if toml is not None:
        (folder / "classes.toml").write_text(toml)
    return str(folder)


def _city(root: Path, name: str, rows: list[list[int]]) -> None:
    label = np.array(rows, np.uint8)
    for path, array in (
        (root / f"leftImg8bit/{name}_leftImg8bit.png", np.zeros((*label.shape, 3), np.uint8)),
        (root / f"gtFine/{name}_gtFine_labelIds.png", label),
        (root / f"gtFine/{name}_gtFine_color.png", np.zeros((*label.shape, 3), np.uint8)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), array)


def test_sequence_gives_images_bgr_and_labels_in_order(tmp_path: Path) -> None:
    data = open_dataset([_sequence(tmp_path / "s", {"a": [[0, 1, 255]], "b": [[1, 1, 1]]}, toml=TOML)])
    assert len(data) == 2
    assert data.names == ["s/a", "s/b"]
    assert data.classes == ROAD_CAR
    image, label = data[1]
    assert image.dtype == label.dtype == np.uint8
    assert image.tolist() == [[[20, 0, 0]] * 3]
    assert label.tolist() == [[1, 1, 1]]
    assert data.label(0).tolist() == [[0, 1, 255]]
    assert [label.tolist() for _, label in data] == [[[0, 1, 255]], [[1, 1, 1]]]  # ends by itself


def test_folder_of_sequences_is_one_set_and_its_map_serves_all(tmp_path: Path) -> None:
    _sequence(tmp_path / "two", {"a": [[1]]})
    _sequence(tmp_path / "one", {"a": [[0]], "b": [[0]]})
    (tmp_path / "classes.toml").write_text(TOML)
    data = open_dataset([str(tmp_path)])
    assert data.names == ["one/a", "one/b", "two/a"]
    assert [data.label(i).tolist() for i in range(3)] == [[[0]], [[0]], [[1]]]


def test_several_paths_join_in_the_order_given(tmp_path: Path) -> None:
    paths = [_sequence(tmp_path / name, {"a": [[0]]}) for name in ("x", "y")]
    assert open_dataset([paths[1], paths[0]], classes="camvid").names == ["y/a", "x/a"]


def test_map_of_a_sequence_wins_over_its_parents(tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_text('names = ["x", "y"]')
    assert open_dataset([_sequence(tmp_path / "s", {"a": [[0]]}, toml=TOML)]).classes.names == ("road", "car")


def test_named_map_wins_over_the_folders(tmp_path: Path) -> None:
    assert len(open_dataset([_sequence(tmp_path / "s", {"a": [[0]]}, toml=TOML)], classes="camvid").classes) == 11


def test_default_serves_where_no_map_is_named_or_found(tmp_path: Path) -> None:
    bare = _sequence(tmp_path / "bare", {"a": [[1, 255]]})
    mapped = _sequence(tmp_path / "mapped", {"a": [[0]]}, toml='names = ["x", "y"]')
    assert open_dataset([bare], default=ROAD_CAR).classes == ROAD_CAR
    assert open_dataset([bare], default=ROAD_CAR).label(0).tolist() == [[1, 255]]
    assert open_dataset([mapped], default=ROAD_CAR).classes.names == ("x", "y")


def test_folder_without_a_map_says_what_its_labels_hold_and_how_to_write_one(tmp_path: Path) -> None:
    path = _sequence(tmp_path / "s", {"a": [[7, 26]], "b": [[3, 7]]})
    with pytest.raises(UsageError, match=r"no class map for .*s; its first labels hold ids 3, 7, 26\. Name a built-in"):
        open_dataset([path])
    with pytest.raises(UsageError, match=r'write a classes\.toml such as\n    names = \["road", "car"\]'):
        open_dataset([path])


def test_bad_map_beside_the_data_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classes\.toml.*unknown key"):
        open_dataset([_sequence(tmp_path / "s", {"a": [[0]]}, toml="nmes = []")], default=ROAD_CAR)


def test_unknown_id_raises_when_its_label_is_read(tmp_path: Path) -> None:
    data = open_dataset([_sequence(tmp_path / "s", {"a": [[0]], "b": [[0, 2]]}, toml=TOML)])
    assert data.label(0).tolist() == [[0]]
    with pytest.raises(LabelError, match=r"labels/b\.png holds id 2, which the class map does not know"):
        data[1]


def test_label_of_another_size_raises(tmp_path: Path) -> None:
    path = _sequence(tmp_path / "s", {"a": [[0, 1]]}, toml=TOML)
    cv2.imwrite(str(tmp_path / "s/labels/a.png"), np.zeros((2, 1), np.uint8))  # as many pixels, turned
    with pytest.raises(LabelError, match=r"a\.png: label of 2x1 for an image of 1x2 \(height x width\)"):
        open_dataset([path])[0]


def test_image_that_is_damaged_raises_when_it_is_read(tmp_path: Path) -> None:
    path = _sequence(tmp_path / "s", {"a": [[0]], "b": [[0]]}, toml=TOML)
    (tmp_path / "s/images/b.png").write_bytes(b"no picture")
    data = open_dataset([path])
    assert data[0][1].tolist() == [[0]]
    with pytest.raises(FrameError, match=r"images/b\.png"):
        data[1]


@pytest.mark.parametrize(
    ("missing", "message"),
    [("images/b.png", r"labels/b\.png has no image"), ("labels/b.png", r"images/b\.png has no label")],
)
def test_half_a_pair_raises_on_opening(tmp_path: Path, missing: str, message: str) -> None:
    path = _sequence(tmp_path / "s", {"a": [[0]], "b": [[0]]}, toml=TOML)
    (tmp_path / "s" / missing).unlink()
    with pytest.raises(LabelError, match=message):
        open_dataset([path])


def test_folder_without_images_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="images holds no pictures"):
        open_dataset([_sequence(tmp_path / "s", {}, toml=TOML)])


def test_no_path_and_a_missing_path_raise(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data given"):
        open_dataset([])
    with pytest.raises(UsageError, match=r"no folder at .*none; name a labelled folder, or scene:day"):
        open_dataset([str(tmp_path / "none")])


def test_cityscapes_needs_no_map(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 26, 0, 33]])
    data = open_dataset([str(tmp_path)])
    assert data.names == ["val/bonn/bonn_1"]
    assert len(data.classes) == 19
    image, label = data[0]
    assert image.shape == (1, 4, 3)
    assert label.tolist() == [[0, 13, 255, 18]]


def test_cityscapes_takes_a_map_of_its_own_from_the_root(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 26, 0, 27]])
    ids = '[ids]\n7 = "ground"\n26 = "vehicle"\n27 = "vehicle"'
    (tmp_path / "classes.toml").write_text(f'names = ["ground", "vehicle"]\n{ids}')
    with pytest.raises(LabelError, match="holds id 0"):
        open_dataset([str(tmp_path / "leftImg8bit/val")])[0]
    (tmp_path / "classes.toml").write_text(f'names = ["ground", "vehicle"]\nvoid = [0]\n{ids}')
    assert open_dataset([str(tmp_path / "leftImg8bit/val")]).label(0).tolist() == [[0, 1, 255, 1]]


def test_map_of_the_networks_classes_is_taken_where_a_set_has_several(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 22, 26, 31]])
    data = open_dataset([str(tmp_path)], default=CITYSCAPES_16)
    assert data.classes == CITYSCAPES_16
    assert data.label(0).tolist() == [[0, 255, 12, 255]]  # terrain and train are none of the sixteen
    labels = LabelFolder(tmp_path / "gtFine", default=CITYSCAPES_16)
    assert labels["bonn_1_leftImg8bit"].tolist() == [[0, 255, 12, 255]]
    assert len(open_dataset([str(tmp_path)], default=ROAD_CAR).classes) == 19


def test_named_map_is_given_the_labels_that_it_reads(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 26]])
    cv2.imwrite(str(tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png"), np.array([[0, 13]], np.uint8))
    for name, car in (("cityscapes", 13), ("cityscapes-train-ids", 13), ("cityscapes-13", 9)):
        assert open_dataset([str(tmp_path)], classes=name).label(0).tolist() == [[0, car]]
    (tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png").unlink()
    with pytest.raises(LabelError, match="1 of 1 images have no label; .*labelTrainIds"):
        open_dataset([str(tmp_path)], classes="cityscapes-train-ids")


def test_named_classes_are_read_from_whichever_ids_there_are(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 26]])
    (tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelIds.png").unlink()
    cv2.imwrite(str(tmp_path / "gtFine/val/bonn/bonn_1_gtFine_labelTrainIds.png"), np.array([[0, 13]], np.uint8))
    assert open_dataset([str(tmp_path)], classes="cityscapes-13").label(0).tolist() == [[0, 9]]
    assert LabelFolder(tmp_path / "gtFine", "cityscapes-13")["bonn_1"].tolist() == [[0, 9]]


def test_map_of_another_set_is_refused(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 26]])
    with pytest.raises(UsageError, match="class map synthia is not for the labels beside .*; choose one of cityscapes"):
        open_dataset([str(tmp_path)], classes="synthia")


def test_set_without_a_map_of_the_networks_classes_is_read_by_its_own(tmp_path: Path) -> None:
    for path in ("Rio/Images/Test/a.png", "Rio/Labels/Test/a_eval.png"):
        (tmp_path / path).parent.mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "Rio/Images/Test/a.png"), np.zeros((1, 2, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "Rio/Labels/Test/a_eval.png"), np.array([[7, 12]], np.uint8))
    data = open_dataset([str(tmp_path / "Rio")], default=CITYSCAPES_16)
    assert (len(data.classes), data.label(0).tolist()) == (13, [[0, 255]])
    labels = LabelFolder(tmp_path / "Rio/Labels/Test", default=CITYSCAPES_16)
    assert labels["a.png"].tolist() == [[0, 255]]


def test_gta5_pairs_of_two_sizes_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _sequence(tmp_path / "gta5", {"00001": [[7, 34]], "00002": [[7, 26]], "00003": [[7, 0]]})
    cv2.imwrite(str(tmp_path / "gta5/labels/00002.png"), np.zeros((2, 2), np.uint8))
    data = open_dataset([path], classes="gta5")
    assert data.names == ["gta5/00001", "gta5/00003"]
    assert [data[i][1].tolist() for i in range(2)] == [[[0, 255]], [[0, 255]]]
    assert "1 of 3 pairs are left out, since image and label differ in size; the first is gta5/00002" in caplog.text


def test_renumbered_set_takes_each_class_to_its_place_by_name(tmp_path: Path) -> None:
    part = open_dataset([_sequence(tmp_path / "s", {"a": [[0, 1, 9]]}, toml=TOML + "ignore_id = 9")])
    wider = Classes(("car", "sky", "road"), ((0, 0, 0),) * 3)
    data = Renumbered(part, wider)
    assert data.classes == wider
    assert data.names == part.names
    assert len(data) == 1
    assert data.label(0).tolist() == data[0][1].tolist() == [[2, 0, 255]]
    assert data[0][0].tolist() == part[0][0].tolist()


def test_renumbered_set_refuses_a_class_without_a_place(tmp_path: Path) -> None:
    part = open_dataset([_sequence(tmp_path / "s", {"a": [[0, 1]]}, toml=TOML)])
    with pytest.raises(LabelError, match="labels of classes road, car where car, sky are expected"):
        Renumbered(part, Classes(("car", "sky"), ((0, 0, 0),) * 2))


def test_scene_set_agrees_with_scene_source_frame_by_frame() -> None:
    spec = "scene:day-dusk?frames=4&seed=5&size=48x64&start=2"
    data = open_dataset([spec])
    with SceneSource(spec) as source:
        for index, frame in enumerate(source):
            image, label = data[index]
            assert np.array_equal(image, frame.image)
            assert np.array_equal(label, source.label)
            assert data.names[index] == frame.name
    assert len(data) == 4
    assert data.classes == SCENE_CLASSES
    assert np.array_equal(data.label(3), data[3][1])


def test_scene_set_ends() -> None:
    data = SceneSet("scene:day?frames=2&size=48x64")
    with pytest.raises(IndexError, match="frame 2 of a scene of 2"):
        data[2]


def test_scene_of_an_unknown_domain_raises() -> None:
    with pytest.raises(UsageError, match="unknown scene domain 'moon'"):
        open_dataset(["scene:moon"])


def test_joined_sets_of_other_classes_raise(tmp_path: Path) -> None:
    folder = _sequence(tmp_path / "s", {"a": [[0]]}, toml=TOML)
    with pytest.raises(LabelError, match="labels of classes sky, .* where road, car are expected"):
        open_dataset([folder, "scene:day?frames=1&size=48x64"])


def test_joined_sets_share_one_void_id(tmp_path: Path) -> None:
    first = _sequence(tmp_path / "s", {"a": [[0, 2]]}, toml=TOML + "ignore_id = 2")
    second = _sequence(tmp_path / "t", {"a": [[1, 9]]}, toml=TOML + "ignore_id = 9")
    data = open_dataset([first, second])
    assert data.classes.ignore_id == 2
    assert [data.label(i).tolist() for i in range(2)] == [[[0, 2]], [[1, 2]]]
    assert data[1][1].tolist() == [[1, 2]]
    assert data[1][0].tolist() == [[[10, 0, 0], [10, 0, 0]]]
    assert data[1][1].dtype == np.uint8
    with pytest.raises(IndexError):
        data[2]


def test_joined_of_one_is_that_one(tmp_path: Path) -> None:
    part = open_dataset([_sequence(tmp_path / "s", {"a": [[0, 1]]}, toml=TOML)])
    assert isinstance(part, FileSet)
    assert Joined([part])[0][1].tolist() == [[0, 1]]


def test_subset_gives_the_items_asked_for_in_order(tmp_path: Path) -> None:
    whole = open_dataset([_sequence(tmp_path / "s", {"a": [[0]], "b": [[1]], "c": [[255]]}, toml=TOML)])
    part = Subset(whole, [2, 0])
    assert len(part) == 2
    assert part.names == ["s/c", "s/a"]
    assert part.classes == ROAD_CAR
    assert part[0][0].tolist() == [[[30, 0, 0]]]
    assert part.label(0).tolist() == part[0][1].tolist() == [[255]]
    with pytest.raises(IndexError):
        part[2]


@pytest.mark.parametrize("index", [-1, 1])
def test_subset_out_of_range_raises(tmp_path: Path, index: int) -> None:
    whole = open_dataset([_sequence(tmp_path / "s", {"a": [[0]]}, toml=TOML)])
    with pytest.raises(UsageError, match=f"item {index} of 1"):
        Subset(whole, [0, index])


def test_class_shares_count_pixels_over_the_set_and_leave_void_out(tmp_path: Path) -> None:
    data = open_dataset([_sequence(tmp_path / "s", {"a": [[0, 0, 1, 255]], "b": [[0]], "c": [[255]]}, toml=TOML)])
    assert class_shares(data).tolist() == [0.75, 0.25]


def test_class_shares_read_no_image(tmp_path: Path) -> None:
    path = _sequence(tmp_path / "s", {"a": [[0, 1]]}, toml=TOML)
    (tmp_path / "s/images/a.png").write_bytes(b"no picture")
    assert class_shares(open_dataset([path])).tolist() == [0.5, 0.5]


def test_class_shares_of_absent_classes_are_zero(tmp_path: Path) -> None:
    data = open_dataset([_sequence(tmp_path / "s", {"a": [[10, 11]]})], classes="camvid")
    assert class_shares(data).tolist() == [0.0] * 10 + [1.0]


def test_class_shares_of_void_alone_raise(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="all pixels of 1 labels are void"):
        class_shares(open_dataset([_sequence(tmp_path / "s", {"a": [[255]]}, toml=TOML)]))


def test_label_folder_finds_labels_by_frame_name(tmp_path: Path) -> None:
    _sequence(tmp_path / "s", {"a": [[0]], "b": [[1]]}, toml=TOML)  # the map lies above the labels
    labels = LabelFolder(tmp_path / "s/labels")
    assert labels.classes == ROAD_CAR
    assert labels.names == ["a", "b"]
    assert len(labels) == 2
    for name in ("b", "b.jpg", "elsewhere/b.png"):
        assert name in labels
        assert labels[name].tolist() == [[1]]


def test_label_folder_may_hold_labels_of_some_frames_only(tmp_path: Path) -> None:
    _sequence(tmp_path / "s", {"a": [[0]]})
    labels = LabelFolder(tmp_path / "s/labels", default=ROAD_CAR)
    assert "b" not in labels
    with pytest.raises(LabelError, match=r"labels holds no label for frame 'b\.jpg'; expected b\.png"):
        labels["b.jpg"]


def test_label_folder_takes_a_named_map_before_the_default(tmp_path: Path) -> None:
    _sequence(tmp_path / "s", {"a": [[11]]})
    labels = LabelFolder(tmp_path / "s/labels", "camvid", default=ROAD_CAR)
    assert labels["a"].tolist() == [[11]]
    assert len(labels.classes) == 11


def test_label_folder_of_cityscapes_matches_its_frames(tmp_path: Path) -> None:
    _city(tmp_path, "val/bonn/bonn_1", [[7, 26]])
    labels = LabelFolder(tmp_path / "gtFine/val/bonn", default=ROAD_CAR)
    assert labels.names == ["bonn_1"]
    assert labels["bonn_1_leftImg8bit"].tolist() == [[0, 13]]


def test_label_folder_without_a_map_says_what_it_holds(tmp_path: Path) -> None:
    _sequence(tmp_path / "s", {"a": [[5]]})
    with pytest.raises(UsageError, match="its first labels hold ids 5"):
        LabelFolder(tmp_path / "s/labels")


def test_label_folder_that_is_missing_or_empty_raises(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of labels at"):
        LabelFolder(tmp_path / "none")
    with pytest.raises(LabelError, match="holds no label files"):
        LabelFolder(tmp_path)


def test_check_same_classes_lets_colours_and_void_differ() -> None:
    check_same_classes(Classes(("road", "car"), ((0, 0, 0), (1, 1, 1)), 2), ROAD_CAR)


@pytest.mark.parametrize("names", [("car", "road"), ("road", "bus"), ("road", "car", "bus")])
def test_check_same_classes_refuses_other_names_or_order(names: tuple[str, ...]) -> None:
    with pytest.raises(LabelError, match=f"labels of classes {', '.join(names)} where road, car are expected"):
        check_same_classes(Classes(names, ((0, 0, 0),) * len(names)), ROAD_CAR)


def test_check_same_size_compares_height_and_width() -> None:
    check_same_size(np.zeros((2, 3, 3)), np.zeros((2, 3)), "a")
    with pytest.raises(LabelError, match="a: label of 3x2 for an image of 2x3"):
        check_same_size(np.zeros((2, 3, 3)), np.zeros((3, 2)), "a")
