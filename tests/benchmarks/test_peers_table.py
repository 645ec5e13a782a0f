from __future__ import annotations

from typing import Any

from peers_table import by_domain, by_protocol, by_worst, table


def _row(method: str, pair: str, miou: float, **more: Any) -> dict[str, Any]:
    row = {"protocol": "offline", "method": method, "pair": pair, "street": 43, "steps": 100}
    return row | {"miou": miou, "rare": 0.25, "seconds": 2.0} | more


def test_table_shows_the_worst_change_of_any_pair_and_seed() -> None:
    rows = [_row("none", "dusk", 0.3), _row("none", "fog", 0.5)]
    rows += [_row("tent", "dusk", 0.5), _row("tent", "dusk", 0.4), _row("tent", "fog", 0.45)]
    lines = table(rows).splitlines()
    assert lines[2] == "| tent | 0.450 | -0.050 | 0.250 | 2 |"
    assert lines[3] == "| none | 0.400 | +0.000 | 0.250 | 2 |"


def test_gain_is_over_the_source_on_the_same_street() -> None:
    rows = [_row("none", "dusk", 0.3), _row("none", "dusk", 0.6, street=53)]
    rows += [_row("tent", "dusk", 0.5), _row("tent", "dusk", 0.7, street=53)]
    assert table(rows).splitlines()[2] == "| tent | 0.600 | +0.100 | 0.250 | 2 |"


def test_table_tells_steps_where_they_differ() -> None:
    lines = table([_row("none", "dusk", 0.3), _row("tent", "dusk", 0.5, steps=125)]).splitlines()
    assert lines[0] == "| offline | mIoU | worst against source | rare | steps | seconds |"
    assert lines[1] == "|---|---|---|---|---|---|"
    assert lines[2] == "| tent | 0.500 | +0.200 | 0.250 | 125 | 2 |"


def test_gain_is_unknown_where_the_source_was_not_measured() -> None:
    assert table([_row("tent", "dusk", 0.5)]).splitlines()[2] == "| tent | 0.500 | +nan | 0.250 | 2 |"


def test_table_tells_runs_of_different_lengths_apart() -> None:
    found = [_row("none", "dusk", 0.3), _row("tent", "dusk", 0.5), _row("tent", "dusk", 0.4, steps=160)]
    lines = table(found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| tent, 100 steps", "| tent, 160 steps", "| none"]
    assert [line.split(" | ")[1] for line in lines[2:5]] == ["0.500", "0.400", "0.300"]


def test_steps_of_a_burst_are_nothing_to_a_stream() -> None:
    found = [_row("none", "dusk", 0.3), _row("tent", "dusk", 0.5), _row("tent", "fog", 0.4, steps=160)]
    lines = table([row | {"protocol": "online"} for row in found]).splitlines()
    assert lines[0] == "| online | mIoU | worst against source | rare | seconds |"
    assert lines[2].startswith("| tent | 0.450 |")


def test_protocols_stand_side_by_side_ours_last_and_the_worst_of_several_seeds() -> None:
    found = [_row("none", "dusk", 0.6), _row("stvm", "dusk", 0.4), _row("stvm", "dusk", 0.5)]
    found += [_row("tent", "dusk", 0.5), _row("tent", "dusk", 0.45, steps=160)]
    found += [_row("tent", "dusk", 0.25, protocol="online", steps=160)]
    assert by_protocol(found).splitlines()[2:] == [
        "| source | .600 | .250 |  |  |",
        "| TENT, 160 steps | .450 | .250 |  |  |",
        "| TENT | .500 | .250 | .250 | .250 |",
        "| **after STvM** | **.450 (.400)** | **.250** |  |  |",
    ]


def test_domains_show_the_leading_methods_at_their_own_steps() -> None:
    found = [_row(method, "fog", 0.5, steps=160) for method in ("none", "bn", "stvm", "sar")]
    found += [
        _row("tent", "fog", 0.25),
        _row("tent", "fog", 0.75, steps=160),
        _row("stvm", "fog", 1, protocol="online"),
    ]
    assert by_domain(found).splitlines() == [
        "| domain | source | BatchNorm statistics | TENT | after STvM |",
        "|---|---|---|---|---|",
        "| fog | .500 | .500 | .250 | .500 |",
    ]


def test_worst_case_stands_beside_the_mean_of_the_better_statistics_and_the_shortest_burst() -> None:
    found = [_row("none", "dusk", 0.3), _row("none", "fog", 0.5), _row("bn-mix", "dusk", 0.3)]
    found += [_row("stvm", "dusk", 0.7), _row("stvm", "fog", 0.51)]
    found += [_row("tent", "dusk", 0.6), _row("tent", "fog", 0.45), _row("tent", "fog", 0.2, steps=160)]
    rounds = {"protocol": "continual", "least_margin": 0.0}
    found += [_row("none", "rounds", 0.4, **rounds), _row("tent", "rounds", 0.3, **rounds | {"least_margin": -0.1})]
    found.append(_row("tent-momentum", "rounds", 0.45, **rounds | {"least_margin": -0.02}))
    found.append(_row("tent-momentum", "dusk", 0.9))  # where only some places have it, the two do not compare
    assert by_worst(found).splitlines() == [
        "| | offline | worst | continual | worst |",
        "|---|---|---|---|---|",
        "| source | .400 | +0.0 | .400 | +0.0 |",
        "| TENT | .525 | -5.0 | .450 | -2.0 |",
        "| **after STvM** | **.605** | **+1.0** |  |  |",
    ]
