"""The street's layout, endless and decided by its seed: what stands where, and who moves where at time t."""

from __future__ import annotations

import math
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
from edge_sfda.data.scene_shapes import F32, UP, Builder, Colour, Label, Shapes, Surface
from edge_sfda.data.scene_styles import STYLES, CrossSection, Style

CHUNK = 40.0  # metres of street that are laid out, and kept, together
FAR = 150.0  # metres that are seen; beyond, a skyline
BEHIND = 6.0

_CROSS_NEAR, _CROSS_FAR = 1.5, 10.5  # of a crossing street, from the start of its chunk
_ASPHALT: Colour = (94, 93, 93)
_GUTTER: Colour = (74, 74, 76)
_WHITE: Colour = (206, 206, 200)


@lru_cache(maxsize=8192)
def _traits(seed: int, stream: int, i: int) -> tuple[float, ...]:
    """Return eight numbers of 0..1 that belong to thing `i` of a stream for good."""
    return tuple(np.random.default_rng([seed, stream, i + (1 << 31)]).random(8).tolist())


def _waves(waves: tuple[tuple[float, float, float], ...], s: F32, origin: float) -> F32:
    """Return a sum of sines of given amplitude, length over 2 pi, and phase; large angles are reduced in float64."""
    total = np.zeros_like(s)
    for amplitude, length, phase in waves:
        start = (origin / length + phase) % (2 * math.pi)
        total += np.float32(amplitude) * np.sin(s * np.float32(1 / length) + np.float32(start))
    return total


def _strip(
    b: Builder, s: float, side: int, inner: float, outer: float, rgb: Colour, label: Label, surface: Surface
) -> None:
    """Add 10 m of ground between two distances from the middle line."""
    left, right = sorted((side * inner, side * outer))
    b.slab(s, s + 10, left, right, rgb, label, surface)


