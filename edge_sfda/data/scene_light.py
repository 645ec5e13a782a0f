"""Light, air and sensor: from what each pixel shows to a picture. Linear light throughout, BGR float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.frames import U8
from edge_sfda.data.scene_domains import RGB, Domain, Sun
from edge_sfda.data.scene_raster import FIRST, Camera, Raster
from edge_sfda.data.scene_shapes import F32, Glow, Label, Shapes, Surface
from edge_sfda.data.scene_textures import CLOUD_SIZE, GROUND_SCALE, GROUND_SIZE, clouds, grain, ground, streaks

_LAMP_RGB: RGB = (1.0, 0.72, 0.40)
_ROOM_RGB: RGB = (1.0, 0.74, 0.42)
_GLOW_RGB: dict[Glow, RGB] = {
    Glow.LAMP: (6.0, 4.6, 2.8),
    Glow.HEAD: (7.0, 6.8, 6.0),
    Glow.TAIL: (2.2, 0.08, 0.05),
    Glow.GREEN: (0.1, 2.2, 1.0),
    Glow.RED: (2.6, 0.12, 0.06),
}
_LINEAR = (np.arange(256, dtype=np.float32) / 255) ** 2  # gamma 2 both ways: cheap, and close enough to sRGB


def _bgr(rgb: RGB) -> F32:
    return np.array(rgb[::-1], np.float32)


@dataclass(frozen=True, eq=False)
class View:
    """All that shading reads: the raster, its shapes, the camera, the hour."""

    raster: Raster
    shapes: Shapes
    lamps: F32  # [L, 3] in the camera's axes
    camera: Camera
    domain: Domain
    sun: Sun
    t: float


def shade(view: View, rng: np.random.Generator) -> U8:
    """Return the picture, HWC uint8 BGR; `rng` places noise and rain of this frame."""
    domain = view.domain
    surface = _per_id(view, view.shapes.surface, 0).astype(np.int8)
    albedo = _albedo(view, surface)
    light = _light(view, surface)
    picture = albedo * light
    glow = _glow(view)
    if glow is not None:
        picture += glow
    sky = _sky(view)
    rows = sky.shape[0]
    is_sky = (view.raster.ids[:rows] == 0)[..., None]
    np.copyto(picture[:rows], sky, where=is_sky)
    if domain.wet > 0:
        _wet(view, picture, glow, surface)
    _haze(view, picture, rows, is_sky)
    if glow is not None:
        _bloom(picture)
    if domain.rain > 0:
        _rain(view, picture, rng)
    return _sensor(domain, picture, rng)


def _per_id(view: View, values: NDArray[np.generic], outside: float) -> NDArray[np.generic]:
    """Return [H, W] the value of each pixel's shape; sky and skyline get `outside`."""
    table = np.concatenate([np.full(FIRST, outside, values.dtype), values[view.raster.order]])
    return np.take(table, view.raster.ids)


# --- surfaces ----------------------------------------------------------------------------------------------------------


def _albedo(view: View, surface: NDArray[np.int8]) -> F32:
    raster, shapes = view.raster, view.shapes
    tint = np.concatenate([np.zeros((FIRST, 3), np.float32), shapes.bgr[raster.order] ** 2])
    tint[1] = (0.16, 0.16, 0.15)  # skyline
    albedo = np.take(tint, raster.ids, axis=0)
    albedo *= np.take(_LINEAR, raster.texture[..., :3])
    top = _first_ground_row(view)
    texture = _ground(view, top)
    kind = surface[top:]
    factor = np.ones(kind.shape, np.float32)
    for value, channel in ((Surface.ASPHALT, 0), (Surface.PAVING, 1)):
        np.copyto(factor, texture[..., channel], where=kind == value)
    albedo[top:] *= factor[..., None]
    return albedo


def _first_ground_row(view: View) -> int:
    height = view.raster.ids.shape[0]
    return int(min(max(math.floor(view.camera.horizon) + 3, 0), height - 1))


