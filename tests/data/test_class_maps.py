from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from edge_sfda.data import class_maps
from edge_sfda.data.class_maps import ClassMap, ColourMap, IdMap
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.errors import ConfigError, LabelError, UsageError
from edge_sfda.manifest import Classes

ROAD_CAR = Classes(("road", "car"), ((128, 64, 128), (0, 0, 142)))


def _ids(folder: Path, rows: list[list[int]]) -> Path:
    cv2.imwrite(str(folder / "label.png"), np.array(rows, np.uint8))
    return folder / "label.png"


def _colours(folder: Path, rows: list[list[tuple[int, int, int]]]) -> Path:
    Image.fromarray(np.array(rows, np.uint8)).save(folder / "label.png")
    return folder / "label.png"


def _toml(folder: Path, text: str) -> ClassMap:
    (folder / "classes.toml").write_text(text, encoding="utf-8")
    return class_maps.load(folder / "classes.toml")


def test_ids_without_a_table_are_places_and_void(tmp_path: Path) -> None:
    label = IdMap(ROAD_CAR).read(_ids(tmp_path, [[0, 1, 255]]))
    assert label.tolist() == [[0, 1, 255]]
    assert label.dtype == np.uint8


def test_ids_are_mapped_and_the_void_id_stays_void(tmp_path: Path) -> None:
    label = IdMap(ROAD_CAR, {7: 0, 26: 1, 27: 1, 3: 255}).read(_ids(tmp_path, [[7, 26, 27], [3, 255, 7]]))
    assert label.tolist() == [[0, 1, 1], [255, 255, 0]]


def test_table_may_give_the_void_id_to_a_class(tmp_path: Path) -> None:
    assert IdMap(ROAD_CAR, {255: 1, 0: 0}).read(_ids(tmp_path, [[255, 0]])).tolist() == [[1, 0]]


def test_unknown_id_names_file_ids_and_what_is_known(tmp_path: Path) -> None:
    path = _ids(tmp_path, [[0, 9], [4, 9]])
    with pytest.raises(
        LabelError, match=r"label\.png holds id 4, 9, which .* it knows 0, 1, 255\. Add the id to \[ids\]"
    ):
        IdMap(ROAD_CAR).read(path)


def test_table_replaces_places(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"holds id 0, which .* it knows 7, 8, 255"):
        IdMap(ROAD_CAR, {7: 0, 8: 1}).read(_ids(tmp_path, [[0, 7]]))


@pytest.mark.parametrize("ids", [{256: 0}, {-1: 0}, {0: 2}, {0: -1}, {0: 254}])
def test_table_out_of_range_raises(ids: dict[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"raw id -?\d+ (must lie in 0..255|points to class)"):
        IdMap(ROAD_CAR, ids)


def test_palette_png_is_read_as_ids(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[1, 0]], np.uint8), mode="P")
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.save(tmp_path / "label.png")
    assert IdMap(ROAD_CAR).read(tmp_path / "label.png").tolist() == [[1, 0]]


def test_colours_are_rgb_of_the_palette(tmp_path: Path) -> None:
    path = _colours(tmp_path, [[(0, 0, 142), (128, 64, 128), (0, 0, 0)]])
    assert ColourMap(ROAD_CAR, void=((0, 0, 0),)).read(path).tolist() == [[1, 0, 255]]


def test_palette_png_is_read_as_colours_where_colours_are_asked_for(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[5, 6]], np.uint8), mode="P")
    image.putpalette([0] * 15 + [0, 0, 142, 128, 64, 128])
    image.save(tmp_path / "label.png")
    assert ColourMap(ROAD_CAR).read(tmp_path / "label.png").tolist() == [[1, 0]]


