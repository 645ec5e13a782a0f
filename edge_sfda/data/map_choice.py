"""Which class map reads a folder's labels: the one named, the one found beside them, the set's own, the network's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_sfda.data import class_maps, trees
from edge_sfda.data.class_maps import ClassMap, IdMap
from edge_sfda.errors import UsageError
from edge_sfda.manifest import Classes

_PEEKED = 8  # label files looked into for a message


def wanted(classes: str | None, places: Sequence[Path], default: Classes | None) -> list[str]:
    """Return the built-in maps among which a data set's labels shall be read; none leaves it to the set.

    A map by its plain name stands for its classes: the files say whether they hold label ids or train ids.

    Args:
        classes: the map that the user names: a built-in one or a TOML file.
        places: folders where a `classes.toml` would count.
        default: the network's classes, which choose where nothing else does.
    """
    if classes:
        return [classes, f"{classes}-train-ids"] if classes in trees.MAPS else []
    if default is None or class_maps.find(places) is not None:
        return []
    return [name for name in trees.MAPS if class_maps.resolve(name).classes.names == default.names]


def for_set(own_map: str, wanted: Sequence[str], classes: str | None, places: Sequence[Path]) -> ClassMap:
    """Return the map for a data set whose files call for the built-in `own_map`, given what is `wanted` of it.

    Raises:
        UsageError: `classes` names no map.
        ConfigError: a file is no class map.
    """
    if own_map in wanted:
        return class_maps.resolve(own_map)
    if classes:
        return class_maps.resolve(classes)
    return class_maps.find(places) or class_maps.resolve(own_map)


def for_folder(
    classes: str | None, places: Sequence[Path], default: Classes | None, labels: Sequence[Path]
) -> ClassMap:
    """Return the map for a folder that says nothing by itself.

    Args:
        classes: the map that the user names.
        places: folders where a `classes.toml` counts; the first one is named in the message.
        default: classes to fall back on, ids being places in them.
        labels: the files, looked into for the message.

    Raises:
        UsageError: there is none; the message says what the labels hold.
        ConfigError: a file is no class map.
    """
    if classes:
        return class_maps.resolve(classes)
    class_map = class_maps.find(places) or (None if default is None else IdMap(default))
    if class_map is not None:
        return class_map
    raise UsageError(
        f"no class map for {places[0]}; its first labels hold {class_maps.seen(labels[:_PEEKED])}. Name a built-in "
        f"map ({', '.join(class_maps.BUILT_IN)}) or {class_maps.how_to_write()}"
    )
