"""The named domains of the scene: light, weather, sensor and town, as plain numbers that blend into each other."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np

from edge_sfda.errors import UsageError

RGB = tuple[float, float, float]
TOWNS = ("home", "city")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """How a street looks. Light is linear, 1 is a white surface in full daylight; colours are linear RGB.

    All domains of one `style` show the same geometry, so their labels are equal.

    Raises:
        UsageError: no town has that style.
    """

    name: str
    style: str = "home"  # the town, one of `TOWNS`
    # light
    sun: RGB = (1.15, 1.06, 0.90)  # direct light
    sun_height: float = 38.0  # degrees above the horizon, at its mean
    ambient: RGB = (0.40, 0.44, 0.50)  # light from all sides
    sky_low: RGB = (0.62, 0.72, 0.82)  # at the horizon
    sky_high: RGB = (0.16, 0.32, 0.62)  # overhead
    cloud: float = 0.45  # share of the sky, 0..1
    cloud_rgb: RGB = (0.86, 0.87, 0.88)
    lamps: float = 0.0  # street lamps, windows, headlights: 0 off, 1 as at night
    # air
    haze: float = 0.0022  # extinction, 1/m
    haze_rgb: RGB = (0.58, 0.66, 0.76)
    rain: float = 0.0  # streaks, 0..1
    wet: float = 0.0  # how much the ground mirrors, 0..1
    # sensor
    exposure: float = 1.0
    white_balance: RGB = (1.0, 1.0, 1.0)
    saturation: float = 1.0
    gamma: float = 1.0  # above 1 darkens the middle tones
    vignette: float = 0.10  # light lost in the corners, 0..1
    noise: float = 0.012  # deviation in mid-grey, of full scale
    blur: float = 0.45  # Gaussian sigma in pixels at 256 columns
    variation: float = 1.0  # how much sun, clouds, tint and exposure vary over time and seed, 0..1

    def __post_init__(self) -> None:
        if self.style not in TOWNS:
            raise UsageError(f"domain {self.name!r} has style {self.style!r}; choose one of {', '.join(TOWNS)}")


_ALL = (
    Domain(name="day"),
    Domain(
        name="dusk", sun=(0.10, 0.05, 0.025), sun_height=7, ambient=(0.075, 0.068, 0.092), sky_low=(0.72, 0.42, 0.26),
        sky_high=(0.10, 0.12, 0.22), cloud=0.4, cloud_rgb=(0.26, 0.19, 0.20), lamps=0.35, haze=0.006,
        haze_rgb=(0.24, 0.15, 0.13), exposure=1.5, saturation=0.9, vignette=0.15, noise=0.03, variation=0.5,
    ),
    Domain(
        name="night", sun=(0, 0, 0), ambient=(0.0075, 0.0085, 0.013), sky_low=(0.050, 0.040, 0.036),
        sky_high=(0.009, 0.010, 0.017), cloud=0.4, cloud_rgb=(0.034, 0.028, 0.026), lamps=1.0, haze=0.004,
        haze_rgb=(0.012, 0.010, 0.011), exposure=2.0, saturation=0.85, vignette=0.2, noise=0.05, blur=0.6,
        variation=0.3,
    ),
    Domain(
        name="fog", sun=(0, 0, 0), ambient=(0.62, 0.65, 0.67), sky_low=(0.60, 0.63, 0.65), sky_high=(0.56, 0.60, 0.63),
        cloud=0, haze=0.034, haze_rgb=(0.60, 0.63, 0.65), lamps=0.25, exposure=0.95, saturation=0.8, noise=0.014,
        blur=0.6, variation=0.4,
    ),
    Domain(
        name="rain", sun=(0, 0, 0), ambient=(0.34, 0.37, 0.41), sky_low=(0.50, 0.53, 0.56), sky_high=(0.36, 0.39, 0.42),
        cloud=0.95, cloud_rgb=(0.42, 0.44, 0.47), haze=0.011, haze_rgb=(0.34, 0.37, 0.41), lamps=0.4, rain=1.0, wet=1.0,
        exposure=1.0, saturation=0.75, noise=0.02, blur=0.7, variation=0.4,
    ),
    Domain(
        name="city", style="city", sun=(0.85, 0.82, 0.78), sun_height=50, ambient=(0.42, 0.44, 0.48),
        sky_low=(0.70, 0.72, 0.72), sky_high=(0.26, 0.36, 0.52), cloud=0.6, haze=0.005, haze_rgb=(0.64, 0.66, 0.68),
    ),
    Domain(
        name="sensor", white_balance=(1.28, 1.0, 0.70), saturation=0.6, gamma=1.45, exposure=1.25, vignette=0.5,
        noise=0.05, blur=1.0,
    ),
)  # fmt: skip

DOMAINS: dict[str, Domain] = {domain.name: domain for domain in _ALL}


def domain_of(name: str) -> Domain:
    """Return the domain of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in DOMAINS:
        raise UsageError(f"unknown scene domain {name!r}; choose one of {', '.join(DOMAINS)}")
    return DOMAINS[name]


