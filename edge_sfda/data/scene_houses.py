"""What lines a street: houses with textured fronts, roofs and gables; yards behind fences; blocks behind."""

from __future__ import annotations

import numpy as np

from edge_sfda.data.scene_objects import TREES, tree
from edge_sfda.data.scene_shapes import Builder, Colour, Label, Point, Shapes
from edge_sfda.data.scene_styles import Style
from edge_sfda.data.scene_textures import COLUMNS, FLOORS, TILES

COLUMN = 4.0  # metres of a front, one column of its texture; fronts are cut there so that things sort by distance
FLOOR = 3.0
CHUNK_COLUMNS = 10

_ROOFS: tuple[Colour, ...] = ((150, 82, 62), (112, 72, 62), (92, 92, 98), (128, 104, 84))


class _House:
    """One house: its front follows the street, its near gable looks at the camera."""

    def __init__(self, rng: np.random.Generator, style: Style, side: int, front: float) -> None:
        self.side = side
        self.front = front  # d of the front, signed
        self.tile = int(rng.choice(style.facades))
        self.shift = int(rng.integers(0, COLUMNS))
        self.floors = int(rng.integers(style.floors[0], style.floors[1] + 1))
        self.pitched = bool(rng.random() < style.pitched)
        shade = rng.uniform(0.82, 1.1)
        tint = rng.uniform(0.94, 1.06, 3) * shade * 232
        self.tint: Colour = (float(tint[0]), float(tint[1]), float(tint[2]))
        roof = _ROOFS[int(rng.integers(0, len(_ROOFS)))]
        self.roof: Colour = (roof[0] * 1.25, roof[1] * 1.25, roof[2] * 1.25)  # its texture is 20 % grey
        self.chimney = self.pitched and bool(rng.random() < 0.5)

    @property
    def height(self) -> float:
        return self.floors * FLOOR + 0.4

    def add_column(self, b: Builder, s: float, column: int) -> None:
        """Add one column of the front and its piece of roof, from `s` on."""
        front, normal = self.front, (0.0, -float(self.side), 0.0)
        b.anchor = (s, front)
        left = s - COLUMN * ((column + self.shift) % COLUMNS)
        self._piece(b, (s, front), (s + COLUMN, front), (left, front), (left + COLUMN * COLUMNS, front), normal)
        top = self.height
        if self.pitched:
            eaves, ridge = front - self.side * 0.35, front + self.side * 4.0
            points: list[Point] = [(s, eaves, top - 0.1), (s, ridge, top + 2.7), (s + COLUMN, ridge, top + 2.7),
                                   (s + COLUMN, eaves, top - 0.1)]  # fmt: skip
            b.add(points, self.roof, Label.BUILDING, normal=(0, -0.57 * self.side, 0.82), tile=TILES.roof, casts=True)
            if self.chimney and column == 1:
                b.board(ridge - 0.4, ridge + 0.4, top + 1.2, top + 3.6, (120, 84, 70), Label.BUILDING, s=s + 1)
        else:
            b.wall((s, front), (s + COLUMN, front), top - 0.5, top, self._dark(0.72), Label.BUILDING, normal=normal)

    def add_gable(self, b: Builder, s: float, *, deep: bool) -> None:
        """Add the near end of the house at `s`; with windows where it is `deep`, as beside a crossing."""
        side, front, top = self.side, self.front, self.height
        b.anchor = (s, front + 0.5 * side)
        span = COLUMN * COLUMNS
        if deep:
            for i in range(2):
                start, end = (s, front + side * span * i), (s, front + side * span * (i + 1))
                self._piece(b, start, end, start, end, (-1.0, 0.0, 0.0))
            b.wall((s, front), (s, front + side * 2 * span), top - 0.5, top, self._dark(0.72), Label.BUILDING)
        else:
            b.wall((s, front), (s, front + side * 9), 0, top, self._dark(0.62), Label.BUILDING, casts=True)
        if self.pitched:
            points: list[Point] = [(s, front, top), (s, front + side * 4, top + 2.7), (s, front + side * 9, top)]
            b.add(points, self._dark(0.58), Label.BUILDING)

    def _dark(self, share: float) -> Colour:
        return self.tint[0] * share, self.tint[1] * share, self.tint[2] * share * 0.97

    def _piece(
        self,
        b: Builder,
        start: tuple[float, float],
        end: tuple[float, float],
        left: tuple[float, float],
        right: tuple[float, float],
        normal: Point,
    ) -> None:
        """Add wall from `start` to `end` whose texture spans `left` to `right`; above eight floors it starts anew."""
        low, tile_top = 0.0, FLOORS * FLOOR
        while low < self.height:
            high = min(self.height, tile_top)
            points: list[Point] = [(*start, low), (*start, high), (*end, high), (*end, low)]
            frame = ((*left, tile_top), (*right, tile_top), (*left, tile_top - FLOORS * FLOOR))
            b.add(points, self.tint, Label.BUILDING, normal=normal, tile=self.tile, frame=frame, casts=True)
            low, tile_top = high, tile_top + (FLOORS - 1) * FLOOR  # the ground floor's row stays covered


