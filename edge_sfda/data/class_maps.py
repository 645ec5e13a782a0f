"""Class maps: what the pixels of a label file mean. Built-in ones, and those written in TOML.

    names = ["road", "car"]                       # in the order of the network's logits
    palette = [[128, 64, 128], [0, 0, 142]]       # RGB, one a class; left out: colours are chosen
    ignore_id = 255                               # void, never counted; left out: 255
    coding = "ids"                                # "ids": pixels are ids; "colours": pixels are the palette's colours
    void = [0, 1]                                 # further raw ids (or RGB colours) that mean void

    [ids]                                         # left out: the id of a class is its place in names
    7 = "road"
    26 = "car"
    27 = "car"
    3 = "void"

Instead of the table, `ids = [7, 26]` gives one raw id a class. An id that no line mentions is an error as it turns up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_sfda.data import street_classes
from edge_sfda.data.frames import has_colours, read_image, read_label
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.data.street_classes import CAMVID, CITYSCAPES, CITYSCAPES_13, CITYSCAPES_16
from edge_sfda.errors import ConfigError, FrameError, LabelError, UsageError
from edge_sfda.manifest import Classes

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, which JetPack 6 ships
    import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]

Label = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

VOID = "void"  # the word for `ignore_id` in a TOML table of ids
FILE_NAME = "classes.toml"
_LISTED = 12  # ids or colours a message lists at most


class ClassMap(Protocol):
    """Turn a label file into class ids."""

    @property
    def classes(self) -> Classes:
        """The classes that `read` gives ids of."""

    def read(self, path: Path) -> Label:
        """Return the label at `path`, HW uint8, class ids or `classes.ignore_id`.

        Raises:
            LabelError: the file cannot be read, or holds a value that the map does not know.
        """


@dataclass(frozen=True)
class IdMap:
    """Label files whose pixels are raw ids.

    Args:
        classes: the classes that result.
        ids: raw id 0..255 -> class id or `classes.ignore_id`. None: ids are class ids already.
        first_channel: ids stand in the first (red) channel where there are several, as in SYNTHIA.

    Raises:
        ConfigError: a raw id or a class id is out of range.
    """

    classes: Classes
    ids: Mapping[int, int] | None = None
    first_channel: bool = False

    def __post_init__(self) -> None:
        for raw, to in self._ids().items():
            if not 0 <= raw <= 255:
                raise ConfigError(f"class map: raw id {raw} must lie in 0..255, the values of an 8-bit label")
            if not (0 <= to < len(self.classes) or to == self.classes.ignore_id):
                raise ConfigError(f"class map: raw id {raw} points to class {to}; there are {len(self.classes)}")

    def _ids(self) -> dict[int, int]:
        void = self.classes.ignore_id
        ids = {i: i for i in range(len(self.classes))} if self.ids is None else dict(self.ids)
        # pixels already marked void stay so, unless the map gives that id another meaning
        return {void: void, **ids}

    def read(self, path: Path) -> Label:
        """Return the label at `path`; see `ClassMap.read`."""
        raw = read_label(path, first_channel=self.first_channel)
        ids = self._ids()
        seen = np.flatnonzero(np.bincount(raw.reshape(-1), minlength=256))
        unknown = [int(i) for i in seen if int(i) not in ids]
        if unknown:
            raise LabelError(
                f"{path} holds id {_list(unknown)}, which the class map does not know; it knows {_list(sorted(ids))}. "
                f'Add the id to [ids] of {FILE_NAME}, as a class or as "{VOID}"'
            )
        table = np.zeros(256, dtype=np.uint8)
        table[list(ids)] = list(ids.values())
        return table[raw]


@dataclass(frozen=True)
class ColourMap:
    """Label files whose pixels are colours.

    Args:
        classes: the classes that result; their palette is the coding.
        void: RGB colours that mean void.

    Raises:
        ConfigError: one colour stands for two things.
    """

    classes: Classes
    void: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        colours = [*self.classes.palette, *self.void]
        double = {c for c in colours if colours.count(c) > 1}
        if double:
            raise ConfigError(f"class map: colour {_list(sorted(double))} stands for two things; labels cannot be read")

    def read(self, path: Path) -> Label:
        """Return the label at `path`; see `ClassMap.read`."""
        packed = _read_packed(path)
        ids = {_pack(c): i for i, c in enumerate(self.classes.palette)}
        ids |= {_pack(c): self.classes.ignore_id for c in self.void}
        known = np.array(sorted(ids), dtype=np.int64)
        place = np.minimum(np.searchsorted(known, packed), known.size - 1)
        if not (known[place] == packed).all():
            unknown = np.unique(packed[known[place] != packed])
            raise LabelError(
                f"{path} holds RGB colour {_list([_unpack(int(c)) for c in unknown])}, which is neither in the palette "
                f"nor void; add it to `void` of {FILE_NAME}, or save the labels as PNG without smoothing"
            )
        return np.array([ids[int(c)] for c in known], dtype=np.uint8)[place]


@dataclass(frozen=True)
class EitherMap:
    """Label files that come with ids or, in other copies of the same set, with colours; each file says which.

    Args:
        ids: for files of one channel, palettes included.
        colours: for files with colour channels; of the same classes.
    """

    ids: IdMap
    colours: ColourMap

    @property
    def classes(self) -> Classes:
        """The classes that result."""
        return self.ids.classes

    def read(self, path: Path) -> Label:
        """Return the label at `path`; see `ClassMap.read`."""
        return (self.colours if has_colours(path) else self.ids).read(path)


def resolve(name: str) -> ClassMap:
    """Return the built-in map of that name, or the one in that TOML file.

    Raises:
        UsageError: neither a built-in map nor a file.
        ConfigError: the file is no class map.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    if Path(name).is_file():
        return load(Path(name))
    raise UsageError(
        f"no class map {name!r}: neither built in ({', '.join(BUILT_IN)}) nor a TOML file; {how_to_write()}"
    )


