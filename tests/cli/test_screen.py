from __future__ import annotations

import pytest

from edge_sfda.cli.screen import change, keeping, note, percent, print_json, progress


@pytest.mark.parametrize(("share", "text"), [(0.4567, "45.7"), (0.0, "0.0"), (1.0, "100.0"), (float("nan"), "–")])
def test_percent_rounds_and_dashes_what_is_missing(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("before", "after", "text", "style"),
    [(0.4, 0.5, "+10.0", "green"), (0.5, 0.4, "-10.0", "red"), (0.5, 0.5, "+0.0", ""), (float("nan"), 0.5, "", "")],
)
def test_change_is_signed_and_coloured(before: float, after: float, text: str, style: str) -> None:
    shown = change(before, after)
    assert (shown.plain, shown.style) == (text, style)


def test_json_goes_to_standard_output_and_notes_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "[bold] " + "x" * 200, "miou": float("nan")})
    note("wrote a file")
    captured = capsys.readouterr()
    assert captured.out == '{\n  "text": "[bold] ' + "x" * 200 + '",\n  "miou": null\n}\n'
    assert captured.err == "wrote a file\n"


def test_progress_in_a_pipe_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working") as step:
        step(1, 2)
        step(2, None, "loss 0.1")
    assert capsys.readouterr() == ("", "")


def test_keeping_says_what_is_kept_only_on_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt, match="the state is in RUN"), keeping("the state is in RUN"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="other"), keeping("the state is in RUN"):
        raise ValueError("other")
