from __future__ import annotations

import numpy as np

from edge_sfda.report.text import Sheet, shorten, text_width


def test_sheet_gives_pictures_back_in_bgr() -> None:
    sheet = Sheet(4, 6)
    sheet.paste(1, 2, np.full((1, 1, 3), (1, 2, 3), np.uint8))
    picture = sheet.picture()
    assert picture.shape == (4, 6, 3)
    assert picture[2, 1].tolist() == [1, 2, 3]
    assert picture[0, 0].tolist() == [255, 255, 255]


def test_sheet_writes_ink_within_the_width_it_returns() -> None:
    sheet = Sheet(40, 200)
    width = sheet.write(10, 5, "mIoU", size=20)
    inked = np.argwhere((sheet.picture() < 128).any(axis=2))[:, 1]
    assert 10 <= inked.min() <= inked.max() <= 10 + width


def test_shorten_keeps_what_fits() -> None:
    assert shorten("road", text_width("road", size=15), size=15) == "road"


def test_shorten_cuts_to_the_width_with_an_ellipsis() -> None:
    cut = shorten("a long name of a class", 80, size=15)
    assert cut.endswith("…")
    assert text_width(cut, size=15) <= 80
