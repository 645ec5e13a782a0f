"""Sky, haze, wet ground, rain and the glow of lights, on planes [3, H, W] float32 BGR of linear light."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.scene_light import View, planes_of
from edge_sfda.data.scene_shapes import F32, Surface
from edge_sfda.data.scene_textures import CLOUD_SIZE, clouds, streaks

_DENSE = 0.02  # 1/m: haze that hides the sky as well


def sky(view: View) -> F32:
    """Return [3, R, W] the sky of the rows that can show any: colour of the air, sun, clouds."""
    camera, domain = view.camera, view.domain
    height, width = view.raster.ids.shape
    rows = int(min(max(math.ceil(camera.horizon) + 6, 1), height))
    v = (np.float32(camera.horizon - 0.5) - np.arange(rows, dtype=np.float32)) / np.float32(camera.focal)
    up = np.maximum(v, 0)[:, None]
    low = np.exp(np.float32(-4.5) * up)
    out = np.empty((3, rows, width), np.float32)
    out[:] = planes_of(domain.sky_low) * low + planes_of(domain.sky_high) * (1 - low)
    if max(domain.sun) > 0:
        out += _sunglow(view, v) * planes_of(domain.sun)
    if domain.cloud > 0:
        density = _cloud(view, rows)
        share = np.clip((density + np.float32(2.2 * domain.cloud - 1.2)) * np.float32(0.9), 0, np.float32(0.95))
        share *= np.clip(up * 14, np.float32(0.15), 1)
        lit = np.clip(np.float32(1.08) - np.float32(0.16) * density, np.float32(0.75), np.float32(1.15))
        cloud = np.float32(0.75) * planes_of(domain.cloud_rgb) + np.float32(0.25) * planes_of(domain.sky_low)
        out += (lit * cloud - out) * share
    return out


def _sunglow(view: View, v: F32) -> F32:
    """Return [R, W] how bright the sun makes the sky around it."""
    camera, sun = view.camera, view.sun
    bearing = (math.atan2(sun.d, sun.s) - camera.yaw + math.pi) % (2 * math.pi) - math.pi
    width = view.raster.ids.shape[1]
    u = (np.arange(width, dtype=np.float32) + np.float32(0.5 - camera.centre)) / np.float32(camera.focal)
    across = (np.arctan(u) - np.float32(bearing))[None] ** 2
    along = (np.arctan(v) - np.float32(math.asin(sun.y)))[:, None] ** 2
    if float(across.min() + along.min()) > 1:  # behind us
        return np.zeros((1, 1), np.float32)
    wide, narrow = np.float32(-1 / 0.12), np.float32(-1 / 0.0012)  # Gaussians are products of a row and a column
    halo = np.float32(0.5) * np.exp(across * wide) * np.exp(along * wide)
    halo += 6 * np.exp(across * narrow) * np.exp(along * narrow)
    return np.asarray(halo, np.float32)


def _cloud(view: View, rows: int) -> F32:
    """Return [rows, W] cloud density: a plane far overhead that the wind moves; made at half size, as it is soft."""
    camera = view.camera
    scale = 60.0  # texture pixels per height of the plane
    width = view.raster.ids.shape[1]
    cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
    up = np.array([0, -1, camera.horizon + 8])  # +8: at the horizon itself the plane would lie at infinity
    right, ahead = np.array([1, 0, -camera.centre]) * scale, np.array([0, 0, camera.focal]) * scale
    x = right * cos + ahead * sin + up * ((view.t * 0.9) % CLOUD_SIZE)
    z = ahead * cos - right * sin + up * ((view.t * 1.7) % CLOUD_SIZE)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    matrix = np.stack([x, z, up]) @ np.diag((2.0, 2.0, 1.0))
    size = ((width + 1) // 2, (rows + 1) // 2)
    seen = cv2.warpPerspective(clouds(), matrix, size, flags=flags, borderMode=cv2.BORDER_WRAP)
    return np.asarray(cv2.resize(seen, (width, rows)), np.float32)


def add_haze(view: View, picture: F32, is_sky: NDArray[np.bool_]) -> None:
    """Mix the air's colour in with distance, in place; a clear sky has its own colour already.

    Args:
        view: what is seen.
        picture: [3, H, W].
        is_sky: [R, W] of the first R rows.
    """
    domain = view.domain
    through = np.exp(np.float32(-domain.haze) / view.raster.inverse_depth)
    if domain.haze < _DENSE:
        np.copyto(through[: len(is_sky)], 1, where=is_sky)
    air = planes_of(domain.haze_rgb)
    picture -= air
    picture *= through
    picture += air


def add_wetness(
    view: View, picture: F32, glow: F32 | None, surface: NDArray[np.int8], grain: NDArray[np.uint8]
) -> None:
    """Darken the ground and mirror in it what stands above, in place: more in puddles and far away; lights streak."""
    domain, camera, top = view.domain, view.camera, view.first_ground_row
    height = picture.shape[1]
    rows = np.arange(top, height)
    above = np.clip(np.rint(2 * camera.horizon - rows), 0, top - 1).astype(np.intp)
    steep = np.clip((rows - camera.horizon) / height, 0.02, 1).astype(np.float32)[:, None]
    puddle = grain[..., 2].astype(np.float32) / 255
    wet = (surface[top:] != Surface.STANDING).astype(np.float32) * np.float32(domain.wet)
    share = np.clip((np.clip(0.08 + 0.055 / steep, 0, 0.55) * (0.35 + 0.9 * puddle)) * wet, 0, 0.8)
    dark = 1 - np.float32(0.35) * wet
    for channel in range(3):
        mirror = cv2.blur(np.minimum(picture[channel, above], 1.5), (3, max(3, height // 16 | 1)))
        if glow is not None:
            streak = cv2.blur(glow[channel], (3, height // 4 | 1))[np.maximum(rows - height // 10, 0)]
            mirror = mirror + streak * np.float32(1.6)
        part = picture[channel, top:]
        part *= dark
        part += (mirror - part) * share


def add_bloom(picture: F32) -> None:
    """Let what is brighter than white shine over its surroundings, in place."""
    height, width = picture.shape[1:]
    excess = np.maximum(picture - np.float32(0.9), 0)
    size = (width // 4, height // 4)
    bright = cv2.merge([cv2.resize(plane, size, interpolation=cv2.INTER_AREA) for plane in excess])
    soft = cv2.GaussianBlur(bright, (0, 0), max(width / 256 * 1.2, 0.5))
    soft = soft + np.float32(0.35) * cv2.GaussianBlur(bright, (0, 0), width / 64)
    for plane, light in zip(picture, cv2.split(soft), strict=True):
        plane += cv2.resize(light, (width, height)) * np.float32(0.7)


def add_rain(view: View, picture: F32, rng: np.random.Generator) -> None:
    """Add falling drops, in place; `rng` says where they are in this frame."""
    tile = streaks()
    height, width = picture.shape[1:]
    y, x = (rng.integers(0, n) for n in tile.shape)
    drops = tile[np.ix_((np.arange(height) + y) % tile.shape[0], (np.arange(width) + x) % tile.shape[1])]
    picture += drops * (planes_of(view.domain.haze_rgb) * np.float32(0.45 * view.domain.rain))
