"""The loop as a ROS 2 node: images in, masks out, steered by services and parameters. Needs ROS 2 only when it runs.

Lifecycle node `edge_sfda`; names in angle brackets are parameters (see `parameters`):

    image                    sensor_msgs/Image, or CompressedImage on image/compressed with <image_transport>
    ~/mask                   sensor_msgs/Image, mono8: class ids, with the stamp and frame id of their image
    ~/overlay                sensor_msgs/Image, bgr8: made while somebody subscribes
    ~/confidence             sensor_msgs/Image, 32FC1 in 0..1: likewise, where the model gives it
    ~/classes                std_msgs/String, latched: JSON of names, palette (RGB) and void id
    ~/events                 std_msgs/String: what happens, JSON
    /diagnostics             diagnostic_msgs/DiagnosticArray
    ~/pause ~/resume ~/adapt ~/accept ~/rollback    std_srvs/Trigger

Classes travel as JSON, not as vision_msgs/LabelInfo: a topic's type must not depend on what a machine has installed.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from edge_sfda.errors import EdgeSfdaError, UsageError

_SPIN_S = 0.1  # that a signal waits at most: while rcl waits, Python sees none


def main(args: Sequence[str] | None = None) -> None:
    """Run the node until a signal asks it to stop: the entry point of `ros2 run edge_sfda_ros node`.

    Ends in SystemExit: 0 after a signal, 1 where the node failed, 2 where a parameter or argument is wrong.

    Args:
        args: of ROS, such as `--ros-args -p model:=student.onnx`; None takes those of the process.
    """
    try:
        run(args)
    except EdgeSfdaError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(error.exit_code) from None


def run(args: Sequence[str] | None = None) -> None:
    """As `main`, but returns after a signal and raises what went wrong.

    Raises:
        UsageError: ROS 2 is not here, or a parameter or argument is wrong.
        EdgeSfdaError: the model does not load, or the loop failed.
    """
    try:
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        from edge_sfda.live.ros.node import SegmentationNode, bad_argument
    except ImportError as error:
        raise UsageError(
            f"ROS 2 is not here ({error}); source /opt/ros/DISTRO/setup.bash, or pip install 'edge-sfda[ros]'"
        ) from error
    stop = _Signals()
    with bad_argument():
        # its own handlers would take the context away under the last masks
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        with bad_argument():
            node = SegmentationNode()
        executor = SingleThreadedExecutor()
        try:
            executor.add_node(node)
            node.start()
            while not stop.wanted and node.failure is None:
                executor.spin_once(timeout_sec=_SPIN_S)
        finally:
            node.end()
            failure = node.failure
            executor.shutdown()  # left to the collector, it speaks of handles that are gone
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
        stop.restore()
    if failure is not None:
        raise failure


class _Signals:
    """Notes SIGINT and SIGTERM; the loop then ends between two frames."""

    def __init__(self) -> None:
        self.wanted = False
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}

    def _note(self, number: int, frame: Any) -> None:
        self.wanted = True

    def restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