def find(folders: Iterable[Path]) -> ClassMap | None:
    """Return the map in the first of `folders` that holds a `classes.toml`; None when none does.

    Raises:
        ConfigError: that file is no class map.
    """
    for folder in folders:
        if (folder / FILE_NAME).is_file():
            return load(folder / FILE_NAME)
    return None


def load(path: Path) -> ClassMap:
    """Read a class map from TOML; the head of this module shows one.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds a bad key or value; the message names the file.
    """
    try:
        return _parse(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read class map {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"class map {path} is not TOML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"class map {path} holds a value of the wrong kind ({error}); {how_to_write()}") from error


def how_to_write() -> str:
    """Return the sentence that tells how to write a class map."""
    return (
        f"write a {FILE_NAME} such as\n"
        '    names = ["road", "car"]                  # the class with id 0, with id 1, ...\n'
        "    palette = [[128, 64, 128], [0, 0, 142]]  # RGB\n"
        "    ignore_id = 255                          # void"
    )


def seen(paths: Iterable[Path]) -> str:
    """Return in words which ids, or else colours, the label files at `paths` hold."""
    ids: set[int] = set()
    colours: set[Colour] = set()
    for path in paths:
        try:
            ids |= {int(i) for i in np.unique(read_label(path))}
        except LabelError:
            colours |= {_unpack(int(c)) for c in np.unique(_read_packed(path))}
    parts = [f"ids {_list(sorted(ids))}"] if ids else []
    return " and ".join([*parts, f'RGB colours {_list(sorted(colours))} (coding = "colours")'] if colours else parts)


def _parse(raw: Mapping[str, Any]) -> ClassMap:
    known = ("names", "palette", "ignore_id", "coding", "ids", "void")
    for key in raw:
        if key not in known:
            raise ConfigError(f"unknown key {key!r}; known are {', '.join(known)}")
    names = raw.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"names = {names!r} must be a list of texts")
    coding = raw.get("coding", "ids")
    if coding not in ("ids", "colours"):
        raise ConfigError(f'coding = {coding!r}; choose "ids" or "colours"')
    if coding == "colours" and ("palette" not in raw or "ids" in raw):
        raise ConfigError('coding = "colours" needs a palette, and no ids')
    palette = tuple(_colour(c) for c in raw["palette"]) if "palette" in raw else _default_palette(len(names))
    classes = Classes(tuple(names), palette, _integer(raw.get("ignore_id", 255)))
    if coding == "colours":
        return ColourMap(classes, tuple(_colour(c) for c in raw.get("void", ())))
    pairs = _ids(raw.get("ids", list(range(len(names)))), classes)
    pairs += [(_integer(i), classes.ignore_id) for i in raw.get("void", ())]
    double = [i for i, _ in pairs if [j for j, _ in pairs].count(i) > 1]
    if double:
        raise ConfigError(f"raw id {_list(sorted(set(double)))} is given two meanings; leave one")
    return IdMap(classes, dict(pairs))


def _ids(raw: Mapping[str, str] | list[int], classes: Classes) -> list[tuple[int, int]]:
    if isinstance(raw, list):
        if len(raw) != len(classes):
            raise ConfigError(f"ids lists {len(raw)} raw ids for {len(classes)} classes; give one each, or a table")
        return [(_integer(r), i) for i, r in enumerate(raw)]
    to = {VOID: classes.ignore_id, **{name: i for i, name in enumerate(classes.names)}}
    for key, name in raw.items():
        if name not in to:
            raise ConfigError(f"ids: {key} = {name!r} is no class; choose one of {', '.join(to)}")
    return [(int(key), to[name]) for key, name in raw.items()]


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{value!r} must be an integer")
    return value


def _colour(value: Any) -> Colour:
    r, g, b = (_integer(v) for v in value)
    if not all(0 <= v <= 255 for v in (r, g, b)):
        raise ConfigError(f"colour {value} must hold three values of 0..255")
    return r, g, b


def _default_palette(count: int) -> tuple[Colour, ...]:
    """Return distinct colours: the bits of 1, 2, ... spread over the channels from the high end, as PASCAL VOC does."""

    def spread(index: int, channel: int) -> int:
        return sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8))

    return tuple((spread(i, 0), spread(i, 1), spread(i, 2)) for i in range(1, count + 1))


