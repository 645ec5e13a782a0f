"""The things of a street, each as shapes around the origin: the camera looks along +s, so it sees their near end.

`side` is +1 for things to the right of the camera, which shows their left flank, and -1 for those to the left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edge_sfda.data.scene_shapes import Builder, Colour, Glow, Label, Point, Shapes, Surface
from edge_sfda.data.scene_textures import TILES

# --- cars -------------------------------------------------------------------------------------------------------------

_GLASS: Colour = (52, 62, 72)
_TYRE: Colour = (26, 26, 28)


@dataclass(frozen=True)
class _Body:
    """A car's side view: corners (s, y) from the tail over the roof to the nose."""

    outline: tuple[tuple[float, float], ...]
    window: tuple[tuple[float, float], ...]  # the side's glass
    glass: tuple[int, ...]  # edges of the outline that are glass
    wheels: tuple[float, float]  # s of the axles
    width: float


_BODIES = {
    "sedan": _Body(
        ((0, 0.34), (0, 0.86), (0.1, 1.0), (0.8, 1.04), (1.35, 1.42), (2.6, 1.45), (3.3, 1.02), (4.2, 0.86),
         (4.35, 0.34)),
        ((0.95, 1.04), (1.42, 1.37), (2.56, 1.39), (3.1, 1.03)), (3, 5), (0.85, 3.45), 1.76,
    ),
    "hatch": _Body(
        ((0, 0.34), (0, 0.95), (0.12, 1.05), (0.5, 1.45), (2.2, 1.5), (2.95, 1.04), (3.75, 0.88), (3.9, 0.34)),
        ((0.4, 1.05), (0.62, 1.4), (2.16, 1.43), (2.8, 1.04)), (2, 4), (0.7, 3.1), 1.7,
    ),
    "suv": _Body(
        ((0, 0.4), (0, 1.1), (0.1, 1.2), (0.4, 1.7), (2.7, 1.74), (3.4, 1.2), (4.4, 1.05), (4.55, 0.4)),
        ((0.35, 1.16), (0.55, 1.62), (2.62, 1.66), (3.2, 1.18)), (2, 4), (0.85, 3.6), 1.86,
    ),
    "van": _Body(
        ((0, 0.36), (0, 1.25), (0.03, 1.3), (0.1, 1.95), (0.25, 2.1), (3.9, 2.1), (4.7, 1.25), (5.1, 1.05),
         (5.2, 0.36)),
        ((3.3, 1.25), (3.3, 1.85), (3.95, 1.85), (4.5, 1.26)), (2, 5), (0.95, 4.2), 1.95,
    ),
    "bus": _Body(
        ((0, 0.36), (0, 1.2), (0.02, 1.25), (0.06, 2.5), (0.15, 3.0), (10.6, 3.0), (10.9, 2.7), (10.95, 1.1),
         (11, 0.36)),
        ((0.5, 1.3), (0.5, 2.45), (10.4, 2.45), (10.4, 1.3)), (2, 6), (2.6, 8.6), 2.5,
    ),
}  # fmt: skip
BODIES = tuple(_BODIES)

PAINTS: tuple[Colour, ...] = (
    (196, 198, 200), (40, 42, 46), (150, 30, 30), (36, 64, 120), (120, 124, 128), (225, 225, 220),
    (70, 84, 70), (180, 150, 90), (214, 176, 40),
)  # fmt: skip


@lru_cache(maxsize=512)
def car(kind: str, paint: int, side: int, oncoming: bool, lit: bool) -> Shapes:
    """Return a car whose near end is at s = 0, centred on d = 0; parked ones are not `lit`."""
    body = _BODIES[kind]
    length = body.outline[-1][0]
    rgb = PAINTS[paint]

    def flip(s: float) -> float:
        return length - s if oncoming else s

    half = body.width / 2
    flank = -side * half
    b = Builder()
    b.slab(-0.15, length + 0.2, -half - 0.1, half + 0.1, (34, 34, 36), Label.ROAD, Surface.ASPHALT, flat=False)
    b.wall((0.3, -half), (0.3, half), 0.05, 0.5, (18, 18, 20), Label.CAR)
    outline: list[Point] = [(flip(s), flank, y) for s, y in body.outline]
    b.add(outline, rgb, Label.CAR, normal=(0, -side, 0), casts=True)
    inner = flank * 0.995
    b.add([(flip(s), inner, y) for s, y in body.window], _GLASS, Label.CAR, normal=(0, -side, 0))
    if kind == "bus":
        for s in np.arange(1.9, 10, 1.5):
            b.wall((flip(s), inner), (flip(s + 0.12), inner), 1.3, 2.45, rgb, Label.CAR, normal=(0, -side, 0))
    for s in body.wheels:
        _wheel(b, flip(s), inner, side)
    _ends(b, body, rgb, oncoming, lit)
    return b.build()


