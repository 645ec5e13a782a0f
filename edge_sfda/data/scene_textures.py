"""Textures of the scene, drawn once: facades, fences, leaves, signs in one atlas; grain of the ground and clouds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.frames import U8
from edge_sfda.data.scene_shapes import F32, Colour

CELL = 32  # pixels of one window's cell of a facade, which stands for 4 m x 3 m
COLUMNS, FLOORS = 4, 8  # cells of a facade's texture; the lowest floor is the ground floor
HOME_FACADES, CITY_FACADES = 14, 12
FENCES = 4
LEAVES = 3
SIGNS = 8

_LEVELS = 3  # each texture is kept at 1, 1/2 and 1/4 in both directions: facades are seen at a slant


@dataclass(frozen=True, eq=False)
class Atlas:
    """All textures in one picture.

    Args:
        pixels: [H, W, 4] uint8: BGR in display space, and how much of a lit room shines through (0..255).
        rect: [T, levels, levels, 4] float32: x, y, width, height of each tile, shrunk by level in y and x.
    """

    pixels: U8
    rect: F32


@dataclass(frozen=True)
class Tiles:
    """Ids of the tiles in the atlas."""

    home: range
    city: range
    fence: range
    leaf: range
    sign: range
    roof: int


def _tiles() -> Tiles:
    starts = np.cumsum([1, HOME_FACADES, CITY_FACADES, FENCES, LEAVES, SIGNS]).tolist()
    home, city, fence, leaf, sign = itertools.starmap(range, itertools.pairwise(starts))
    return Tiles(home, city, fence, leaf, sign, roof=starts[-1])


TILES = _tiles()


@lru_cache(maxsize=1)
def atlas() -> Atlas:
    """Draw all tiles; the same bytes in every process."""
    tiles = [np.full((8, 8, 4), (255, 255, 255, 0), np.uint8)]
    tiles += [_facade(np.random.default_rng([1, i]), _home_look(i)) for i in range(HOME_FACADES)]
    tiles += [_facade(np.random.default_rng([2, i]), _city_look(i)) for i in range(CITY_FACADES)]
    tiles += [_fence(i) for i in range(FENCES)]
    tiles += [_leaves(np.random.default_rng([3, i])) for i in range(LEAVES)]
    tiles += [_sign(i) for i in range(SIGNS)]
    tiles.append(_roof())
    return _pack(tiles)


def _pack(tiles: list[U8]) -> Atlas:
    """Lay the tiles and their shrunk copies side by side in rows."""
    rect = np.zeros((len(tiles), _LEVELS, _LEVELS, 4), np.float32)
    limit = 2048
    placed: list[tuple[int, int, U8]] = []
    x = y = row = 0
    for i, tile in enumerate(tiles):
        for level_y in range(_LEVELS):
            for level_x in range(_LEVELS):
                h, w = max(tile.shape[0] >> level_y, 2), max(tile.shape[1] >> level_x, 2)
                small = cast(U8, cv2.resize(tile, (w, h), interpolation=cv2.INTER_AREA))
                if x + w > limit:
                    x, y, row = 0, y + row, 0
                placed.append((x, y, small))
                rect[i, level_y, level_x] = (x, y, w, h)
                x, row = x + w, max(row, h)
    pixels = np.zeros((y + row, limit, 4), np.uint8)
    for x, y, small in placed:
        pixels[y : y + small.shape[0], x : x + small.shape[1]] = small
    return Atlas(pixels, rect)


def _bgr(rgb: Colour | NDArray[np.float64]) -> tuple[float, float, float]:
    return float(rgb[2]), float(rgb[1]), float(rgb[0])


def _noise(rng: np.random.Generator, height: int, width: int, *, grain: float) -> F32:
    """Return [height, width] tileable noise of mean 0 and deviation 1, smooth over about `grain` pixels."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width)))
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    spectrum *= np.exp(-2 * (np.pi * grain) ** 2 * (fy**2 + fx**2) / 4)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(height, width))
    return (field / max(float(field.std()), 1e-9)).astype(np.float32)


def _shake(rng: np.random.Generator, tile: U8, amount: float, *, grain: float = 1.0) -> None:
    """Roughen the colours in place, as dirt and relief do."""
    field = _noise(rng, tile.shape[0], tile.shape[1], grain=grain)[..., None] * np.float32(amount)
    tile[..., :3] = np.clip(tile[..., :3] + field, 0, 255).astype(np.uint8)