def blend(a: Domain, b: Domain, share: float) -> Domain:
    """Return the domain between `a` (share 0) and `b` (share 1); the town changes at one half, all else smoothly."""

    def mix(x: object, y: object) -> object:
        if isinstance(x, tuple) and isinstance(y, tuple):
            return tuple(mix(p, q) for p, q in zip(x, y, strict=True))
        if isinstance(x, (int, float)) and isinstance(y, (int, float)):
            return (1 - share) * x + share * y
        return y if share >= 0.5 else x

    mixed = {f.name: mix(getattr(a, f.name), getattr(b, f.name)) for f in fields(Domain)}
    return Domain(**{**mixed, "name": f"{a.name}-{b.name}"})  # type: ignore[arg-type]


_PERIODS = (17, 29, 11, 60, 45, 37)  # seconds over which clouds, tint, exposure, azimuth, height, haze drift


@dataclass(frozen=True)
class Sun:
    """Where the sun stands: unit vector to it in street coordinates (s, d, y)."""

    s: float
    d: float
    y: float


@lru_cache(maxsize=1024)
def _knot(seed: int, stream: int, i: int) -> float:
    return float(np.random.default_rng([seed, stream, i]).uniform(-1, 1))


def _drift(seed: int, stream: int, x: float) -> float:
    """Return smooth noise of -1..1 that belongs to `seed` and changes over about one unit of `x`."""
    knot = math.floor(x)
    a, b = _knot(seed, stream, knot), _knot(seed, stream, knot + 1)
    ease = (1 - math.cos(math.pi * (x - knot))) / 2
    return a + (b - a) * ease


def weather(domain: Domain, seed: int, t: float) -> tuple[Domain, Sun]:
    """Return the domain as it is at `t` seconds under `seed`, and the sun.

    Clouds come and go within half a minute, sun, tint and exposure drift; `domain.variation` scales that.
    """
    v = domain.variation
    cloud, tint, level, turn, climb, air = (_drift(seed, 200 + i, t / p) for i, p in enumerate(_PERIODS))
    covered = min(max(domain.cloud + 0.8 * v * cloud, 0.0), 1.0)
    clear = 1 - v * min(max((covered - 0.35) / 0.5, 0.0), 1.0) ** 1.5  # share of the sun that comes through
    warm = (1 + 0.10 * v * tint, 1.0, 1 - 0.12 * v * tint)
    azimuth = 2 * math.pi * (0.61803 * seed % 1) + 0.9 * turn
    height = math.radians(domain.sun_height * (1 + 0.35 * v * climb))
    gain = domain.exposure * (1 + 0.16 * v * level) * (1 + 0.22 * (1 - clear))
    sun = _times(_times(domain.sun, warm), (clear, clear, clear))
    # What the sun loses to clouds comes back in part from all sides.
    ambient = tuple(a + 0.3 * (1 - clear) * s for a, s in zip(domain.ambient, domain.sun, strict=True))
    skies = (domain.sky_low, domain.sky_high)
    grey = 0.85 * v * min(max((covered - 0.6) / 0.35, 0.0), 1.0)  # an overcast sky has no blue left
    low, high = (_mix(a, _times(domain.cloud_rgb, (k, k, k)), grey) for a, k in zip(skies, (0.80, 0.55), strict=True))
    now = replace(
        domain, cloud=covered, sun=sun, ambient=_times(warm, (ambient[0], ambient[1], ambient[2])), exposure=gain,
        haze=domain.haze * (1 + 0.4 * v * air), sky_low=low, sky_high=high,
    )  # fmt: skip
    flat = math.cos(height)
    return now, Sun(flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(height))


def _times(a: RGB, b: RGB) -> RGB:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    return a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share
