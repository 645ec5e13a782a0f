"""The other side of the node's tests, a process of its own: publishes, listens, calls. A line of JSON in, one out.

{"do": "publish", "file": "frames.npz", "encoding": "bgr8", "topic": "/image"}   over and over, until told else
{"do": "silence"}
{"do": "listen", "topic": "/edge_sfda/mask", "kind": "Image", "count": 5, "file": "out.npz", "reliable": true}
{"do": "listen", "topic": "/diagnostics", "kind": "DiagnosticArray", "until": "no image"}
{"do": "call", "service": "/edge_sfda/pause"}
{"do": "set", "name": "mode", "value": "auto"}
{"do": "describe", "name": "mode"}
{"do": "change", "to": "deactivate"}
"""

from __future__ import annotations

import array
import contextlib
import json
import sys
import threading
from typing import Any

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String
from std_srvs.srv import Trigger

KINDS = {"Image": Image, "DiagnosticArray": DiagnosticArray, "String": String}
NODE = "/edge_sfda"
PERIOD_S = 0.05  # between two images
LONGEST_S = 600.0  # after which a test has failed: a burst on a machine that has much else to do takes minutes
STEP_BYTES = {"bgr8": 3, "rgb8": 3, "mono8": 1, "bayer_rggb8": 1, "yuv422": 2, "16UC1": 2}


class Peer:
    def __init__(self) -> None:
        self.node = rclpy.create_node("peer")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self.spin)
        self.thread.start()
        self.frames: list[Any] = []
        self.sent = 0
        self.publishers: dict[str, Any] = {}
        self.topic = ""
        self.changed = threading.Condition()
        self.heard: dict[str, list[str]] = {}
        self.node.create_timer(PERIOD_S, self.tick)

    def spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self.executor.spin()

    def tick(self) -> None:
        if self.frames:
            self.publishers[self.topic].publish(self.frames[self.sent % len(self.frames)])
            self.sent += 1

    def publish(
        self, file: str, encoding: str = "bgr8", compressed: bool = False, topic: str = "/image"
    ) -> dict[str, Any]:
        kind, topic = (CompressedImage, f"{topic}/compressed") if compressed else (Image, topic)
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(kind, topic, qos_profile_sensor_data)
        made = []
        for index, pixels in enumerate(np.load(file)["frames"]):
            message = kind()
            message.header.frame_id = "camera_optical"
            message.header.stamp.sec, message.header.stamp.nanosec = 1_700_000_000 + index, 123_456_789
            if compressed:
                message.format = "png"
                message.data = array.array("B", cv2.imencode(".png", pixels)[1].tobytes())
            else:
                message.height, message.width, message.encoding = pixels.shape[0], pixels.shape[1], encoding
                message.step = pixels.shape[1] * STEP_BYTES[encoding]
                message.data = array.array("B", pixels.tobytes())
            made.append(message)
        self.topic, self.frames = topic, made
        return {}

    def silence(self) -> dict[str, Any]:
        self.frames = []
        return {}

    def listen(
        self,
        topic: str,
        kind: str,
        count: int = 1,
        file: str = "",
        until: str = "",
        latched: bool = False,
        reliable: bool = False,
    ) -> dict[str, Any]:
        got: list[Any] = []
        enough = threading.Event()

        def hear(message: Any) -> None:
            text = str(message) if kind != "Image" else ""
            if until in text and len(got) < count:
                got.append(message)
            if len(got) == count:
                enough.set()

        qos = qos_profile_sensor_data
        if latched or reliable:
            durability = QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
            qos = QoSProfile(depth=50, durability=durability, reliability=QoSReliabilityPolicy.RELIABLE)
        subscription = self.node.create_subscription(KINDS[kind], topic, hear, qos)
        heard = enough.wait(LONGEST_S)
        self.node.destroy_subscription(subscription)
        if not heard:
            return {"error": f"{len(got)} of {count} messages on {topic} in {LONGEST_S} s"}
        return show(kind, got, file)

    def follow(self, topic: str, kind: str = "String") -> dict[str, Any]:
        self.heard[topic] = []

        def hear(message: Any) -> None:
            with self.changed:
                self.heard[topic].append(message.data if kind == "String" else kind)
                self.changed.notify_all()

        self.node.create_subscription(KINDS[kind], topic, hear, qos_profile_sensor_data if kind == "Image" else 50)
        return {}

    def followed(self, topic: str, until: str) -> dict[str, Any]:
        with self.changed:
            if not self.changed.wait_for(lambda: any(until in text for text in self.heard[topic]), LONGEST_S):
                return {"error": f"no {until} among {self.heard[topic]}"}
            heard = self.heard[topic]
            end = 1 + next(i for i, text in enumerate(heard) if until in text)
            self.heard[topic] = heard[end:]
        return {"texts": heard[:end]}

    def forget(self, topic: str) -> dict[str, Any]:
        with self.changed:
            self.heard[topic] = []
        return {}

    def call(self, service: str) -> dict[str, Any]:
        answer = self.ask(Trigger, service, Trigger.Request())
        return {"success": answer.success, "message": answer.message}

    def set(self, name: str, value: Any) -> dict[str, Any]:
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        (result,) = self.ask(SetParameters, f"{NODE}/set_parameters", request).results
        return {"success": result.successful, "message": result.reason}

    def describe(self, name: str) -> dict[str, Any]:
        request = DescribeParameters.Request(names=[name])
        (found,) = self.ask(DescribeParameters, f"{NODE}/describe_parameters", request).descriptors
        return {"description": found.description, "constraints": found.additional_constraints}

    def change(self, to: str) -> dict[str, Any]:
        request = ChangeState.Request()
        request.transition.label = to
        done = self.ask(ChangeState, f"{NODE}/change_state", request)
        state = self.ask(GetState, f"{NODE}/get_state", GetState.Request())
        return {"success": done.success, "state": state.current_state.label}

    def ask(self, kind: Any, name: str, request: Any) -> Any:
        client = self.node.create_client(kind, name)
        try:
            if not client.wait_for_service(LONGEST_S):
                raise TimeoutError(name)
            done = threading.Event()
            future = client.call_async(request)
            future.add_done_callback(lambda _: done.set())
            if not done.wait(LONGEST_S):
                raise TimeoutError(name)
            return future.result()
        finally:
            self.node.destroy_client(client)


