"""Data sets that keep images and labels in two folder trees of one shape: where an image's label lies.

    Cityscapes    leftImg8bit/SPLIT/CITY/*_leftImg8bit.png          gtFine/SPLIT/CITY/*_gtFine_labelIds.png
    ACDC          rgb_anon/CONDITION/SPLIT/SEQ/*_rgb_anon.png       gt/CONDITION/SPLIT/SEQ/*_gt_labelIds.png
     references   rgb_anon/CONDITION/SPLIT_ref/SEQ/*_ref_anon.png   gt/CONDITION/SPLIT_ref/SEQ/*_gt_ref_labelIds.png
    SYNTHIA       RGB/*.png                                         GT/LABELS/*.png
    NTHU          CITY/Images/SPLIT/*.jpg                           CITY/Labels/SPLIT/*_eval.png

A copy is named by its root, or by any folder of its images: a split, a city, a condition. Folders are listed; no file
is opened.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

_LABEL_IDS = ("cityscapes", "cityscapes-16", "cityscapes-13")
_TRAIN_IDS = ("cityscapes-train-ids", "cityscapes-16-train-ids", "cityscapes-13-train-ids")


@dataclass(frozen=True, kw_only=True)
class LabelKind:
    """One way in which a set stores its labels.

    Args:
        ending: of the label files, with their suffix.
        maps: the built-in class maps that read them, the set's own first.
    """

    ending: str
    maps: tuple[str, ...]

    def choose(self, wanted: Collection[str] | None) -> str | None:
        """Return the first map that is wanted; None when no map of these labels is."""
        return next((name for name in self.maps if wanted is None or name in wanted), None)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """The shape of one data set.

    Args:
        images: folder of the images' tree.
        labels: folder of the labels' tree, beside it; may be a path of several folders.
        image_endings: endings of the image files, with their suffix.
        kinds: of labels, the one to prefer first.
        closed: folders, below `images`, that a whole copy leaves out, as their labels are held back or dummies; they
            can still be named.
        partial: whether it is by design that some images have no label; those are left out of labelled sets.
        plain_names: whether `images` is a word that other folders bear too, so that the labels must lie beside it for
            the tree to be told.
        within: whether a copy is one of several, so that frames are named with the folder that holds it.
    """

    images: str
    labels: str
    image_endings: tuple[str, ...]
    kinds: tuple[LabelKind, ...]
    closed: tuple[str, ...] = ()
    partial: bool = False
    plain_names: bool = False
    within: bool = False


CITYSCAPES = Tree(
    images="leftImg8bit",
    labels="gtFine",
    image_endings=("_leftImg8bit.png",),
    # train ids first: who has made them wants them
    kinds=(
        LabelKind(ending="_gtFine_labelTrainIds.png", maps=_TRAIN_IDS),
        LabelKind(ending="_gtFine_labelIds.png", maps=_LABEL_IDS),
    ),
    closed=("test",),
)
ACDC = Tree(
    images="rgb_anon",
    labels="gt",
    image_endings=("_rgb_anon.png",),
    kinds=(
        LabelKind(ending="_gt_labelTrainIds.png", maps=_TRAIN_IDS),
        LabelKind(ending="_gt_labelIds.png", maps=_LABEL_IDS),
    ),
    closed=("test",),
)
ACDC_REFERENCES = Tree(  # the same places in clear weather; part of them was labelled later
    images="rgb_anon",
    labels="gt",
    image_endings=("_rgb_ref_anon.png",),
    kinds=(
        LabelKind(ending="_gt_ref_labelTrainIds.png", maps=_TRAIN_IDS),
        LabelKind(ending="_gt_ref_labelIds.png", maps=_LABEL_IDS),
    ),
    partial=True,
)
SYNTHIA = Tree(
    images="RGB",
    labels="GT/LABELS",
    image_endings=(".png",),
    kinds=(LabelKind(ending=".png", maps=("synthia", "synthia-13")),),
    plain_names=True,
)
NTHU = Tree(  # one copy a city: Train has 3,200 images without labels, Test 100 with them
    images="Images",
    labels="Labels",
    image_endings=(".png", ".jpg"),
    kinds=(LabelKind(ending="_eval.png", maps=("cityscapes-13", "cityscapes")),),
    partial=True,
    plain_names=True,
    within=True,
)
TREES = (CITYSCAPES, ACDC, ACDC_REFERENCES, SYNTHIA, NTHU)  # references after ACDC: a whole copy is the adverse half
_KINDS = tuple(kind for tree in TREES for kind in tree.kinds)
MAPS = frozenset(name for kind in _KINDS for name in kind.maps)  # the built-in maps that a tree's labels decide among


@dataclass(frozen=True)
class Copy:
    """A data set on disk, or a part of it.

    Args:
        tree: its shape.
        top: the images' folder, absolute.
        images: the images asked for, absolute, sorted.
    """

    tree: Tree
    top: Path
    images: tuple[Path, ...]

    def key(self, image: Path) -> str:
        """Return what an image shares with its label: its name without the ending."""
        return _without(image.name, self.tree.image_endings)

    def name(self, image: Path) -> str:
        """Return the image's name in the set, a relative path such as `val/lindau/lindau_000000_000019`."""
        inner = (image.parent / self.key(image)).relative_to(self.top)
        return str(self.top.parent.name / inner if self.tree.within else inner)

    def label(self, image: Path, kind: LabelKind) -> Path:
        """Return where the label of that kind belongs; it need not be there."""
        return _label_top(self.tree, self.top) / image.parent.relative_to(self.top) / (self.key(image) + kind.ending)


