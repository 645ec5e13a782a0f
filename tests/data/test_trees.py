from __future__ import annotations

from pathlib import Path

import pytest

from edge_sfda.data import layouts, trees
from edge_sfda.data.sources import FolderSource
from edge_sfda.errors import FrameError, LabelError, SourceError

# Names are what is tested, so empty files will do.


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _acdc(root: Path, *frames: str) -> None:
    for frame in frames:
        _touch(root, f"rgb_anon/{frame}_rgb_anon.png")
        for kind in ("labelIds", "labelTrainIds", "labelColor", "invIds"):
            _touch(root, f"gt/{frame}_gt_{kind}.png")


def _pairs(folder: Path, *wanted: str) -> tuple[list[layouts.Pair], str]:
    copy = trees.find(folder)
    assert copy is not None
    return layouts.pair_up_tree(copy, wanted or None)


ACDC_FRAMES = [
    f"{condition}/{split}/GOPR0{i}/GOPR0{i}_frame_000041"
    for i, (condition, split) in enumerate(
        (condition, split) for condition in ("fog", "night", "rain", "snow") for split in ("train", "val")
    )
]


def test_acdc_pairs_every_condition_and_prefers_train_ids(tmp_path: Path) -> None:
    _acdc(tmp_path, *ACDC_FRAMES)
    _touch(tmp_path, "rgb_anon/fog/test/GOPR9/GOPR9_frame_000001_rgb_anon.png")  # its labels are held back
    pairs, class_map = _pairs(tmp_path)
    assert class_map == "cityscapes-train-ids"
    assert [pair.name for pair in pairs] == ACDC_FRAMES
    assert pairs[0].image == tmp_path / f"rgb_anon/{ACDC_FRAMES[0]}_rgb_anon.png"
    assert pairs[0].label == tmp_path / f"gt/{ACDC_FRAMES[0]}_gt_labelTrainIds.png"


@pytest.mark.parametrize("part", ["night", "night/val", "night/val/GOPR03"])
def test_acdc_condition_split_or_sequence_can_be_named(tmp_path: Path, part: str) -> None:
    _acdc(tmp_path, *ACDC_FRAMES)
    expected = [frame for frame in ACDC_FRAMES if frame.startswith(part)]
    assert [pair.name for pair in _pairs(tmp_path / "rgb_anon" / part)[0]] == expected


def test_acdc_references_are_another_set_of_which_a_part_is_labelled(tmp_path: Path) -> None:
    _acdc(tmp_path, *ACDC_FRAMES)
    for name in ("a", "b"):
        _touch(tmp_path, f"rgb_anon/fog/val_ref/G/{name}_rgb_ref_anon.png")
    folder = tmp_path / "rgb_anon/fog/val_ref"
    with pytest.raises(LabelError, match="2 of 2 images have no label; .*a_gt_ref_label"):
        _pairs(folder)
    _touch(tmp_path, "gt/fog/val_ref/G/b_gt_ref_labelTrainIds.png")
    assert [pair.name for pair in _pairs(folder)[0]] == ["fog/val_ref/G/b"]
    assert len(FolderSource(folder).files) == 2
    assert len(FolderSource(tmp_path / "rgb_anon").files) == len(ACDC_FRAMES)  # the adverse half alone


def test_wanted_map_decides_the_kind_of_label(tmp_path: Path) -> None:
    _acdc(tmp_path, *ACDC_FRAMES)
    pairs, class_map = _pairs(tmp_path, "cityscapes-16")
    assert class_map == "cityscapes-16"
    assert all(pair.label.name.endswith("_gt_labelIds.png") for pair in pairs)
    assert _pairs(tmp_path, "cityscapes-16", "cityscapes-16-train-ids")[1] == "cityscapes-16-train-ids"


def test_synthia_pairs_by_name(tmp_path: Path) -> None:
    _touch(tmp_path, "RGB/0000000.png", "RGB/0000001.png", "GT/LABELS/0000000.png", "GT/LABELS/0000001.png")
    _touch(tmp_path, "GT/COLOR/0000000.png", "Depth/Depth/0000000.png")
    pairs, class_map = _pairs(tmp_path)
    assert class_map == "synthia"
    assert [pair.name for pair in pairs] == ["0000000", "0000001"]
    assert pairs[1].label == tmp_path / "GT/LABELS/0000001.png"
    (tmp_path / "GT/LABELS/0000001.png").unlink()
    with pytest.raises(LabelError, match="1 of 2 images have no label"):
        _pairs(tmp_path)