def _ground(view: View, top: int) -> F32:
    """Return [H - top, W, 3] the ground's grain as the camera sees it, fading where it would flicker."""
    camera = view.camera
    height, width = view.raster.ids.shape
    cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
    scale = GROUND_SCALE
    # A pixel at row v sees the plane at depth z = focal * y / (v - horizon): all of it is linear over (v - horizon).
    lever = camera.y / 1.0
    right = np.array([lever, 0, -lever * camera.centre])
    ahead = np.array([0, 0, lever * camera.focal])
    down = np.array([0, 1, top - camera.horizon])
    x = (right * cos + ahead * sin) * scale + down * ((camera.d * scale) % GROUND_SIZE)
    z = (ahead * cos - right * sin) * scale + down * ((camera.s * scale) % GROUND_SIZE)
    matrix = np.stack([x, z, down])
    seen = cv2.warpPerspective(
        ground(), matrix, (width, height - top), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_WRAP
    )
    rows = np.arange(top, height, dtype=np.float32) + np.float32(0.5 - camera.horizon)
    sharp = np.clip(rows / np.float32(camera.y) / np.float32(14), 0, 1)[:, None, None]  # pixels a metre, of 14
    out = seen.astype(np.float32, copy=False)
    out[..., :2] = 1 + (out[..., :2] - 1) * sharp
    return cast(F32, out)


# --- light -------------------------------------------------------------------------------------------------------------


def _light(view: View, surface: NDArray[np.int8]) -> F32:
    """Return [H, W, 3] how much light falls on each pixel."""
    domain, raster = view.domain, view.raster
    light = np.empty((*raster.ids.shape, 3), np.float32)
    light[:] = _bgr(domain.ambient)
    if max(domain.sun) > 0:
        direct = _per_id(view, _sunlit(view), 0.5).astype(np.float32, copy=False)
        shadow = raster.shadow.astype(np.float32) * np.float32(1 / 255)
        np.copyto(shadow, 0, where=surface == Surface.STANDING)
        direct = direct * (1 - shadow)
        light += direct[..., None] * _bgr(domain.sun)
    if domain.lamps > 0:
        light += _lamplight(view)
    return light


def _sunlit(view: View) -> F32:
    """Return [N] the share of direct light on each shape; things whose foot lies in shadow get little."""
    shapes, raster = view.shapes, view.raster
    facing = np.clip(shapes.normal @ np.array((view.sun.s, view.sun.d, view.sun.y), np.float32), 0, 1)
    height, width = raster.ids.shape
    column = np.clip(raster.feet[:, 0], 0, width - 1).astype(np.intp)
    row = np.clip(raster.feet[:, 1], 0, height - 1).astype(np.intp)
    covered = raster.shadow[row, column] > 127
    standing = shapes.surface[raster.order] == Surface.STANDING
    not_wall = shapes.label[raster.order] != Label.BUILDING
    dim = np.ones(len(facing), np.float32)
    dim[raster.order[covered & standing & not_wall]] = 0.25
    return cast(F32, facing.astype(np.float32) * dim)


def _lamplight(view: View) -> F32:
    """Return [H, W, 3] light of street lamps and of our own headlights, computed at half size."""
    camera, strength = view.camera, view.domain.lamps
    height, width = view.raster.ids.shape
    depth = 1 / cv2.resize(view.raster.inverse_depth, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_NEAREST)
    h, w = depth.shape
    u = (np.arange(w, dtype=np.float32) * 2 + 1 - camera.centre)[None] / np.float32(camera.focal)
    v = (camera.horizon - np.arange(h, dtype=np.float32) * 2 - 1)[:, None] / np.float32(camera.focal)
    x, y = u * depth, v * depth
    total = np.zeros((h, w), np.float32)
    near = view.lamps[(view.lamps[:, 2] > -8) & (view.lamps[:, 2] < 75)]
    for lx, ly, lz in near.tolist():
        drop = np.maximum(ly - y, 0)  # lamps shine downwards
        squared = (x - lx) ** 2 + (depth - lz) ** 2 + drop**2 + 3
        total += 16 * (0.15 + drop / np.sqrt(squared)) / squared
    lamps = total[..., None] * (_bgr(_LAMP_RGB) * strength)
    # Dipped beams: a flat fan below the horizon, with a little spill above it.
    beam = np.exp(-((u / 0.42) ** 2)) / (1 + np.exp((v + 0.005) * 90)) + 0.05 * np.exp(-((u / 0.3) ** 2) - (v / 0.2) ** 2)
    lamps += (beam * 1.1 / (1 + (depth / 13) ** 2))[..., None] * (_bgr((1.0, 0.95, 0.85)) * strength)
    return cast(F32, cv2.resize(lamps, (width, height), interpolation=cv2.INTER_LINEAR))


