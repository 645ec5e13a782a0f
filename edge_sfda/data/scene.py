"""A procedural street with exact labels, seen from a camera driving along it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from edge_sfda.data.frames import U8
from edge_sfda.errors import UsageError
from edge_sfda.manifest import Classes

SCENE_CLASSES = Classes(
    names=("sky", "road", "pavement", "building", "tree", "pole", "sign", "car", "person", "fence"),
    palette=(
        (70, 130, 180),
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (107, 142, 35),
        (153, 153, 153),
        (220, 220, 0),
        (0, 0, 142),
        (220, 20, 60),
        (190, 153, 153),
    ),
)


@dataclass(frozen=True)
class Domain:
    """How the street looks: light, weather, sensor."""

    name: str
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)  # BGR
    fog: float = 0.0
    noise: float = 3.0


DOMAINS: dict[str, Domain] = {
    "day": Domain("day"),
    "dusk": Domain("dusk", (0.55, 0.45, 0.55), 0.1, 5),
    "night": Domain("night", (0.3, 0.22, 0.2), 0.0, 9),
    "fog": Domain("fog", (0.95, 0.95, 0.95), 0.6, 3),
    "rain": Domain("rain", (0.75, 0.7, 0.65), 0.3, 6),
    "city": Domain("city"),
    "sensor": Domain("sensor", (0.8, 1.0, 1.25), 0.1, 10),
}


def blend(a: Domain, b: Domain, share: float) -> Domain:
    """Return the domain between `a` (share 0) and `b` (share 1)."""
    gain = tuple((1 - share) * x + share * y for x, y in zip(a.gain, b.gain, strict=True))
    mixed = [(1 - share) * x + share * y for x, y in ((a.fog, b.fog), (a.noise, b.noise))]
    return Domain(f"{a.name}-{b.name}", (gain[0], gain[1], gain[2]), *mixed)


class Scene:
    """A street made from `seed`, drawn at `height` x `width`; the same (seed, t, domain, size) gives the same bytes."""

    def __init__(self, seed: int = 0, height: int = 192, width: int = 256) -> None:
        self.seed, self.height, self.width = seed, height, width

    def render(self, t: float, domain: str | Domain = "day") -> tuple[U8, U8]:
        """Draw the street at `t` seconds.

        Returns:
            image HWC uint8 BGR 0..255, and its label HW uint8 of ids into `SCENE_CLASSES`.

        Raises:
            UsageError: `domain` is not in `DOMAINS`.
        """
        if isinstance(domain, str):
            if domain not in DOMAINS:
                raise UsageError(f"unknown scene domain {domain!r}; choose one of {', '.join(DOMAINS)}")
            domain = DOMAINS[domain]
        h, w = self.height, self.width
        canvas = np.zeros((h, w, 4), np.uint8)
        self._draw(canvas, t)
        label = canvas[..., 3].copy()
        rng = np.random.default_rng([self.seed, int(t * 1000) % 2**31])
        image = canvas[..., :3].astype(np.float32) * np.array(domain.gain, np.float32)
        far = np.linspace(1, 0, h // 2, dtype=np.float32)
        depth = np.concatenate([np.ones(h - h // 2, np.float32), far])[:, None, None] * domain.fog
        image = image * (1 - depth) + 200 * np.array(domain.gain, np.float32) * depth
        image += rng.normal(0, domain.noise, image.shape).astype(np.float32)
        return cast(U8, np.clip(image, 0, 255).astype(np.uint8)), label

    def _draw(self, canvas: U8, t: float) -> None:
        h, w = self.height, self.width
        canvas[:] = (230, 190, 150, 0)
        mid = h // 2
        canvas[mid:] = (150, 155, 160, 2)
        road = np.array([[w // 2, mid], [w // 2, mid], [w, h], [0, h]])
        cv2.fillConvexPoly(canvas, road, (80, 80, 82, 1))
        s = 8 * t
        for i in range(int(s // 6) + 25, int(s // 6), -1):
            for side in (-1, 1):
                self._slot(canvas, i, side, i * 6 - s)

    def _slot(self, canvas: U8, i: int, side: int, z: float) -> None:
        rng = np.random.default_rng([self.seed, i, side + 1])
        colour = rng.integers(60, 210, 3)
        self._quad(canvas, side * 9.0, z, 6, float(rng.integers(6, 18)), colour, 3)
        kind = int(rng.integers(0, 7))
        green = (50, 90 + int(rng.integers(0, 60)), 50)
        if kind == 0:
            self._box(canvas, side * 7, z, 0.3, 2.5, (40, 60, 80), 4)
            self._box(canvas, side * 7, z, 3.5, 6, green, 4, 2.2)
        elif kind == 1:
            self._box(canvas, side * 5.5, z, 0.18, 6, (90, 90, 90), 5)
        elif kind == 2:
            self._box(canvas, side * 5.5, z, 0.12, 2.4, (90, 90, 90), 5)
            self._box(canvas, side * 5.5, z, 0.8, 3, (40, 40, 200), 6, 2.2)
        elif kind in (3, 4):
            self._box(canvas, side * 3.8, z, 1.8, 1.4, colour, 7)
        elif kind == 5:
            self._box(canvas, side * 6.2, z, 0.5, 1.75, colour, 8)
        else:
            self._quad(canvas, side * 8.0, z, 6, 1.2, (60, 90, 120), 9)

    def _uv(self, x: float, y: float, z: float) -> tuple[int, int]:
        f = 0.85 * self.width
        z = max(z, 0.8)
        return int(self.width / 2 + f * x / z), int(self.height / 2 - f * (y - 1.5) / z)

    def _quad(self, canvas: U8, x: float, z: float, length: float, top: float, colour: object, label: int) -> None:
        if z + length < 1:
            return
        points = [(x, 0, z), (x, top, z), (x, top, z + length), (x, 0, z + length)]
        value = (*(int(c) for c in cast("list[int]", colour)), label)
        cv2.fillConvexPoly(canvas, np.array([self._uv(*p) for p in points]), value)

    def _box(
        self, canvas: U8, x: float, z: float, width: float, top: float, colour: object, label: int, low: float = 0
    ) -> None:
        if z < 1:
            return
        points = [(x - width / 2, low, z), (x - width / 2, top, z), (x + width / 2, top, z), (x + width / 2, low, z)]
        value = (*(int(c) for c in cast("list[int]", colour)), label)
        cv2.fillConvexPoly(canvas, np.array([self._uv(*p) for p in points]), value)
