"""Labelled sets: the folder layouts that people have, and the built-in scene with its exact labels.

    SEQUENCE/images/NAME.jpg + SEQUENCE/labels/NAME.png        one sequence, or a folder of such sequences; GTA5
    leftImg8bit/SPLIT/CITY/*.png + gtFine/SPLIT/CITY/*.png     Cityscapes; ACDC, SYNTHIA and NTHU alike: see `trees`
    scene:DOMAIN?frames=200&seed=3&size=192x256                built in

Nothing is read before it is asked for, apart from the folders' listings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_sfda.data import class_maps, layouts, map_choice, trees
from edge_sfda.data.class_maps import ClassMap, Label
from edge_sfda.data.frames import read_image
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.data.scene_spec import PREFIX, SceneSpec
from edge_sfda.errors import LabelError, UsageError
from edge_sfda.manifest import Classes

Image = npt.NDArray[np.uint8]


class LabelledSet(Protocol):
    """Frames with labels, in camera order."""

    @property
    def classes(self) -> Classes:
        """The classes that the labels' ids mean."""

    @property
    def names(self) -> list[str]:
        """One name an item, such as `SEQUENCE/STEM`; usable as a relative path."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        """Return image and label of one size: HWC uint8 BGR 0..255, and HW uint8 class ids or `classes.ignore_id`.

        Raises:
            FrameError: the image cannot be read.
            LabelError: the label cannot be read, holds an unknown id, or is of another size.
        """

    def label(self, index: int) -> Label:
        """Return the label alone, as `[index]` does but without the image's cost and without a check of sizes."""


