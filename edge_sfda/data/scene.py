"""A procedural street with exact labels, seen from a camera driving along it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.frames import U8
from edge_sfda.data.scene_air import add_bloom, add_haze, add_rain, add_wetness, sky
from edge_sfda.data.scene_domains import DOMAINS, Domain, Sun, blend, domain_of, weather
from edge_sfda.data.scene_light import View, ground_grain, light_up, per_pixel, shadow_strength
from edge_sfda.data.scene_raster import (
    FIRST,
    SKY,
    SKYLINE,
    Camera,
    Raster,
    World,
    fill,
    fixed_point,
    look_up,
    planes,
    project,
    select,
    visible,
)
from edge_sfda.data.scene_sensor import expose
from edge_sfda.data.scene_shapes import F32, I32, Label, Shapes
from edge_sfda.data.scene_street import FAR, Street
from edge_sfda.data.scene_textures import atlas
from edge_sfda.errors import UsageError
from edge_sfda.manifest import Classes

__all__ = ["DOMAINS", "SCENE_CLASSES", "Domain", "Scene", "blend"]

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

_LOWEST_SUN = 0.12  # sine of its height: shadows longer than eight times their thing would cover all
_GROWTH = 25.0  # metres before the end of sight over which things rise from the ground instead of popping up


class Scene:
    """A street made from `seed`, drawn at `height` x `width`; the same (seed, t, domain, size) gives the same bytes.

    Args:
        seed: decides layout, traffic, weather; 0..2^32-1.
        height, width: of the picture, at least 16.

    Raises:
        UsageError: a value is out of range.
    """

    def __init__(self, seed: int = 0, height: int = 192, width: int = 256) -> None:
        if not (0 <= seed < 2**32 and 16 <= height <= 8192 and 16 <= width <= 8192):
            raise UsageError(f"scene of seed {seed}, {height}x{width}: expected seed 0..2^32-1, sides of 16..8192")
        self.seed, self.height, self.width = seed, height, width
        self._streets: dict[str, Street] = {}

    def render(self, t: float, domain: str | Domain = "day") -> tuple[U8, U8]:
        """Draw the street at `t` seconds; the camera drives at about 8 m/s.

        Returns:
            image HWC uint8 BGR 0..255, and its label HW uint8 of ids into `SCENE_CLASSES`, exact to the pixel and equal
            in all domains of one style.

        Raises:
            UsageError: `domain` is not in `DOMAINS`, or `t` is negative or not finite.
        """
        if not 0 <= t < 1e7:
            raise UsageError(f"scene time {t!r} s must lie in 0..1e7")
        domain = domain_of(domain) if isinstance(domain, str) else domain
        domain, sun = weather(domain, self.seed, t)
        if domain.style not in self._streets:
            self._streets[domain.style] = Street(self.seed, domain.style)
        street = self._streets[domain.style]
        origin, shapes = street.origin(t), street.shapes(t)
        camera = self._camera(street, t, origin)
        place = _Place(street, origin, camera)
        world = place.world(shapes)
        raster = self._raster(place, shapes, world, sun if shadow_strength(domain) > 0 else None)
        classes = np.concatenate([np.array((Label.SKY, Label.BUILDING)), shapes.label[raster.order]]).astype(np.uint8)
        image = self._shade(View(raster, shapes, world.lamps, camera, domain, sun, t))
        return image, cast(U8, np.take(classes, raster.ids))

    def _camera(self, street: Street, t: float, origin: float) -> Camera:
        s = street.driven(t) - origin
        d = street.cut.lane + 0.2 * math.sin(0.23 * t + self.seed % 5)
        bend = street.bend(np.array((s, s + 1, s + 5), np.float32), origin)
        rise = street.rise(np.array((s - 2, s + 8), np.float32), origin)
        focal = 0.86 * math.sqrt(self.width * self.height * 4 / 3)
        horizon = self.height * 0.46 + focal * (float(rise[1] - rise[0]) / 10 + 0.004 * math.sin(2.1 * t))
        yaw = math.atan(float(bend[2] - bend[1]) / 4) + 0.015 * math.sin(0.31 * t)
        turn = yaw - math.atan(float(bend[1] - bend[0]))
        return Camera(s, d, 1.42, yaw, turn, focal, self.width / 2, horizon)

    def _shade(self, view: View) -> U8:
        domain = view.domain
        rng = np.random.default_rng([self.seed, *np.frombuffer(np.float64(view.t).tobytes(), np.uint32).tolist()])
        surface = per_pixel(view, view.shapes.surface.astype(np.int8))
        grain = ground_grain(view)
        picture, glow = light_up(view, surface, grain)
        above = sky(view)
        is_sky = view.raster.ids[: above.shape[1]] == SKY
        np.copyto(picture[:, : above.shape[1]], above, where=is_sky)
        if domain.wet > 0:
            add_wetness(view, picture, glow, surface, grain)
        add_haze(view, picture, is_sky)
        if glow is not None:
            add_bloom(picture)
        if domain.rain > 0:
            add_rain(view, picture, rng)
        return expose(domain, picture, rng)

    def _raster(self, place: _Place, shapes: Shapes, world: World, sun: Sun | None) -> Raster:
        camera = place.camera
        order = select(shapes, world, camera, self.height, self.width)
        canvas = np.zeros((self.height, self.width), np.uint16)
        _skyline(canvas, self.seed, camera)
        values = range(FIRST, FIRST + len(order))
        fill(canvas, world.points, world.start, shapes.counts, order, values, camera)
        ids = canvas.astype(np.intp)
        inverse_depth, texture = look_up(ids, planes(shapes, world, camera, order, atlas()), atlas())
        shadow = np.zeros((self.height, self.width), np.uint8)
        if sun is not None:
            _shadows(shadow, place, shapes, world.start, sun)
        foot = world.foot[order]
        foot[:, 2] = np.maximum(foot[:, 2], 2)
        return Raster(ids, order, inverse_depth, texture, shadow, project(foot, camera))


@dataclass(frozen=True)
class _Place:
    """Where on which street the camera is: bends street coordinates into the camera's axes."""

    street: Street
    origin: float
    camera: Camera

    def seen(self, points: F32) -> F32:
        """Return street points [..., 3] (s, d, y) as right, up, ahead of the camera in metres."""
        street, camera = self.street, self.camera
        s = points[..., 0]
        here = np.array((camera.s,), np.float32)
        z = s - here
        x = street.bend(s, self.origin) - street.bend(here, self.origin) + (points[..., 1] - np.float32(camera.d))
        tall = points[..., 2] * np.clip((np.float32(FAR) - z) / np.float32(_GROWTH), 0, 1)
        y = street.rise(s, self.origin) - street.rise(here, self.origin) + tall - np.float32(camera.y)
        cos, sin = np.float32(math.cos(camera.yaw)), np.float32(math.sin(camera.yaw))
        return np.stack([x * cos - z * sin, y, x * sin + z * cos], axis=-1)

    def world(self, shapes: Shapes) -> World:
        """Return all parts of `shapes` in the camera's axes."""
        start = np.concatenate([[0], np.cumsum(shapes.counts)[:-1]]).astype(np.int32)
        foot = np.concatenate([shapes.anchor, np.zeros((len(shapes.anchor), 1), np.float32)], axis=1)
        points, frame, lamps = self.seen(shapes.points), self.seen(shapes.frame), self.seen(shapes.lamps)
        return World(points, frame, start, self.seen(foot), lamps)