def find(folder: Path) -> Copy | None:
    """Return the copy that `folder` is the root of or lies in; None when there is none.

    Where several trees share a folder, the one that has images there.
    """
    copies = [_copy(tree, top, folder.absolute()) for tree in TREES if (top := _top(tree, folder)) is not None]
    return next((copy for copy in copies if copy.images), copies[0] if copies else None)


def label_files(folder: Path, wanted: Collection[str] | None = None) -> tuple[list[Path], str] | None:
    """Return the label files in and below `folder`, of one kind, and the built-in map that reads them.

    Args:
        folder: of labels; the kind is told by the files' endings, so that SYNTHIA's are not told from others.
        wanted: the maps to choose from; None: each kind's own.
    """
    for tree in TREES:
        if tree.plain_names and tree.labels not in folder.absolute().parts:
            continue
        for kind in tree.kinds:
            map_name = kind.choose(wanted)
            found = sorted(folder.rglob(f"*{kind.ending}")) if map_name else []
            if map_name and found:
                return found, map_name
    return None


def frame_key(stem: str) -> str:
    """Return the stem of a frame without the ending that its data set gives to images."""
    endings = [Path(ending).stem for tree in TREES for ending in tree.image_endings if ending.startswith("_")]
    return _without(stem, tuple(endings))


def label_key(stem: str) -> str:
    """Return the stem of a label file without the ending that its data set gives to labels."""
    return _without(stem, tuple(Path(kind.ending).stem for kind in _KINDS if kind.ending.startswith("_")))


def shapes() -> str:
    """Return in words which folders tell a data set, for messages."""
    return ", ".join(dict.fromkeys(f"{tree.images} + {tree.labels}" for tree in TREES))


def _copy(tree: Tree, top: Path, folder: Path) -> Copy:
    whole = not folder.is_relative_to(top)
    images = sorted(
        path
        for ending in tree.image_endings
        for path in (top if whole else folder).rglob(f"*{ending}")
        # hidden files: ._x.png is what some archivers add
        if not path.name.startswith(".") and not (whole and set(path.relative_to(top).parts) & set(tree.closed))
    )
    return Copy(tree, top, tuple(images))


def _top(tree: Tree, folder: Path) -> Path | None:
    """Return the images' folder of the copy that `folder` is the root of or lies in."""
    here = folder.absolute()
    places = [here / tree.images] if _holds(folder, tree.images) else []
    places += [place for place in (here, *here.parents) if place.name == tree.images]
    for place in places:
        if not tree.plain_names or _label_top(tree, place).is_dir():
            return place
    return None


def _holds(folder: Path, name: str) -> bool:
    """Tell whether there is a folder of exactly that name: file systems that ignore case say yes to `Images`."""
    return (folder / name).is_dir() and any(inner.name == name for inner in folder.iterdir())


def _label_top(tree: Tree, top: Path) -> Path:
    return top.parent.joinpath(*tree.labels.split("/"))


def _without(name: str, endings: tuple[str, ...]) -> str:
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), name)
