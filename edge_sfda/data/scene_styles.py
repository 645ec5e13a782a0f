"""What tells one town's streets from another's: buildings, markings, how much of everything."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sfda.data.scene_shapes import Colour
from edge_sfda.data.scene_textures import TILES

_WHITE: Colour = (200, 200, 194)
_YELLOW: Colour = (206, 168, 52)


PARKING = 2.2  # metres that parked cars take


@dataclass(frozen=True)
class CrossSection:
    """The street from side to side, in metres from its middle line; `side` is -1 left, +1 right.

    Args:
        half: half the width of the lanes.
        pavement: width of each pavement.
        parking: the sides that have room for parked cars.
    """

    half: float
    pavement: float
    parking: tuple[int, ...]

    def parks(self, side: int) -> bool:
        """Return whether cars park on that side."""
        return side in self.parking

    def kerb(self, side: int) -> float:
        """Return the distance of the kerb."""
        return self.half + (PARKING if self.parks(side) else 0.25)

    def front(self, side: int) -> float:
        """Return the distance of the house fronts."""
        return self.kerb(side) + self.pavement

    @property
    def lane(self) -> float:
        """Where in the lane one drives."""
        return self.half / 2


@dataclass(frozen=True)
class Style:
    """Lengths in metres, everything else a share or probability of 0..1."""

    facades: range  # tiles
    half: float  # of the lanes' width
    pavement: float
    paving: Colour
    kerb: Colour
    floors: tuple[int, int]
    pitched: float  # roofs
    yards: float  # gaps between houses, behind a fence
    trees: float  # a tree at a place along the kerb
    signs: float
    railing: float
    parked: float
    traffic: float
    buses: float
    taxis: float
    walkers: float
    loiterers: float
    stripe: float  # width of a zebra's bars
    tall_lamps: bool
    double_line: bool  # a double yellow middle line; else white dashes

    def lines(self, cut: CrossSection) -> list[tuple[float, Colour, float]]:
        """Return the markings along the street: place d, colour, length of a dash (0: unbroken)."""
        edges = [side * cut.half for side in (-1, 1) if cut.parks(side)]
        if self.double_line:
            middle = [(-0.14, _YELLOW, 0.0), (0.14, _YELLOW, 0.0)]
            return [*middle, *((d, _WHITE, 0.0) for d in edges), (cut.half - 2.2, _WHITE, 2.0)]
        return [(0.0, _WHITE, 3.0), *((d, _WHITE, 1.0) for d in edges)]


STYLES = {
    "home": Style(
        facades=TILES.home,
        half=3.3,
        pavement=3.4,
        paving=(150, 146, 140),
        kerb=(176, 174, 168),
        floors=(2, 5),
        pitched=0.6,
        yards=0.22,
        trees=0.42,
        signs=0.22,
        railing=0.16,
        parked=0.5,
        traffic=0.5,
        buses=0.08,
        taxis=0.04,
        walkers=0.34,
        loiterers=0.12,
        stripe=0.5,
        tall_lamps=False,
        double_line=False,
    ),
    "city": Style(
        facades=TILES.city,
        half=4.8,
        pavement=4.6,
        paving=(156, 128, 116),
        kerb=(120, 120, 122),
        floors=(5, 15),
        pitched=0.0,
        yards=0.06,
        trees=0.2,
        signs=0.34,
        railing=0.3,
        parked=0.62,
        traffic=0.75,
        buses=0.2,
        taxis=0.4,
        walkers=0.62,
        loiterers=0.2,
        stripe=0.7,
        tall_lamps=True,
        double_line=True,
    ),
}