def _wheel(b: Builder, s: float, d: float, side: int) -> None:
    for radius, rgb in ((0.34, _TYRE), (0.19, (130, 132, 134))):
        ring: list[Point] = [
            (s + radius * math.cos(a), d, 0.34 + radius * math.sin(a)) for a in np.arange(8) * math.pi / 4 + 0.4
        ]
        b.add(ring, rgb, Label.CAR, normal=(0, -side, 0))


def _ends(b: Builder, body: _Body, rgb: Colour, oncoming: bool, lit: bool) -> None:
    """Add the faces that look at the camera, far ones first, then lights, plate and wheels of the near end."""
    length = body.outline[-1][0]
    corners = [(length - s, y) for s, y in reversed(body.outline)] if oncoming else list(body.outline)
    edges = len(corners) - 1
    half = body.width / 2
    for i in reversed(range(edges)):
        (s0, y0), (s1, y1) = corners[i], corners[i + 1]
        if y1 <= y0 or s1 > length * 0.75:  # looks away
            continue
        glass = (edges - 1 - i if oncoming else i) in body.glass
        in0, in1 = (0.9 if y > 1.15 and body.width < 1.9 else 1.0 for y in (y0, y1))
        run = math.hypot(s1 - s0, y1 - y0)
        points = [(s0, -half * in0, y0), (s1, -half * in1, y1), (s1, half * in1, y1), (s0, half * in0, y0)]
        normal = ((y0 - y1) / run, 0.0, (s1 - s0) / run)
        b.add(points, _GLASS if glass else rgb, Label.CAR, normal=normal)
    waist = corners[1][1]
    low, high = waist - 0.24, waist - 0.06
    for sign in (-1, 1):
        inner, outer = sorted((sign * half * 0.62, sign * half * 0.97))
        lamp: Colour = (235, 235, 225) if oncoming else (150, 24, 24)
        glow = Glow.NONE if not lit else Glow.HEAD if oncoming else Glow.TAIL
        b.board(inner, outer, low, high, lamp, Label.CAR, s=-0.01, glow=glow)
        inner, outer = sorted((sign * half * 0.68, sign * half * 0.98))
        b.board(inner, outer, 0.0, 0.36, _TYRE, Label.CAR, s=0.02)
    b.board(-half, half, 0.34, 0.46, (48, 48, 50), Label.CAR, s=-0.02)
    plate = (210, 206, 170) if not oncoming else (220, 220, 220)
    b.board(-0.26, 0.26, 0.5, 0.62, plate, Label.CAR, s=-0.02)


# --- persons ----------------------------------------------------------------------------------------------------------

LOOKS = 10
PHASES = 8


@lru_cache(maxsize=1024)
def person(look: int, phase: int, across: bool) -> Shapes:
    """Return a walker at one of `PHASES` of the step, 1.55 m to 1.85 m tall; `across`: seen from the side."""
    rng = np.random.default_rng([20, look])
    scale = rng.uniform(0.9, 1.07)
    top, trousers, skin, hair = _clothes(rng)
    swing = math.sin(2 * math.pi * phase / PHASES)
    stride = 0.30 * swing if across else 0.05 * swing
    lift = 0.0 if across else 0.05 * swing
    width = 0.15 if across else 0.21
    b = Builder()
    for sign in (-1, 1):
        hip = 0.0 if across else sign * 0.09
        foot = hip + sign * stride
        shade = 1.0 if sign > 0 else 0.8  # the far leg lies in the near one's shade
        leg: Colour = (trousers[0] * shade, trousers[1] * shade, trousers[2] * shade)
        ground = max(0.0, sign * lift)
        b.add(
            [(0, foot - 0.07, ground), (0, hip - 0.09, 0.86), (0, hip + 0.09, 0.86), (0, foot + 0.08, ground)],
            leg, Label.PERSON,
        )  # fmt: skip
        b.board(foot - 0.08, foot + 0.1, ground, ground + 0.08, (30, 26, 24), Label.PERSON)
    _upper_body(b, width, -0.8 * stride if across else 0.0, (top, skin, hair), across)
    shapes = b.build()
    return shapes.at(0, 0, scale=scale)


def _clothes(rng: np.random.Generator) -> tuple[Colour, Colour, Colour, Colour]:
    tops: list[Colour] = [
        (150, 40, 44), (46, 60, 110), (60, 62, 66), (176, 170, 158), (190, 150, 60), (52, 96, 74), (122, 70, 110),
        (40, 38, 42), (196, 110, 60),
    ]  # fmt: skip
    trousers: list[Colour] = [(40, 46, 70), (36, 34, 36), (110, 96, 76), (70, 72, 78)]
    skins: list[Colour] = [(214, 170, 142), (170, 122, 92), (110, 76, 58), (228, 188, 164)]
    hairs: list[Colour] = [(50, 36, 26), (30, 26, 24), (150, 112, 60), (120, 116, 112)]
    choice = [int(rng.integers(0, len(c))) for c in (tops, trousers, skins, hairs)]
    return tops[choice[0]], trousers[choice[1]], skins[choice[2]], hairs[choice[3]]


