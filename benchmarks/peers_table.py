"""What `peers.py` measured, as tables for the pages."""

from __future__ import annotations

from typing import Any

import numpy as np

_NAMES = {
    "none": "source", "bn": "BatchNorm statistics", "tent": "TENT", "eata": "EATA", "sar": "SAR", "rdumb": "RDumb",
    "roid": "ROID", "cotta": "CoTTA-style", "hamlet": "HAMLET-style", "stvm": "after STvM",
}  # fmt: skip
_LEADING = ("none", "bn", "tent", "stvm")


def table(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a table for each protocol, a row a method, against the source on the same frames.

    Where bursts of a method were run with several numbers of steps, each is a method of its own; a stream has none.
    """
    results = _told_apart(results)
    lines = []
    for protocol in dict.fromkeys(r["protocol"] for r in results):
        mine = [r for r in results if r["protocol"] == protocol]
        extra = ["least margin", "worst segment"] if protocol == "continual" else ["worst against source", "rare"]
        extra += ["steps"] if protocol == "offline" and len({r["steps"] for r in mine}) > 1 else []
        lines += [f"| {protocol} | mIoU | {' | '.join(extra)} | seconds |", "|---" * (len(extra) + 3) + "|"]
        order = sorted(dict.fromkeys(r["method"] for r in mine), key=lambda name: -_mean(mine, name, "miou"))
        for method in order:
            if protocol == "continual":
                cells = [f"{_mean(mine, method, key):+.3f}" for key in ("least_margin", "worst_segment")]
            else:
                cells = [f"{_worst(mine, method):+.3f}", f"{_mean(mine, method, 'rare'):.3f}"]
            if "steps" in extra:
                cells.append(f"{_mean(mine, method, 'steps'):.0f}")
            cells = [f"{_mean(mine, method, 'miou'):.3f}", *cells, f"{_mean(mine, method, 'seconds'):.0f}"]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def by_protocol(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a method on one pair, offline beside online, ours last; the worst where seeds differ.

    Bursts of a method that took more steps than its shortest are rows of their own.
    """
    least = _least_steps(results)

    def name(row: dict[str, Any]) -> str:
        longer = row["protocol"] == "offline" and row["steps"] > least[row["method"]]
        return _NAMES.get(row["method"], row["method"]) + (f", {row['steps']} steps" if longer else "")

    def cells(mine: list[dict[str, Any]]) -> list[str]:
        if not mine:
            return ["", ""]
        miou = [r["miou"] for r in mine]
        worst = f" ({_short(min(miou))})" if len(miou) > 1 else ""
        return [_short(np.mean(miou)) + worst, _short(np.mean([r["rare"] for r in mine]))]

    parts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in results:
        parts.setdefault(name(row), {"offline": [], "online": []})[row["protocol"]].append(row)

    lines = ["| | offline, mIoU | rare | online, mIoU | rare |", "|---" * 5 + "|"]
    for each in _ranked({name: float(np.mean([r["miou"] for r in parts[name]["offline"]])) for name in parts}):
        line = [each, *cells(parts[each]["offline"]), *cells(parts[each]["online"])]
        lines.append(_line(line, bold=each == _NAMES["stvm"]))
    return "\n".join(lines)


def by_worst(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a method, its mean and its worst case against the source in each protocol, ours last.

    Of bursts the shortest count. Of the two kinds of statistics in the continual run those with the better mean count;
    its worst case is the least margin of the running mIoU.
    """
    results = _shortest(results)
    parts: dict[str, dict[str, tuple[float, float]]] = {}
    protocols = list(dict.fromkeys(row["protocol"] for row in results))
    for protocol in protocols:
        mine = [r for r in results if r["protocol"] == protocol]
        for method in dict.fromkeys(r["method"] for r in mine):
            name = _NAMES.get(method.removesuffix("-momentum") if protocol == "continual" else method)
            worst = _mean(mine, method, "least_margin") if protocol == "continual" else _worst(mine, method)
            found = _mean(mine, method, "miou"), worst
            if name is not None and found > parts.setdefault(name, {}).get(protocol, (0.0, 0.0)):
                parts[name][protocol] = found

    lines = ["| | " + " | ".join(f"{protocol} | worst" for protocol in protocols) + " |"]
    lines.append("|---" * (2 * len(protocols) + 1) + "|")
    for each in _ranked({name: found.get(protocols[0], (0.0, 0.0))[0] for name, found in parts.items()}):
        cells = [each]
        for protocol in protocols:
            miou, worst = parts[each].get(protocol, (None, None))
            cells += ["", ""] if miou is None or worst is None else [_short(miou), _change(worst)]
        lines.append(_line(cells, bold=each == _NAMES["stvm"]))
    return "\n".join(lines)


def by_domain(results: list[dict[str, Any]]) -> str:
    """Return Markdown: a row a domain, offline, the leading methods beside each other."""
    mine = _shortest([r for r in results if r["protocol"] == "offline" and r["method"] in _LEADING])
    lines = [_line(["domain", *(_NAMES[name] for name in _LEADING)]), "|---" * (len(_LEADING) + 1) + "|"]
    for pair in dict.fromkeys(r["pair"] for r in mine):
        here = [r for r in mine if r["pair"] == pair]
        lines.append(_line([pair, *(_short(_mean(here, name, "miou")) for name in _LEADING)]))
    return "\n".join(lines)


def _least_steps(results: list[dict[str, Any]]) -> dict[str, int]:
    """Return the steps of each method's shortest bursts."""
    least: dict[str, int] = {}
    for row in results:
        if row["protocol"] == "offline":
            least[row["method"]] = min(row["steps"], least.get(row["method"], row["steps"]))
    return least


def _shortest(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without those of bursts longer than their method's shortest."""
    least = _least_steps(results)
    return [r for r in results if r["protocol"] != "offline" or r["steps"] == least[r["method"]]]


def _ranked(means: dict[str, float]) -> list[str]:
    """Return names in the order of rows: the source, the others by their mean, ours."""
    return sorted(means, key=lambda name: (name == _NAMES["stvm"], name != _NAMES["none"], means[name]))


def _line(cells: list[str], *, bold: bool = False) -> str:
    return f"| {' | '.join(f'**{cell}**' if bold and cell else cell for cell in cells)} |"


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _change(value: float) -> str:
    """Return a change of mIoU in points."""
    return f"{100 * value:+.1f}"


def _worst(results: list[dict[str, Any]], method: str) -> float:
    """Return the least gain over the source of any place and seed; unknown where the source was not measured."""
    source = {(r["pair"], r["street"]): r["miou"] for r in results if r["method"] == "none"}
    mine = [r for r in results if r["method"] == method]
    return float(min(r["miou"] - source.get((r["pair"], r["street"]), np.nan) for r in mine))


def _told_apart(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lengths = {(row["method"], row["steps"]) for row in results if row["protocol"] == "offline"}
    methods = [method for method, _ in lengths]
    return [
        row | {"method": f"{row['method']}, {row['steps']} steps"}
        if row["protocol"] == "offline" and methods.count(row["method"]) > 1
        else row
        for row in results
    ]


def _mean(results: list[dict[str, Any]], method: str, key: str) -> float:
    """Return the mean over places of the mean over seeds: a method without draws has one seed alone."""
    by_place: dict[tuple[str, int | None], list[float]] = {}
    for row in results:
        if row["method"] == method:
            by_place.setdefault((row["pair"], row["street"]), []).append(row[key])
    return float(np.mean([np.mean(values) for values in by_place.values()]))
