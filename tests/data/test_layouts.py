from __future__ import annotations

from pathlib import Path

import pytest

from edge_sfda.data import layouts, trees
from edge_sfda.errors import FrameError, LabelError, SourceError, UsageError

# Nothing is opened by this module, so empty files will do.


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _tree(folder: Path) -> tuple[list[layouts.Pair], str]:
    copy = trees.find(folder)
    assert copy is not None
    return layouts.pair_up_tree(copy)


def test_pair_up_pairs_stems_across_suffixes_in_natural_order(tmp_path: Path) -> None:
    _touch(tmp_path, "s/images/10.jpg", "s/images/2.PNG", "s/labels/2.png", "s/labels/10.bmp")
    pairs = layouts.pair_up(tmp_path / "s")
    assert [p.name for p in pairs] == ["s/2", "s/10"]
    assert [p.image.name for p in pairs] == ["2.PNG", "10.jpg"]
    assert [p.label.name for p in pairs] == ["2.png", "10.bmp"]


def test_pair_up_leaves_hidden_and_foreign_files_out(tmp_path: Path) -> None:
    _touch(tmp_path, "s/images/a.jpg", "s/images/._a.jpg", "s/images/notes.txt", "s/images/Thumbs.db")
    _touch(tmp_path, "s/labels/a.png", "s/labels/._a.png", "s/labels/a.json")
    assert [p.name for p in layouts.pair_up(tmp_path / "s")] == ["s/a"]


def test_pair_up_names_the_sequence_even_when_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "drive/images/a.jpg", "drive/labels/a.png")
    monkeypatch.chdir(tmp_path / "drive")
    assert layouts.pair_up(Path())[0].name == "drive/a"


def test_images_without_labels_raise_and_the_first_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.jpg", "images/b.jpg", "images/c.jpg", "labels/a.png")
    with pytest.raises(LabelError, match=r"images/b\.jpg has no label, of 2 such images; expected labels/b\.png"):
        layouts.pair_up(tmp_path)


def test_labels_without_images_raise_and_the_first_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.jpg", "labels/a.png", "labels/b.png")
    with pytest.raises(LabelError, match=r"labels/b\.png has no image, of 1 such labels"):
        layouts.pair_up(tmp_path)


def test_jpeg_label_does_not_count_as_one(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.jpg", "labels/a.jpg")
    with pytest.raises(LabelError, match=r"images/a\.jpg has no label"):
        layouts.pair_up(tmp_path)


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_two_files_of_one_stem_raise(tmp_path: Path, kind: str) -> None:
    _touch(tmp_path, "images/a.jpg", "labels/a.png", f"{kind}/a.bmp")
    with pytest.raises(LabelError, match="have one stem, so pairing is ambiguous"):
        layouts.pair_up(tmp_path)


def test_empty_images_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SourceError, match="images holds no pictures"):
        layouts.pair_up(tmp_path)


