"""The street's layout, endless and decided by its seed: what stands where, and who moves where at time t."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edge_sfda.data.scene_houses import add_side
from edge_sfda.data.scene_objects import (
    BODIES,
    LOOKS,
    PAINTS,
    PHASES,
    SIGN_KINDS,
    TREES,
    bollard,
    car,
    lamp_post,
    person,
    railing,
    ring,
    sign,
    traffic_light,
    tree,
)
from edge_sfda.data.scene_shapes import UP, Builder, Colour, Label, Shapes, Surface
from edge_sfda.data.scene_styles import STYLES, Style

CHUNK = 40.0  # metres of street that are laid out, and kept, together
FAR = 150.0  # metres that are seen; beyond, a skyline
BEHIND = 6.0

_CROSS_NEAR, _CROSS_FAR = 1.5, 10.5  # of a crossing street, from the start of its chunk
_ASPHALT: Colour = (86, 86, 90)
_WHITE: Colour = (206, 206, 200)


@lru_cache(maxsize=8192)
def _traits(seed: int, stream: int, i: int) -> tuple[float, ...]:
    """Return eight numbers of 0..1 that belong to thing `i` of a stream for good."""
    return tuple(np.random.default_rng([seed, stream, i + (1 << 31)]).random(8).tolist())


@dataclass(frozen=True)
class _Size:
    road: float  # half the road's width
    front: float  # from the middle line to the house fronts
    lane: float  # middle of a driving lane


class Street:
    """A street of one style made from `seed`.

    Chunks are laid out when first seen and the nearest few are kept, so a long drive needs no more memory.
    """

    def __init__(self, seed: int, style: str) -> None:
        self.seed = seed
        self.style: Style = STYLES[style]
        self._stream = 100 * sorted(STYLES).index(style)
        u = _traits(seed, self._stream, 0)
        road = self.style.half_road + 0.9 * (u[0] - 0.5)
        self.size = _Size(road, road + self.style.pavement + 1.2 * (u[1] - 0.5), (road - 2.2) / 2)
        v = _traits(seed, 99, 0)  # the way the street runs is the same in every style
        self._bends = ((8 + 10 * v[2], 95 + 20 * v[3], 7 * v[4]), (1.2, 33.0, 7 * v[5]))
        self._rises = ((0.9, 70 + 30 * v[6], 7 * v[7]),)
        self._chunks: dict[int, Shapes] = {}

    def bend(self, s: np.ndarray | float) -> np.ndarray:
        """Return how far right of straight on, in metres, the middle line lies at `s`."""
        return sum((a * np.sin(np.asarray(s) / w + p) for a, w, p in self._bends), start=np.float64(0))

    def rise(self, s: np.ndarray | float) -> np.ndarray:
        """Return the ground's height in metres at `s`."""
        return sum((a * np.sin(np.asarray(s) / w + p) for a, w, p in self._rises), start=np.float64(0))

    def driven(self, t: float) -> float:
        """Return the camera's `s` after `t` seconds."""
        return 8.0 * t + 1.4 * math.sin(0.35 * t + self.seed % 7)

    def shapes(self, t: float) -> Shapes:
        """Return everything that can be seen at `t`, unordered."""
        s = self.driven(t)
        wanted = range(math.floor((s - BEHIND) / CHUNK), math.floor((s + FAR) / CHUNK) + 1)
        for k in [k for k in self._chunks if k not in wanted]:
            del self._chunks[k]
        for k in wanted:
            if k not in self._chunks:
                self._chunks[k] = self._layout(k)
        return Shapes.join([*(self._chunks[k] for k in wanted), *self._traffic(s, t), *self._walkers(s, t)])

    # --- what stands -------------------------------------------------------------------------------------------------

    def _crossed(self, k: int) -> bool:
        """Whether another street crosses at the start of chunk `k`; never two in a row."""
        return _traits(self.seed, self._stream + 1, k)[0] < 0.45 and k % 2 == 0

    def _layout(self, k: int) -> Shapes:
        rng = np.random.default_rng([self.seed, self._stream + 2, k + (1 << 31)])
        s0 = k * CHUNK
        b = Builder()
        self._ground(b, rng, k)
        for side in (-1, 1):
            add_side(b, rng, self.style, side, s0, 3 if self._crossed(k) else 0, self.size.front)
        parts = [b.build()]
        for side in (-1, 1):
            parts += self._furniture(rng, k, side)
            parts += self._parked(rng, k, side)
        return Shapes.join(parts)

    def _ground(self, b: Builder, rng: np.random.Generator, k: int) -> None:
        s0, road, style = k * CHUNK, self.size.road, self.style
        wide = 75.0
        b.anchor = (s0, 0.0)
        for s in np.arange(s0, s0 + CHUNK, 10.0).tolist():
            for side in (-1, 1):
                left, right = sorted((side * road, side * wide))
                b.slab(s, s + 10, left, right, style.paving, Label.PAVEMENT, Surface.PAVING)
                left, right = sorted((side * road, side * (road + 0.22)))
                b.slab(s, s + 10, left, right, style.kerb, Label.PAVEMENT, Surface.STANDING)
            b.slab(s, s + 10, -road, road, _ASPHALT, Label.ROAD, Surface.ASPHALT)
            for side in (-1, 1):  # gutter
                left, right = sorted((side * (road - 0.35), side * road))
                b.slab(s, s + 10, left, right, (70, 70, 74), Label.ROAD, Surface.ASPHALT)
        if self._crossed(k):
            b.slab(s0 + _CROSS_NEAR, s0 + _CROSS_FAR, -wide, wide, _ASPHALT, Label.ROAD, Surface.ASPHALT)
        self._patches(b, rng, s0)
        self._markings(b, k)

    def _patches(self, b: Builder, rng: np.random.Generator, s0: float) -> None:
        for _ in range(3):
            s, d = s0 + rng.uniform(11, 34), rng.uniform(-0.8, 0.8) * self.size.road
            shade = rng.uniform(58, 104)
            rgb: Colour = (shade, shade, shade + 3)
            b.slab(s, s + rng.uniform(2, 6), d - 0.6, d + 0.6, rgb, Label.ROAD, Surface.ASPHALT)
        s, d = s0 + rng.uniform(12, 38), rng.uniform(-0.5, 0.5) * self.size.road
        points = [(s + x, d + z, 0.0) for x, z, _ in ring(0.4)]
        b.add(points, (52, 50, 50), Label.ROAD, normal=UP, surface=Surface.ASPHALT, flat=True)

    def _markings(self, b: Builder, k: int) -> None:
        s0, road, style = k * CHUNK, self.size.road, self.style
        first = s0 + (16.0 if self._crossed(k) else 0.0)
        line = Surface.ASPHALT
        for d, rgb, dash in style.lines(road):
            length, gap = (CHUNK, 0.0) if dash == 0 else (dash, dash * 1.6)
            step = min(length, 8.0) if dash == 0 else length + gap
            for s in np.arange(first, s0 + CHUNK - 0.1, step).tolist():
                b.slab(s, s + min(step if dash == 0 else length, s0 + CHUNK - s), d - 0.075, d + 0.075, rgb, Label.ROAD, line)
        if not self._crossed(k):
            return
        for s in (s0 - 2.6, s0 + 11.6):  # zebra on both sides of the crossing
            for d in np.arange(-road + 0.5, road - 0.6, 1.1).tolist():
                b.slab(s, s + 2.6, d, d + style.stripe, _WHITE, Label.ROAD, line)
        b.slab(s0 - 4.0, s0 - 3.6, 0.1, road - 0.4, _WHITE, Label.ROAD, line)

    def _furniture(self, rng: np.random.Generator, k: int, side: int) -> list[Shapes]:
        s0, road, style = k * CHUNK, self.size.road, self.style
        edge = side * (road + 0.6)
        parts = [lamp_post(side, style.tall_lamps).at(s0 + (14 if side > 0 else 34), edge)]
        if self._crossed(k):
            if side > 0:
                parts.append(traffic_light(bool(rng.random() < 0.6)).at(s0 - 3.3, edge))
            parts.append(traffic_light(bool(rng.random() < 0.6)).at(s0 + 11.2, edge))
        fenced = rng.random() < style.railing
        for s in np.arange(s0 + 16, s0 + CHUNK - 4, 4.0).tolist():
            if fenced:
                parts.append(railing(style.tall_lamps).at(s, side * (road + 0.3)))
        for s in np.arange(s0 + 17.5, s0 + CHUNK, 5.5).tolist():
            what, where = rng.random(), s + rng.uniform(-0.7, 0.7)
            if abs(where - s0 - 34) < 1.2:  # the lamp's place
                continue
            if what < style.trees:
                kind, scale = int(rng.integers(0, TREES)), rng.uniform(0.75, 1.15)
                parts.append(tree(kind).at(where, side * (road + 1.3), scale=scale))
            elif what < style.trees + style.signs:
                parts.append(sign(int(rng.integers(0, SIGN_KINDS))).at(where, side * (road + rng.uniform(0.5, 1.0))))
            elif what < style.trees + style.signs + 0.14 and not fenced:
                parts += [bollard().at(where + 1.6 * i, side * (road + 0.45)) for i in range(3)]
            elif what > 1 - style.loiterers:
                look, d = int(rng.integers(0, LOOKS)), side * rng.uniform(road + 1.0, self.size.front - 0.4)
                parts.append(person(look, 0, bool(rng.random() < 0.5)).at(where, d))
        return parts

    def _parked(self, rng: np.random.Generator, k: int, side: int) -> list[Shapes]:
        s0 = k * CHUNK
        parts = []
        lane = rng.random() < 0.85  # some blocks have no parking
        for s in np.arange(s0 + 16.5, s0 + CHUNK - 6.2, 6.1).tolist():
            kind, paint = int(rng.integers(0, 4)), int(rng.integers(0, len(PAINTS)))
            slack, way, off = rng.uniform(0, 0.8), rng.random() < 0.15, rng.uniform(-0.12, 0.12)
            if lane and rng.random() < self.style.parked:
                away = (side > 0) != bool(way)
                parts.append(car(BODIES[kind], paint, side, not away).at(s + slack, side * (self.size.road - 1.15) + off))
        return parts

    # --- what moves --------------------------------------------------------------------------------------------------

    def _traffic(self, s: float, t: float) -> list[Shapes]:
        return [*self._oncoming(s, t), *self._ahead(s, t)]

    def _oncoming(self, s: float, t: float) -> list[Shapes]:
        gap, speed, parts = 31.0, 8.5, []
        first = math.floor((s - 8 + speed * t) / gap)
        for i in range(first, first + int(FAR / gap) + 2):
            u = _traits(self.seed, self._stream + 3, i)
            at = i * gap + 12 * u[0] - speed * t
            if u[1] < self.style.traffic and s - 8 < at < s + FAR:
                parts.append(self._vehicle(u, -1, True).at(at, -self.size.lane + 0.4 * (u[4] - 0.5)))
        return parts

    def _ahead(self, s: float, t: float) -> list[Shapes]:
        """Return the car ahead: it comes in sight, is followed for a while, and draws away."""
        period = 15.0
        i = math.floor(t / period)
        u = _traits(self.seed, self._stream + 4, i)
        if u[1] > self.style.traffic + 0.25:
            return []
        gap = 9 + 9 * u[0] + (FAR - 12) * abs(2 * (t / period - i) - 1) ** 1.7
        return [self._vehicle(u, 1, False).at(s + gap, self.size.lane + 0.3 * (u[4] - 0.5))]

    def _vehicle(self, u: tuple[float, ...], side: int, oncoming: bool) -> Shapes:
        kind = "bus" if u[2] < self.style.buses else BODIES[int(u[3] * 4)]
        paint = len(PAINTS) - 1 if u[5] < self.style.taxis else int(u[6] * len(PAINTS))
        return car(kind, paint, side, oncoming)

    def _walkers(self, s: float, t: float) -> list[Shapes]:
        gap, parts = 6.0, []
        for stream, (side, way) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
            speed = way * 1.3
            first = math.floor((s + 2 - speed * t) / gap)
            for i in range(first, first + 13):
                u = _traits(self.seed, self._stream + 10 + stream, i)
                at = i * gap + 5 * u[0] + speed * t
                if u[1] < self.style.walkers and s + 1 < at < s + 75:
                    d = side * (self.size.road + 0.8 + u[2] * (self.size.front - self.size.road - 1.5))
                    phase = int(t * 9 + 8 * u[4]) % PHASES
                    parts.append(person(int(u[3] * LOOKS), phase, False).at(at, d))
        for k in range(math.floor(s / CHUNK), math.floor((s + 90) / CHUNK) + 1):
            if self._crossed(k):
                parts += self._on_zebra(k, t)
        return parts

    def _on_zebra(self, k: int, t: float) -> list[Shapes]:
        """Return who walks over the zebra of chunk `k`; the road is free again before the camera arrives."""
        parts = []
        arrival = (k * CHUNK + 11.6) / 8.0
        for i in range(3):
            u = _traits(self.seed, self._stream + 20 + i, k)
            way = 1 if u[0] < 0.5 else -1
            d = way * (self.size.road + 0.5 + 1.4 * (t - arrival + 2.5 + 3 * u[1]))
            if u[2] < self.style.walkers + 0.2 and abs(d) < self.size.front:
                parts.append(person(int(u[3] * LOOKS), int(t * 9) % PHASES, True).at(k * CHUNK + 12 + 1.6 * u[4], d))
        return parts
