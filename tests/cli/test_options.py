from __future__ import annotations

import pytest

from edge_sfda.cli.options import examples, resolve_device
from edge_sfda.errors import UsageError


def test_device_auto_is_one_that_torch_has() -> None:
    import torch

    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "toaster", ""])
def test_device_that_is_not_there_is_refused_rather_than_replaced(name: str) -> None:
    with pytest.raises(UsageError, match="choose cpu or auto"):
        resolve_device(name)


def test_examples_are_paragraphs_with_remarks_dimmed() -> None:
    assert examples("# quick", "edge-sfda demo") == (
        "[bold]Examples[/bold]\n\n[dim]# quick[/dim]\n\n[cyan]edge-sfda demo[/cyan]"
    )
