from __future__ import annotations

from edge_sfda.cli.options import examples


def test_examples_are_paragraphs_with_remarks_dimmed() -> None:
    assert examples("# quick", "edge-sfda demo") == (
        "[bold]Examples[/bold]\n\n[dim]# quick[/dim]\n\n[cyan]edge-sfda demo[/cyan]"
    )
