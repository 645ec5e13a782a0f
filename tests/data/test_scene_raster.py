from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.data.scene_raster import NEAR, Camera, World, fill, look_up, planes, project, select, visible
from edge_sfda.data.scene_shapes import Builder, Label, Shapes, Surface
from edge_sfda.data.scene_textures import TILES, atlas

CAMERA = Camera(s=0.0, d=0.0, y=1.5, yaw=0.0, turn=0.0, focal=100.0, centre=64.0, horizon=48.0)
HEIGHT, WIDTH = 96, 128


def _world(shapes: Shapes) -> World:
    """A straight and level street: right = d, up = y - camera, ahead = s."""

    def seen(points: np.ndarray) -> np.ndarray:
        return np.stack([points[..., 1], points[..., 2] - np.float32(CAMERA.y), points[..., 0]], axis=-1)

    start = np.concatenate([[0], np.cumsum(shapes.counts)[:-1]]).astype(np.int32)
    foot = np.concatenate([shapes.anchor, np.zeros((len(shapes.anchor), 1), np.float32)], axis=1)
    return World(seen(shapes.points), seen(shapes.frame), start, seen(foot), seen(shapes.lamps))


def _drawn(shapes: Shapes) -> tuple[np.ndarray, np.ndarray]:
    """Return for each pixel the shape it shows (-1: none), and the order of drawing."""
    world = _world(shapes)
    order = select(shapes, world, CAMERA, HEIGHT, WIDTH)
    canvas = np.zeros((HEIGHT, WIDTH), np.uint16)
    fill(canvas, world.points, world.start, shapes.counts, order, range(1, len(order) + 1), CAMERA)
    return np.concatenate([[-1], order])[canvas], order


def _board(s: float, d: float, *, half: float = 1.0) -> Shapes:
    b = Builder()
    b.board(-half, half, 0, 3, (200, 100, 50), Label.SIGN)
    return b.build().at(s, d)


def test_project_is_a_pinhole() -> None:
    points = np.array([(0, 0, 5), (1, 0, 10), (-2, 1.5, 4)], np.float32)
    assert project(points, CAMERA).tolist() == [[64, 48], [74, 48], [14, 10.5]]


def test_fill_covers_the_pixels_between_its_corners() -> None:
    quad = np.array([(-1, -1, 10), (-1, 1, 10), (1, 1, 10), (1, -1, 10)], np.float32)
    canvas = np.zeros((HEIGHT, WIDTH), np.uint16)
    one = np.zeros(1, np.int32)
    fill(canvas, quad, one, np.array([4], np.int32), one, [700], CAMERA)
    rows, columns = np.nonzero(canvas)
    assert set(np.unique(canvas).tolist()) == {0, 700}
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (38, 58, 54, 74)


def test_fill_cuts_what_is_nearer_than_the_camera_sees() -> None:
    ground = np.array([(-1, -1.5, -5), (-1, -1.5, 50), (1, -1.5, 50), (1, -1.5, -5)], np.float32)
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    one = np.zeros(1, np.int32)
    fill(canvas, ground, one, np.array([4], np.int32), one, [1], CAMERA)
    assert not canvas[:50].any()
    assert canvas[-1].sum() == pytest.approx(2 * 48 / 1.5, abs=2)  # 2 m wide where the last row meets the ground
    behind = ground - np.array((0, 0, 60), np.float32)
    canvas[:] = 0
    fill(canvas, behind, one, np.array([4], np.int32), one, [1], CAMERA)
    assert not canvas.any()


def test_visible_drops_what_is_behind_beside_or_too_thin() -> None:
    parts = [_board(10, 0), _board(-10, 0), _board(10, 30), _board(100, 0, half=0.05), _board(NEAR / 2, 0)]
    shapes = Shapes.join(parts)
    world = _world(shapes)
    assert visible(world.points, world.start, CAMERA, HEIGHT, WIDTH).tolist() == [True, False, False, False, False]