def _read_packed(path: Path) -> npt.NDArray[np.int64]:
    try:
        bgr = read_image(path).astype(np.int64)
    except FrameError as error:
        raise LabelError(f"label: {error}") from error
    return bgr[..., 2] << 16 | bgr[..., 1] << 8 | bgr[..., 0]


def _pack(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _unpack(packed: int) -> Colour:
    return packed >> 16, packed >> 8 & 255, packed & 255


def _list(values: list[Any]) -> str:
    rest = len(values) - _LISTED
    return ", ".join(str(v) for v in values[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


_BUILT_IN: Mapping[str, ClassMap] = {
    "camvid": IdMap(CAMVID),
    "cityscapes": IdMap(CITYSCAPES, street_classes.label_ids(CITYSCAPES)),
    "cityscapes-16": IdMap(CITYSCAPES_16, street_classes.label_ids(CITYSCAPES_16)),
    "cityscapes-13": IdMap(CITYSCAPES_13, street_classes.label_ids(CITYSCAPES_13)),
    "cityscapes-train-ids": IdMap(CITYSCAPES),
    "cityscapes-16-train-ids": IdMap(CITYSCAPES_16, street_classes.train_ids(CITYSCAPES_16)),
    "cityscapes-13-train-ids": IdMap(CITYSCAPES_13, street_classes.train_ids(CITYSCAPES_13)),
    "gta5": EitherMap(
        IdMap(CITYSCAPES, street_classes.label_ids(CITYSCAPES, plate=True)),
        ColourMap(CITYSCAPES, street_classes.GTA5_VOID),
    ),
    "synthia": IdMap(CITYSCAPES_16, street_classes.synthia_ids(CITYSCAPES_16), first_channel=True),
    "synthia-13": IdMap(CITYSCAPES_13, street_classes.synthia_ids(CITYSCAPES_13), first_channel=True),
    "scene": IdMap(SCENE_CLASSES),
}
BUILT_IN = tuple(_BUILT_IN)  # the names that `resolve` knows
