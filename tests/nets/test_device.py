from __future__ import annotations

import pytest
import torch

from edge_sfda.errors import UsageError
from edge_sfda.nets.device import resolve


def test_auto_is_a_device_that_torch_has() -> None:
    assert resolve("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "toaster", ""])
def test_device_that_is_not_there_is_refused_rather_than_replaced(name: str) -> None:
    with pytest.raises(UsageError, match="choose cpu or auto"):
        resolve(name)
