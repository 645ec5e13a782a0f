from __future__ import annotations

import re
import subprocess
import sys

import pytest

import edge_sfda


def test_import_of_the_package_leaves_torch_alone() -> None:
    code = "import sys, edge_sfda; edge_sfda.Classes; print(sorted({'torch', 'matplotlib', 'cv2'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_are_at_most_a_dozen() -> None:
    assert len(edge_sfda.__all__) <= 12


@pytest.mark.parametrize("name", edge_sfda.__all__)
def test_public_name_is_found_and_listed(name: str) -> None:
    assert getattr(edge_sfda, name) is not None
    assert name in dir(edge_sfda)


def test_public_name_is_the_object_of_its_room() -> None:
    from edge_sfda.config import AdaptConfig

    assert edge_sfda.AdaptConfig is AdaptConfig


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Segmentor'"):
        edge_sfda.Segmentor  # noqa: B018


def test_version_is_three_numbers() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", edge_sfda.__version__)
