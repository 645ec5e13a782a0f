from __future__ import annotations

import pytest

from edge_sfda.doctor.check import Check, State, probe


def test_probe_gives_the_answer_whatever_else_is_printed() -> None:
    assert probe("print('noise'); answer = {'a': [1, None]}").value == {"a": [1, None]}


def test_probe_survives_a_crash() -> None:
    said = probe("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (said.value, said.trouble) == (None, "the process died of signal 11")


def test_probe_tells_the_error() -> None:
    assert probe("import no_such_thing").trouble == "ModuleNotFoundError: No module named 'no_such_thing'"


def test_probe_tells_an_exit_without_a_word() -> None:
    assert probe("raise SystemExit(3)").trouble == "the process ended with 3"


def test_probe_that_hangs_is_stopped() -> None:
    assert probe("import time; time.sleep(600)", seconds=0.5).trouble == "no answer within 0 s"


def test_probe_without_an_interpreter_says_so() -> None:
    assert "cannot start /no/python" in probe("answer = 1", python="/no/python").trouble


def test_finding_needs_a_way_out() -> None:
    with pytest.raises(AssertionError, match="a finding without a way out"):
        Check("disk", State.WARNING, "full")
