"""What light does to surfaces: from what each pixel shows to linear colour, as planes [3, H, W] float32 BGR."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.scene_domains import RGB, Domain, Sun
from edge_sfda.data.scene_raster import FIRST, SKYLINE, Camera, Raster
from edge_sfda.data.scene_shapes import F32, Glow, Label, Shapes, Surface
from edge_sfda.data.scene_textures import GROUND_SCALE, GROUND_SIZE, GROUND_UNIT, ground

_LAMP_RGB: RGB = (1.0, 0.72, 0.40)
_ROOM_RGB: RGB = (1.0, 0.74, 0.42)
_BEAM_RGB: RGB = (1.0, 0.95, 0.85)
_GLOW_RGB: dict[Glow, RGB] = {
    Glow.LAMP: (6.0, 4.6, 2.8),
    Glow.HEAD: (7.0, 6.8, 6.0),
    Glow.TAIL: (2.2, 0.08, 0.05),
    Glow.GREEN: (0.1, 2.2, 1.0),
    Glow.RED: (2.6, 0.12, 0.06),
}
_SKYLINE_BGR = (0.15, 0.16, 0.16)
_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** 2  # gamma 2 both ways: cheap, and close enough to sRGB

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class View:
    """All that shading reads.

    Args:
        raster: what each pixel shows.
        shapes: what the raster's numbers mean.
        lamps: [L, 3] float32 where street lamps are, in the camera's axes, metres.
        camera, domain, sun: as they are now.
        t: seconds.
    """

    raster: Raster
    shapes: Shapes
    lamps: F32
    camera: Camera
    domain: Domain
    sun: Sun
    t: float

    @property
    def first_ground_row(self) -> int:
        """The row from which on level ground is near enough to show its grain."""
        return int(min(max(math.floor(self.camera.horizon) + 3, 0), self.raster.ids.shape[0] - 1))


def shadow_strength(domain: Domain) -> float:
    """Return how dark shadows are, 0..1: a weak sun is a low one, before which the whole street lies in shade."""
    return min(max((max(domain.sun) - 0.2) / 0.2, 0.0), 1.0)


def planes_of(rgb: RGB) -> F32:
    """Return a colour as [3, 1, 1] BGR, to mix into planes."""
    return np.array(rgb[::-1], np.float32).reshape(3, 1, 1)


def per_pixel(view: View, values: NDArray[_Scalar], outside: Any = 0) -> NDArray[_Scalar]:
    """Return [H, W] each pixel's own of `values` [N], one a shape; sky and skyline get `outside`."""
    table = np.concatenate([np.full(FIRST, outside, values.dtype), values[view.raster.order]])
    return np.asarray(np.take(table, view.raster.ids), values.dtype)


def light_up(view: View, surface: NDArray[np.int8], grain: NDArray[np.uint8]) -> tuple[F32, F32 | None]:
    """Return the picture in linear light [3, H, W], and of it what shines by itself (None in daylight).

    Args:
        view: what is seen.
        surface: [H, W] the `Surface` of each pixel.
        grain: the ground's texture from `ground_grain`.
    """
    texture = cv2.split(cv2.LUT(view.raster.texture, _LINEAR))
    picture = _albedo(view, surface, grain, texture)
    picture *= _light(view, surface)
    if view.domain.lamps == 0:
        return picture, None
    glow = _glow(view, np.asarray(texture[3], np.float32))
    picture += glow
    return picture, glow


# --- surfaces ---------------------------------------------------------------------------------------------------------


