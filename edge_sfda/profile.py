"""Device profiles: what a board can afford, as one TOML file a board; `deploy/profiles/` holds those that are shipped.

A profile sets what depends on the device alone: input size, precision, threads, and how much adaptation may take. What
depends on the domain stays in `AdaptConfig`, whose values a profile may override where memory asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_sfda import config
from edge_sfda.config import AdaptConfig, BudgetConfig
from edge_sfda.errors import ConfigError

PRECISIONS = ("fp32", "fp16", "int8")
FLAVORS = ("none", "enterprise", "rtx")


@dataclass(frozen=True, kw_only=True)
class InputSize:
    """Size of the network's input in pixels."""

    height: int = 360  # CamVid's quarter, what the README's numbers are measured at
    width: int = 480

    def __post_init__(self) -> None:
        for name, side in (("height", self.height), ("width", self.width)):
            if not (64 <= side <= 4096 and side % 8 == 0):
                raise ConfigError(f"input.{name} = {side!r} must be a multiple of 8 in 64..4096")


@dataclass(frozen=True, kw_only=True)
class RuntimeProfile:
    """How the exported network runs."""

    precision: str = "fp32"  # exact everywhere, and the fast one on a CPU
    trt_flavor: str = "none"  # which TensorRT builds the engine; none: ONNX Runtime
    threads: int = 0  # of inference on the CPU; 0 leaves the choice to the library

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"runtime.precision = {self.precision!r} must be one of {', '.join(PRECISIONS)}")
        if self.trt_flavor not in FLAVORS:
            raise ConfigError(f"runtime.trt_flavor = {self.trt_flavor!r} must be one of {', '.join(FLAVORS)}")
        if not 0 <= self.threads <= 256:
            raise ConfigError(f"runtime.threads = {self.threads!r} must lie in 0..256")


@dataclass(frozen=True, kw_only=True)
class BudgetProfile:
    """What adaptation may take from the device, beside inference."""

    share: float = 0.25  # of the compute, 0..1; 0 never adapts
    seconds_per_hour: float = 600.0  # of adaptation in any hour; ten minutes leave a fan-less board time to cool
    memory_mb: int = 2000  # of the adaptation's process, torch included

    def __post_init__(self) -> None:
        for name, value, high in (("share", self.share, 1.0), ("seconds_per_hour", self.seconds_per_hour, 3600.0)):
            if not 0 <= value <= high:
                raise ConfigError(f"budget.{name} = {value!r} must lie in 0..{high:g}")
        if not 64 <= self.memory_mb <= 1_000_000:
            raise ConfigError(f"budget.memory_mb = {self.memory_mb!r} must lie in 64..1000000")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One device: the name people know it by, and what it can afford.

    Raises:
        ConfigError: a value is out of range, or `adapt` does not fit `AdaptConfig`.
    """

    board: str = ""
    input: InputSize = field(default_factory=InputSize)
    runtime: RuntimeProfile = field(default_factory=RuntimeProfile)
    budget: BudgetProfile = field(default_factory=BudgetProfile)
    adapt: Mapping[str, Any] = field(default_factory=dict)  # over the defaults of `AdaptConfig`, nested as there

    def __post_init__(self) -> None:
        self.settings()

    def settings(self, base: AdaptConfig | None = None) -> AdaptConfig:
        """Return `base` (the defaults) with this profile's overrides."""
        try:
            return config.from_dict(self.adapt, base=base)
        except ConfigError as error:
            raise ConfigError(f"adapt: {error}") from error

    def bounds(self, share: float | None = None) -> BudgetConfig | None:
        """Return what the loop may take of the board; None where it is to adapt never.

        Args:
            share: in place of the profile's own.
        """
        share = self.budget.share if share is None else share
        if share == 0:
            return None
        hour, memory = self.budget.seconds_per_hour, self.budget.memory_mb
        return BudgetConfig(share=share, seconds_per_hour=hour, memory_mb=memory)


def names() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(profile: str) -> Profile:
    """Read a shipped profile by its name, or a TOML file by its path.

    Raises:
        ConfigError: neither a name nor a readable file, not TOML, or a bad key or value.
    """
    shipped = folder() / f"{profile}.toml"
    path = shipped if profile in names() else Path(profile)
    if not path.is_file():
        raise ConfigError(f"no profile {profile!r}; choose one of {', '.join(names())}, or name a TOML file")
    try:
        loaded: Profile = config.merge(Profile(), config.read_toml(path))
    except ConfigError as error:
        raise ConfigError(f"profile {profile}: {error}") from error
    return loaded


def folder() -> Path:
    """Return where the shipped profiles are: in a wheel beside the package's modules, else in the checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parent
    candidates = package / "_profiles", package.parent / "deploy" / "profiles"
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise ConfigError(f"no device profiles in {' or '.join(map(str, candidates))}: reinstall edge-sfda")
