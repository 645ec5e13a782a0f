"""What a text such as `scene:day-dusk?frames=200&seed=3&size=192x256` asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from edge_sfda.data.scene import DOMAINS, Domain, Scene, blend
from edge_sfda.errors import UsageError

PREFIX = "scene:"

_CHANGE = 0.3  # share of a domain's frames over which it turns into the next: slow enough to be a change, not a cut


@dataclass(frozen=True)
class SceneSpec:
    """A run of frames of the built-in scene.

    Args:
        domains: names in `DOMAINS`; several follow each other, each for an equal share of the frames, with a smooth
            change between.
        frames: how many.
        seed: of the street.
        height, width: in pixels.
        fps: frames a second of the camera, which drives at about 8 m/s.
        start: number of the first frame; two runs of one seed that do not overlap show other parts of one street.

    Raises:
        UsageError: an unknown domain or a value out of range.
    """

    domains: tuple[str, ...]
    frames: int = 200
    seed: int = 0
    height: int = 192
    width: int = 256
    fps: float = 10.0
    start: int = 0

    def __post_init__(self) -> None:
        for name in self.domains:
            if name not in DOMAINS:
                raise UsageError(f"unknown scene domain {name!r}; choose one of {', '.join(DOMAINS)}")
        _check("frames", self.frames, 1, 10_000_000)
        _check("seed", self.seed, 0, 2**32 - 1)
        _check("height", self.height, 16, 8192)
        _check("width", self.width, 16, 8192)
        _check("fps", self.fps, 0.01, 1000)
        _check("start", self.start, 0, 10_000_000)

    @staticmethod
    def parse(text: str) -> SceneSpec:
        """Read `scene:DOMAIN[-DOMAIN...][?key=value&...]` with keys frames, seed, size (HxW), fps, start.

        Raises:
            UsageError: no scene, an unknown domain or key, or a value that is not a number in range.
        """
        if not text.startswith(PREFIX):
            raise UsageError(f"{text!r} is no scene; expected scene:DOMAIN, for example scene:dusk?frames=200&seed=3")
        names, _, query = text[len(PREFIX) :].partition("?")
        options: dict[str, Any] = {}
        try:
            pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        except ValueError as error:
            raise UsageError(f"cannot read options {query!r} of {text!r}; write key=value&key=value") from error
        for key, value in pairs:
            if key not in _OPTIONS:
                raise UsageError(f"unknown option {key!r} in {text!r}; known: {', '.join(_OPTIONS)}")
            try:
                options |= _OPTIONS[key](value)
            except ValueError as error:
                raise UsageError(f"cannot read {key}={value} in {text!r}; write numbers, size as 192x256") from error
        return SceneSpec(tuple(names.split("-")), **options)

    def open(self) -> Scene:
        """Return the street to render from."""
        return Scene(self.seed, self.height, self.width)

    def moment(self, i: int) -> tuple[float, Domain]:
        """Return the time in seconds and the domain of frame `i` of 0..frames-1."""
        hold = self.frames / len(self.domains)
        place = min(int(i / hold), len(self.domains) - 1)
        domain = DOMAINS[self.domains[place]]
        into = (i - place * hold) / hold  # 0..1 of this domain's share
        if place + 1 < len(self.domains) and into > 1 - _CHANGE:
            domain = blend(domain, DOMAINS[self.domains[place + 1]], (into - 1 + _CHANGE) / _CHANGE)
        return (self.start + i) / self.fps, domain


def lasting(text: str, seconds: float) -> str:
    """Return a scene's text with frames for so many seconds at its rate; one that names its frames stays as it is.

    Raises:
        UsageError: see `SceneSpec.parse`.
    """
    spec = SceneSpec.parse(text)
    query = text.partition("?")[2]
    if any(pair.startswith("frames=") for pair in query.split("&")):
        return text
    return f"{text}{'&' if query else '?'}frames={max(1, math.ceil(seconds * spec.fps))}"


def _size(text: str) -> Mapping[str, int]:
    height, width = text.lower().split("x")
    return {"height": int(height), "width": int(width)}


_OPTIONS: dict[str, Callable[[str], Mapping[str, Any]]] = {
    "frames": lambda text: {"frames": int(text)},
    "seed": lambda text: {"seed": int(text)},
    "size": _size,
    "fps": lambda text: {"fps": float(text)},
    "start": lambda text: {"start": int(text)},
}


def _check(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UsageError(f"scene {name} = {value!r} must lie in {low}..{high}")
