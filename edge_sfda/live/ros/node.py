"""The lifecycle node: ROS on one side, `Work` on the other. Imports ROS 2 at once; `edge_sfda.live.ros` does not.

Messages are taken in the executor's thread, decoded in the capture's, predicted and published in the loop's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

from edge_sfda.data.frames import Stamp
from edge_sfda.data.paint import overlay
from edge_sfda.errors import EdgeSfdaError, EngineError, UsageError
from edge_sfda.live.capture import Capture
from edge_sfda.live.events import line_of
from edge_sfda.live.ros import messages
from edge_sfda.live.ros.parameters import PARAMETERS, Parameter, judge
from edge_sfda.live.ros.source import Mailbox
from edge_sfda.live.ros.work import Runner, Work, plan
from edge_sfda.live.status import Latest, LoopStatus, Phase
from edge_sfda.runtime.predict import Segmentation

NAME = "edge_sfda"

_EVENTS_KEPT = 50  # of ~/events for a slow reader: a swap tells about ten
_LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

_SUCCESS, _FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class _Active(NamedTuple):
    """What there is while the node is active."""

    runner: Runner
    capture: Capture
    mailbox: Mailbox
    subscription: Any
    thread: threading.Thread


class SegmentationNode(LifecycleNode):  # type: ignore[misc]  # without ROS 2 its base has no type
    """configure loads the model, activate subscribes and lets masks out, deactivate and cleanup take that back.

    Args:
        arguments: what `rclpy.node.Node` takes besides the name, such as `parameter_overrides`.

    Attributes:
        failure: why no masks come any more and none will; None while all is well.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(NAME, **arguments)
        self.failure: EdgeSfdaError | None = None
        self._work: Work | None = None
        self._active: _Active | None = None
        self._troubles: dict[str, int] = {}  # images, when diagnostics went out last
        self.add_on_set_parameters_callback(self._judge)  # before declaring: it judges what a launch file gives
        for parameter in PARAMETERS:
            self.declare_parameter(parameter.name, parameter.default, _descriptor(parameter))
        self._outputs: dict[str, Any] = {}
        self._events_out = self.create_publisher(String, "~/events", _EVENTS_KEPT)
        self._diagnostics_out = self.create_publisher(DiagnosticArray, "/diagnostics", 1)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # simulated time may stand still, which is worth telling
        self._timer = self.create_timer(self._value("diagnostics_period_s"), self._diagnose, clock=steady)
        for name, order in _ORDERS.items():
            self.create_service(Trigger, f"~/{name}", _service(self, order))

    # --- the life of the node ---

    def start(self) -> None:
        """Configure and activate, where the parameter autostart says so; what fails then is the node's `failure`."""
        if not self._value("autostart"):
            return
        if self.trigger_configure() is _SUCCESS:
            self.trigger_activate()
        if self._active is None and self.failure is None:
            self.failure = EngineError("the node did not become active; its log says why")

    def end(self) -> None:
        """Stop and release everything, from whatever state."""
        self._deactivate()
        self._clean_up()

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Load the model and announce the topics."""
        try:
            self._work = Work(plan({parameter.name: self._value(parameter.name) for parameter in PARAMETERS}))
        except EdgeSfdaError as error:
            self.get_logger().error(str(error))
            if self._value("autostart"):  # nobody is there to set it right and try again
                self.failure = error
            return _FAILURE
        qos = self._qos("output")
        for name in ("mask", "overlay", "confidence"):
            self._outputs[name] = self.create_publisher(Image, f"~/{name}", qos)
        self._outputs["classes"] = self.create_publisher(String, "~/classes", _LATCHED)
        self._outputs["classes"].publish(messages.classes(self._work.segmenter.classes))
        self.get_logger().info(f"{self._work.plan.model} runs on {self._work.segmenter.runs_on}")
        return _SUCCESS

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Subscribe, and begin the loop."""
        assert self._work is not None, "ROS activates what is configured"
        topic, kind = self.resolve_topic_name("image"), Image
        if self._value("image_transport") == "compressed":
            topic, kind = f"{topic}/compressed", CompressedImage
        mailbox = Mailbox(topic, silence_s=self._value("silence_s"))
        try:
            runner, capture = self._work.start(mailbox, self._tell)
        except EdgeSfdaError as error:
            self.get_logger().error(str(error))
            return _FAILURE
        thread = threading.Thread(target=self._run, args=(runner,), name="loop")
        subscription = self.create_subscription(kind, topic, mailbox.put, self._qos("input"))
        self._troubles = {}
        self._active = _Active(runner, capture, mailbox, subscription, thread)
        thread.start()
        return _SUCCESS

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """End the loop after the frame it is at; a burst under way is given up."""
        self._deactivate()
        return _SUCCESS

    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Release the model."""
        self._clean_up()
        return _SUCCESS

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """Release everything."""
        self.end()
        return _SUCCESS

    def _deactivate(self) -> None:
        active, self._active = self._active, None
        if active is None:
            return
        self.destroy_subscription(active.subscription)
        active.runner.stop()
        active.thread.join()
        active.mailbox.close()
        active.capture.close()

    def _clean_up(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.close()
        for publisher in self._outputs.values():
            self.destroy_publisher(publisher)
        self._outputs = {}

    # --- the loop's thread ---

    def _run(self, runner: Runner) -> None:
        try:
            runner.run(self._publish)
        except EdgeSfdaError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - a loop that is gone must be known: whoever launched the node starts it anew
            self.get_logger().error(f"the loop failed: {error!r}")
            self.failure = EngineError(f"the loop failed: {error!r}")

    def _publish(self, latest: Latest, seen: Segmentation) -> None:
        stamp = latest.frame.stamp or Stamp(0, "")
        self._outputs["mask"].publish(messages.image(latest.mask, stamp))
        if latest.confidence is not None and self._is_wanted("confidence"):
            self._outputs["confidence"].publish(messages.image(latest.confidence, stamp))
        if self._is_wanted("overlay") and self._work is not None:
            classes = self._work.segmenter.classes
            painted = overlay(latest.frame.image, latest.mask, classes, alpha=self._value("overlay_alpha"))
            self._outputs["overlay"].publish(messages.image(painted, stamp))

    def _is_wanted(self, name: str) -> bool:
        return bool(self._outputs[name].get_subscription_count())

    def _tell(self, event: Mapping[str, Any]) -> None:
        self._events_out.publish(messages.text(line_of(event)))

    # --- the executor's thread ---

    def _diagnose(self) -> None:
        active, work = self._active, self._work
        status = None if active is None else active.runner.status()
        mail = None if active is None else active.mailbox.status()
        before, self._troubles = self._troubles, {}
        if status is not None and mail is not None:
            self._troubles = messages.troubles(status, mail)
        self._diagnostics_out.publish(
            messages.diagnostics(
                self.get_clock().now().to_msg(),
                f"{self.get_fully_qualified_name().lstrip('/')}: segmentation",
                hardware="" if work is None else work.segmenter.runs_on,
                state="unconfigured" if work is None else "inactive" if active is None else "active",
                status=status,
                mail=mail,
                since={kind: count - before.get(kind, 0) for kind, count in self._troubles.items()},
            )
        )

    def obey(self, order: Callable[[Any, LoopStatus], str], response: Any) -> Any:
        """Answer a service: give an order to the loop, which acts between two frames, or say why not."""
        active = self._active
        if active is None:
            response.success, response.message = False, "the node is not active"
        elif self._work is None or not self._work.plan.learns:
            response.success, response.message = False, "this node only infers; configure it with another mode"
        else:
            refusal = order(active.runner, active.runner.status())
            response.success, response.message = not refusal, refusal or "ordered; ~/events tells what becomes of it"
        return response

    # --- parameters ---

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _judge(self, parameters: Sequence[Any]) -> SetParametersResult:
        for parameter in parameters:
            reason = judge(parameter.name, parameter.value, loaded=self._work is not None)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _qos(self, way: str) -> QoSProfile:
        return QoSProfile(
            depth=self._value(f"qos.{way}.depth"),
            reliability=ReliabilityPolicy[self._value(f"qos.{way}.reliability").upper()],
            durability=DurabilityPolicy[self._value(f"qos.{way}.durability").upper()],
        )


def _pause(loop: Any, status: LoopStatus) -> str:
    if status.phase is Phase.PAUSED:
        return "learning is paused already"
    loop.pause()
    return ""


def _resume(loop: Any, status: LoopStatus) -> str:
    if status.phase is not Phase.PAUSED:
        return f"learning is not paused but {status.phase.value}"
    loop.resume()
    return ""


def _adapt(loop: Any, status: LoopStatus) -> str:
    if status.phase is Phase.ADAPTING:
        return "a burst is under way already"
    loop.adapt_now()
    return ""


def _accept(loop: Any, status: LoopStatus) -> str:
    if status.phase is not Phase.RECOMMENDING:
        return f"there is no candidate to accept; the loop is {status.phase.value}"
    loop.accept()
    return ""


def _roll_back(loop: Any, status: LoopStatus) -> str:
    if status.generation == 0:
        return "the source is in use; there is nothing to go back from"
    loop.rollback()
    return ""


_ORDERS: dict[str, Callable[[Any, LoopStatus], str]] = {
    "pause": _pause,
    "resume": _resume,
    "adapt": _adapt,
    "accept": _accept,
    "rollback": _roll_back,
}


def _service(node: SegmentationNode, order: Callable[[Any, LoopStatus], str]) -> Callable[[Any, Any], Any]:
    return lambda request, response: node.obey(order, response)


def _descriptor(parameter: Parameter) -> ParameterDescriptor:
    words = parameter.description
    described = ParameterDescriptor(description=words)
    if parameter.choices:
        described.additional_constraints = f"one of {', '.join(parameter.choices)}"
    if parameter.bounds is not None:
        low, high = parameter.bounds
        if isinstance(parameter.default, float):
            described.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
        else:
            described.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
    return described


@contextmanager
def bad_argument() -> Iterator[None]:
    """Turn what rclpy raises at arguments and initial parameters into UsageError."""
    from rclpy._rclpy_pybind11 import RCLError
    from rclpy.exceptions import ParameterException

    try:
        yield
    except InvalidParameterValueException as error:
        raise UsageError(f"parameter refused: {error}") from error
    except InvalidParameterTypeException as error:
        raise UsageError(f"parameter of the wrong type: {error}") from error
    except (ParameterException, RCLError) as error:
        raise UsageError(f"ROS refuses the arguments: {error}") from error