@pytest.mark.parametrize("colour", [(142, 0, 0), (0, 0, 141), (255, 255, 255), (0, 0, 0)])
def test_unknown_colour_is_named(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    path = _colours(tmp_path, [[(0, 0, 142), colour]])
    with pytest.raises(
        LabelError, match=rf"label\.png holds RGB colour \({colour[0]}, {colour[1]}, {colour[2]}\), which"
    ):
        ColourMap(ROAD_CAR).read(path)


def test_many_unknown_colours_are_counted_not_listed(tmp_path: Path) -> None:
    path = _colours(tmp_path, [[(i, i, i) for i in range(1, 101)]])
    with pytest.raises(LabelError, match=r"\(12, 12, 12\) and 88 more, which"):
        ColourMap(ROAD_CAR).read(path)


def test_colour_label_that_is_missing_is_a_label_error(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"none\.png"):
        ColourMap(ROAD_CAR).read(tmp_path / "none.png")


def test_one_colour_for_two_classes_raises() -> None:
    with pytest.raises(ConfigError, match=r"colour \(1, 2, 3\) stands for two things"):
        ColourMap(Classes(("a", "b"), ((1, 2, 3), (1, 2, 3))))
    with pytest.raises(ConfigError, match=r"colour \(0, 0, 142\) stands for two things"):
        ColourMap(ROAD_CAR, void=((0, 0, 142),))


def test_toml_with_names_alone_chooses_distinct_colours(tmp_path: Path) -> None:
    found = _toml(tmp_path, f"names = {[f'c{i}' for i in range(200)]}").classes
    assert len(set(found.palette)) == 200
    assert found.palette[:3] == ((128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert found.ignore_id == 255


def test_toml_table_gives_several_ids_to_a_class(tmp_path: Path) -> None:
    found = _toml(
        tmp_path,
        """
        names = ["road", "car"]
        palette = [[128, 64, 128], [0, 0, 142]]
        ignore_id = 99
        void = [1]
        [ids]
        7 = "road"
        "26" = "car"
        27 = "car"
        3 = "void"
        """,
    )
    assert found.classes == Classes(("road", "car"), ((128, 64, 128), (0, 0, 142)), 99)
    assert found.read(_ids(tmp_path, [[7, 26, 27, 3, 1, 99]])).tolist() == [[0, 1, 1, 99, 99, 99]]


def test_toml_list_gives_one_id_a_class(tmp_path: Path) -> None:
    found = _toml(tmp_path, 'names = ["road", "car"]\nids = [7, 26]\nvoid = [0]')
    assert found.read(_ids(tmp_path, [[26, 7, 0]])).tolist() == [[1, 0, 255]]


def test_toml_class_called_void_is_a_class(tmp_path: Path) -> None:
    found = _toml(tmp_path, 'names = ["road", "void"]\n[ids]\n7 = "road"\n8 = "void"')
    assert found.read(_ids(tmp_path, [[8, 7]])).tolist() == [[1, 0]]


def test_toml_of_colours_reads_colours(tmp_path: Path) -> None:
    found = _toml(
        tmp_path,
        'names = ["a", "b"]\npalette = [[1, 2, 3], [4, 5, 6]]\ncoding = "colours"\nvoid = [[0, 0, 0]]\nignore_id = 2',
    )
    assert found.read(_colours(tmp_path, [[(4, 5, 6), (0, 0, 0), (1, 2, 3)]])).tolist() == [[1, 2, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names = [", "is not TOML"),
        ('name = ["a", "b"]', "unknown key 'name'; known are names, palette"),
        ("", "got 0 names"),
        ('names = ["a"]', "got 1 names"),
        ('names = ["a", "a"]', "names repeat"),
        ("names = 5", "names = 5 must be a list"),
        ('names = "road"', "names = 'road' must be a list"),
        ('names = ["a", 2]', r"names = \['a', 2\] must be a list of texts"),
        ('names = ["a", "b"]\npalette = [[0, 0, 0]]', "2 names but 1 palette colours"),
        ('names = ["a", "b"]\npalette = [[0, 0], [1, 1]]', "value of the wrong kind"),
        ('names = ["a", "b"]\npalette = [[0, 0, 256], [1, 1, 1]]', r"colour \[0, 0, 256\] must hold"),
        ('names = ["a", "b"]\npalette = [[0, 0, 0.5], [1, 1, 1]]', "0.5 must be an integer"),
        ('names = ["a", "b"]\npalette = "red"', "value of the wrong kind|must be an integer"),
        ('names = ["a", "b"]\nignore_id = 1', "ignore_id 1 must lie in 2..255"),
        ('names = ["a", "b"]\nignore_id = "none"', "'none' must be an integer"),
        ('names = ["a", "b"]\ncoding = "rgb"', 'coding = \'rgb\'; choose "ids" or "colours"'),
        ('names = ["a", "b"]\ncoding = "colours"', "needs a palette, and no ids"),
        ('names = ["a", "b"]\nids = [7]', "lists 1 raw ids for 2 classes"),
        ('names = ["a", "b"]\nids = [7, 7]', "raw id 7 is given two meanings"),
        ('names = ["a", "b"]\nids = [7, 8]\nvoid = [8]', "raw id 8 is given two meanings"),
        ('names = ["a", "b"]\nvoid = [1]', "raw id 1 is given two meanings"),
        ('names = ["a", "b"]\nids = ["x", "y"]', "'x' must be an integer"),
        ('names = ["a", "b"]\nids = 3', "value of the wrong kind"),
        ('names = ["a", "b"]\n[ids]\n7 = "c"', "7 = 'c' is no class; choose one of void, a, b"),
        ('names = ["a", "b"]\n[ids]\nseven = "a"', "value of the wrong kind .*seven"),
        ('names = ["a", "b"]\n[ids]\n300 = "a"', "raw id 300 must lie in 0..255"),
        ('names = ["a", "b"]\nvoid = 3', "value of the wrong kind"),
    ],
)
def test_bad_toml_names_the_file_and_the_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _toml(tmp_path, text)
    assert "classes.toml" in str(caught.value)


def test_toml_in_another_encoding_raises(tmp_path: Path) -> None:
    (tmp_path / "classes.toml").write_bytes(b'names = ["stra\xdfe", "b"]')
    with pytest.raises(ConfigError, match="is not TOML"):
        class_maps.load(tmp_path / "classes.toml")


def test_missing_toml_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read class map"):
        class_maps.load(tmp_path / "classes.toml")


def test_example_of_the_message_is_a_class_map(tmp_path: Path) -> None:
    example = class_maps.how_to_write().split("such as\n")[1]
    assert _toml(tmp_path, example).classes == ROAD_CAR


def test_example_of_the_module_is_a_class_map(tmp_path: Path) -> None:
    assert class_maps.__doc__ is not None
    found = _toml(tmp_path, "\n".join(class_maps.__doc__.split("\n\n")[1:3]))
    assert found.read(_ids(tmp_path, [[7, 26, 27, 3, 0]])).tolist() == [[0, 1, 1, 255, 255]]


def test_resolve_takes_a_file(tmp_path: Path) -> None:
    _toml(tmp_path, 'names = ["a", "b"]')
    assert class_maps.resolve(str(tmp_path / "classes.toml")).classes.names == ("a", "b")


def test_resolve_of_an_unknown_name_lists_the_built_in_ones() -> None:
    with pytest.raises(
        UsageError, match="no class map 'kitti': .*camvid, cityscapes, .*gta5, synthia, synthia-13, scene"
    ):
        class_maps.resolve("kitti")


def test_camvid_has_eleven_classes_and_void_eleven(tmp_path: Path) -> None:
    camvid = class_maps.resolve("camvid")
    assert len(camvid.classes) == 11
    assert camvid.classes.ignore_id == 11
    assert camvid.classes.names[0] == "sky"
    assert camvid.classes.palette[0] == (128, 128, 128)
    assert camvid.classes.names[10] == "bicyclist"
    assert camvid.classes.palette[10] == (0, 128, 192)
    assert camvid.read(_ids(tmp_path, [[0, 10, 11]])).tolist() == [[0, 10, 11]]
    with pytest.raises(LabelError, match="holds id 12"):
        camvid.read(_ids(tmp_path, [[12]]))


def test_cityscapes_label_ids_become_train_ids(tmp_path: Path) -> None:
    cityscapes = class_maps.resolve("cityscapes")
    label = cityscapes.read(_ids(tmp_path, [list(range(34))]))[0]
    counted = {raw: int(train) for raw, train in enumerate(label) if train != 255}
    names = cityscapes.classes.names
    assert {raw: names[train] for raw, train in counted.items()} == {
        7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
        20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
        27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
    }  # fmt: skip


def test_cityscapes_train_ids_stay_and_colours_are_the_benchmarks(tmp_path: Path) -> None:
    cityscapes = class_maps.resolve("cityscapes-train-ids")
    assert cityscapes.read(_ids(tmp_path, [[0, 18, 255]])).tolist() == [[0, 18, 255]]
    assert cityscapes.classes == class_maps.resolve("cityscapes").classes
    assert cityscapes.classes.palette[10] == (70, 130, 180)
    with pytest.raises(LabelError, match="holds id 19"):
        cityscapes.read(_ids(tmp_path, [[19]]))


def test_scene_map_has_the_scenes_classes() -> None:
    assert class_maps.resolve("scene").classes == SCENE_CLASSES


def test_find_takes_the_first_folder_that_has_one(tmp_path: Path) -> None:
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        _toml(tmp_path / name, f'names = ["{name}", "x"]')
    found = class_maps.find([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert found is not None
    assert found.classes.names == ("b", "x")
    assert class_maps.find([tmp_path]) is None


def test_seen_lists_ids_and_colours(tmp_path: Path) -> None:
    (tmp_path / "colours").mkdir()
    ids = _ids(tmp_path, [[3, 0], [7, 7]])
    colours = _colours(tmp_path / "colours", [[(1, 2, 3)]])
    assert class_maps.seen([ids]) == "ids 0, 3, 7"
    assert class_maps.seen([colours]) == 'RGB colours (1, 2, 3) (coding = "colours")'
    assert class_maps.seen([ids, colours]) == 'ids 0, 3, 7 and RGB colours (1, 2, 3) (coding = "colours")'
