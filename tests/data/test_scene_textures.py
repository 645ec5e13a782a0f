from __future__ import annotations

import numpy as np
import pytest

from edge_sfda.data import scene_textures as textures


def test_tiles_cover_the_atlas_without_overlap() -> None:
    atlas = textures.atlas()
    used = np.zeros(atlas.pixels.shape[:2], np.int32)
    for x, y, w, h in atlas.rect.reshape(-1, 4).astype(int).tolist():
        used[y : y + h, x : x + w] += 1
    assert used.max() == 1
    assert len(atlas.rect) == textures.TILES.roof + 1


def test_first_tile_is_white_and_lies_in_the_corner() -> None:
    atlas = textures.atlas()
    assert atlas.rect[0, 0, 0].tolist() == [0, 0, 8, 8]
    assert (atlas.pixels[:8, :8, :3] == 255).all()


def test_smaller_copies_look_like_the_tile() -> None:
    atlas = textures.atlas()
    for tile in (textures.TILES.home[0], textures.TILES.city[3], textures.TILES.leaf[0]):
        means = []
        for level in range(3):
            x, y, w, h = atlas.rect[tile, level, level].astype(int).tolist()
            means.append(atlas.pixels[y : y + h, x : x + w].reshape(-1, 4).mean(axis=0))
        assert means[1] == pytest.approx(means[0], abs=2)
        assert means[2] == pytest.approx(means[0], abs=2)


def test_only_houses_have_lit_windows() -> None:
    atlas = textures.atlas()

    def lit(tile: int) -> float:
        x, y, w, h = atlas.rect[tile, 0, 0].astype(int).tolist()
        return float((atlas.pixels[y : y + h, x : x + w, 3] > 0).mean())

    tiles = textures.TILES
    assert all(0.01 < lit(tile) < 0.6 for tile in (*tiles.home, *tiles.city))
    assert all(lit(tile) == 0 for tile in (*tiles.fence, *tiles.leaf, *tiles.sign, tiles.roof))


@pytest.mark.parametrize("name", ["asphalt", "puddles", "clouds"])
def test_ground_and_clouds_repeat_without_a_seam(name: str) -> None:
    ground = textures.ground().astype(float)
    field = {"asphalt": ground[..., 0], "puddles": ground[..., 2], "clouds": textures.clouds()}[name]
    seam = np.abs(field[0] - field[-1]).mean()
    inside = np.abs(np.diff(field, axis=0)).mean()
    assert seam < 1.3 * inside


def test_ground_is_neutral_on_average() -> None:
    mean = textures.ground()[..., :2].reshape(-1, 2).mean(axis=0)
    assert mean == pytest.approx(textures.GROUND_UNIT, abs=6)