def test_missing_labels_folder_raises(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.jpg")
    with pytest.raises(LabelError, match="has images/ but no labels/"):
        layouts.pair_up(tmp_path)


def test_sequences_are_the_folder_itself_or_those_in_it(tmp_path: Path) -> None:
    _touch(tmp_path, "b/images/x.jpg", "a/images/x.jpg", "other/readme.txt", "file.txt")
    assert layouts.sequences(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert layouts.sequences(tmp_path / "a") == [tmp_path / "a"]


def test_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    with pytest.raises(UsageError, match="is in no known layout; expected .*/images .*/SEQUENCE/images .*leftImg8bit"):
        layouts.sequences(tmp_path)


def _city(root: Path, *stems: str, kind: str = "labelIds") -> None:
    for stem in stems:
        _touch(root, f"leftImg8bit/{stem}_leftImg8bit.png")
        for other in (kind, "color", "instanceIds"):
            _touch(root, f"gtFine/{stem}_gtFine_{other}.png")


def test_cityscapes_pairs_every_split_but_the_test_one(tmp_path: Path) -> None:
    _city(tmp_path, "train/ulm/ulm_1", "val/bonn/bonn_2", "test/bonn/bonn_3")
    pairs, class_map = _tree(tmp_path)
    assert class_map == "cityscapes"
    assert [p.name for p in pairs] == ["train/ulm/ulm_1", "val/bonn/bonn_2"]
    assert pairs[0].image == tmp_path / "leftImg8bit/train/ulm/ulm_1_leftImg8bit.png"
    assert pairs[0].label == tmp_path / "gtFine/train/ulm/ulm_1_gtFine_labelIds.png"


@pytest.mark.parametrize("inner", ["leftImg8bit/test", "leftImg8bit/test/bonn"])
def test_cityscapes_split_or_city_can_be_named(tmp_path: Path, inner: str) -> None:
    _city(tmp_path, "train/ulm/ulm_1", "test/bonn/bonn_3")
    assert [p.name for p in _tree(tmp_path / inner)[0]] == ["test/bonn/bonn_3"]


def test_cityscapes_split_is_found_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _city(tmp_path, "train/ulm/ulm_1")
    monkeypatch.chdir(tmp_path / "leftImg8bit")
    assert _tree(Path("train"))[0][0].label.is_file()


def test_cityscapes_in_a_folder_of_the_same_name_finds_labels(tmp_path: Path) -> None:
    _city(tmp_path / "leftImg8bit", "train/ulm/ulm_1")
    assert _tree(tmp_path / "leftImg8bit")[0][0].label.is_file()


def test_cityscapes_train_ids_are_preferred_when_complete(tmp_path: Path) -> None:
    _city(tmp_path, "train/ulm/ulm_1", "train/ulm/ulm_2")
    _touch(tmp_path, "gtFine/train/ulm/ulm_1_gtFine_labelTrainIds.png")
    assert _tree(tmp_path)[1] == "cityscapes"
    _touch(tmp_path, "gtFine/train/ulm/ulm_2_gtFine_labelTrainIds.png")
    pairs, class_map = _tree(tmp_path)
    assert class_map == "cityscapes-train-ids"
    assert pairs[1].label.name == "ulm_2_gtFine_labelTrainIds.png"


def test_cityscapes_image_without_label_is_named(tmp_path: Path) -> None:
    _city(tmp_path, "train/ulm/ulm_1", "train/ulm/ulm_3")
    _touch(tmp_path, "leftImg8bit/train/ulm/ulm_2_leftImg8bit.png")
    with pytest.raises(LabelError, match="1 of 3 images have no label; .*/gtFine/train/ulm/ulm_2_gtFine_labelIds.png"):
        _tree(tmp_path)


def test_cityscapes_without_images_raises(tmp_path: Path) -> None:
    (tmp_path / "leftImg8bit").mkdir()
    with pytest.raises(FrameError, match=r"holds no \*_leftImg8bit\.png"):
        _tree(tmp_path)


def test_other_layouts_are_no_trees(tmp_path: Path) -> None:
    _touch(tmp_path, "images/a.jpg", "labels/a.png")
    assert trees.find(tmp_path) is None


def test_label_files_are_keyed_by_stem_without_a_map(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a.png", "a.json")
    assert layouts.label_files(tmp_path) == ({"a": tmp_path / "a.png", "b": tmp_path / "b.png"}, None)


def test_label_files_of_a_cityscapes_city_leave_colours_and_instances_out(tmp_path: Path) -> None:
    _city(tmp_path, "train/ulm/ulm_1")
    city = tmp_path / "gtFine/train/ulm"
    assert layouts.label_files(city) == ({"ulm_1": city / "ulm_1_gtFine_labelIds.png"}, "cityscapes")


def test_folder_without_label_files_raises(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    with pytest.raises(LabelError, match=r"holds no label files \(\.bmp, \.png, \.tif, \.tiff\)"):
        layouts.label_files(tmp_path)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.png", "a"),
        ("a", "a"),
        ("drive/a.JPG", "a"),
        ("drive/t_0.5", "t_0.5"),
        ("drive/t_0.5.jpg", "t_0.5"),
        ("ulm_1_leftImg8bit.png", "ulm_1"),
        ("ulm_1_leftImg8bit", "ulm_1"),
    ],
)
def test_frame_key_is_the_stem(name: str, key: str) -> None:
    assert layouts.frame_key(name) == key
