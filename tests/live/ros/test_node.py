"""The node on real ROS 2 over loopback: a process that publishes, the node's, and one that listens."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sfda.data.paint import overlay
from edge_sfda.runtime.predict import Segmenter

MODEL = Path(__file__).parents[3] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rclpy") is None, reason="ROS 2 is not here; pip install 'edge-sfda[ros]' on Python 3.11"
)


def test_masks_are_those_of_the_api_and_carry_their_stamps(
    start_node, publisher, listener, street, onnx_model: Path, tmp_path: Path
) -> None:
    node = start_node(model=onnx_model)
    publisher("publish", file=str(street.file))
    with Segmenter.load(onnx_model, colour_order="bgr") as segment:
        seen = [segment.predict(frame) for frame in street.frames]
        painted = [overlay(f, s.mask, segment.classes) for f, s in zip(street.frames, seen, strict=True)]
        names = segment.classes.names
    expected = {"mask": [s.mask for s in seen], "confidence": [s.confidence for s in seen], "overlay": painted}
    for topic, encoding in (("mask", "mono8"), ("confidence", "32FC1"), ("overlay", "bgr8")):
        out = tmp_path / f"{topic}.npz"
        told = listener("listen", topic=f"/edge_sfda/{topic}", kind="Image", count=5, file=str(out))
        assert told["frame_ids"] == ["camera_optical"]
        assert told["encodings"] == [encoding]
        assert {nanosec for _, nanosec in told["stamps"]} == {123_456_789}
        for (seconds, _), pixels in zip(told["stamps"], np.load(out)["pixels"], strict=True):
            np.testing.assert_allclose(pixels, expected[topic][seconds - 1_700_000_000], atol=1e-5)
    about = json.loads(listener("listen", topic="/edge_sfda/classes", kind="String", latched=True)["text"])
    assert tuple(about["names"]) == names
    assert len(about["palette"]) == len(names)
    told = listener.diagnostics("masks go out")
    assert told["name"] == "edge_sfda: segmentation"
    assert told["level"] == 0
    assert told["values"]["state"] == "active"
    assert "libtorch" not in Path(f"/proc/{node.pid}/maps").read_text()


def test_drop_out_and_wrong_encoding_are_told_and_outlived(
    start_node, publisher, listener, street, onnx_model: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.npz")
    node = start_node(model=onnx_model, silence_s=0.5)
    publisher("publish", file=str(street.file))
    listener("listen", topic="/edge_sfda/mask", kind="Image", file=out)
    publisher("silence")
    told = listener.diagnostics("no image came on /image for 0.5 s")
    assert told["level"] == 2
    publisher("publish", file=str(street.file), encoding="16UC1")
    told = listener.diagnostics("images refused: image of encoding '16UC1'; expected one of bgr8")
    assert told["level"] == 2
    assert int(told["values"]["images refused"]) > 0
    publisher("publish", file=str(street.file))
    listener("listen", topic="/edge_sfda/mask", kind="Image", count=3, file=out)
    assert listener.diagnostics("masks go out")["level"] == 0
    assert node.poll() is None


def test_frozen_images_still_get_masks_and_a_warning(
    start_node, publisher, listener, street, onnx_model: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "same.npz", frames=street.frames[:1])
    start_node(model=onnx_model, use_sim_time=True)  # and nobody gives the time: that must not stop the diagnostics
    publisher("publish", file=str(tmp_path / "same.npz"))
    told = listener.diagnostics("images are not sound")
    assert told["level"] == 1
    assert "frozen since the last message" in told["message"]
    listener("listen", topic="/edge_sfda/mask", kind="Image", count=2, file=str(tmp_path / "out.npz"))


def test_loop_that_fails_ends_the_node_with_1(start_node, publisher, listener, tiny_onnx, street, tmp_path) -> None:
    import onnx

    path = tiny_onnx("liar.onnx")
    model = onnx.load(path)
    (cast,) = (node for node in model.graph.node if "mask" in node.output)
    cast.output[0] = "truth"
    model.graph.node.append(onnx.helper.make_node("BitwiseNot", ["truth"], ["mask"]))  # ids that are no classes
    onnx.save(model, path)
    node = start_node(model=path)
    publisher("publish", file=str(street.file))
    listener("follow", topic="/edge_sfda/overlay", kind="Image")  # painting it meets them
    assert node.wait(timeout=60) == 1
    said = (tmp_path / "node.log").read_text()
    assert "error: mask holds id 254" in said
    assert "Traceback" not in said


def test_compressed_images_come_in_and_masks_go_out_reliably(
    start_node, publisher, listener, street, onnx_model: Path, tmp_path: Path
) -> None:
    start_node(
        "-r",
        "image:=/front/image",
        model=onnx_model,
        image_transport="compressed",
        qos__output__reliability="reliable",
        qos__output__depth=2,
    )
    publisher("publish", file=str(street.file), compressed=True, topic="/front/image")
    out = tmp_path / "out.npz"
    # a reliable listener hears no best-effort publisher
    told = listener("listen", topic="/edge_sfda/mask", kind="Image", count=4, file=str(out), reliable=True)
    with Segmenter.load(onnx_model, colour_order="bgr") as segment:
        expected = [segment(frame) for frame in street.frames]
    for (seconds, _), mask in zip(told["stamps"], np.load(out)["pixels"], strict=True):
        assert np.array_equal(mask, expected[seconds - 1_700_000_000])


def test_life_cycle_parameters_and_services_of_a_node_that_infers(
    start_node, publisher, listener, street, onnx_model: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out.npz")
    start_node(autostart=False)
    publisher("publish", file=str(street.file))
    assert listener.diagnostics("unconfigured")["message"] == "unconfigured: no masks go out"
    # without a model it cannot be configured, says so, and lives
    assert listener("change", to="configure") == {"success": False, "state": "unconfigured"}
    assert "parameter model is not set" in (tmp_path / "node.log").read_text()
    assert listener("set", name="model", value="/nowhere.onnx") == {
        "success": False,
        "message": "model = '/nowhere.onnx' is no file; give its whole path",
    }
    assert listener("set", name="model", value=str(onnx_model))["success"]
    assert listener("change", to="configure") == {"success": True, "state": "inactive"}
    told = listener("set", name="mode", value="auto")
    assert told["message"] == "mode is read at configure; deactivate and clean up the node before setting it"
    assert listener("call", service="/edge_sfda/pause")["message"] == "the node is not active"
    for _ in range(2):  # it can be activated again
        assert listener("change", to="activate") == {"success": True, "state": "active"}
        listener("listen", topic="/edge_sfda/mask", kind="Image", file=out)
        assert listener("change", to="deactivate") == {"success": True, "state": "inactive"}
    assert listener.diagnostics("inactive")["values"]["state"] == "inactive"
    assert listener("change", to="activate")["success"]
    for service in ("pause", "resume", "adapt", "accept", "rollback"):
        told = listener("call", service=f"/edge_sfda/{service}")
        assert told == {"success": False, "message": "this node only infers; configure it with another mode"}
    assert listener("set", name="overlay_alpha", value=0.25)["success"]
    told = listener("set", name="overlay_alpha", value=1.5)
    assert not told["success"]
    assert "out of range" in told["message"]
    assert listener("change", to="deactivate")["success"]
    assert listener("change", to="cleanup") == {"success": True, "state": "unconfigured"}
    told = listener("set", name="mode", value="sometimes")
    assert told["message"] == "mode = 'sometimes' is unknown; choose one of infer, shadow, recommend, auto"
    told = listener("describe", name="mode")
    assert told["description"].startswith("infer: never learn")
    assert told["constraints"] == "one of infer, shadow, recommend, auto"


def test_node_that_adapts_is_steered_by_services(start_node, publisher, listener, street, tmp_path: Path) -> None:
    listener("forget", topic="/edge_sfda/events")  # of the nodes of other tests
    run = tmp_path / "run"
    _two_generations(run)
    settings = tmp_path / "settings.toml"
    settings.write_text("[burst]\nsteps = 2\nbatch = 2\n[statistics]\nframes = 8\n[reliability]\nwarm_up = 1\n")
    start_node(model=MODEL, mode="shadow", run_folder=run, settings=settings, threads=1, budget_share=1.0)
    publisher("publish", file=str(street.file))
    listener.events("sound frames")
    assert listener("call", service="/edge_sfda/pause")["success"]
    assert listener.events("paused")[-1]["phase"] == "paused"
    assert listener("call", service="/edge_sfda/pause")["message"] == "learning is paused already"
    told = listener.diagnostics("paused")
    assert told["values"]["phase"] == "paused"
    assert told["values"]["generation"] == "1"
    assert listener("call", service="/edge_sfda/resume")["success"]
    listener.events("going on")
    told = listener("call", service="/edge_sfda/resume")
    assert not told["success"]
    assert listener("call", service="/edge_sfda/rollback")["success"]
    assert listener.events("rolled back")[-1]["generation"] == 0
    told = listener("call", service="/edge_sfda/rollback")
    assert told == {"success": False, "message": "the source is in use; there is nothing to go back from"}
    told = listener("call", service="/edge_sfda/accept")
    assert told["message"].startswith("there is no candidate to accept")
    assert listener("call", service="/edge_sfda/adapt")["success"]
    events = listener.events('"event": "judged"')  # the whole burst, in the process that it starts
    assert "adapting" in [event.get("phase") for event in events]
    listener("listen", topic="/edge_sfda/mask", kind="Image", file=str(tmp_path / "out.npz"))
    assert '"event": "judged"' in (run / "events.jsonl").read_text()


def _two_generations(run: Path) -> None:
    from edge_sfda import checkpoint
    from edge_sfda.adapt.generations import Generations

    run.mkdir()
    loaded = checkpoint.load(MODEL)
    generations = Generations(run / "generations")
    generations.start(loaded.state, loaded.manifest)
    generations.accept(loaded.state, loaded.manifest.derive(kind="adapted"), report={"reason": "a test"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_node_with_0(
    number: signal.Signals, start_node, publisher, listener, street, onnx_model: Path, tmp_path: Path
) -> None:
    node = start_node(model=onnx_model)
    publisher("publish", file=str(street.file))
    listener("listen", topic="/edge_sfda/mask", kind="Image", file=str(tmp_path / "out.npz"))
    node.send_signal(number)
    assert node.wait(timeout=30) == 0
    assert "Traceback" not in (tmp_path / "node.log").read_text()


@pytest.mark.parametrize(
    ("parameters", "code", "expected"),
    [
        ({"mode": "sometimes"}, 2, "mode = 'sometimes' is unknown; choose one of infer, shadow, recommend, auto"),
        ({"budget_share": 2.0}, 2, "budget_share out of range"),
        ({"threads": "many"}, 2, "parameter of the wrong type"),
        ({}, 2, "parameter model is not set"),
        ({"model": MODEL, "mode": "auto"}, 2, "mode auto needs run_folder"),
        ({"model": __file__}, 1, "test_node.py"),
    ],
)
def test_wrong_parameter_ends_the_node_with_a_reason(
    parameters: dict[str, Any], code: int, expected: str, start_node, tmp_path: Path
) -> None:
    assert start_node(**parameters).wait(timeout=60) == code
    said = (tmp_path / "node.log").read_text()
    assert expected in said
    assert "Traceback" not in said
