"""The camera's sensor: from linear light to the bytes of a picture."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np

from edge_sfda.data.frames import U8
from edge_sfda.data.scene_domains import Domain
from edge_sfda.data.scene_light import planes_of
from edge_sfda.data.scene_shapes import F32
from edge_sfda.data.scene_textures import grain


def expose(domain: Domain, picture: F32, rng: np.random.Generator) -> U8:
    """Return the picture as HWC uint8 BGR: exposure, vignette, tone, saturation, blur, noise.

    Args:
        domain: says how much of each.
        picture: [3, H, W] BGR linear light; changed in place.
        rng: places the noise of this frame.
    """
    height, width = picture.shape[1:]
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None] ** 2
    u = np.linspace(-1, 1, width, dtype=np.float32)[None] ** 2
    fall = 1 - np.float32(domain.vignette / 2) * (u + v)
    picture *= fall
    picture *= planes_of(domain.white_balance) * np.float32(domain.exposure)
    np.maximum(picture, 0, out=picture)
    # A soft shoulder: highlights roll off instead of clipping. Then gamma 2, as in the colours of the shapes.
    picture /= 1 + np.float32(0.32) * picture
    picture *= np.float32(1.22)
    picture = cast(F32, np.sqrt(picture) if domain.gamma == 1 else cv2.pow(picture, domain.gamma / 2))
    if domain.saturation != 1:
        grey = np.float32(0.114) * picture[0] + np.float32(0.587) * picture[1] + np.float32(0.299) * picture[2]
        picture *= np.float32(domain.saturation)
        picture += grey * np.float32(1 - domain.saturation)
    shown = cv2.merge(list(picture))
    if domain.blur > 0:
        shown = cv2.GaussianBlur(shown, (0, 0), domain.blur * max(width / 256, 0.5))
    noise = _noise(height, width, rng)
    # One pass that scales, adds, rounds and saturates.
    return cast(U8, cv2.addWeighted(shown, 255.0, noise, 255.0 * domain.noise, 0.0, dtype=cv2.CV_8U))


def _noise(height: int, width: int, rng: np.random.Generator) -> F32:
    """Return [H, W, 3] unit noise: a cut of the prepared field at a random place, wrapped where that is too small."""
    field = grain()
    y, x = (int(rng.integers(0, max(n - m, 0) + 1)) for n, m in zip(field.shape, (height, width), strict=False))
    if height <= field.shape[0] and width <= field.shape[1]:
        return field[y : y + height, x : x + width]
    return field[np.ix_((np.arange(height) + y) % field.shape[0], (np.arange(width) + x) % field.shape[1])]
