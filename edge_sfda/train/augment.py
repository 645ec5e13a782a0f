"""Standard augmentation of a labelled frame: scale, crop, mirror, colour."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def augment(
    image: Image,
    label: Image,
    rng: np.random.Generator,
    *,
    crop: tuple[int, int],
    scale: tuple[float, float],
    colour: float,
    ignore_id: int,
) -> tuple[Image, Image]:
    """Return a random view of a labelled frame.

    Args:
        image: HWC uint8 BGR, at the network's size.
        label: HW uint8 class ids.
        rng: every draw comes from it.
        crop: height and width of the result; what the scaled frame does not cover is grey and ignored.
        scale: range of the random resize.
        colour: half-width of the brightness, contrast and saturation factors around 1; 0 leaves colour alone.
        ignore_id: label of uncovered pixels.

    Returns:
        image HWC uint8 BGR and label HW uint8, both of size `crop`.
    """
    factor = rng.uniform(*scale)
    height, width = (max(1, round(side * factor)) for side in label.shape)
    image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    label = np.asarray(cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
    if rng.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    image, label = _crop(image, label, rng, crop, ignore_id)
    return (jitter(image, rng, colour) if colour else image), label


def jitter(image: Image, rng: np.random.Generator, strength: float) -> Image:
    """Scale saturation, contrast and brightness of a BGR uint8 image, each by a factor from 1 +- `strength`."""
    saturation, contrast, brightness = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    x = image.astype(np.float32)
    grey = x.mean(2, keepdims=True)
    x = grey + saturation * (x - grey)
    x = (x - 128) * contrast + 128 * brightness
    result: Image = np.clip(x, 0, 255).astype(np.uint8)
    return result


def _crop(
    image: Image, label: Image, rng: np.random.Generator, crop: tuple[int, int], ignore_id: int
) -> tuple[Image, Image]:
    out_image = np.full((*crop, 3), 128, np.uint8)
    out_label = np.full(crop, ignore_id, np.uint8)
    spans = []
    for have, want in zip(label.shape, crop, strict=True):
        offset = int(rng.integers(0, abs(have - want) + 1))
        size = min(have, want)
        source, target = (offset, 0) if have >= want else (0, offset)
        spans.append((slice(source, source + size), slice(target, target + size)))
    (rows, out_rows), (columns, out_columns) = spans
    out_image[out_rows, out_columns] = image[rows, columns]
    out_label[out_rows, out_columns] = label[rows, columns]
    return out_image, out_label