def _glow(view: View) -> F32 | None:
    """Return [H, W, 3] what shines by itself, or None in full daylight."""
    strength = view.domain.lamps
    if strength == 0:
        return None
    kinds = np.zeros((max(Glow) + 1, 3), np.float32)
    for kind, rgb in _GLOW_RGB.items():
        kinds[kind] = _bgr(rgb) * (0.25 + 0.75 * strength)
    kind_of = _per_id(view, view.shapes.glow, Glow.NONE)
    glow = np.take(kinds, kind_of, axis=0)
    room = np.take(_LINEAR, view.raster.texture[..., 3]) * np.float32(0.75 * strength)
    glow += room[..., None] * _bgr(_ROOM_RGB)
    return glow


# --- air ---------------------------------------------------------------------------------------------------------------


def _sky(view: View) -> F32:
    """Return [R, W, 3] the sky of the rows that can show any."""
    camera, domain = view.camera, view.domain
    height, width = view.raster.ids.shape
    rows = int(min(max(math.ceil(camera.horizon) + 6, 1), height))
    v = (camera.horizon - np.arange(rows, dtype=np.float32) - np.float32(0.5)) / np.float32(camera.focal)
    up = np.maximum(v, 0)[:, None, None]
    mix = np.exp(-4.5 * up)
    sky = np.broadcast_to(_bgr(domain.sky_low) * mix + _bgr(domain.sky_high) * (1 - mix), (rows, width, 3)).copy()
    sky += _sunglow(view, v)
    if domain.cloud > 0:
        density = _cloud(view, rows)
        share = np.clip((density + np.float32(2.2 * domain.cloud - 1.2)) * np.float32(0.9), 0, 0.95)
        share *= np.clip(up[..., 0] * 14, 0.15, 1)
        lit = np.clip(1.08 - 0.16 * density, 0.75, 1.15)[..., None] * (0.75 * _bgr(domain.cloud_rgb) + 0.25 * _bgr(domain.sky_low))
        sky += (lit - sky) * share[..., None]
    return sky


def _sunglow(view: View, v: F32) -> F32:
    """Return [R, W, 3] the bright sky around the sun."""
    camera, sun, domain = view.camera, view.sun, view.domain
    bearing = math.atan2(sun.d, sun.s) - camera.yaw
    bearing = (bearing + math.pi) % (2 * math.pi) - math.pi
    width = view.raster.ids.shape[1]
    u = (np.arange(width, dtype=np.float32) + np.float32(0.5 - camera.centre)) / np.float32(camera.focal)
    across = (np.arctan(u) - np.float32(bearing))[None] ** 2
    along = (np.arctan(v) - np.float32(math.asin(sun.y)))[:, None] ** 2
    angle = across + along
    halo = 0.5 * np.exp(-angle / np.float32(0.12)) + 6 * np.exp(-angle / np.float32(0.0012))
    return cast(F32, halo[..., None] * _bgr(domain.sun))


def _cloud(view: View, rows: int) -> F32:
    """Return [rows, W] cloud density: a plane far overhead that the wind moves."""
    camera = view.camera
    width = view.raster.ids.shape[1]
    scale = 60.0  # texture pixels per height of the cloud plane
    cos, sin = math.cos(camera.yaw), math.sin(camera.yaw)
    up = np.array([0, -1, camera.horizon + 8])  # +8: the horizon itself would lie at infinity
    right, ahead = np.array([1, 0, -camera.centre]), np.array([0, 0, camera.focal])
    x = (right * cos + ahead * sin) * scale + up * ((view.t * 0.9) % CLOUD_SIZE)
    z = (ahead * cos - right * sin) * scale + up * ((view.t * 1.7 + 37.0 * (hash(view.domain.name) & 0)) % CLOUD_SIZE)
    seen = cv2.warpPerspective(
        clouds(), np.stack([x, z, up]), (width, rows), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )  # fmt: skip
    return cast(F32, seen)


def _haze(view: View, picture: F32, rows: int, is_sky: NDArray[np.bool_]) -> None:
    """Mix the air's colour in with distance; the sky has its own."""
    domain = view.domain
    through = np.exp(np.float32(-domain.haze) / view.raster.inverse_depth)[..., None]
    if domain.haze < 0.02:
        np.copyto(through[:rows], 1, where=is_sky)
    air = _bgr(domain.haze_rgb)
    picture -= air
    picture *= through
    picture += air