def _nthu(city: Path) -> None:
    _touch(city, "Images/Train/pano_00000_0_0.png", "Images/Train/pano_00000_0_180.png")
    _touch(city, "Images/Test/pano_00002_2_180.png", "Labels/Test/pano_00002_2_180_eval.png")


@pytest.mark.parametrize("part", ["", "Images", "Images/Test"])
def test_nthu_city_gives_its_labelled_images(tmp_path: Path, part: str) -> None:
    _nthu(tmp_path / "Rio")
    pairs, class_map = _pairs(tmp_path / "Rio" / part)
    assert class_map == "cityscapes-13"
    assert [pair.name for pair in pairs] == ["Rio/Test/pano_00002_2_180"]
    assert pairs[0].label.is_file()


def test_nthu_images_to_learn_from_need_no_labels(tmp_path: Path) -> None:
    _nthu(tmp_path / "Rio")
    train = tmp_path / "Rio/Images/Train"
    assert [file.stem for file in FolderSource(train).files] == ["pano_00000_0_0", "pano_00000_0_180"]
    with pytest.raises(LabelError, match="2 of 2 images have no label"):
        _pairs(train)


def test_folders_of_common_names_are_no_trees_without_labels_beside_them(tmp_path: Path) -> None:
    _touch(tmp_path, "Images/drive/b.jpg", "Images/drive/a.png", "RGB/1.png")
    assert trees.find(tmp_path) is None
    assert trees.find(tmp_path / "Images/drive") is None
    assert [file.name for file in FolderSource(tmp_path / "Images/drive").files] == ["a.png", "b.jpg"]


def test_frames_of_a_split_are_those_of_all_its_folders(tmp_path: Path) -> None:
    for name in ("train/ulm/ulm_10", "train/ulm/ulm_9", "train/aachen/aachen_1", "val/bonn/bonn_1", "test/x/x_1"):
        _touch(tmp_path, f"leftImg8bit/{name}_leftImg8bit.png")
    names = [file.stem.removesuffix("_leftImg8bit") for file in FolderSource(tmp_path / "leftImg8bit/train").files]
    assert names == ["aachen_1", "ulm_10", "ulm_9"]
    assert len(FolderSource(tmp_path).files) == 4  # all but the test split


def test_frames_of_one_name_are_refused(tmp_path: Path) -> None:
    _acdc(tmp_path, "fog/train/A/x", "rain/train/A/x")
    with pytest.raises(SourceError, match="more than one image named x_rgb_anon; name one of its folders"):
        FolderSource(tmp_path)
    assert len(FolderSource(tmp_path / "rgb_anon/fog").files) == 1


def test_tree_without_images_says_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "rgb_anon").mkdir()
    with pytest.raises(FrameError, match=r"rgb_anon holds no \*_rgb_anon\.png; unpack the images there"):
        _pairs(tmp_path)


@pytest.mark.parametrize(
    ("frame", "label"),
    [
        ("fog/GOPR1_frame_000041_rgb_anon.png", "GOPR1_frame_000041_gt_labelTrainIds.png"),
        ("GOPR1_frame_000041_rgb_ref_anon.png", "GOPR1_frame_000041_gt_ref_labelIds.png"),
        ("ulm_1_leftImg8bit.png", "ulm_1_gtFine_labelIds.png"),
    ],
)
def test_labels_of_a_tree_are_found_below_a_folder_by_the_frame(tmp_path: Path, frame: str, label: str) -> None:
    _touch(tmp_path, f"gt/a/b/{label}", "gt/a/b/other_color.png")
    files, class_map = layouts.label_files(tmp_path)
    assert files == {layouts.frame_key(frame): tmp_path / "gt/a/b" / label}
    assert class_map in trees.MAPS


def test_nthu_labels_are_told_in_their_folder_only(tmp_path: Path) -> None:
    _nthu(tmp_path / "Rio")
    files, class_map = layouts.label_files(tmp_path / "Rio/Labels/Test")
    assert (list(files), class_map) == (["pano_00002_2_180"], "cityscapes-13")
    _touch(tmp_path, "mine/a_eval.png")
    assert layouts.label_files(tmp_path / "mine") == ({"a_eval": tmp_path / "mine/a_eval.png"}, None)
