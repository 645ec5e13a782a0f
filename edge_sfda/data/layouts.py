"""Folder layouts: which image file belongs to which label file.

    SEQUENCE/images/NAME.jpg + SEQUENCE/labels/NAME.png     as CamVid by sequence, and as GTA5
    two trees of one shape                                  as Cityscapes, ACDC, SYNTHIA, NTHU: see `trees`

Folders are listed; no file is opened but by `of_one_size`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_sfda.data import trees
from edge_sfda.data.frames import png_size
from edge_sfda.data.sources import IMAGE_SUFFIXES, FolderSource
from edge_sfda.errors import FrameError, LabelError, UsageError

_log = logging.getLogger(__name__)

LABEL_SUFFIXES = (".bmp", ".png", ".tif", ".tiff")  # lossless ones: JPEG invents ids


@dataclass(frozen=True)
class Pair:
    """One labelled frame on disk; `name` is a relative path such as `SEQUENCE/STEM` or `SPLIT/CITY/STEM`."""

    name: str
    image: Path
    label: Path


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
            f"one of {trees.shapes()}"
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


def pair_up_tree(copy: trees.Copy, wanted: Collection[str] | None = None) -> tuple[list[Pair], str]:
    """Pair the images of a copy with their labels.

    Args:
        copy: see `trees.find`.
        wanted: the built-in class maps to choose from; None: the set's own.

    Returns:
        The pairs, sorted, and the name of the map that reads these labels.

    Raises:
        FrameError: there are no images.
        LabelError: an image has no label, or, where the set labels a part of its images, none has one.
    """
    if not copy.images:
        endings = " or ".join(f"*{ending}" for ending in copy.tree.image_endings)
        raise FrameError(f"{copy.top} holds no {endings}; unpack the images there, or name another folder")
    missing: list[Path] = []
    for kind in copy.tree.kinds:
        map_name = kind.choose(wanted)
        if map_name is None:
            continue
        pairs = [Pair(copy.name(image), image, copy.label(image, kind)) for image in copy.images]
        missing = [pair.label for pair in pairs if not pair.label.is_file()]
        if not missing or (copy.tree.partial and len(missing) < len(pairs)):
            return [pair for pair in pairs if pair.label not in set(missing)], map_name
    raise LabelError(
        f"{len(missing)} of {len(copy.images)} images have no label; the first one missing is {missing[0]}"
    )


def of_one_size(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs without those whose PNGs differ in size, by their headers; a warning counts them.

    For GTA5, which was published with a few of them.
    """
    odd = [pair for pair in pairs if png_size(pair.image) != png_size(pair.label)]
    if odd:
        what = "%d of %d pairs are left out, since image and label differ in size; the first is %s"
        _log.warning(what, len(odd), len(pairs), odd[0].name)
    left_out = {pair.name for pair in odd}
    return [pair for pair in pairs if pair.name not in left_out]


def label_files(folder: Path, wanted: Collection[str] | None = None) -> tuple[dict[str, Path], str | None]:
    """Return the label files of a folder by `frame_key`, sorted, and the built-in map their names call for, if any.

    The labels of a tree (see `trees`) are found below `folder` as well, those of other layouts in it.

    Raises:
        LabelError: there are none, or two files share a key.
    """
    # a city's folder holds colours and instances as well
    found = trees.label_files(folder, wanted) or trees.label_files(folder)
    if found is not None:
        return {trees.label_key(stem): path for stem, path in _by_stem(found[0]).items()}, found[1]
    files = _by_stem(_label_paths(folder))
    if not files:
        raise LabelError(f"{folder} holds no label files ({', '.join(LABEL_SUFFIXES)})")
    return files, None


def frame_key(name: str) -> str:
    """Return what a frame and its label share: the stem of the file `name`, without the ending of its data set."""
    path = Path(name)
    return trees.frame_key(path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name)


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