def _wet(view: View, picture: F32, glow: F32 | None, surface: NDArray[np.int8]) -> None:
    """Mirror what stands above the horizon in the wet ground, more so in puddles and far away; lights draw streaks."""
    domain, camera = view.domain, view.camera
    top = _first_ground_row(view)
    height = picture.shape[0]
    source = 2 * camera.horizon - np.arange(top, height)
    index = np.clip(np.rint(source), 0, top - 1).astype(np.intp)
    mirror = cv2.blur(np.clip(picture[index], 0, 1.5), (3, max(3, height // 16 | 1)))
    if glow is not None:
        drawn = cv2.blur(glow[: height], (3, height // 4 | 1))[np.maximum(np.arange(top, height) - height // 10, 0)]
        mirror = mirror + drawn * np.float32(1.6)
    puddle = _ground(view, top)[..., 2]
    steep = np.clip((np.arange(top, height, dtype=np.float32) - camera.horizon) / height, 0.02, 1)[:, None]
    share = np.clip(0.08 + 0.055 / steep, 0, 0.55) * (0.35 + 0.9 * puddle)
    share = np.clip(share * domain.wet, 0, 0.8) * (surface[top:] != Surface.STANDING)
    part = picture[top:]
    part *= (1 - 0.35 * domain.wet * (surface[top:] != Surface.STANDING))[..., None]  # wet ground is dark
    part += (mirror - part) * share[..., None].astype(np.float32)


def _bloom(picture: F32) -> None:
    """Let what is brighter than white glow over its surroundings."""
    height, width = picture.shape[:2]
    small = cv2.resize(np.maximum(picture - 0.9, 0), (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), max(width / 256 * 1.2, 0.5)) + 0.35 * cv2.GaussianBlur(small, (0, 0), width / 64)
    picture += cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(0.7)


def _rain(view: View, picture: F32, rng: np.random.Generator) -> None:
    tile = streaks()
    height, width = picture.shape[:2]
    y, x = (int(n) for n in rng.integers(0, tile.shape[0], 2))
    rolled = np.roll(tile, (y, x), axis=(0, 1))
    reps = (-(-height // tile.shape[0]), -(-width // tile.shape[1]))
    drops = np.tile(rolled, reps)[:height, :width] if reps != (1, 1) else rolled[:height, :width]
    bright = np.float32(0.45 * view.domain.rain) * _bgr(view.domain.haze_rgb)
    picture += drops[..., None] * bright


# --- sensor ------------------------------------------------------------------------------------------------------------


def _sensor(domain: Domain, picture: F32, rng: np.random.Generator) -> U8:
    height, width = picture.shape[:2]
    gain = _bgr(domain.white_balance) * np.float32(domain.exposure)
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    u = np.linspace(-1, 1, width, dtype=np.float32)[None] ** 2
    picture *= (1 - np.float32(domain.vignette / 2) * (u + v))[..., None] * gain
    if domain.blur > 0:
        picture = cast(F32, cv2.GaussianBlur(picture, (0, 0), domain.blur * max(width / 256, 0.5)))
    # A soft shoulder: highlights roll off instead of clipping. Then gamma.
    np.maximum(picture, 0, out=picture)
    picture = cast(F32, picture / (1 + np.float32(0.32) * picture) * np.float32(1.22))
    picture = cast(F32, np.sqrt(picture)) if domain.gamma == 1 else cast(F32, cv2.pow(picture, domain.gamma / 2))
    if domain.saturation != 1:
        grey = picture @ np.array((0.114, 0.587, 0.299), np.float32)
        picture = grey[..., None] + (picture - grey[..., None]) * np.float32(domain.saturation)
    if domain.noise > 0:
        field = grain()
        y, x = (int(n) for n in rng.integers(0, max(field.shape[0] - min(height, width), 1), 2))
        noise = field[np.arange(y, y + height) % field.shape[0]][:, np.arange(x, x + width) % field.shape[1]]
        picture = picture + noise * np.float32(domain.noise)
    return cast(U8, np.clip(picture * 255, 0, 255).astype(np.uint8))