# --- facades ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    wall: Colour
    frame: Colour
    glass: Colour
    windows: tuple[tuple[float, float], ...]  # left and right of each window, as a share of the cell
    low: float  # of the windows, as a share of the cell from the top
    high: float
    bricks: bool
    bands: bool  # a ledge between floors
    lit: float  # share of windows with light


_HOME_WALLS: tuple[Colour, ...] = (
    (214, 200, 168), (196, 170, 128), (176, 110, 84), (150, 82, 66), (208, 204, 196), (190, 150, 140),
    (168, 160, 142), (222, 214, 190), (160, 98, 72), (186, 178, 160), (204, 168, 112), (136, 112, 100),
    (180, 190, 180), (216, 184, 160),
)  # fmt: skip
_CITY_WALLS: tuple[Colour, ...] = (
    (96, 116, 136), (120, 128, 132), (70, 84, 100), (150, 152, 150), (88, 74, 66), (60, 66, 76),
    (136, 150, 160), (110, 60, 50), (176, 176, 172), (84, 110, 116), (52, 58, 64), (128, 112, 92),
)  # fmt: skip


def _home_look(i: int) -> _Look:
    rng = np.random.default_rng([10, i])
    wall = _HOME_WALLS[i % len(_HOME_WALLS)]
    two = bool(rng.random() < 0.55)
    return _Look(
        wall=wall,
        frame=(232, 230, 222) if rng.random() < 0.7 else (90, 70, 56),
        glass=(58, 68, 78),
        windows=((0.12, 0.40), (0.60, 0.88)) if two else ((0.24, 0.76),),
        low=0.80,
        high=0.22 if two else 0.28,
        bricks=wall[0] - wall[2] > 55,
        bands=bool(rng.random() < 0.5),
        lit=0.38,
    )


def _city_look(i: int) -> _Look:
    rng = np.random.default_rng([11, i])
    strip = bool(rng.random() < 0.6)
    return _Look(
        wall=_CITY_WALLS[i % len(_CITY_WALLS)],
        frame=(40, 44, 48) if rng.random() < 0.6 else (180, 184, 186),
        glass=(84, 108, 128) if strip else (50, 62, 76),
        windows=((0.04, 0.48), (0.52, 0.96)) if strip else ((0.1, 0.3), (0.4, 0.6), (0.7, 0.9)),
        low=0.86 if strip else 0.8,
        high=0.14 if strip else 0.25,
        bricks=False,
        bands=strip,
        lit=0.55,
    )


def _facade(rng: np.random.Generator, look: _Look) -> U8:
    tile = np.zeros((FLOORS * CELL, COLUMNS * CELL, 4), np.uint8)
    tile[..., :3] = _bgr(look.wall)
    if look.bricks:
        tile[::4, :, :3] = (tile[::4, :, :3] * 0.86).astype(np.uint8)
    _shake(rng, tile, 5)
    _shake(rng, tile, 6, grain=24)
    for floor in range(FLOORS):
        for column in range(COLUMNS):
            cell = tile[floor * CELL : (floor + 1) * CELL, column * CELL : (column + 1) * CELL]
            if floor == FLOORS - 1:
                _ground_floor(rng, cell, look)
            else:
                _windows(rng, cell, look)
    return tile


