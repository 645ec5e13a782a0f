"""From shapes to pixels: which shape each pixel shows. Image and label read that one answer, so they agree exactly.

Every polygon is filled once, without anti-aliasing, into a map of shape numbers, far ones first. Colour, class, depth
and texture are then looked up per pixel; nothing is drawn twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

from edge_sfda.data.frames import U8
from edge_sfda.data.scene_shapes import F32, I32, Shapes
from edge_sfda.data.scene_textures import Atlas

NEAR = 0.7  # metres; nearer parts of a polygon are cut off

_SUBPIXEL = 4  # bits: polygons move smoothly, not pixel by pixel
_BIN = 4.0  # metres along the street that are ordered by their distance to the side


@dataclass(frozen=True)
class Camera:
    """A pinhole over the street.

    Args:
        s, d, y: where it is, in street coordinates.
        yaw: direction in radians, right of the axis that the street winds around.
        turn: direction in radians, right of the street as it runs here.
        focal: pixels.
        centre: column of the optical axis.
        horizon: row of the horizon.
    """

    s: float
    d: float
    y: float
    yaw: float
    turn: float
    focal: float
    centre: float
    horizon: float


@dataclass(frozen=True, eq=False)
class Raster:
    """What the camera sees.

    Args:
        ids: [H, W] number of the shape in each pixel, into `order`; 0 and 1 are sky and skyline.
        order: [M] index into the shapes of ids 2..M+1.
        inverse_depth: [H, W] float32, 1/m.
        texture: [H, W, 4] uint8 from the atlas.
        shadow: [H, W] uint8, 255 where ground lies in shadow.
        feet: [M, 2] pixel (column, row) of each drawn shape's foot.
    """

    ids: NDArray[np.intp]
    order: I32
    inverse_depth: F32
    texture: U8
    shadow: U8
    feet: F32


SKY, SKYLINE, FIRST = 0, 1, 2


@dataclass(frozen=True, eq=False)
class World:
    """Shapes in the camera's axes.

    Args:
        points: [P, 3] float32 right, up, ahead in metres.
        frame: [N, 3, 3] the same for the texture frames.
        start: [N] first point of each shape.
        foot: [N, 3] the same for the anchors on the ground.
        lamps: [L, 3] the same for the lamps.
    """

    points: F32
    frame: F32
    start: I32
    foot: F32
    lamps: F32


def project(points: F32, camera: Camera) -> F32:
    """Return [..., 2] float32 column and row of points [..., 3] with depth above zero."""
    scale = camera.focal / points[..., 2]
    return np.stack([camera.centre + points[..., 0] * scale, camera.horizon - points[..., 1] * scale], axis=-1)


def fill(
    canvas: NDArray[np.uint16] | U8,
    points: F32,
    start: I32,
    counts: I32,
    index: I32,
    values: Sequence[int],
    camera: Camera,
) -> None:
    """Fill polygons, given by their corners in the camera's axes, into `canvas`, without anti-aliasing.

    Args:
        canvas: [H, W] integers, written in place.
        points: [P, 3] corners of all polygons.
        start, counts: [N] first corner and number of corners of each.
        index: [M] which polygons, first one first.
        values: M numbers to fill them with.
        camera: projects the corners; what is nearer than `NEAR` is cut off.
    """
    z = points[:, 2]
    cut = (np.minimum.reduceat(z, start) < NEAR)[index].tolist()
    fixed = _fixed(np.where(z[:, None] > 0, points, np.array((0, 0, NEAR), np.float32)), camera)
    rows = zip(start[index].tolist(), counts[index].tolist(), cut, values, strict=True)
    for first, count, crossing, value in rows:
        corners = fixed[first : first + count]
        if crossing:
            corners = _fixed(_clip_near(points[first : first + count].tolist()), camera)
            if len(corners) < 3:
                continue
        if len(corners) <= 5:  # cut quads are convex as well
            cv2.fillConvexPoly(canvas, corners, value, cv2.LINE_8, _SUBPIXEL)
        else:
            cv2.fillPoly(canvas, [corners], value, cv2.LINE_8, _SUBPIXEL)


def fixed_point(pixel: F32) -> I32:
    """Return pixel coordinates as OpenCV's fixed-point numbers; pixel centres lie at whole numbers plus one half."""
    return cast(I32, np.rint((np.clip(pixel, -8000, 8000) - 0.5) * (1 << _SUBPIXEL)).astype(np.int32))


def _fixed(points: F32, camera: Camera) -> I32:
    return fixed_point(project(points, camera))


def _clip_near(points: list[list[float]]) -> F32:
    """Return a polygon without what lies nearer than `NEAR`; fewer than three corners: nothing is left."""
    kept: list[list[float]] = []
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            share = (NEAR - a[2]) / (b[2] - a[2])
            kept.append([p + (q - p) * share for p, q in zip(a[:2], b[:2], strict=True)] + [NEAR])
    return np.array(kept, np.float32).reshape(-1, 3)


def visible(points: F32, start: I32, camera: Camera, height: int, width: int) -> NDArray[np.bool_]:
    """Return [N] which polygons may cover a pixel: not all behind the camera, beside the picture, or too thin."""
    z = points[:, 2]
    nearest, farthest = np.minimum.reduceat(z, start), np.maximum.reduceat(z, start)
    ahead = np.where(z[:, None] > NEAR, points, np.array((0, 0, NEAR), np.float32))
    pixel = project(cast(F32, ahead), camera)
    low, high = np.minimum.reduceat(pixel, start, axis=0), np.maximum.reduceat(pixel, start, axis=0)
    inside = (high[:, 0] > 0) & (low[:, 0] < width) & (high[:, 1] > 0) & (low[:, 1] < height)
    seen = ((high - low) > 0.3).all(axis=1) & inside
    return (farthest > NEAR) & ((nearest < NEAR) | seen)