def ground_grain(view: View) -> NDArray[np.uint8]:
    """Return [H - first_ground_row, W, 3] the ground's texture as the camera sees it (see `scene_textures.ground`)."""
    camera, top = view.camera, view.first_ground_row
    height, width = view.raster.ids.shape
    cos, sin = math.cos(camera.turn), math.sin(camera.turn)
    # A pixel at row v sees the plane at depth z = focal * y / (v - horizon): all of it is linear over (v - horizon).
    right = np.array([camera.y, 0, -camera.y * camera.centre]) * GROUND_SCALE
    ahead = np.array([0, 0, camera.y * camera.focal]) * GROUND_SCALE
    down = np.array([0, 1, top - camera.horizon])
    x = right * cos + ahead * sin + down * ((camera.d * GROUND_SCALE) % GROUND_SIZE)
    z = ahead * cos - right * sin + down * ((camera.s * GROUND_SCALE) % GROUND_SIZE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (width, height - top)
    seen = cv2.warpPerspective(ground(), np.stack([x, z, down]), size, flags=flags, borderMode=cv2.BORDER_WRAP)
    return np.asarray(seen, np.uint8)


def _albedo(view: View, surface: NDArray[np.int8], grain: NDArray[np.uint8], texture: Any) -> F32:
    raster, top = view.raster, view.first_ground_row
    tint = np.zeros((3, FIRST + len(raster.order)), np.float32)
    tint[:, SKYLINE] = _SKYLINE_BGR
    tint[:, FIRST:] = view.shapes.bgr[raster.order].T ** 2
    albedo = np.empty((3, *raster.ids.shape), np.float32)
    for channel in range(3):
        np.multiply(np.take(tint[channel], raster.ids), texture[channel], out=albedo[channel])
    factor = np.full(surface[top:].shape, GROUND_UNIT, np.uint8)
    for kind, channel in ((Surface.ASPHALT, 0), (Surface.PAVING, 1)):
        np.copyto(factor, grain[..., channel], where=surface[top:] == kind)
    rows = np.arange(top, raster.ids.shape[0], dtype=np.float32) + np.float32(0.5 - view.camera.horizon)
    sharp = np.clip(rows / np.float32(view.camera.y * 14), 0, 1)[:, None]  # pixels a metre, of 14: finer would flicker
    albedo[:, top:] *= 1 + (factor.astype(np.float32) / GROUND_UNIT - 1) * sharp
    return albedo


# --- light ------------------------------------------------------------------------------------------------------------


def _light(view: View, surface: NDArray[np.int8]) -> F32:
    """Return [3, H, W] how much light falls on each pixel."""
    domain, raster = view.domain, view.raster
    light = np.empty((3, *raster.ids.shape), np.float32)
    light[:] = planes_of(domain.ambient)
    if max(domain.sun) > 0:
        direct = per_pixel(view, _sunlit(view), 0.5)
        shadow = raster.shadow.astype(np.float32)
        np.copyto(shadow, 0, where=surface == Surface.STANDING)
        direct *= 1 - shadow * np.float32(shadow_strength(domain) / 255)
        light += direct * planes_of(domain.sun)
    if domain.lamps > 0:
        lamps, beam = _lamplight(view)
        light += lamps * planes_of(_LAMP_RGB)
        light += beam * planes_of(_BEAM_RGB)
    return light


def _sunlit(view: View) -> F32:
    """Return [N] the share of direct light on each shape; things whose foot lies in shadow get little."""
    shapes, raster = view.shapes, view.raster
    toward = np.array((view.sun.s, view.sun.d, view.sun.y), np.float32)
    facing = np.clip(shapes.normal @ toward, 0, 1).astype(np.float32)
    height, width = raster.ids.shape
    column = np.clip(raster.feet[:, 0], 0, width - 1).astype(np.intp)
    row = np.clip(raster.feet[:, 1], 0, height - 1).astype(np.intp)
    covered = raster.shadow[row, column] > 127
    low = (shapes.surface[raster.order] == Surface.STANDING) & (shapes.label[raster.order] != Label.BUILDING)
    facing[raster.order[covered & low]] *= 0.25
    return cast(F32, facing)


def _lamplight(view: View) -> tuple[F32, F32]:
    """Return [H, W] light of street lamps, and of our own headlights; computed at half size, as it is smooth."""
    camera, strength = view.camera, view.domain.lamps
    height, width = view.raster.ids.shape
    half = ((width + 1) // 2, (height + 1) // 2)
    depth = 1 / np.asarray(cv2.resize(view.raster.inverse_depth, half, interpolation=cv2.INTER_NEAREST), np.float32)
    u = (np.arange(half[0], dtype=np.float32) * 2 + np.float32(1 - camera.centre))[None] / np.float32(camera.focal)
    v = (np.float32(camera.horizon - 1) - np.arange(half[1], dtype=np.float32) * 2)[:, None] / np.float32(camera.focal)
    x, y = u * depth, v * depth
    total = np.zeros(depth.shape, np.float32)
    near = view.lamps[(view.lamps[:, 2] > -8) & (view.lamps[:, 2] < 75)]
    for lamp_x, lamp_y, lamp_z in near.tolist():
        drop = np.maximum(lamp_y - y, 0)  # lamps shine downwards
        squared = (x - lamp_x) ** 2 + (depth - lamp_z) ** 2 + drop**2 + 3
        total += (1.8 + 12 * drop / np.sqrt(squared)) / squared
    # Dipped beams: a flat fan below the horizon, with a little spill above it.
    beam = np.exp(-((u / 0.42) ** 2)) / (1 + np.exp((v + 0.005) * 90))
    beam = beam + 0.05 * np.exp(-((u / 0.3) ** 2)) * np.exp(-((v / 0.2) ** 2))
    beam *= np.clip(depth / 9, 0, 1) / (1 + (depth / 14) ** 2)  # it meets the ground some metres ahead
    lamps, beams = (cv2.resize(f * np.float32(strength), (width, height)) for f in (total, beam))
    return np.asarray(lamps, np.float32), np.asarray(beams, np.float32)


def _glow(view: View, room: F32) -> F32:
    """Return [3, H, W] what shines by itself: lamps, and lit rooms of brightness `room` [H, W]."""
    strength = view.domain.lamps
    glow = room * (planes_of(_ROOM_RGB) * np.float32(0.75 * strength))
    kinds = per_pixel(view, view.shapes.glow.astype(np.int8))
    for kind, rgb in _GLOW_RGB.items():
        lit = kinds == kind
        if lit.any():
            glow[:, lit] = planes_of(rgb).reshape(3, 1) * np.float32(0.25 + 0.75 * strength)
    return glow
