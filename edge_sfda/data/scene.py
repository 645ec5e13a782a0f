"""A procedural street with exact labels, seen from a camera driving along it."""

from __future__ import annotations

import math
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.frames import U8
from edge_sfda.data.scene_domains import DOMAINS, Domain, Sun, blend, domain_of, weather
from edge_sfda.data.scene_light import View, shade
from edge_sfda.data.scene_raster import (
    FIRST,
    SKYLINE,
    Camera,
    Raster,
    World,
    clip_near,
    draw,
    fill,
    look_up,
    planes,
    project,
    select,
)
from edge_sfda.data.scene_shapes import F32, Label, Shapes
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
        street = self._streets.setdefault(domain.style, Street(self.seed, domain.style))
        shapes = street.shapes(t)
        camera = self._camera(street, t)
        world = _world(street, shapes, camera)
        raster = self._raster(street, shapes, world, camera, sun if max(domain.sun) > 0 else None)
        classes = np.concatenate([np.array((Label.SKY, Label.BUILDING)), shapes.label[raster.order]]).astype(np.uint8)
        rng = np.random.default_rng([self.seed, *np.frombuffer(np.float64(t).tobytes(), np.uint32).tolist()])
        image = shade(View(raster, shapes, world.lamps, camera, domain, sun, t), rng)
        return image, cast(U8, np.take(classes, raster.ids))

    def _camera(self, street: Street, t: float) -> Camera:
        s = street.driven(t)
        d = street.size.lane + 0.2 * math.sin(0.23 * t + self.seed % 5)
        ahead = float(street.bend(s + 5) - street.bend(s + 1)) / 4
        climb = float(street.rise(s + 8) - street.rise(s - 2)) / 10
        focal = 0.86 * math.sqrt(self.width * self.height * 4 / 3)
        horizon = self.height * 0.46 + focal * (climb + 0.004 * math.sin(2.1 * t))
        yaw = math.atan(ahead) + 0.015 * math.sin(0.31 * t)
        return Camera(s, d, 1.42, yaw, focal, self.width / 2, horizon)

    def _raster(self, street: Street, shapes: Shapes, world: World, camera: Camera, sun: Sun | None) -> Raster:
        order = select(shapes, world, camera, self.height, self.width)
        canvas = np.zeros((self.height, self.width), np.uint16)
        _skyline(canvas, self.seed, camera)
        draw(shapes, world, camera, order, canvas)
        ids = canvas.astype(np.intp)
        inverse_depth, texture = look_up(ids, planes(shapes, world, camera, order, atlas()), atlas())
        shadow = np.zeros((self.height, self.width), np.uint8)
        if sun is not None:
            _shadows(shadow, street, shapes, camera, sun)
        foot = world.foot[order]
        foot[:, 2] = np.maximum(foot[:, 2], 2)
        return Raster(ids, order, inverse_depth, texture, shadow, project(foot, camera), foot[:, 2])


def _to_camera(street: Street, points: F32, camera: Camera, *, grow: bool = True) -> F32:
    """Return street points [..., 3] (s, d, y) in the camera's axes: right, up, ahead."""
    s = points[..., 0].astype(np.float64)
    z = s - camera.s
    x = street.bend(s) + points[..., 1] - (float(street.bend(camera.s)) + camera.d)
    tall = points[..., 2] * np.clip((FAR - z) / _GROWTH, 0, 1) if grow else points[..., 2]
    y = street.rise(s) + tall - (float(street.rise(camera.s)) + camera.y)
    cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
    return np.stack([x * cos - z * sin, y, x * sin + z * cos], axis=-1).astype(np.float32)


def _world(street: Street, shapes: Shapes, camera: Camera) -> World:
    start = np.concatenate([[0], np.cumsum(shapes.counts)[:-1]]).astype(np.int32)
    foot = np.concatenate([shapes.anchor, np.zeros((len(shapes.anchor), 1), np.float32)], axis=1)
    return World(
        points=_to_camera(street, shapes.points, camera),
        frame=_to_camera(street, shapes.frame, camera),
        start=start,
        foot=_to_camera(street, foot, camera),
        lamps=_to_camera(street, shapes.lamps, camera),
    )


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
    fill(canvas, corners, SKYLINE, convex=False)


def _shadows(shadow: U8, street: Street, shapes: Shapes, camera: Camera, sun: Sun) -> None:
    """Fill the shadows that `casts` shapes throw on the ground."""
    near = shapes.casts & (np.abs(shapes.anchor[:, 0] - camera.s - 30) < 50)
    start = np.concatenate([[0], np.cumsum(shapes.counts)[:-1]])
    slope = np.array((-sun.s, -sun.d)) / max(sun.y, 0.12)
    points = shapes.points.copy()
    points[:, :2] += points[:, 2:] * slope.astype(np.float32)
    points[:, 2] = 0
    flat = _to_camera(street, points, camera)
    z_near = np.minimum.reduceat(flat[:, 2], start.astype(np.int32))
    z_far = np.maximum.reduceat(flat[:, 2], start.astype(np.int32))
    for i in np.flatnonzero(near & (z_far > 1)).tolist():
        corners = flat[start[i] : start[i] + shapes.counts[i]]
        if z_near[i] < 0.7:
            corners = clip_near(corners)
        if len(corners) >= 3:
            fill(shadow, project(corners, camera), 255, convex=len(corners) <= 4)
    cv2.GaussianBlur(shadow, (3, 3), 0, dst=shadow)