def select(shapes: Shapes, world: World, camera: Camera, height: int, width: int) -> I32:
    """Return the indices of shapes that may show, in drawing order: ground, then far to near, outside to inside."""
    index = np.flatnonzero(visible(world.points, world.start, camera, height, width))
    flat = shapes.flat[index]
    along = np.floor(shapes.anchor[index, 0] / np.float32(_BIN))
    aside = np.abs(shapes.anchor[index, 1] - np.float32(camera.d))
    order = np.lexsort((np.where(flat, 0, -aside), np.where(flat, 0, -along), ~flat))
    return cast(I32, index[order].astype(np.int32))


def planes(shapes: Shapes, world: World, camera: Camera, order: I32, atlas: Atlas) -> F32:
    """Return [9, M + FIRST] float32: per shape, three rows that map a pixel (u, v, 1).

    The first two give the place in the atlas times inverse depth, the third inverse depth: all are linear in the pixel.
    A point a along and b down the texture is seen at (u, v, 1) * depth = K (a * across + b * down + corner).
    """
    corner, right, down = (world.frame[order, i].astype(np.float64) for i in range(3))
    inverse = _inverse(*(_pixel_axes(v, camera) for v in (right - corner, down - corner, corner)))
    x, y, w, h = _rect(shapes, world, camera, order, atlas)
    rows = np.empty((len(order) + FIRST, 3, 3), np.float32)
    rows[:FIRST] = 0
    rows[:FIRST, 2, 2] = (1e-4, 1 / 260)
    rows[:FIRST, :2] = rows[:FIRST, 2:] * 3.5  # the white tile in the atlas' corner
    rows[FIRST:, 0] = inverse[:, 0] * (w - 1)[:, None] + inverse[:, 2] * x[:, None]
    rows[FIRST:, 1] = inverse[:, 1] * (h - 1)[:, None] + inverse[:, 2] * y[:, None]
    rows[FIRST:, 2] = inverse[:, 2]
    plain = shapes.tile[order] == 0
    rows[FIRST:][plain, :2] = rows[FIRST:][plain, 2:] * 3.5
    return np.ascontiguousarray(rows.reshape(-1, 9).T)


def _pixel_axes(vectors: NDArray[np.float64], camera: Camera) -> NDArray[np.float64]:
    """Return K v for vectors [M, 3], as [3, M]."""
    x, y, z = vectors.T
    return np.stack([camera.focal * x + camera.centre * z, camera.horizon * z - camera.focal * y, z])


def _inverse(a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [M, 3, 3] the inverses of the matrices with columns a, b, c, each [3, M]."""

    def cross(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([p[1] * q[2] - p[2] * q[1], p[2] * q[0] - p[0] * q[2], p[0] * q[1] - p[1] * q[0]])

    rows = np.stack([cross(b, c), cross(c, a), cross(a, b)])  # [row, 3, M]
    determinant = (a * rows[0]).sum(axis=0)
    edge_on = np.abs(determinant) < 1e-3  # any answer will do: the shape covers a line at most
    rows[:, :, edge_on] = np.array((0, 0, 0.05))[:, None]
    determinant[edge_on] = 1
    return cast("NDArray[np.float64]", (rows / determinant).transpose(2, 0, 1))


def _rect(
    shapes: Shapes, world: World, camera: Camera, order: I32, atlas: Atlas
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return x, y, width, height in the atlas of the copy of each texture that is about as large as it is seen."""
    corner, right, down = (world.frame[order, i].astype(np.float64) for i in range(3))
    across, along = right - corner, down - corner
    first = world.points[world.start[order]].astype(np.float64)
    last = world.points[world.start[order] + 2].astype(np.float64)
    middle = (first + last) / 2
    z = np.maximum(middle[:, 2], 2)
    wide = camera.focal * np.abs(across[:, 0] * z - across[:, 2] * middle[:, 0]) / z**2
    tall = camera.focal * np.abs(along[:, 1]) / z
    full = atlas.rect[shapes.tile[order], 0, 0].astype(np.float64)
    top = atlas.rect.shape[1] - 1
    level_x = np.clip(np.rint(np.log2(full[:, 2] / np.maximum(wide, 1))), 0, top).astype(np.intp)
    level_y = np.clip(np.rint(np.log2(full[:, 3] / np.maximum(tall, 1))), 0, top).astype(np.intp)
    chosen = atlas.rect[shapes.tile[order], level_y, level_x].astype(np.float64)
    return chosen[:, 0], chosen[:, 1], chosen[:, 2], chosen[:, 3]


def look_up(ids: NDArray[np.intp], rows: F32, atlas: Atlas) -> tuple[F32, U8]:
    """Return inverse depth [H, W] float32 and texture [H, W, 4] uint8 of each pixel."""
    height, width = ids.shape
    u = np.arange(width, dtype=np.float32)[None] + np.float32(0.5)
    v = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    x, y, inverse_depth = (_along(ids, rows[i : i + 3], u, v) for i in (0, 3, 6))
    np.maximum(inverse_depth, np.float32(1e-5), out=inverse_depth)
    x /= inverse_depth
    y /= inverse_depth
    texture = cv2.remap(atlas.pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return inverse_depth, cast(U8, texture)


def _along(ids: NDArray[np.intp], rows: F32, u: F32, v: F32) -> F32:
    out = np.take(rows[0], ids)
    out *= u
    out += np.take(rows[1], ids) * v
    out += np.take(rows[2], ids)
    return cast(F32, out)