class FileSet:
    """A labelled set over image and label files.

    Args:
        pairs: the files, in camera order.
        class_map: how the label files are read.
    """

    def __init__(self, pairs: Sequence[layouts.Pair], class_map: ClassMap) -> None:
        self.pairs = tuple(pairs)
        self.class_map = class_map

    @property
    def classes(self) -> Classes:
        return self.class_map.classes

    @property
    def names(self) -> list[str]:
        return [pair.name for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        image, label = read_image(self.pairs[index].image), self.label(index)
        check_same_size(image, label, str(self.pairs[index].label))
        return image, label

    def label(self, index: int) -> Label:
        return self.class_map.read(self.pairs[index].label)


class SceneSet:
    """Frames of the built-in scene with their exact labels; drawn when asked for, the same every time.

    Frame `i` has the image and name of frame `i` of a `SceneSource` of the same spec.

    Args:
        spec: such as `scene:dusk?frames=200&seed=3&size=192x256`, or a `SceneSpec`.

    Raises:
        UsageError: the text asks for no known domain, option or value.
    """

    def __init__(self, spec: str | SceneSpec) -> None:
        self.spec = SceneSpec.parse(spec) if isinstance(spec, str) else spec
        self._scene = self.spec.open()

    @property
    def classes(self) -> Classes:
        return SCENE_CLASSES

    @property
    def names(self) -> list[str]:
        stem = "-".join(self.spec.domains)
        return [f"{stem}-{self.spec.start + i:06d}" for i in range(self.spec.frames)]

    def __len__(self) -> int:
        return self.spec.frames

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        if not 0 <= index < self.spec.frames:
            raise IndexError(f"frame {index} of a scene of {self.spec.frames}")
        return self._scene.render(*self.spec.moment(index))

    def label(self, index: int) -> Label:
        return self[index][1]


class Joined:
    """Several labelled sets of the same classes, one after the other; void becomes the first one's `ignore_id`.

    Raises:
        LabelError: classes differ.
    """

    def __init__(self, parts: Sequence[LabelledSet]) -> None:
        self.parts = tuple(parts)
        self._where = [(part, i) for part in parts for i in range(len(part))]
        for part in self.parts[1:]:
            check_same_classes(part.classes, self.parts[0].classes)

    @property
    def classes(self) -> Classes:
        return self.parts[0].classes

    @property
    def names(self) -> list[str]:
        return [name for part in self.parts for name in part.names]

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        part, i = self._where[index]
        image, label = part[i]
        return image, self._with_own_void(label, part)

    def label(self, index: int) -> Label:
        part, i = self._where[index]
        return self._with_own_void(part.label(i), part)

    def _with_own_void(self, label: Label, part: LabelledSet) -> Label:
        theirs, ours = part.classes.ignore_id, self.classes.ignore_id
        return label if theirs == ours else np.where(label == theirs, np.uint8(ours), label)


class Subset:
    """Some items of a labelled set: a validation split, or the frames kept for testing.

    Raises:
        UsageError: an index is out of range.
    """

    def __init__(self, whole: LabelledSet, indices: Sequence[int]) -> None:
        bad = [i for i in indices if not 0 <= i < len(whole)]
        if bad:
            raise UsageError(f"subset asks for item {bad[0]} of {len(whole)}; indices start at 0")
        self.whole = whole
        self.indices = tuple(indices)

    @property
    def classes(self) -> Classes:
        return self.whole.classes

    @property
    def names(self) -> list[str]:
        names = self.whole.names
        return [names[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        return self.whole[self.indices[index]]

    def label(self, index: int) -> Label:
        return self.whole.label(self.indices[index])


class Renumbered:
    """A labelled set with the ids of other classes: each class keeps its name and takes its place there.

    Args:
        whole: the set.
        classes: those wanted; must hold every class of the set, in any order.

    Raises:
        LabelError: the set labels a class that is not among them.
    """

    def __init__(self, whole: LabelledSet, classes: Classes) -> None:
        unknown = [name for name in whole.classes.names if name not in classes.names]
        if unknown:
            check_same_classes(whole.classes, classes)  # says both lists
        self.whole = whole
        self._classes = classes
        self._table = np.full(256, classes.ignore_id, dtype=np.uint8)
        self._table[: len(whole.classes)] = [classes.names.index(name) for name in whole.classes.names]

    @property
    def classes(self) -> Classes:
        return self._classes

    @property
    def names(self) -> list[str]:
        return self.whole.names

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, index: int) -> tuple[Image, Label]:
        image, label = self.whole[index]
        return image, self._table[label]

    def label(self, index: int) -> Label:
        return self._table[self.whole.label(index)]


class LabelFolder:
    """Labels for frames that are read elsewhere: `folder[name]` with the name of the frame's file.

    Args:
        path: folder of label files whose stems are those of the frames. Not every frame needs one.
        classes: a built-in class map's name or a TOML file; None looks for `classes.toml` in the folder and the two
            above it.
        default: classes to fall back on, ids being places in them; the network's own, as a rule.

    Raises:
        UsageError: no such folder, or no class map.
        LabelError: the folder holds no label files, or two for one frame.
    """

    def __init__(self, path: str | Path, classes: str | None = None, *, default: Classes | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UsageError(f"no folder of labels at {path}")
        places = [self.path, *self.path.resolve().parents[:2]]  # ROOT/SEQUENCE/labels
        wanted = map_choice.wanted(classes, places, default)
        self._files, own_map = layouts.label_files(self.path, wanted or None)
        self.class_map = (
            map_choice.for_set(own_map, wanted, classes, places)
            if own_map
            else map_choice.for_folder(classes, places, default, list(self._files.values()))
        )

    @property
    def classes(self) -> Classes:
        return self.class_map.classes

    @property
    def names(self) -> list[str]:
        """The frames that have a label, sorted: stems, without the endings of their data set."""
        return list(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and layouts.frame_key(name) in self._files

    def __getitem__(self, name: str) -> Label:
        """Return the label of the frame `name` (a stem, a file name or a path), HW uint8 class ids or `ignore_id`.

        Raises:
            LabelError: there is no such label, it cannot be read, or it holds an unknown id.
        """
        if name not in self:
            raise LabelError(f"{self.path} holds no label for frame {name!r}; expected {layouts.frame_key(name)}.png")
        return self.class_map.read(self._files[layouts.frame_key(name)])


def open_dataset(paths: Sequence[str], *, classes: str | None = None, default: Classes | None = None) -> LabelledSet:
    """Open labelled folders or `scene:` specs as one set, in the order given.

    Args:
        paths: each a folder in one of the layouts at the head of this module, or a scene.
        classes: a built-in class map's name or a TOML file, for every folder. None takes `classes.toml` from the
            folder, and for a set with maps of its own the one that gives `default`, else its first.
        default: classes to fall back on where no map is named or found, ids being places in them.

    Raises:
        UsageError: no path, no such folder, an unknown layout, or no class map.
        SourceError: a folder of images is empty.
        LabelError: an image has no label or the reverse, or the paths' classes differ.
    """
    if not paths:
        raise UsageError("no data given; name a labelled folder, or scene:day")
    parts = [_open(path, classes, default) for path in paths]
    return parts[0] if len(parts) == 1 else Joined(parts)


def class_shares(dataset: LabelledSet) -> npt.NDArray[np.float64]:
    """Return each class's share of the labelled pixels, float64 [C], summing to 1; void is left out.

    Raises:
        LabelError: a label cannot be read, or every pixel is void.
    """
    counts = np.zeros(256, dtype=np.int64)
    for index in range(len(dataset)):
        counts += np.bincount(dataset.label(index).reshape(-1), minlength=256)
    counts = counts[: len(dataset.classes)]
    if not counts.any():
        raise LabelError(f"all pixels of {len(dataset)} labels are void ({dataset.classes.ignore_id}); check the map")
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def check_same_classes(found: Classes, expected: Classes) -> None:
    """Refuse labels of other classes than expected; colours and void ids may differ.

    Raises:
        LabelError: names or their order differ; the message lists both.
    """
    if found.names != expected.names:
        raise LabelError(
            f"labels of classes {', '.join(found.names)} where {', '.join(expected.names)} are expected, in that order;"
            f" give a class map ({class_maps.FILE_NAME}) that brings the labels to those"
        )


def check_same_size(image: npt.NDArray[Any], label: npt.NDArray[Any], name: str) -> None:
    """Refuse a label of another size than its image.

    Raises:
        LabelError: heights or widths differ; the message names `name`.
    """
    if image.shape[:2] != label.shape[:2]:
        (h, w), (height, width) = label.shape[:2], image.shape[:2]
        raise LabelError(f"{name}: label of {h}x{w} for an image of {height}x{width} (height x width); resize one")


def _open(path: str, classes: str | None, default: Classes | None) -> LabelledSet:
    if path.startswith(PREFIX):
        return SceneSet(path)
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError(f"no folder at {path}; name a labelled folder, or scene:day")
    copy = trees.find(folder)
    if copy is not None:
        return _open_tree(folder, copy, classes, default)
    parts = [_open_sequence(sequence, classes, default) for sequence in layouts.sequences(folder)]
    return parts[0] if len(parts) == 1 else Joined(parts)


def _open_tree(folder: Path, copy: trees.Copy, classes: str | None, default: Classes | None) -> FileSet:
    known = [name for kind in copy.tree.kinds for name in kind.maps]
    if classes in trees.MAPS and classes not in known:
        raise UsageError(
            f"class map {classes} is not for the labels beside {copy.top}; choose one of {', '.join(known)}"
        )
    inner = folder.absolute()
    depth = len(inner.relative_to(copy.top).parts) + 1 if inner.is_relative_to(copy.top) else 0
    places = [folder, *inner.parents[:depth]]  # up to the root of the copy
    wanted = map_choice.wanted(classes, places, default)
    pairs, own_map = layouts.pair_up_tree(copy, [name for name in wanted if name in known] or None)
    return FileSet(pairs, map_choice.for_set(own_map, wanted, classes, places))


def _open_sequence(sequence: Path, classes: str | None, default: Classes | None) -> FileSet:
    pairs = layouts.pair_up(sequence)
    if classes == "gta5":
        pairs = layouts.of_one_size(pairs)
    places = [sequence, sequence.resolve().parent]
    return FileSet(pairs, map_choice.for_folder(classes, places, default, [pair.label for pair in pairs]))