def _skyline(canvas: NDArray[np.uint16], seed: int, camera: Camera) -> None:
    """Fill the far town's outline, which turns with the camera but never comes nearer."""
    width = canvas.shape[1]
    u = np.arange(0, width + 4, 4, dtype=np.float32)
    angle = np.arctan((u - camera.centre) / camera.focal) + camera.yaw
    heights = np.random.default_rng([seed, 300]).uniform(0.012, 0.05, 512)
    rise = heights[np.floor(angle * 60).astype(np.intp) % 512]
    top = np.stack([u, camera.horizon - camera.focal * rise], axis=-1)
    low = camera.horizon + 0.02 * camera.focal
    corners = np.concatenate([top, [(width + 4, low), (0, low)]]).astype(np.float32)
    cv2.fillPoly(canvas, [fixed_point(corners)], SKYLINE, cv2.LINE_8, 4)


def _shadows(shadow: U8, place: _Place, shapes: Shapes, start: I32, sun: Sun) -> None:
    """Fill the shadows that `casts` shapes throw on the ground; soft by one pixel."""
    slope = np.array((-sun.s, -sun.d), np.float32) / np.float32(max(sun.y, _LOWEST_SUN))
    points = shapes.points.copy()
    points[:, :2] += points[:, 2:] * slope
    points[:, 2] = 0
    points, camera = place.seen(points), place.camera
    near = shapes.casts & (np.abs(shapes.anchor[:, 0] - np.float32(camera.s + 25)) < 40)
    index = np.flatnonzero(near & visible(points, start, camera, *shadow.shape)).astype(np.int32)
    # All shadows are the same dark, so their order does not matter.
    fill(shadow, points, start, shapes.counts, index, [255] * len(index), camera)
    cv2.GaussianBlur(shadow, (3, 3), 0, dst=shadow)
