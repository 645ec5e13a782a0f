"""Adaptation settings: frozen dataclasses, every default with its reason, TOML in and out.

One configuration serves every domain pair: no value here was chosen by looking at target labels. Where METHOD's study
gave a hint, or our scene and the CamVid drive -> drive pair decided, the comment says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from edge_sfda.errors import ConfigError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, which JetPack 6 ships
    import tomli as tomllib  # type: ignore[import-not-found,no-redef,unused-ignore]

METHODS = (
    "stvm", "none", "bn", "tent", "eata", "sar", "rdumb", "roid", "cotta", "hamlet", "mean-teacher", "threshold",
)  # fmt: skip

# what a device may spend, over the defaults; benchmarks/cost.py tells what each is worth
EFFORTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "full": {},
    # the encoder learns as well: leaving it alone costs more than it spares (the scene's streets 13 and 17)
    "cheap": {"burst": {"scale": 0.5, "steps": 60, "batch": 2, "every": 2}},
}


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(f"{name} = {value!r} must lie in {low}..{high}")


@dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
    """Step 0: BatchNorm statistics and class prior, no gradient (ours; METHOD, step 0)."""

    blend: float = 1.0  # share of the target in the running statistics; 0 leaves the source's
    frames: int = 48  # frames they are estimated over; a few dozen settle them
    source_frames: int = 4  # of a stream, that the source's statistics count as; more near it (adapt/stream_guard.py)
    momentum: float = 0.01  # of a stream, the least share of its next frame; .1 over 10 source frames is train mode's
    prior: float = 0.5  # share of the source's class weights undone on a stream, and after a burst at a mild shift

    def __post_init__(self) -> None:
        _check("statistics.blend", self.blend, 0, 1)
        _check("statistics.frames", self.frames, 1, 100_000)
        _check("statistics.source_frames", self.source_frames, 1, 100_000)
        _check("statistics.momentum", self.momentum, 0, 1)
        _check("statistics.prior", self.prior, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Mean teacher (the paper's); its view of a frame (ours)."""

    average_max: float = 0.95  # a_max of a = min(1 - 1/(k+1), a_max): a burst of 100 steps needs a short memory
    flip: bool = False  # average over the frame and its mirror image: two forwards more a step, +0.0 on the scene

    def __post_init__(self) -> None:
        _check("teacher.average_max", self.average_max, 0, 0.99999)


