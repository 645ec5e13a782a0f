"""The guides, run as they are written: every block of commands or Python, in order, in a folder with what they ask for.

A block's info string says what it is: `sh` and `python` run here; `sh jetson`, `sh ros` and `sh install` need what this
machine must not or cannot have, and are checked for commands and options that exist.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from edge_sfda import open_source
from edge_sfda.cli import app
from edge_sfda.live.ros.parameters import BY_NAME

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "deploy" / "guides").glob("*.md"))
RUN = ("sh", "python")
NOT_RUN = {
    "sh jetson": "needs the board",
    "sh ros": "needs a ROS 2 installation",
    "sh install": "changes the environment that the tests run in",
}

# Runs the blocks in one process, so that one Python block sees the names of those before it.
DRIVER = """
import json, subprocess, sys
names = {"__name__": "guide"}
for info, text in json.load(open(sys.argv[1])):
    if info == "sh":
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
    else:
        exec(compile(text, "guide", "exec"), names)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its info string and its text."""

    info: str
    text: str


def blocks(text: str) -> list[Block]:
    return [Block(info.strip(), body) for info, body in re.findall(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE)]


def test_reader_finds_blocks_and_their_info_strings() -> None:
    text = "a\n```sh\nls\n```\nb\n```sh jetson\ncat x\n\ntail x\n```\n```python\n```\n"
    assert blocks(text) == [Block("sh", "ls\n"), Block("sh jetson", "cat x\n\ntail x\n"), Block("python", "")]


def test_there_are_the_guides_that_the_index_names() -> None:
    index = (ROOT / "deploy" / "README.md").read_text()
    assert [guide.stem for guide in GUIDES] == ["bag", "jetson", "python"]
    for guide in GUIDES:
        assert f"guides/{guide.name}" in index


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_every_block_says_whether_it_runs_here(guide: Path) -> None:
    found = blocks(guide.read_text())
    assert guide.read_text().count("```") == 2 * len(found)
    for block in found:
        assert block.info in (*RUN, *NOT_RUN), f"{block.info!r}: {block.text}"
    assert any(block.info in RUN for block in found)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_commands_that_do_not_run_here_have_options_that_exist(guide: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in blocks(guide.read_text()):
        for line in block.text.splitlines() if block.info in NOT_RUN else ():
            words = shlex.split(line, comments=True)
            if words[:1] == ["edge-sfda"]:
                known = {option for parameter in commands[words[1]].params for option in parameter.opts}
                assert {word for word in words if re.match(r"--?[a-z]", word)} <= known, line
            elif words[:2] == ["ros2", "launch"]:
                launched = (ROOT / "deploy" / "ros2" / words[2] / "launch" / words[3]).read_text()
                for name in (word.split(":=")[0] for word in words[4:]):
                    assert f'<arg name="{name}"' in launched, line
                    assert name in BY_NAME or name in ("image", "namespace", "params")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_guide_works_as_written(guide: Path, place: Callable[[], dict[str, str]], tmp_path: Path) -> None:
    import json

    if guide.stem == "bag":
        pytest.importorskip("rosbags", reason="needs rosbags (extra bags)")
        pytest.importorskip("onnxruntime", reason="needs onnxruntime (extra cpu)")
    environment = place()
    todo = [(block.info, block.text) for block in blocks(guide.read_text()) if block.info in RUN]
    (tmp_path / "blocks.json").write_text(json.dumps(todo))
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER, "blocks.json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for name in LEFT[guide.stem]:
        assert (tmp_path / name).exists(), name


LEFT = {
    "bag": ("before/overlays", "runs/yard/strip.png", "artefacts/adapted-fp32.onnx", "masks.mcap"),
    "jetson": ("try/events.jsonl",),
    "python": ("adapted.safetensors",),
}


@pytest.fixture
def place(tmp_path: Path) -> Callable[[], dict[str, str]]:
    """Return a function that lays out what the guides ask for; it returns the environment."""

    def lay() -> dict[str, str]:
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir()
        for name, words in (("edge-sfda", "-m edge_sfda "), ("python3", "")):
            script = bin_folder / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words}"$@"\n')
            script.chmod(0o755)
        if shutil.which("bash") is None:
            pytest.skip("needs bash")
        _record(tmp_path / "run.mcap")
        return {
            **os.environ,
            "PATH": os.pathsep.join([str(bin_folder), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    return lay


def _record(path: Path) -> None:
    """Write a bag of twelve colour images at dusk, as a robot would."""
    try:
        from rosbags.rosbag2 import StoragePlugin, Writer
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        return  # the guide that needs it is skipped
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: Any = store.types
    kind = "sensor_msgs/msg/Image"
    folder = path.with_suffix(".folder")
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera/image_raw", kind, typestore=store)
        with open_source("scene:dusk?frames=12&fps=2&seed=7&size=96x128") as source:
            for frame in source:
                at = 1_700_000_000_000_000_000 + frame.seq * 500_000_000
                stamp = types["builtin_interfaces/msg/Time"](sec=at // 10**9, nanosec=at % 10**9)
                message = types[kind](
                    header=types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera"),
                    height=96,
                    width=128,
                    encoding="bgr8",
                    is_bigendian=0,
                    step=384,
                    data=frame.image.reshape(-1),
                )
                writer.write(connection, at, store.serialize_cdr(message, kind))
    (data,) = folder.glob("*.mcap")
    data.rename(path)
    shutil.rmtree(folder)