def show(kind: str, got: list[Any], file: str) -> dict[str, Any]:
    if kind == "Image":
        np.savez(file, pixels=np.stack([pixels_of(m) for m in got]))
        return {
            "stamps": [[m.header.stamp.sec, m.header.stamp.nanosec] for m in got],
            "frame_ids": sorted({m.header.frame_id for m in got}),
            "encodings": sorted({m.encoding for m in got}),
        }
    if kind == "String":
        return {"text": got[0].data}
    (status,) = got[0].status
    return {
        "name": status.name,
        "level": status.level[0],
        "message": status.message,
        "values": {pair.key: pair.value for pair in status.values},
    }


def pixels_of(message: Any) -> Any:
    dtype, channels = {"mono8": (np.uint8, 1), "bgr8": (np.uint8, 3), "32FC1": (np.float32, 1)}[message.encoding]
    assert message.step == message.width * channels * np.dtype(dtype).itemsize
    shape = (message.height, message.width) if channels == 1 else (message.height, message.width, channels)
    return np.frombuffer(message.data, dtype).reshape(shape)


def main() -> None:
    rclpy.init()
    peer = Peer()
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(peer, command.pop("do"))(**command)
        except Exception as error:  # noqa: BLE001 - the test shows it
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)  # noqa: T201
    rclpy.try_shutdown()  # which ends the spinning
    peer.thread.join()


if __name__ == "__main__":
    main()
