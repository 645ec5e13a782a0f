"""Flat coloured polygons in street coordinates, of which everything in the scene is made.

Street coordinates are metres: `s` along the street, `d` to the right of its middle line, `y` up. The street bends and
rises only when it is drawn, so shapes know nothing of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Point = tuple[float, float, float]
Colour = tuple[float, float, float]  # RGB 0..255, as seen under white light

TOWARDS_CAMERA: Point = (-1.0, 0.0, 0.0)
UP: Point = (0.0, 0.0, 1.0)


class Label(IntEnum):
    """Class ids, in the order of `SCENE_CLASSES`."""

    SKY = 0
    ROAD = 1
    PAVEMENT = 2
    BUILDING = 3
    TREE = 4
    POLE = 5
    SIGN = 6
    CAR = 7
    PERSON = 8
    FENCE = 9


class Glow(IntEnum):
    """What shines when the lights are on."""

    NONE = 0
    LAMP = 1
    HEAD = 2
    TAIL = 3
    GREEN = 4
    RED = 5


class Surface(IntEnum):
    """Ground takes shadows, puddles and a grain; what stands on it does not."""

    STANDING = 0
    ASPHALT = 1
    PAVING = 2


@dataclass(frozen=True, eq=False)
class Shapes:
    """`N` polygons with `P` points in all, as arrays, so that a whole street is moved and projected at once.

    Args:
        points: [P, 3] corners (s, d, y), polygon after polygon.
        counts: [N] corners of each polygon.
        label: [N] class id.
        bgr: [N, 3] colour 0..1 in display space.
        normal: [N, 3] unit vector (s, d, y) for the sun.
        frame: [N, 3, 3] three points of the polygon's plane: the texture's top left, top right and bottom left corner.
        tile: [N] texture, 0 for none.
        glow: [N] a `Glow`.
        surface: [N] a `Surface`.
        flat: [N] whether it lies on the ground and so behind everything that stands.
        casts: [N] whether it throws a shadow on the ground.
        anchor: [N, 2] (s, d) of the nearest point of the object's foot; orders the drawing.
        lamps: [L, 3] where street lamps shine from.
    """

    points: F32
    counts: I32
    label: I32
    bgr: F32
    normal: F32
    frame: F32
    tile: I32
    glow: I32
    surface: I32
    flat: NDArray[np.bool_]
    casts: NDArray[np.bool_]
    anchor: F32
    lamps: F32

    def at(self, s: float, d: float, *, scale: float = 1.0) -> Shapes:
        """Return the shapes made for the origin, scaled and moved to (s, d)."""
        move = np.array((s, d, 0), np.float32)
        return Shapes(
            points=self.points * np.float32(scale) + move,
            counts=self.counts,
            label=self.label,
            bgr=self.bgr,
            normal=self.normal,
            frame=self.frame * np.float32(scale) + move,
            tile=self.tile,
            glow=self.glow,
            surface=self.surface,
            flat=self.flat,
            casts=self.casts,
            anchor=self.anchor * np.float32(scale) + move[:2],
            lamps=self.lamps * np.float32(scale) + move,
        )

    @staticmethod
    def join(parts: Sequence[Shapes]) -> Shapes:
        """Return all shapes of `parts` in order; at least one part."""
        return Shapes(*(np.concatenate([getattr(p, name) for p in parts]) for name in Shapes.__dataclass_fields__))


@dataclass(eq=False)
class Builder:
    """Collects polygons one by one; `build` makes the arrays. Later polygons of one object cover earlier ones."""

    anchor: tuple[float, float] = (0.0, 0.0)
    _points: list[Point] = field(default_factory=list)
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _frames: list[tuple[Point, Point, Point]] = field(default_factory=list)
    _lamps: list[Point] = field(default_factory=list)

    def add(
        self,
        points: Sequence[Point],
        rgb: Colour,
        label: Label,
        *,
        normal: Point = TOWARDS_CAMERA,
        tile: int = 0,
        frame: tuple[Point, Point, Point] | None = None,
        glow: Glow = Glow.NONE,
        surface: Surface = Surface.STANDING,
        flat: bool = False,
        casts: bool = False,
    ) -> None:
        """Add a plane polygon; without a `frame` the texture spans points 1, 2 and 0 (see `wall`)."""
        self._points.extend(points)
        self._rows.append((len(points), label, rgb, normal, tile, glow, surface, flat, casts, self.anchor))
        self._frames.append(frame or (points[1], points[2], points[0]))

    def wall(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        low: float,
        high: float,
        rgb: Colour,
        label: Label,
        *,
        normal: Point = TOWARDS_CAMERA,
        tile: int = 0,
        glow: Glow = Glow.NONE,
        casts: bool = False,
    ) -> None:
        """Add an upright quad over the ground line from `start` to `end`, both (s, d)."""
        points = [(*start, low), (*start, high), (*end, high), (*end, low)]
        self.add(points, rgb, label, normal=normal, tile=tile, glow=glow, casts=casts)

    def board(
        self,
        left: float,
        right: float,
        low: float,
        high: float,
        rgb: Colour,
        label: Label,
        *,
        s: float = 0.0,
        tile: int = 0,
        glow: Glow = Glow.NONE,
        casts: bool = False,
    ) -> None:
        """Add an upright quad across the street, facing the camera."""
        self.wall((s, left), (s, right), low, high, rgb, label, tile=tile, glow=glow, casts=casts)

    def slab(
        self,
        near: float,
        far: float,
        left: float,
        right: float,
        rgb: Colour,
        label: Label,
        surface: Surface,
        *,
        flat: bool = True,
    ) -> None:
        """Add a quad on the ground; not `flat` where it belongs to a thing and is drawn just before that."""
        points = [(near, left, 0.0), (far, left, 0.0), (far, right, 0.0), (near, right, 0.0)]
        self.add(points, rgb, label, normal=UP, surface=surface, flat=flat)

    def lamp(self, s: float, d: float, y: float) -> None:
        """Add a source of light."""
        self._lamps.append((s, d, y))

    def build(self) -> Shapes:
        """Return what was added."""
        counts, label, rgb, normal, tile, glow, surface, flat, casts, anchor = (
            zip(*self._rows, strict=True) if self._rows else ((),) * 10
        )
        return Shapes(
            points=np.array(self._points, np.float32).reshape(-1, 3),
            counts=np.array(counts, np.int32),
            label=np.array(label, np.int32),
            bgr=np.array(rgb, np.float32).reshape(-1, 3)[:, ::-1] / np.float32(255),
            normal=np.array(normal, np.float32).reshape(-1, 3),
            frame=np.array(self._frames, np.float32).reshape(-1, 3, 3),
            tile=np.array(tile, np.int32),
            glow=np.array(glow, np.int32),
            surface=np.array(surface, np.int32),
            flat=np.array(flat, np.bool_),
            casts=np.array(casts, np.bool_),
            anchor=np.array(anchor, np.float32).reshape(-1, 2),
            lamps=np.array(self._lamps, np.float32).reshape(-1, 3),
        )
