"""Text on pictures, in the font that matplotlib carries: nothing is fetched, and it looks the same everywhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

U8 = NDArray[np.uint8]
Colour = tuple[int, int, int]  # RGB, each 0..255

INK: Colour = (24, 28, 36)
SOFT: Colour = (104, 112, 124)
FAINT: Colour = (222, 226, 232)
GOOD: Colour = (20, 122, 74)
BAD: Colour = (178, 40, 40)
PAPER: Colour = (255, 255, 255)


class Sheet:
    """A white page that pictures and text are put on; `picture` gives it back as BGR.

    Args:
        height: in pixels.
        width: in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self._page = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self._page)

    def write(
        self, x: int, y: int, text: str, *, size: int, bold: bool = False, colour: Colour = INK, anchor: str = "la"
    ) -> int:
        """Write one line and return its width; `anchor` as in PIL ("la" left top, "ra" right top, "mm" middle)."""
        font = _font(size, bold)
        self._draw.text((x, y), text, font=font, fill=colour, anchor=anchor)
        return round(font.getlength(text))

    def paste(self, x: int, y: int, picture: U8) -> None:
        """Put a picture, HWC uint8 BGR, with its top left corner at (x, y)."""
        self._page.paste(Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)), (x, y))

    def box(self, x: int, y: int, width: int, height: int, colour: Colour, *, radius: int = 0) -> None:
        """Fill a rectangle, with round corners where `radius` is above 0."""
        corners = (x, y, x + width - 1, y + height - 1)
        self._draw.rounded_rectangle(corners, radius=radius, fill=colour, outline=FAINT if colour == PAPER else None)

    def picture(self) -> U8:
        """Return the page, HWC uint8 BGR."""
        return np.ascontiguousarray(np.asarray(self._page, dtype=np.uint8)[:, :, ::-1])


def text_width(text: str, *, size: int, bold: bool = False) -> int:
    """Return the width of one line in pixels."""
    return round(_font(size, bold).getlength(text))


def shorten(text: str, width: int, *, size: int, bold: bool = False) -> str:
    """Cut `text` to at most `width` pixels; what was cut ends in an ellipsis."""
    if text_width(text, size=size, bold=bold) <= width:
        return text
    while text and text_width(text + "…", size=size, bold=bold) > width:
        text = text[:-1]
    return text.rstrip() + "…"


@lru_cache(maxsize=32)
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
