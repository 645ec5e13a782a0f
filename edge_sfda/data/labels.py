"""Labels for frames that are read elsewhere, looked up by the frame: they measure, and never train."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from edge_sfda.data.datasets import LabelFolder, SceneSet, check_same_classes, check_same_size
from edge_sfda.data.frames import Frame
from edge_sfda.data.scene_spec import PREFIX
from edge_sfda.manifest import Classes

U8 = npt.NDArray[np.uint8]


class Labels(Protocol):
    """Gives the label of a frame, where there is one."""

    def of(self, frame: Frame) -> U8 | None:
        """Return the frame's label, HW uint8 of its size, ids of the network's classes; None where there is none.

        Raises:
            LabelError: it cannot be read, holds an unknown id, or is of another size.
        """


class FolderLabels:
    """Label files of a folder, with the network's own void id.

    Args:
        folder: the files.
        classes: of the network.

    Raises:
        LabelError: the folder's classes are others.
    """

    def __init__(self, folder: LabelFolder, classes: Classes) -> None:
        check_same_classes(folder.classes, classes)
        self.folder = folder
        self.classes = classes

    def of(self, frame: Frame) -> U8 | None:
        """Return the label whose file has the frame's name; see `Labels`."""
        if frame.name not in self.folder:
            return None
        label = self.folder[frame.name]
        check_same_size(frame.image, label, f"{self.folder.path}, frame {frame.name}")
        theirs, ours = self.folder.classes.ignore_id, self.classes.ignore_id
        return label if theirs == ours else np.where(label == theirs, np.uint8(ours), label)


class SceneLabels:
    """Exact labels of the built-in scene, drawn when asked for.

    Args:
        scene: the frames' own spec.
        classes: of the network.

    Raises:
        LabelError: the network knows other classes than the scene.
    """

    def __init__(self, scene: SceneSet, classes: Classes) -> None:
        check_same_classes(scene.classes, classes)
        self.scene = scene

    def of(self, frame: Frame) -> U8 | None:
        """Return the label of a frame of the scene; see `Labels`."""
        return self.scene.label(frame.seq)


def labels_of(spec: str, folder: str | None, class_map: str | None, classes: Classes) -> Labels | None:
    """Return what there is to measure with: the folder's labels, else the scene's own, else None.

    Args:
        spec: of the frames, as for `open_source`.
        folder: of label files, or None.
        class_map: a built-in class map's name or a TOML file, for the folder.
        classes: of the network.

    Raises:
        UsageError: no such folder, or no class map.
        LabelError: the folder holds no label files, or its classes are not the network's.
    """
    if folder is not None:
        return FolderLabels(LabelFolder(folder, class_map, default=classes), classes)
    if spec.startswith(PREFIX):
        return SceneLabels(SceneSet(spec), classes)
    return None
