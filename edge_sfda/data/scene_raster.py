"""From shapes to pixels: which shape each pixel shows. Image and label both read that one answer, so they agree exactly.

Every polygon is filled once, without anti-aliasing, into a map of shape numbers, far ones first. Colour, class, depth and
texture are then looked up per pixel; nothing is drawn twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray

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
        yaw: direction in radians, right of straight on.
        focal: pixels.
        centre: column of the optical axis.
        horizon: row of the horizon.
    """

    s: float
    d: float
    y: float
    yaw: float
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
        depth: [M] metres to each drawn shape.
    """

    ids: NDArray[np.intp]
    order: I32
    inverse_depth: F32
    texture: NDArray[np.uint8]
    shadow: NDArray[np.uint8]
    feet: F32
    depth: F32


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


def fill(canvas: NDArray[np.uint16] | NDArray[np.uint8], corners: F32, value: int, *, convex: bool = True) -> None:
    """Fill one polygon [k, 2] of pixel coordinates; pixel centres lie at whole numbers plus one half."""
    fixed = np.rint((np.clip(corners, -8000, 8000) - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
    if convex:
        cv2.fillConvexPoly(canvas, fixed, value, cv2.LINE_8, _SUBPIXEL)
    else:
        cv2.fillPoly(canvas, [fixed], value, cv2.LINE_8, _SUBPIXEL)


def clip_near(points: F32) -> F32:
    """Return a polygon [k, 3] without what lies nearer than `NEAR`; fewer than three corners: nothing is left."""
    kept: list[F32] = []
    for a, b in zip(points, np.roll(points, -1, axis=0), strict=True):
        if a[2] >= NEAR:
            kept.append(a)
        if (a[2] >= NEAR) != (b[2] >= NEAR):
            kept.append(a + (b - a) * ((NEAR - a[2]) / (b[2] - a[2])))
    return np.array(kept, np.float32).reshape(-1, 3)


def select(shapes: Shapes, world: World, camera: Camera, height: int, width: int) -> I32:
    """Return the indices of shapes that may show, in drawing order: ground, then far to near, outside to inside."""
    z = world.points[:, 2]
    nearest, farthest = np.minimum.reduceat(z, world.start), np.maximum.reduceat(z, world.start)
    crossing = nearest < NEAR
    ahead = np.where(z[:, None] > NEAR, world.points, np.float32((0, 0, NEAR)))
    pixel = project(cast(F32, ahead), camera)
    low, high = np.minimum.reduceat(pixel, world.start, axis=0), np.maximum.reduceat(pixel, world.start, axis=0)
    inside = (high[:, 0] > 0) & (low[:, 0] < width) & (high[:, 1] > 0) & (low[:, 1] < height)
    seen = ((high - low) > 0.3).all(axis=1) & inside
    index = np.flatnonzero((farthest > NEAR) & (crossing | seen))
    flat = shapes.flat[index]
    along = np.floor(shapes.anchor[index, 0] / np.float32(_BIN))
    aside = np.abs(shapes.anchor[index, 1] - np.float32(camera.d))
    order = np.lexsort((np.where(flat, 0, -aside), np.where(flat, 0, -along), ~flat))
    return cast(I32, index[order].astype(np.int32))


def draw(shapes: Shapes, world: World, camera: Camera, order: I32, canvas: NDArray[np.uint16]) -> None:
    """Fill the shapes of `order` into `canvas`, the i-th with the value i + FIRST."""
    z = world.points[:, 2]
    crossing = (np.minimum.reduceat(z, world.start) < NEAR)[order].tolist()
    pixel = project(np.maximum(world.points, np.float32((-1e9, -1e9, NEAR))), camera)
    fixed = np.rint((np.clip(pixel, -8000, 8000) - 0.5) * (1 << _SUBPIXEL)).astype(np.int32)
    starts, counts = world.start[order].tolist(), shapes.counts[order].tolist()
    rows = zip(starts, counts, crossing, strict=True)
    for value, (start, count, cut) in enumerate(rows, start=FIRST):
        if cut:
            corners = clip_near(world.points[start : start + count])
            if len(corners) >= 3:
                fill(cast("NDArray[np.uint16]", canvas), project(corners, camera), value)
        elif count <= 4:
            cv2.fillConvexPoly(canvas, fixed[start : start + count], value, cv2.LINE_8, _SUBPIXEL)
        else:
            cv2.fillPoly(canvas, [fixed[start : start + count]], value, cv2.LINE_8, _SUBPIXEL)


def planes(shapes: Shapes, world: World, camera: Camera, order: I32, atlas: Atlas) -> F32:
    """Return [M + FIRST, 9] float32: per shape, three rows that map a pixel (u, v, 1).

    The first two give the place in the atlas times inverse depth, the third inverse depth: all are linear in the pixel.
    """
    corner, right, down = (world.frame[order, i].astype(np.float64) for i in range(3))
    k = np.array([[camera.focal, 0, camera.centre], [0, -camera.focal, camera.horizon], [0, 0, 1]])
    columns = np.stack([(right - corner) @ k.T, (down - corner) @ k.T, corner @ k.T], axis=-1)
    flat = np.abs(np.linalg.det(columns)) < 1e-6  # seen exactly edge on: any answer will do, it covers a line at most
    columns[flat] = np.diag((1.0, 1.0, 1.0)) * 20
    inverse = np.linalg.inv(columns)
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
    return rows.reshape(-1, 9)


def _rect(
    shapes: Shapes, world: World, camera: Camera, order: I32, atlas: Atlas
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return x, y, width, height in the atlas of the copy of each texture whose pixels are about as large as the frame's."""
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


def look_up(ids: NDArray[np.intp], rows: F32, atlas: Atlas) -> tuple[F32, NDArray[np.uint8]]:
    """Return inverse depth [H, W] float32 and texture [H, W, 4] uint8 of each pixel."""
    height, width = ids.shape
    own = np.take(rows, ids, axis=0)
    u = np.arange(width, dtype=np.float32)[None] + np.float32(0.5)
    v = np.arange(height, dtype=np.float32)[:, None] + np.float32(0.5)
    x, y, inverse_depth = (own[..., i] * u + own[..., i + 1] * v + own[..., i + 2] for i in (0, 3, 6))
    np.maximum(inverse_depth, np.float32(1e-5), out=inverse_depth)
    x /= inverse_depth
    y /= inverse_depth
    texture = cv2.remap(atlas.pixels, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return inverse_depth, cast("NDArray[np.uint8]", texture)
