"""Folder layouts: which image file belongs to which label file.

    SEQUENCE/images/NAME.jpg + SEQUENCE/labels/NAME.png                         as CamVid by sequence
    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png + gtFine/SPLIT/CITY/*_labelIds.png as Cityscapes

Folders are listed; no file is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sfda.data.sources import IMAGE_SUFFIXES, FolderSource
from edge_sfda.errors import FrameError, LabelError, UsageError

LABEL_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")  # lossless ones: JPEG invents ids

_CITY_IMAGES = "leftImg8bit"
# endings of Cityscapes label files, and the built-in map that reads each; train ids first, as what training wants
_CITY_LABELS = (("_gtFine_labelTrainIds", "cityscapes-train-ids"), ("_gtFine_labelIds", "cityscapes"))


@dataclass(frozen=True)
class Pair:
    """One labelled frame on disk; `name` is `SEQUENCE/STEM` or `SPLIT/CITY/STEM`."""

    name: str
    image: Path
    label: Path


def is_cityscapes(folder: Path) -> bool:
    """Tell whether `folder` holds a `leftImg8bit` folder or lies in one."""
    return (folder / _CITY_IMAGES).is_dir() or _CITY_IMAGES in folder.absolute().parts


def sequences(folder: Path) -> list[Path]:
    """Return the sequence folders at `folder`: itself, or those in it, sorted.

    Raises:
        UsageError: `folder` holds neither `images/` nor folders that do.
    """
    if (folder / "images").is_dir():
        return [folder]
    found = sorted(inner for inner in folder.iterdir() if (inner / "images").is_dir())
    if not found:
        raise UsageError(
            f"{folder} is in no known layout; expected {folder}/images + labels, {folder}/SEQUENCE/images + labels, or "
            f"{folder}/leftImg8bit + gtFine"
        )
    return found


def pair_up(sequence: Path) -> list[Pair]:
    """Pair `images/` with `labels/` by stem, in the order in which `FolderSource` gives the images.

    Raises:
        SourceError: there are no images.
        LabelError: an image has no label or the reverse, or two files share a stem.
    """
    images = _by_stem(FolderSource(sequence / "images").files)
    if not (sequence / "labels").is_dir():
        raise LabelError(f"{sequence} has images/ but no labels/; put one PNG of class ids for each image there")
    labels = _by_stem(_label_paths(sequence / "labels"))
    bare = [images[stem] for stem in images if stem not in labels]
    if bare:
        raise LabelError(f"{bare[0]} has no label, of {len(bare)} such images; expected labels/{bare[0].stem}.png")
    lone = [labels[stem] for stem in labels if stem not in images]
    if lone:
        raise LabelError(f"{lone[0]} has no image, of {len(lone)} such labels; expected images/{lone[0].stem}.jpg")
    name = sequence.resolve().name
    return [Pair(f"{name}/{stem}", images[stem], labels[stem]) for stem in images]


def pair_up_cityscapes(folder: Path) -> tuple[list[Pair], str]:
    """Pair Cityscapes images with labels: a whole copy, or one split or city named inside it.

    Returns:
        The pairs, sorted, and the name of the built-in class map that reads these labels.

    Raises:
        FrameError: there are no images.
        LabelError: an image has no label.
    """
    top = folder / _CITY_IMAGES
    if top.is_dir():  # every split but the test one, whose labels are dummies; it can still be named
        images = sorted(p for p in top.rglob(f"*_{_CITY_IMAGES}.png") if p.relative_to(top).parts[0] != "test")
    else:
        top = folder.absolute()
        images = sorted(top.rglob(f"*_{_CITY_IMAGES}.png"))
    if not images:
        raise FrameError(f"{top} holds no *_{_CITY_IMAGES}.png; expected leftImg8bit/SPLIT/CITY/*_{_CITY_IMAGES}.png")
    labels, class_map = _cityscapes_labels(images)
    pairs = []
    for image, label in zip(images, labels, strict=True):
        split, city = image.parts[-3:-1]
        pairs.append(Pair(f"{split}/{city}/{frame_key(image.name)}", image, label))
    return pairs, class_map


def _cityscapes_labels(images: Sequence[Path]) -> tuple[list[Path], str]:
    """Return the label of each image, and the built-in map of the ids they hold."""
    missing: list[Path] = []
    for ending, class_map in _CITY_LABELS:
        labels = [_cityscapes_label(image, ending) for image in images]
        missing = [label for label in labels if not label.is_file()]
        if not missing:
            return labels, class_map
    raise LabelError(f"{len(missing)} of {len(images)} images have no label; the first one missing is {missing[0]}")


def _cityscapes_label(image: Path, ending: str) -> Path:
    parts = list(image.parts)
    parts[len(parts) - 1 - parts[::-1].index(_CITY_IMAGES)] = "gtFine"
    return Path(*parts[:-1]) / f"{frame_key(image.name)}{ending}.png"


def label_files(folder: Path) -> tuple[dict[str, Path], str | None]:
    """Return the label files of a folder by `frame_key`, sorted, and the built-in map their names call for, if any.

    Raises:
        LabelError: there are none, or two files share a key.
    """
    files = _by_stem(_label_paths(folder))
    if not files:
        raise LabelError(f"{folder} holds no label files ({', '.join(LABEL_SUFFIXES)})")
    for ending, class_map in _CITY_LABELS:  # a city's folder holds colours and instances as well
        found = {stem.removesuffix(ending): path for stem, path in files.items() if stem.endswith(ending)}
        if found:
            return found, class_map
    return files, None


def frame_key(name: str) -> str:
    """Return what a frame and its label share: the stem of the file `name`, without the ending of Cityscapes."""
    path = Path(name)
    stem = path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name
    return stem.removesuffix("_" + _CITY_IMAGES)


def _label_paths(folder: Path) -> list[Path]:
    # hidden files: ._x.png is what some archivers add
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in LABEL_SUFFIXES and not p.name.startswith("."))


def _by_stem(paths: Sequence[Path]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in paths:
        if path.stem in files:
            raise LabelError(f"{files[path.stem]} and {path.name} have one stem, so pairing is ambiguous; remove one")
        files[path.stem] = path
    return files