def _upper_body(b: Builder, width: float, arm: float, colours: tuple[Colour, Colour, Colour], across: bool) -> None:
    top, skin, hair = colours
    dark: Colour = (top[0] * 0.75, top[1] * 0.75, top[2] * 0.75)
    torso: list[Point] = [
        (0, -width * 0.85, 0.8), (0, -width, 1.38), (0, -width * 0.6, 1.46), (0, width * 0.6, 1.46), (0, width, 1.38),
        (0, width * 0.85, 0.8),
    ]  # fmt: skip
    b.add(torso, top, Label.PERSON, casts=True)
    for sign in (-1, 1) if not across else (1,):
        shoulder = 0.0 if across else sign * (width + 0.03)
        hand = shoulder + (arm if across else sign * 0.05)
        b.add(
            [(0, hand - 0.05, 0.78), (0, shoulder - 0.06, 1.4), (0, shoulder + 0.06, 1.4), (0, hand + 0.05, 0.78)],
            dark, Label.PERSON,
        )  # fmt: skip
    for radius, y, rgb in ((0.125, 1.63, hair), (0.10, 1.60, skin)):
        b.add([(0, d, y + up) for d, up, _ in ring(radius, 8)], rgb, Label.PERSON)


# --- trees, lamps, signs ----------------------------------------------------------------------------------------------

TREES = 12
_GREENS: tuple[Colour, ...] = ((120, 154, 70), (98, 140, 68), (150, 160, 74), (78, 116, 74))