class Street:
    """A street of one style made from `seed`.

    Chunks are laid out when first seen and the nearest few are kept, so a long drive needs no more memory.
    """

    def __init__(self, seed: int, style: str) -> None:
        self.seed = seed
        self.style: Style = STYLES[style]
        self._stream = 100 * sorted(STYLES).index(style)
        u = _traits(seed, self._stream, 0)
        parking = (-1, 1) if u[2] < 0.4 else (-1,) if u[2] < 0.8 else (1,)
        self.cut = CrossSection(self.style.half + 0.5 * (u[0] - 0.5), self.style.pavement + 1.4 * (u[1] - 0.5), parking)
        v = _traits(seed, 99, 0)  # the way the street runs is the same in every style
        self._bends = ((8 + 10 * v[2], 95 + 20 * v[3], 7 * v[4]), (1.2, 33.0, 7 * v[5]))
        self._rises = ((0.9, 70 + 30 * v[6], 7 * v[7]),)
        self._chunks: dict[int, Shapes] = {}
        self._joined_for: tuple[range, float] | None = None
        self._joined = Builder().build()

    def bend(self, s: F32, origin: float) -> F32:
        """Return how far right of straight on, in metres, the middle line lies `s` metres beyond `origin`."""
        return _waves(self._bends, s, origin)

    def rise(self, s: F32, origin: float) -> F32:
        """Return the ground's height in metres `s` metres beyond `origin`."""
        return _waves(self._rises, s, origin)

    def driven(self, t: float) -> float:
        """Return how far the camera has come after `t` seconds."""
        return 8.0 * t + 1.4 * math.sin(0.35 * t + self.seed % 7)

    def origin(self, t: float) -> float:
        """Return from where `s` is counted at `t`: the start of the camera's chunk, so that float32 does."""
        return math.floor(self.driven(t) / CHUNK) * CHUNK

    def shapes(self, t: float) -> Shapes:
        """Return everything that can be seen at `t`, unordered, `s` counted from `origin(t)`."""
        s, origin = self.driven(t), self.origin(t)
        near = range(math.floor((s - BEHIND) / CHUNK), math.floor((s + FAR) / CHUNK) + 1)
        if (near, origin) != self._joined_for:
            self._chunks = {k: self._chunks[k] if k in self._chunks else self._layout(k) for k in near}
            self._joined = Shapes.join([self._chunks[k].at(k * CHUNK - origin, 0) for k in near])
            self._joined_for = (near, origin)
        return Shapes.join([self._joined, *self._traffic(s, t, origin), *self._walkers(s, t, origin)])

    # --- what stands --------------------------------------------------------------------------------------------------

    def _crossed(self, k: int) -> bool:
        """Whether another street crosses at the start of chunk `k`; never two in a row."""
        return _traits(self.seed, self._stream + 1, k)[0] < 0.45 and k % 2 == 0

    def _layout(self, k: int) -> Shapes:
        rng = np.random.default_rng([self.seed, self._stream + 2, k + (1 << 31)])
        b = Builder()
        self._ground(b, rng, k)
        for side in (-1, 1):
            add_side(b, rng, self.style, side, 3 if self._crossed(k) else 0, self.cut.front(side))
        parts = [b.build()]
        for side in (-1, 1):
            parts += self._furniture(rng, k, side)
            parts += self._parked(rng, k, side)
        return Shapes.join(parts)

    def _ground(self, b: Builder, rng: np.random.Generator, k: int) -> None:
        cut, style, wide = self.cut, self.style, 75.0
        b.anchor = (0.0, 0.0)
        for s in np.arange(0, CHUNK, 10.0).tolist():
            b.slab(s, s + 10, -cut.kerb(-1), cut.kerb(1), _ASPHALT, Label.ROAD, Surface.ASPHALT)
            for side in (-1, 1):
                kerb = cut.kerb(side)
                _strip(b, s, side, kerb, wide, style.paving, Label.PAVEMENT, Surface.PAVING)
                _strip(b, s, side, kerb, kerb + 0.22, style.kerb, Label.PAVEMENT, Surface.STANDING)
                _strip(b, s, side, kerb - 0.35, kerb, _GUTTER, Label.ROAD, Surface.ASPHALT)
        if self._crossed(k):
            b.slab(_CROSS_NEAR, _CROSS_FAR, -wide, wide, _ASPHALT, Label.ROAD, Surface.ASPHALT)
        self._patches(b, rng)
        self._markings(b, k)

    def _patches(self, b: Builder, rng: np.random.Generator) -> None:
        for _ in range(3):
            s, d = rng.uniform(11, 34), rng.uniform(-0.9, 0.9) * self.cut.half
            shade = rng.uniform(58, 104)
            rgb: Colour = (shade, shade, shade + 3)
            b.slab(s, s + rng.uniform(2, 6), d - 0.6, d + 0.6, rgb, Label.ROAD, Surface.ASPHALT)
        s, d = rng.uniform(12, 38), rng.uniform(-0.6, 0.6) * self.cut.half
        points = [(s + x, d + z, 0.0) for x, z, _ in ring(0.4)]
        b.add(points, (52, 50, 50), Label.ROAD, normal=UP, surface=Surface.ASPHALT, flat=True)

    def _markings(self, b: Builder, k: int) -> None:
        cut = self.cut
        first = 16.0 if self._crossed(k) else 0.0
        line = Surface.ASPHALT
        for d, rgb, dash in self.style.lines(cut):
            length, step = (dash, dash * 2.6) if dash else (8.0, 8.0)  # unbroken lines follow the bends in pieces
            for s in np.arange(first, CHUNK - 0.1, step).tolist():
                b.slab(s, min(s + length, CHUNK), d - 0.075, d + 0.075, rgb, Label.ROAD, line)
        if not self._crossed(k):
            return
        for s in (-2.6, 11.6):  # zebra on both sides of the crossing
            for d in np.arange(-cut.kerb(-1) + 0.5, cut.kerb(1) - 0.6, 1.1).tolist():
                b.slab(s, s + 2.6, d, d + self.style.stripe, _WHITE, Label.ROAD, line)
        b.slab(-4.0, -3.6, 0.1, cut.kerb(1) - 0.4, _WHITE, Label.ROAD, line)

    def _furniture(self, rng: np.random.Generator, k: int, side: int) -> list[Shapes]:
        road, style = self.cut.kerb(side), self.style
        edge = side * (road + 0.6)
        parts = [lamp_post(side, style.tall_lamps).at(14 if side > 0 else 34, edge)]
        if self._crossed(k):
            if side > 0:
                parts.append(traffic_light(bool(rng.random() < 0.6)).at(-3.3, edge))
            parts.append(traffic_light(bool(rng.random() < 0.6)).at(11.2, edge))
        fenced = rng.random() < style.railing
        for s in np.arange(16, CHUNK - 4, 4.0).tolist():
            if fenced:
                parts.append(railing(style.tall_lamps).at(s, side * (road + 0.3)))
        for s in np.arange(17.5, CHUNK, 5.5).tolist():
            what, where = rng.random(), s + rng.uniform(-0.7, 0.7)
            if abs(where - 34) < 1.2:  # the lamp's place
                continue
            if what < style.trees:
                kind, scale = int(rng.integers(0, TREES)), rng.uniform(0.75, 1.15)
                parts.append(tree(kind).at(where, side * (road + 1.3), scale=scale))
            elif what < style.trees + style.signs:
                parts.append(sign(int(rng.integers(0, SIGN_KINDS))).at(where, side * (road + rng.uniform(0.5, 1.0))))
            elif what < style.trees + style.signs + 0.14 and not fenced:
                parts += [bollard().at(where + 1.6 * i, side * (road + 0.45)) for i in range(3)]
            elif what > 1 - style.loiterers:
                look, d = int(rng.integers(0, LOOKS)), side * rng.uniform(road + 1.0, self.cut.front(side) - 0.4)
                parts.append(person(look, 0, bool(rng.random() < 0.5)).at(where, d))
        return parts

    def _parked(self, rng: np.random.Generator, k: int, side: int) -> list[Shapes]:
        parts = []
        if not self.cut.parks(side):
            return []
        lane = rng.random() < 0.85  # some blocks have no parking
        for s in np.arange(16.5, CHUNK - 6.2, 6.1).tolist():
            kind, paint = int(rng.integers(0, 4)), int(rng.integers(0, len(PAINTS)))
            slack, way, off = rng.uniform(0, 0.8), rng.random() < 0.15, rng.uniform(-0.12, 0.12)
            if lane and rng.random() < self.style.parked:
                away = (side > 0) != bool(way)
                parked = car(BODIES[kind], paint, side, not away, False)
                parts.append(parked.at(s + slack, side * (self.cut.kerb(side) - 1.15) + off))
        return parts

    # --- what moves ---------------------------------------------------------------------------------------------------

    # Streams: thing i of a stream is everywhere the same thing; where it is follows from t alone.

    def _traffic(self, s: float, t: float, origin: float) -> list[Shapes]:
        return [*self._oncoming(s, t, origin), *self._ahead(s, t, origin)]

    def _oncoming(self, s: float, t: float, origin: float) -> list[Shapes]:
        gap, speed, parts = 31.0, 8.5, []
        first = math.floor((s - 8 + speed * t) / gap)
        for i in range(first, first + int(FAR / gap) + 2):
            u = _traits(self.seed, self._stream + 3, i)
            at = i * gap + 12 * u[0] - speed * t
            if u[1] < self.style.traffic and s - 8 < at < s + FAR:
                parts.append(self._vehicle(u, -1, True).at(at - origin, -self.cut.lane + 0.4 * (u[4] - 0.5)))
        return parts

    def _ahead(self, s: float, t: float, origin: float) -> list[Shapes]:
        """Return the car ahead: it comes in sight, is followed for a while, and draws away."""
        period = 15.0
        i = math.floor(t / period)
        u = _traits(self.seed, self._stream + 4, i)
        if u[1] > self.style.traffic + 0.25:
            return []
        gap = 9 + 9 * u[0] + (FAR - 12) * abs(2 * (t / period - i) - 1) ** 1.7
        return [self._vehicle(u, 1, False).at(s + gap - origin, self.cut.lane + 0.3 * (u[4] - 0.5))]

    def _vehicle(self, u: tuple[float, ...], side: int, oncoming: bool) -> Shapes:
        kind = "bus" if u[2] < self.style.buses else BODIES[int(u[3] * 4)]
        paint = len(PAINTS) - 1 if u[5] < self.style.taxis else int(u[6] * len(PAINTS))
        return car(kind, paint, side, oncoming, True)

    def _walkers(self, s: float, t: float, origin: float) -> list[Shapes]:
        gap, parts = 6.0, []
        for stream, (side, way) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
            speed = way * 1.3
            first = math.floor((s + 2 - speed * t) / gap)
            for i in range(first, first + 13):
                u = _traits(self.seed, self._stream + 10 + stream, i)
                at = i * gap + 5 * u[0] + speed * t
                if u[1] < self.style.walkers and s + 1 < at < s + 75:
                    d = side * (self.cut.kerb(side) + 0.8 + u[2] * (self.cut.pavement - 1.5))
                    phase = int(t * 9 + 8 * u[4]) % PHASES
                    parts.append(person(int(u[3] * LOOKS), phase, False).at(at - origin, d))
        for k in range(math.floor(s / CHUNK), math.floor((s + 90) / CHUNK) + 1):
            if self._crossed(k):
                parts += self._on_zebra(k, t, origin)
        return parts

    def _on_zebra(self, k: int, t: float, origin: float) -> list[Shapes]:
        """Return who walks over the zebra of chunk `k`; the road is free again before the camera arrives."""
        parts = []
        arrival = (k * CHUNK + 11.6) / 8.0
        for i in range(3):
            u = _traits(self.seed, self._stream + 20 + i, k)
            way = 1 if u[0] < 0.5 else -1
            d = way * (self.cut.kerb(way) + 0.5 + 1.4 * (t - arrival + 2.5 + 3 * u[1]))
            if u[2] < self.style.walkers + 0.2 and -self.cut.front(-1) < d < self.cut.front(1):
                walker = person(int(u[3] * LOOKS), int(t * 9) % PHASES, True)
                parts.append(walker.at(k * CHUNK + 12 + 1.6 * u[4] - origin, d))
        return parts