@dataclass(frozen=True, kw_only=True)
class ReliabilityConfig:
    """Metric network and proxies on the teacher's encoder features (the paper's idea, our formulas)."""

    enabled: bool = True  # False: every pixel weighs 1 (or its confidence)
    confidence: bool = True  # a sum of log odds with confidence and the neighbours' support; False: reliability alone
    embedding: int = 64  # D
    kappa: float = 10.0  # temperature of the reliability softmax over cosines
    scale: float = 18.0  # of the metric loss: -|3z-3p|^2 = 18 cos - 18, after Proxy-NCA++
    per_class: int = 96  # pixels a class and step that train the metric; class-balanced
    rate: float = 2e-3  # Adam rate of the projections
    proxy_rate: float = 1e-2  # Adam rate of the proxies
    warm_up: int = 40  # metric-only steps before the burst: the weight must mean something when it first counts

    def __post_init__(self) -> None:
        _check("reliability.embedding", self.embedding, 8, 256)
        _check("reliability.kappa", self.kappa, 0.1, 100)
        _check("reliability.scale", self.scale, 0.1, 100)
        _check("reliability.per_class", self.per_class, 1, 100_000)
        _check("reliability.rate", self.rate, 0, 1)
        _check("reliability.proxy_rate", self.proxy_rate, 0, 1)
        _check("reliability.warm_up", self.warm_up, 0, 100_000)


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Metric-based online ClassMix, MOCM (the paper's idea, our sampling rule)."""

    enabled: bool = False  # as in the paper, but with entropy's share it costs a little
    memory: int = 16  # donors kept, as uint8 frames: 16 x 0.5 MB at 360x480
    fraction: float = 0.5  # share of the donor's classes pasted, drawn with probability growing with reliability

    def __post_init__(self) -> None:
        _check("mixing.memory", self.memory, 1, 4096)
        _check("mixing.fraction", self.fraction, 0, 1)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The student's strong view: crop, mirror, colour, blur (ours)."""

    enabled: bool = True
    strength: float = 0.0  # scales the ranges below; in so short a burst colour and blur cost more than they bring
    brightness: float = 0.2  # factor drawn from 1 - b .. 1 + b
    contrast: float = 0.2
    saturation: float = 0.2
    blur: float = 0.5  # probability of a 3x3 binomial blur
    crop: float = 1.0  # side of the student's crop, a share of the frame's: a crop's statistics are not a frame's

    def __post_init__(self) -> None:
        _check("view.strength", self.strength, 0, 4)
        for name in ("brightness", "contrast", "saturation"):
            _check(f"view.{name}", getattr(self, name), 0, 0.9)
        _check("view.blur", self.blur, 0, 1)
        _check("view.crop", self.crop, 0.25, 1)


@dataclass(frozen=True, kw_only=True)
class BurstConfig:
    """A bounded burst of steps; the rate falls to zero within it (ours; METHOD b)."""

    steps: int = 160  # quality peaks and then falls in every self-training variant: few; the last of them consolidate
    warm_up: int = 8  # steps over which the rate rises
    batch: int = 4  # frames a step: the least whose own statistics are worth normalising by
    rate: float = 2.5e-3  # AdamW rate of the student at its peak; 3e-5 where all weights are trained
    weight_decay: float = 0.0
    affine_only: bool = True  # train scale and shift of the normalisation layers alone, as TENT does
    batch_statistics: bool = True  # the student normalises by its batch; re-estimated at the burst's end, as in TENT
    entropy: float = 0.9  # share of the student's own entropy in the loss, of every pixel alike
    guard: bool = True  # the source, or a mix with it, where it fits the target (adapt/guard.py, stream_guard.py)
    class_floor: float = 0.85  # least share that a class keeps of what step 0 says of it (adapt/class_floor.py)
    frozen_stride: int = 0  # encoder layers up to this stride keep theirs; 2 saves a sixth of a step for .3 points
    scale: float = 1.0  # of a frame's sides within a step; .5 costs a quarter, and statistics still see whole frames
    online_share: float = 0.16  # constant share of the rate on a stream, where no burst ends
    every: int = 1  # of a stream, the how many-th frame is learned from; statistics take in all

    def __post_init__(self) -> None:
        _check("burst.steps", self.steps, 0, 1_000_000)
        _check("burst.warm_up", self.warm_up, 0, 1_000_000)
        _check("burst.batch", self.batch, 1, 256)
        _check("burst.rate", self.rate, 0, 1)
        _check("burst.weight_decay", self.weight_decay, 0, 1)
        _check("burst.entropy", self.entropy, 0, 1)
        _check("burst.class_floor", self.class_floor, 0, 1)
        _check("burst.frozen_stride", self.frozen_stride, 0, 32)
        _check("burst.scale", self.scale, 0.25, 1)
        _check("burst.online_share", self.online_share, 0, 1)
        _check("burst.every", self.every, 1, 10_000)


@dataclass(frozen=True, kw_only=True)
class ConsolidationConfig:
    """What a network and its mirror image say together, learnt into its weights (ours)."""

    share: float = 0.375  # of the burst's steps: 60 after 100 of entropy; 0: none
    rate: float = 2e-3  # AdamW rate of all weights behind the encoder, at its peak
    encoder_rate_scale: float = 0.1  # the encoder's share of it; 0 leaves the encoder alone, and costs less
    temperature: float = 0.5  # that what is said is sharpened by
    online_share: float = 0.15  # constant share of the rate on a stream; 0: none there

    def __post_init__(self) -> None:
        _check("consolidation.share", self.share, 0, 1)
        _check("consolidation.rate", self.rate, 0, 1)
        _check("consolidation.encoder_rate_scale", self.encoder_rate_scale, 0, 1)
        _check("consolidation.temperature", self.temperature, 0.05, 20)
        _check("consolidation.online_share", self.online_share, 0, 1)


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """Everything an adaptation run depends on besides its frames and its checkpoint."""

    method: str = "stvm"
    seed: int = 0
    statistics: StatisticsConfig = field(default_factory=StatisticsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    reliability: ReliabilityConfig = field(default_factory=ReliabilityConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    burst: BurstConfig = field(default_factory=BurstConfig)
    consolidation: ConsolidationConfig = field(default_factory=ConsolidationConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method = {self.method!r} is unknown; choose one of {', '.join(METHODS)}")
        _check("seed", self.seed, 0, 2**32 - 1)

    @property
    def own_steps(self) -> int:
        """The steps of a burst before it consolidates."""
        return self.burst.steps - round(self.burst.steps * self.consolidation.share)


@dataclass(frozen=True, kw_only=True)
class TriggerConfig:
    """When a stream has left what the deployed network was fitted to (ours; METHOD, when to adapt)."""

    settle: int = 60  # frames that the reference is taken from: 6 s at 10 frames a second, several things passed by
    window: int = 15  # frames whose median is held against it: a glare or a passing lorry is shorter
    high: float = (
        6.0  # spreads from the reference at which a shift is found; on one street 5.0 was the most, dusk is 16
    )
    low: float = 3.0  # and below which it is over; the gap keeps a signal on the edge from ringing
    patience: int = 10  # frames in a row beyond either, so that it takes a second
    cool_down: int = 300  # frames before a shift that lasts is told again; doubled each time, up to 16-fold
    memory: int = 600  # frames over which the spread is remembered: a minute of what is usual
    floor: float = 0.02  # least spread, as a share of the signal's size: a still picture must not make noise a shift

    def __post_init__(self) -> None:
        _check("trigger.settle", self.settle, 4, 100_000)
        _check("trigger.window", self.window, 1, self.settle)
        _check("trigger.high", self.high, 0.1, 1000)
        _check("trigger.low", self.low, 0, self.high)
        _check("trigger.patience", self.patience, 1, 100_000)
        _check("trigger.cool_down", self.cool_down, 0, 10_000_000)
        _check("trigger.memory", self.memory, 1, 10_000_000)
        _check("trigger.floor", self.floor, 0.0001, 1)


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The frames that the gate judges on, never learned from (ours; METHOD, when to adapt)."""

    count: int = 24  # kept: 3.5 MB at 192x256, and judging a candidate costs 120 forwards
    share: float = 0.25  # of the stream that goes to the probes and not to learning
    seed: int = 0

    def __post_init__(self) -> None:
        _check("probes.count", self.count, 4, 4096)
        _check("probes.share", self.share, 0.01, 0.9)
        _check("probes.seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Whether what was learnt replaces what is deployed (ours; METHOD, when to adapt).

    Bounds were set on the scene's streets 7, 11 and 31 (`benchmarks/gate_worth.py` reports another).
    """

    # evidence: without it nothing is replaced
    least: int = 8  # probes that differ; fewer say nothing about a street
    recall: int = 3  # probes that differ, for going back to the source: what there is to fall back to asks for fewer
    first: int = 16  # probes that the target's statistics alone are judged on before a burst, which waits for that
    alike: float = (
        0.02  # mean difference, of full scale, under which two probes at 16x16 show the same: a frozen camera
    )
    diversity: float = 0.45  # least entropy of the source's class histogram over log C: .59 on a street, .37 at a wall
    # vetoes
    moved: float = (
        0.6  # largest total variation between a candidate's class histogram and the source's; good ones to .53
    )
    lost: float = 0.1  # a class of 2 % or more in the source's histogram must keep this share of it
    distance: float = (
        0.15  # largest relative change of the weights of a kind: a burst makes .03 to .05, at 10x rate .14
    )
    latency: float = 1.25  # most that a frame may take against the network in use, as p99 beside a burst may
    # votes: how much better than the deployed network to be for it, over and above one standard error
    agreement: float = 0.5  # least share of the deployed network's agreement with the ensemble; bad ones .1 to .3
    consistency: float = 0.02  # class-averaged IoU; a loss of more than its error is a vote against
    information: float = 0.05  # nats; what a burst is worth is .2 to .7
    nuclear: float = 0.03  # of 0..1; what a burst is worth is .06 to .2
    # or, without gains of information, as a network fitted to dusk is sure of itself by day:
    sided: float = 1.5  # times the deployed network's agreement; a network come home 1.8 to 2.4, a bad one 1.0 at most
    steady: float = 0.1  # gain of consistency that it then needs; a network come home .23 to .35
    labelled: float = 0.01  # mIoU on labelled probes, which decide in place of the votes
    snapshots: int = 2  # of a burst, evenly spread over it, that compete with its end
    pixels: int = 1024  # of a frame, evenly spread, that votes look at
    cool_down_s: float = 30.0  # after a swap before the next one, unless a veto falls on what is deployed
    seed: int = 0  # of the noise of one of the views

    def __post_init__(self) -> None:
        _check("gate.least", self.least, 2, 4096)
        _check("gate.recall", self.recall, 2, 4096)
        _check("gate.first", self.first, 0, 4096)
        for name in (
            "alike",
            "diversity",
            "moved",
            "lost",
            "agreement",
            "consistency",
            "nuclear",
            "steady",
            "labelled",
        ):
            _check(f"gate.{name}", getattr(self, name), 0, 1)
        _check("gate.distance", self.distance, 0, 1000)
        _check("gate.latency", self.latency, 1, 1000)
        _check("gate.information", self.information, 0, 100)
        _check("gate.sided", self.sided, 1, 1000)
        _check("gate.snapshots", self.snapshots, 0, 100)
        _check("gate.pixels", self.pixels, 16, 10_000_000)
        _check("gate.cool_down_s", self.cool_down_s, 0, 1e9)
        _check("gate.seed", self.seed, 0, 2**32 - 1)


def preset(method: str) -> AdaptConfig:
    """Return the settings that go with a method: the peers' own where METHOD states them, else the defaults."""
    base = AdaptConfig(method=method)
    if method in ("tent", "eata", "rdumb", "roid"):
        return dataclasses.replace(base, burst=BurstConfig(steps=150, batch=4, rate=1e-3, online_share=0.1))
    if method == "sar":  # by plain gradient descent with momentum, as in its paper
        return dataclasses.replace(base, burst=BurstConfig(steps=150, batch=4, rate=1e-2, online_share=0.1))
    if method == "cotta":
        # the paper's 0.999 needs a thousand steps to move
        return dataclasses.replace(
            base,
            teacher=TeacherConfig(flip=True, average_max=0.99),
            burst=BurstConfig(steps=80, batch=2, rate=1e-5, online_share=0.2),
        )
    if method in ("hamlet", "mean-teacher", "threshold"):  # over all weights, with a strong view; nothing of ours
        return dataclasses.replace(
            base,
            statistics=StatisticsConfig(prior=0.0),
            view=ViewConfig(strength=1.0, crop=0.65),
            mixing=MixingConfig(enabled=True),
            burst=BurstConfig(
                rate=3e-5,
                affine_only=False,
                batch_statistics=False,
                entropy=0.0,
                guard=False,
                class_floor=0.0,
                online_share=0.2,
                steps=100,
            ),
            consolidation=ConsolidationConfig(share=0.0, online_share=0.0),
        )
    return base


def with_effort(config: AdaptConfig, effort: str) -> AdaptConfig:
    """Return settings with those of an effort over them.

    Raises:
        ConfigError: an unknown effort, or a method that takes none.
    """
    if effort not in EFFORTS:
        raise ConfigError(f"effort {effort!r} is unknown; choose one of {', '.join(EFFORTS)}")
    if EFFORTS[effort] and config.method != "stvm":
        raise ConfigError(f"effort {effort!r} is of stvm, not of {config.method}; set its burst.steps instead")
    return from_dict(EFFORTS[effort], base=config)


def to_dict(config: AdaptConfig) -> dict[str, Any]:
    """Return the configuration as nested plain values, as it is written to TOML and JSON."""
    return dataclasses.asdict(config)


def from_dict(raw: Mapping[str, Any], *, base: AdaptConfig | None = None) -> AdaptConfig:
    """Build a configuration from nested values; what is absent stays as in `base` (the defaults).

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range; the message names the key.
    """
    merged: AdaptConfig = merge(base or AdaptConfig(), raw)
    return merged


def load(path: Path, *, base: AdaptConfig | None = None) -> AdaptConfig:
    """Read a TOML file over `base`.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or holds a bad key or value.
    """
    return from_dict(read_toml(path), base=base)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file as nested plain values.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def to_toml(config: AdaptConfig) -> str:
    """Return the whole resolved configuration as TOML; `load` reads it back to an equal object."""
    return tomli_w.dumps(to_dict(config))


def merge(config: Any, raw: Mapping[str, Any], *, prefix: str = "") -> Any:
    """Return a configuration dataclass with nested values laid over it, each of the type that it replaces.

    Args:
        config: a frozen dataclass, whose fields may be dataclasses.
        raw: values by field name.
        prefix: of the names in messages.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range; the message names the key.
    """
    known = {f.name for f in dataclasses.fields(config)}
    changes: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"unknown setting {prefix}{key}; known here: {', '.join(sorted(known))}")
        old = getattr(config, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{prefix}{key} = {value!r} must be a table")
            changes[key] = merge(old, value, prefix=f"{prefix}{key}.")
        else:
            changes[key] = _as_type_of(old, value, f"{prefix}{key}")
    return dataclasses.replace(config, **changes)


def _as_type_of(old: Any, value: Any, name: str) -> Any:
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(old):
        raise ConfigError(f"{name} = {value!r} must be of type {type(old).__name__}")
    return value


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Supervised training of a source network."""

    epochs: int = 20
    batch: int = 8
    rate: float = 2e-3  # AdamW rate at its peak; warm-up over 5 % of the steps, then cosine to zero
    encoder_rate_scale: float = 0.5  # the encoder's share of the rate: it may be pretrained
    weight_decay: float = 1e-2
    crop: float = 0.75  # side of the crop as a share of the network's input
    scale: tuple[float, float] = (0.75, 1.5)  # range of the random resize
    colour: float = 0.2  # half-width of brightness, contrast and saturation factors
    momentum: float = 0.1  # of BatchNorm's running statistics; 0.01 suits a pretrained encoder and thousands of steps
    balance: float = 0.5  # class weights (median share / share)^balance
    seed: int = 0

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, 1, 100_000)
        _check("batch", self.batch, 1, 1024)
        _check("rate", self.rate, 1e-9, 1)
        _check("encoder_rate_scale", self.encoder_rate_scale, 0, 10)
        _check("weight_decay", self.weight_decay, 0, 1)
        _check("crop", self.crop, 0.1, 1)
        _check("scale[0]", self.scale[0], 0.1, self.scale[1])
        _check("scale[1]", self.scale[1], self.scale[0], 10)
        _check("colour", self.colour, 0, 0.9)
        _check("momentum", self.momentum, 1e-4, 1)
        _check("balance", self.balance, 0, 1)
        _check("seed", self.seed, 0, 2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class WatchConfig:
    """Which frames of a camera are not to be learned from, and when it is opened anew (ours)."""

    dark: float = 4.0  # mean of 0..255 under which a frame counts as black: a covered lens, a sensor that is off
    flat: float = 1.0  # standard deviation under which it shows nothing
    frozen: int = 3  # equal frames in a row from which the camera counts as frozen; noise makes equal ones impossible
    adopt: int = 30  # frames of another size in a row after which that size is the camera's
    silence_s: float = 5.0  # without a frame, or without a sound one, before the camera is opened anew
    back_off_s: tuple[float, float] = (0.5, 30.0)  # first and longest wait between two tries, doubled in between

    def __post_init__(self) -> None:
        _check("watch.dark", self.dark, 0, 255)
        _check("watch.flat", self.flat, 0, 255)
        _check("watch.frozen", self.frozen, 2, 100_000)
        _check("watch.adopt", self.adopt, 1, 100_000)
        _check("watch.silence_s", self.silence_s, 0.01, 3600)
        _check("watch.back_off_s[0]", self.back_off_s[0], 0.001, self.back_off_s[1])
        _check("watch.back_off_s[1]", self.back_off_s[1], self.back_off_s[0], 3600)


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What adaptation may take of the machine; above it learning waits, inference goes on (ours)."""

    share: float = 0.5  # of the time that learning runs; the rest it sleeps, which leaves a core for the masks
    seconds_per_hour: float = 900.0  # of learning: a burst of the lightweight net on one core is about a minute
    memory_mb: float = 4096.0  # resident, of the loop and its worker: above it no burst begins, and one is given up
    celsius: float = 85.0  # of the hottest zone: boards throttle from about there on
    watts: float = 10_000.0  # of the board, or of its GPUs: no bound unless somebody sets one, for a battery's sake

    def __post_init__(self) -> None:
        _check("budget.share", self.share, 0.01, 1)
        _check("budget.seconds_per_hour", self.seconds_per_hour, 0, 3600)
        _check("budget.memory_mb", self.memory_mb, 1, 10_000_000)
        _check("budget.celsius", self.celsius, 0, 1000)
        _check("budget.watts", self.watts, 0, 10_000)


MODES = ("off", "shadow", "recommend", "auto")


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """The loop on a robot: watch, adapt, judge, swap."""

    mode: str = "auto"  # off: never learn; shadow: learn and judge, deploy nothing; recommend: deploy when told to
    learn: int = 48  # frames that a burst learns from, the newest ones; as many as step 0 looks at
    keep: int = 5  # generations on disk besides the source
    collapse: float = 0.97  # share of one class, after a swap, from which the swap is taken back
    watch_after: int = 30  # frames after a swap over which that is looked at
    hang_s: float = 300.0  # without a word from the worker before it is stopped and begun again
    retries: int = 3  # of a burst whose worker died or hung
    onnx: bool = True  # deploy by ONNX Runtime, twice as fast on a CPU, where its packages are; else by torch
    watch: WatchConfig = field(default_factory=WatchConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    trigger: TriggerConfig = field(default_factory=TriggerConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)
    gate: GateConfig = field(default_factory=GateConfig)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"mode = {self.mode!r} is unknown; choose one of {', '.join(MODES)}")
        _check("live.learn", self.learn, 4, 4096)
        _check("live.keep", self.keep, 2, 1000)
        _check("live.collapse", self.collapse, 0.1, 1)
        _check("live.watch_after", self.watch_after, 1, 100_000)
        _check("live.hang_s", self.hang_s, 0.1, 86_400)
        _check("live.retries", self.retries, 0, 100)