@lru_cache(maxsize=TREES)
def tree(kind: int) -> Shapes:
    """Return a tree of 6 m to 9 m: round crowns, poplars and conifers."""
    rng = np.random.default_rng([21, kind])
    b = Builder()
    bark: Colour = (86, 70, 54)
    form = kind % 4  # 0, 1 round; 2 poplar; 3 conifer
    green = np.array(_GREENS[kind // 3 % len(_GREENS)]) * rng.uniform(0.9, 1.2)
    stem = 0.9 if form == 3 else rng.uniform(1.9, 2.6)
    b.add([(0, -0.2, 0), (0, -0.12, stem + 1), (0, 0.12, stem + 1), (0, 0.2, 0)], bark, Label.TREE, casts=True)
    if form < 2:
        blobs = [(rng.uniform(-0.9, 0.9), stem + rng.uniform(1.3, 2.6), rng.uniform(1.3, 1.9)) for _ in range(3)]
        blobs.append((0.0, stem + 2.0, 2.1))
    elif form == 2:
        blobs = [(0, stem + 1.2, 1.0), (0, stem + 4.4, 0.8), (0, stem + 2.8, 1.15)]
    else:
        blobs = [(0, stem + 4.8 - 1.5 * i, 0.55 + 0.45 * i) for i in range(4)]
    for i, (d, y, radius) in enumerate(blobs):
        shade = 0.8 + 0.2 * i / (len(blobs) - 1)
        rgb = (float(green[0]) * shade, float(green[1]) * shade, float(green[2]) * shade)
        _crown(b, rng, d, y, radius, rgb, flat=1.0 if form != 2 else 1.7)
    return b.build()


def _crown(
    b: Builder, rng: np.random.Generator, d: float, y: float, radius: float, rgb: Colour, *, flat: float
) -> None:
    """Add a ragged disc of leaves."""
    angles = np.arange(34) * (2 * math.pi / 34)
    lumps = 0.06 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.05 * np.sin(7 * angles + rng.uniform(0, 6))
    reach = radius * (1 + lumps + rng.uniform(-0.08, 0.08, 34))
    points: list[Point] = [
        (0, d + float(r * math.cos(a)), y + flat * float(r * math.sin(a))) for a, r in zip(angles, reach, strict=True)
    ]
    edge, high = radius * 1.2, radius * 1.2 * flat
    frame: tuple[Point, Point, Point] = ((0, d - edge, y + high), (0, d + edge, y + high), (0, d - edge, y - high))
    leaf = TILES.leaf[int(rng.integers(0, len(TILES.leaf)))]
    b.add(points, rgb, Label.TREE, normal=(-0.6, 0, 0.8), tile=leaf, frame=frame, casts=True)


_STEEL: Colour = (112, 116, 118)


@lru_cache(maxsize=4)
def lamp_post(side: int, tall: bool) -> Shapes:
    """Return a street lamp whose arm reaches over the road."""
    height, reach = (8.0, 2.0) if tall else (6.2, 1.3)
    b = Builder()
    b.board(-0.09, 0.09, 0, height, _STEEL, Label.POLE, casts=True)
    b.board(-0.14, 0.14, 0, 0.9, (92, 96, 98), Label.POLE)
    left, right = sorted((0.0, -side * reach))
    b.board(left, right, height - 0.1, height + 0.06, _STEEL, Label.POLE)
    tip = -side * reach
    b.board(tip - 0.42, tip + 0.42, height - 0.22, height - 0.02, (84, 88, 90), Label.POLE)
    b.board(tip - 0.36, tip + 0.36, height - 0.30, height - 0.2, (230, 226, 206), Label.POLE, glow=Glow.LAMP)
    b.lamp(0, tip, height - 0.4)
    return b.build()


SIGN_KINDS = 9


@lru_cache(maxsize=SIGN_KINDS)
def sign(kind: int) -> Shapes:
    """Return a traffic sign on its pole; the last two kinds are a large direction board and a poster."""
    b = Builder()
    if kind >= 7:
        wide, low, high = (1.3, 1.9, 3.4) if kind == 7 else (1.5, 0.7, 3.0)
        for d in (-wide * 0.7, wide * 0.7):
            b.board(d - 0.06, d + 0.06, 0, low + 0.1, _STEEL, Label.POLE, casts=True)
        tile = TILES.sign[5] if kind == 7 else TILES.sign[7]
        b.board(-wide, wide, low, high, (255, 255, 255), Label.SIGN, tile=tile, casts=True)
        return b.build()
    b.board(-0.045, 0.045, 0, 2.9, _STEEL, Label.POLE, casts=True)
    y, radius = 2.65, 0.42
    frame: tuple[Point, Point, Point] = ((0, -radius, y + radius), (0, radius, y + radius), (0, -radius, y - radius))
    if kind == 3:
        points: list[Point] = [(0, -radius, y - 0.36), (0, 0, y + 0.42), (0, radius, y - 0.36)]
    elif kind in (4, 5, 6):
        points = [(0, -radius, y - radius), (0, -radius, y + radius), (0, radius, y + radius), (0, radius, y - radius)]
    else:
        points = [(0, radius * math.sin(a), y + radius * math.cos(a)) for a in np.arange(12) * math.pi / 6]
    b.add(points, (255, 255, 255), Label.SIGN, tile=TILES.sign[kind], frame=frame, casts=True)
    return b.build()


@lru_cache(maxsize=2)
def traffic_light(green: bool) -> Shapes:
    """Return a traffic light; it counts as a sign."""
    b = Builder()
    b.board(-0.06, 0.06, 0, 3.2, (70, 74, 76), Label.POLE, casts=True)
    b.board(-0.22, 0.22, 2.3, 3.4, (30, 34, 32), Label.SIGN, casts=True)
    for y, rgb, lit, glow in (
        (3.2, (220, 40, 30), not green, Glow.RED),
        (2.85, (200, 150, 30), False, Glow.NONE),
        (2.5, (40, 200, 120), green, Glow.GREEN),
    ):
        shade = 1.0 if lit else 0.3
        tint: Colour = (rgb[0] * shade, rgb[1] * shade, rgb[2] * shade)
        b.board(-0.11, 0.11, y - 0.11, y + 0.11, tint, Label.SIGN, s=-0.01, glow=glow if lit else Glow.NONE)
    return b.build()


@lru_cache(maxsize=2)
def railing(tall: bool) -> Shapes:
    """Return 4 m of railing along the street; one sees through between its rails, and so does the label."""
    b = Builder()
    rgb: Colour = (150, 152, 150) if tall else (70, 84, 78)
    for s in (0.0, 2.0):
        b.wall((s, 0), (s + 0.12, 0), 0, 1.05, rgb, Label.FENCE, normal=(0, -1, 0), casts=True)
    for y in (0.3, 0.62, 0.94) if tall else (0.45, 0.92):
        b.wall((0, 0), (4, 0), y, y + 0.13, rgb, Label.FENCE, normal=(0, -1, 0))
    return b.build()


@lru_cache(maxsize=1)
def bollard() -> Shapes:
    """Return a short post at the kerb."""
    b = Builder()
    b.board(-0.09, 0.09, 0, 0.95, (60, 62, 64), Label.POLE, casts=True)
    b.board(-0.09, 0.09, 0.72, 0.84, (220, 220, 220), Label.POLE)
    return b.build()


def ring(radius: float, corners: int = 10) -> list[Point]:
    """Return a level polygon around the origin: a manhole or a tree pit."""
    return [(radius * math.cos(a), radius * math.sin(a), 0.0) for a in np.arange(corners) * 2 * math.pi / corners]