def test_nearer_things_cover_farther_ones() -> None:
    for parts in ([_board(10, 0), _board(30, 0)], [_board(30, 0), _board(10, 0)]):
        shapes = Shapes.join(parts)
        pixels, _ = _drawn(shapes)
        near = int(np.argmin(shapes.anchor[:, 0]))
        assert pixels[48, 64] == near
        assert (pixels == near).sum() > 100


def test_at_one_distance_the_inner_covers_the_outer() -> None:
    b = Builder()
    b.anchor = (10.2, 6.0)
    b.wall((10, 6), (14, 6), 0, 9, (1, 1, 1), Label.BUILDING)
    front = b.build()
    tree = _board(11.5, 5.0, half=2.0)
    pixels, order = _drawn(Shapes.join([tree, front]))
    assert order.tolist() == [1, 0]
    assert (pixels == 0).any()


def test_ground_is_drawn_first_in_the_order_it_was_made() -> None:
    b = Builder()
    b.board(-1, 1, 0, 2, (1, 1, 1), Label.CAR, s=40)
    b.slab(2, 60, -5, 5, (1, 1, 1), Label.ROAD, Surface.ASPHALT)
    b.slab(2, 60, -1, 1, (1, 1, 1), Label.ROAD, Surface.ASPHALT)
    _, order = _drawn(b.build())
    assert order.tolist() == [1, 2, 0]


def test_look_up_gives_the_depth_of_every_plane() -> None:
    b = Builder()
    b.slab(2, 60, -50, 50, (1, 1, 1), Label.ROAD, Surface.ASPHALT)
    b.board(-4, 4, 0, 3, (1, 1, 1), Label.SIGN, s=20)
    b.anchor = (4.0, 3.0)
    b.wall((4, 3), (40, 3), 0, 9, (1, 1, 1), Label.BUILDING, tile=TILES.home[0])
    shapes = b.build()
    world = _world(shapes)
    order = select(shapes, world, CAMERA, HEIGHT, WIDTH)
    canvas = np.zeros((HEIGHT, WIDTH), np.uint16)
    fill(canvas, world.points, world.start, shapes.counts, order, range(2, 2 + len(order)), CAMERA)
    inverse, _ = look_up(canvas.astype(np.intp), planes(shapes, world, CAMERA, order, atlas()), atlas())
    shape = np.concatenate([[-1, -1], order])[canvas]
    assert (shape[90, 40], shape[48, 64], shape[40, 100]) == (0, 1, 2)
    assert 1 / inverse[90, 40] == pytest.approx(1.5 * 100 / (90.5 - 48), rel=1e-3)
    assert 1 / inverse[48, 64] == pytest.approx(20, rel=1e-3)
    assert 1 / inverse[40, 100] == pytest.approx(3 * 100 / (100.5 - 64), rel=1e-3)
    assert 1 / inverse[0, 0] > 1000


def test_look_up_reads_the_texture_the_right_way_up() -> None:
    """A direction board is green, with a white frame; seen from ahead its left half is written on."""
    b = Builder()
    b.board(-2, 2, 0, 4, (255, 255, 255), Label.SIGN, s=8, tile=TILES.sign[0])
    shapes = b.build()
    world = _world(shapes)
    order = select(shapes, world, CAMERA, HEIGHT, WIDTH)
    canvas = np.zeros((HEIGHT, WIDTH), np.uint16)
    fill(canvas, world.points, world.start, shapes.counts, order, range(2, 2 + len(order)), CAMERA)
    _, texture = look_up(canvas.astype(np.intp), planes(shapes, world, CAMERA, order, atlas()), atlas())
    seen = texture[17:67, 39:89, :3].astype(float)
    x, y, w, h = atlas().rect[TILES.sign[0], 0, 0].astype(int)
    tile = atlas().pixels[y : y + h, x : x + w, :3]
    scaled = tile[np.arange(50) * h // 50][:, np.arange(50) * w // 50].astype(float)
    assert np.abs(seen - scaled).mean() < 20
    assert np.abs(seen - scaled[::-1]).mean() > np.abs(seen - scaled).mean() + 1
    assert np.abs(seen - scaled[:, ::-1]).mean() > np.abs(seen - scaled).mean() + 1