def add_side(b: Builder, rng: np.random.Generator, style: Style, side: int, first: int, front: float) -> list[Shapes]:
    """Line one side of a chunk, which starts at s = 0, from column `first` on.

    Args:
        b: gets houses, fences and blocks.
        rng: decides everything.
        style: of the town.
        side: -1 left, +1 right.
        first: column at which building starts; the columns before it are a crossing street.
        front: distance of the house fronts from the middle line.

    Returns:
        The trees of the yards.
    """
    _blocks_behind(b, rng, style, side)
    parts: list[Shapes] = []
    column, open_before = first, first > 0
    while column < CHUNK_COLUMNS:
        count = min(int(rng.integers(2, 5)), CHUNK_COLUMNS - column)
        yard = rng.random() < style.yards and not (open_before and column == first)
        set_back = front + (rng.uniform(7, 10) if yard else rng.choice((0.0, 0.0, 0.6, 1.4)))
        house = _House(rng, style, side, side * float(set_back))
        if not yard or rng.random() < 0.5:
            house.add_gable(b, column * COLUMN, deep=open_before)
            for i in range(count):
                house.add_column(b, (column + i) * COLUMN, i)
        if yard:
            parts += _yard(b, rng, side, column * COLUMN, count, front)
        column, open_before = column + count, False
    return parts


def _yard(b: Builder, rng: np.random.Generator, side: int, s: float, count: int, front: float) -> list[Shapes]:
    kind = int(rng.integers(0, len(TILES.fence)))
    high, d = (1.9, 1.2, 1.6, 1.7)[kind], side * (front + 0.15)
    shade = rng.uniform(205, 255)
    for i in range(count):
        b.anchor = (s + i * COLUMN, d)
        start, end = (s + i * COLUMN, d), (s + (i + 1) * COLUMN, d)
        b.wall(start, end, 0, high, (shade, shade, shade), Label.FENCE, normal=(0, -side, 0), tile=TILES.fence[kind],
               casts=True)  # fmt: skip
    b.anchor = (s, d + side * 0.1)
    b.wall((s, d), (s, d + side * 7), 0, high, (shade * 0.9,) * 3, Label.FENCE, tile=TILES.fence[kind])
    trees = []
    for i in range(count):
        where, deep = s + rng.uniform(0.5, 3.5) + COLUMN * i, front + rng.uniform(2.5, 5)
        if rng.random() < 0.7:
            trees.append(tree(int(rng.integers(0, TREES))).at(where, side * deep))
    return trees


def _blocks_behind(b: Builder, rng: np.random.Generator, style: Style, side: int) -> None:
    """Add two far blocks: what one sees down a crossing street and over a yard."""
    for _ in range(2):
        s, d = rng.uniform(0, 38), side * rng.uniform(34, 52)
        half, high = rng.uniform(7, 12), rng.uniform(1.0, 1.35) * FLOOR * style.floors[1] * 0.8
        shade = rng.uniform(150, 215)
        b.anchor = (s, d)
        tile = int(rng.choice(style.facades))
        points: list[Point] = [(s, d - half, 0), (s, d - half, high), (s, d + half, high), (s, d + half, 0)]
        frame = ((s, d - half, 24.0), (s, d + half, 24.0), (s, d - half, 0.0))
        b.add(points, (shade, shade, shade), Label.BUILDING, tile=tile if high <= 24 else 0, frame=frame)
