"""The node's parameters: each with its default, its reason and its bounds, judged when it is set. No ROS needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

Value = str | int | float | bool

MODES = ("infer", "shadow", "recommend", "auto")
RELIABILITY = ("best_effort", "reliable")
DURABILITY = ("volatile", "transient_local")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter.

    Args:
        name: as ROS has it.
        default: which also says the type.
        description: what it is, and why it has that default.
        choices: of a text; empty: any.
        bounds: of a number, both included.
        file: a text that must name a file that exists, or be empty.
        at_any_time: whether it may be changed while a model is loaded.
    """

    name: str
    default: Value
    description: str
    choices: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    file: bool = False
    at_any_time: bool = False

    def refusal(self, value: Any) -> str:
        """Return why a value does not do; empty where it does."""
        if type(value) is not type(self.default):
            return f"{self.name} = {value!r} must be of type {type(self.default).__name__}"
        if self.choices and value not in self.choices:
            return f"{self.name} = {value!r} is unknown; choose one of {', '.join(self.choices)}"
        if self.bounds is not None and not self.bounds[0] <= float(value) <= self.bounds[1]:
            return f"{self.name} = {value} is out of range; expected {self.bounds[0]:g}..{self.bounds[1]:g}"
        if self.file and value and not Path(str(value)).is_file():
            return f"{self.name} = {value!r} is no file; give its whole path"
        return ""


PARAMETERS = (
    Parameter(
        name="model", default="", file=True, description=".onnx or .engine to infer with, or the source checkpoint"
    ),
    Parameter(
        name="mode",
        default="infer",
        choices=MODES,
        description="infer: never learn; shadow: learn and judge, deploy nothing; recommend: deploy when told to; auto",
    ),
    Parameter(name="run_folder", default="", description="for generations and events; needed in every mode but infer"),
    Parameter(name="settings", default="", file=True, description="TOML file of a burst's settings; empty: defaults"),
    Parameter(name="net", default="", description="module:factory of a network of your own that a checkpoint may run"),
    Parameter(name="device", default="auto", description="cpu, cuda, cuda:N; auto takes a GPU where there is one"),
    Parameter(
        name="threads", default=0, bounds=(0, 1024), description="of inference on a CPU; 0 leaves it to the library"
    ),
    Parameter(
        name="budget_share",
        default=0.0,
        bounds=(0.0, 1.0),
        description="of the time that learning may take; 0: as the profile says, or half",
    ),
    Parameter(name="profile", default="", description="device: orin-nano, ..., or a TOML file; empty: none"),
    Parameter(name="probes", default="", description="folder of labelled frames that outrank the gate's votes"),
    Parameter(
        name="image_transport",
        default="raw",
        choices=("raw", "compressed"),
        description="raw: sensor_msgs/Image; compressed: sensor_msgs/CompressedImage on the topic with /compressed",
    ),
    Parameter(
        name="silence_s", default=5.0, bounds=(0.1, 3600.0), description="without an image before it counts as trouble"
    ),
    Parameter(
        name="overlay_alpha",
        default=0.6,
        bounds=(0.0, 1.0),
        at_any_time=True,
        description="share of the classes' colours in ~/overlay",
    ),
    Parameter(
        name="diagnostics_period_s", default=1.0, bounds=(0.1, 60.0), description="between two messages; the usual 1 Hz"
    ),
    Parameter(
        name="qos.input.reliability",
        default="best_effort",
        choices=RELIABILITY,
        description="of image; best_effort as sensors have it, which also hears reliable publishers",
    ),
    Parameter(
        name="qos.input.durability",
        default="volatile",
        choices=DURABILITY,
        description="of image; transient_local also asks for the last one before it subscribed",
    ),
    Parameter(
        name="qos.input.depth", default=1, bounds=(1, 1000), description="of image; 1, as only the newest counts"
    ),
    Parameter(
        name="qos.output.reliability",
        default="best_effort",
        choices=RELIABILITY,
        description="of masks, overlay and confidence; reliable where RViz or a recorder asks for it",
    ),
    Parameter(
        name="qos.output.durability", default="volatile", choices=DURABILITY, description="of the same; volatile"
    ),
    Parameter(name="qos.output.depth", default=5, bounds=(1, 1000), description="of the same; 5 as sensor data has it"),
    Parameter(name="autostart", default=True, description="configure and activate at start, without a manager"),
)

BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


def judge(name: str, value: Any, *, loaded: bool) -> str:
    """Return why a parameter may not be set; empty where it may.

    Args:
        name: one of `BY_NAME`; of ROS's own parameters, such as `use_sim_time`, nothing is said here.
        value: to be set.
        loaded: whether a model is loaded, by which most are fixed.
    """
    parameter = BY_NAME.get(name)
    if parameter is None:
        return ""
    refusal = parameter.refusal(value)
    if not refusal and loaded and not parameter.at_any_time:
        return f"{name} is read at configure; deactivate and clean up the node before setting it"
    return refusal