def _windows(rng: np.random.Generator, cell: U8, look: _Look) -> None:
    top, bottom = round(look.high * CELL), round(look.low * CELL)
    if look.bands:
        cell[-2:, :, :3] = (cell[-2:, :, :3] * 0.8).astype(np.uint8)
    for left, right in look.windows:
        x0, x1 = round(left * CELL), round(right * CELL)
        cell[top - 1 : bottom + 2, x0 - 1 : x1 + 1, :3] = _bgr(look.frame)
        shade = rng.uniform(0.75, 1.35)
        pane = np.array(_bgr(look.glass)) * shade
        fall = np.linspace(1.25, 0.85, bottom - top)[:, None, None]  # glass mirrors the sky above it
        cell[top:bottom, x0:x1, :3] = np.clip(pane * fall, 0, 255)
        if rng.random() < 0.4:  # curtain or blind
            drop = int(rng.integers(3, bottom - top))
            cell[top : top + drop, x0:x1, :3] = np.clip(np.array((176, 184, 188)) * shade * 0.8, 0, 255)
        if rng.random() < look.lit:
            cell[top:bottom, x0:x1, 3] = int(rng.integers(90, 256))
        if x1 - x0 > 9:
            cell[top:bottom, (x0 + x1) // 2, :3] = _bgr(look.frame)
        cell[bottom + 1 : bottom + 3, x0 - 1 : x1 + 1, :3] = np.array(_bgr(look.wall)) * 0.62  # shadow of the sill


_AWNINGS: tuple[Colour, ...] = ((150, 40, 40), (40, 90, 60), (40, 60, 120), (200, 160, 60), (90, 90, 96))


def _ground_floor(rng: np.random.Generator, cell: U8, look: _Look) -> None:
    cell[..., :3] = (cell[..., :3] * 0.85).astype(np.uint8)
    if rng.random() < 0.6:  # shop
        cell[9:29, 2:30, :3] = np.array((70, 64, 56)) * rng.uniform(0.8, 1.5)
        cell[9:29, 2:30, 3] = int(rng.integers(150, 256)) if rng.random() < 0.7 else 0
        cell[9:29, (11, 20), :3] = 40
        cell[3:9, 1:31, :3] = _bgr(_AWNINGS[int(rng.integers(0, len(_AWNINGS)))])
    else:  # door and a window
        cell[8:32, 4:13, :3] = np.array(_bgr((96, 62, 40))) * rng.uniform(0.6, 1.3)
        cell[8:24, 18:29, :3] = _bgr(look.frame)
        cell[9:23, 19:28, :3] = np.array(_bgr(look.glass)) * rng.uniform(0.7, 1.2)
        cell[9:23, 19:28, 3] = int(rng.integers(90, 220)) if rng.random() < 0.4 else 0
    cell[29:, :, :3] = (cell[29:, :, :3] * 0.8).astype(np.uint8)


# --- fences, roofs, leaves, signs -------------------------------------------------------------------------------------


def _fence(kind: int) -> U8:
    """Return a tile of 4 m x 1.4 m: planks, pickets, panels or mesh."""
    rng = np.random.default_rng([4, kind])
    tile = np.zeros((24, 64, 4), np.uint8)
    if kind == 0:  # planks
        for x in range(0, 64, 4):
            tile[:, x : x + 4, :3] = np.array(_bgr((128, 92, 60))) * rng.uniform(0.8, 1.2)
            tile[:, x, :3] = _bgr((60, 42, 28))
    elif kind == 1:  # pickets before shrubs
        tile[..., :3] = _bgr((62, 74, 48))
        for x in range(0, 64, 4):
            tile[2:, x : x + 2, :3] = _bgr((222, 220, 212))
        tile[(6, 7, 17, 18), :, :3] = _bgr((206, 204, 196))
    elif kind == 2:  # concrete panels
        tile[..., :3] = _bgr((150, 146, 138))
        tile[:, ::16, :3] = _bgr((104, 100, 94))
        tile[(0, 1, 12), :, :3] = _bgr((120, 116, 110))
    else:  # iron bars before a dark yard
        tile[..., :3] = _bgr((92, 92, 84))
        tile[:, ::3, :3] = _bgr((34, 40, 36))
        tile[(0, 1, 21, 22), :, :3] = _bgr((34, 40, 36))
    _shake(rng, tile, 5)
    return tile


def _roof() -> U8:
    tile = np.full((32, 64, 4), 200, np.uint8)
    tile[..., 3] = 0
    tile[::4, :, :3] = 150
    _shake(np.random.default_rng(5), tile, 14)
    return tile


def _leaves(rng: np.random.Generator) -> U8:
    """Return grey leaf clumps, light above and dark below; the shape's colour tints them."""
    field = 0.6 * _noise(rng, 64, 64, grain=7) + 0.5 * _noise(rng, 64, 64, grain=2.5)
    light = np.linspace(1.12, 0.6, 64, dtype=np.float32)[:, None]
    tile = np.zeros((64, 64, 4), np.uint8)
    tile[..., :3] = np.clip((150 + 42 * field) * light, 20, 255)[..., None]
    return tile


def _sign(kind: int) -> U8:
    """Return a board's face; its outline (disc, triangle, rectangle) is the shape's own."""
    tile = np.full((32, 32, 4), 255, np.uint8)
    tile[..., 3] = 0
    face = np.ascontiguousarray(tile[..., :3])
    white, red, blue = (235, 235, 235), (30, 30, 200), (180, 90, 20)
    if kind == 0:  # speed limit
        face[:] = red
        cv2.circle(face, (16, 16), 11, white, -1)
        cv2.putText(face, "30", (6, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (20, 20, 20), 2)
    elif kind == 1:  # no entry
        face[:] = red
        face[13:19, 6:26] = white
    elif kind == 2:  # keep right
        face[:] = blue
        cv2.arrowedLine(face, (8, 8), (24, 24), white, 3, tipLength=0.4)
    elif kind == 3:  # give way, warning (triangle)
        face[:] = red
        cv2.fillPoly(face, [np.array([(16, 10), (6, 27), (26, 27)])], white)
    elif kind == 4:  # crossing
        face[:] = blue
        cv2.fillPoly(face, [np.array([(16, 4), (4, 26), (28, 26)])], white)
        cv2.circle(face, (16, 14), 2, (20, 20, 20), -1)
        face[17:24, 15:18] = 20
    elif kind == 5:  # direction board
        face[:] = (70, 110, 20)
        face[(1, 30), 1:31] = white
        face[1:31, (1, 30)] = white
        face[8:12, 8:26] = white
        face[19:23, 8:20] = white
    elif kind == 6:  # parking
        face[:] = blue
        cv2.putText(face, "P", (8, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.9, white, 3)
    else:  # poster
        face[:16], face[16:] = (60, 190, 230), (120, 60, 180)
        cv2.circle(face, (16, 16), 9, (240, 240, 240), -1)
        face[26:29, 4:28] = (30, 30, 30)
    tile[..., :3] = face
    return tile


# --- ground and sky ---------------------------------------------------------------------------------------------------

GROUND_SIZE = 512
GROUND_SCALE = 25.6  # pixels a metre: it repeats after 20 m, of which the street's chunks are a multiple
GROUND_UNIT = 128  # the grain's byte that changes nothing
CLOUD_SIZE = 512


@lru_cache(maxsize=1)
def ground() -> U8:
    """Return tileable [512, 512, 3] uint8: grain of asphalt and of paving around `GROUND_UNIT`, puddles 0..255."""
    rng = np.random.default_rng(6)
    n = GROUND_SIZE
    fine, coarse = _noise(rng, n, n, grain=1.5), _noise(rng, n, n, grain=60)
    asphalt = 1 + 0.09 * fine + 0.07 * coarse
    tracks = np.cos(np.arange(n) * 2 * np.pi * 4 / n, dtype=np.float32)[None]  # wheels polish stripes
    asphalt += 0.04 * tracks
    paving = 1 + 0.05 * fine + 0.04 * coarse
    slab = n // 16
    joints = np.zeros((n, n), bool)
    joints[::slab] = True
    joints[:, ::slab] = True
    shade = np.kron(rng.normal(0, 0.05, (16, 16)), np.ones((slab, slab))).astype(np.float32)
    paving = np.where(cv2.dilate(joints.astype(np.uint8), np.ones((2, 2))) > 0, 0.72, paving + shade)
    puddles = np.clip(0.5 + 0.6 * _noise(rng, n, n, grain=70), 0, 1)
    units = np.stack([asphalt * GROUND_UNIT, paving * GROUND_UNIT, puddles * 255], axis=-1)
    return cast(U8, np.clip(np.rint(units), 0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def clouds() -> F32:
    """Return tileable [512, 512] float32 cloud density around 0, deviation about 1."""
    rng = np.random.default_rng(7)
    field = sum(w * _noise(rng, CLOUD_SIZE, CLOUD_SIZE, grain=g) for w, g in ((1, 70), (0.5, 30), (0.3, 12), (0.15, 5)))
    return cast(F32, np.asarray(field / np.float32(1.16), np.float32))


@lru_cache(maxsize=1)
def grain() -> F32:
    """Return [1024, 1024, 3] float32 of unit normal noise, from which each frame's sensor noise is cut."""
    return np.random.default_rng(8).standard_normal((1024, 1024, 3), dtype=np.float32)


@lru_cache(maxsize=1)
def streaks() -> F32:
    """Return tileable [256, 256] float32 rain streaks, 0..1."""
    rng = np.random.default_rng(9)
    field = np.zeros((512, 512), np.float32)
    for x, y, length in rng.integers((0, 0, 10), (512, 512, 34), (420, 3)).tolist():
        cv2.line(field, (x, y), (x - length // 5, y + length), float(rng.uniform(0.3, 1)), 1, cv2.LINE_AA)
    return cast(F32, cv2.GaussianBlur(field, (3, 3), 0.6)[128:384, 128:384].copy())
