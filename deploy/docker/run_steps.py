"""Carry out a Dockerfile's steps without a container engine, in copies of a root file system, to show that they work.

    sudo debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm base
    sudo python3 deploy/docker/run_steps.py deploy/docker/cpu/Dockerfile --base base --work stages -- demo

Every `RUN` is given to a shell as it stands, in a chroot of its stage; COPY, ENV, ARG, WORKDIR and USER do what they
say. The base image is replaced by `--base`: this shows that the steps work there, not that the image's name exists.
After the last step the ENTRYPOINT runs as the image's user, with what follows `--`. Needs root, for chroot and mounts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

CONTEXT = Path(__file__).resolve().parents[2]
_MOUNTS = 'mount -t proc proc "$1/proc" && mount --bind /dev "$1/dev" && shift && exec "$@"'


@dataclass(frozen=True)
class Step:
    """One instruction, its lines joined."""

    word: str
    rest: str


@dataclass
class Stage:
    """A stage under way: its root file system and what its instructions have set."""

    root: Path
    user: str = "0"
    folder: str = "/"
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"})
    entrypoint: list[str] = field(default_factory=list)


def steps(text: str) -> list[Step]:
    """Return the instructions of a Dockerfile; comments are left out, also between the lines of one instruction."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [Step(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Build:
    """Carries out steps, one after the other.

    Args:
        base: root file system in the place of every base image.
        work: folder for the stages' own copies.
        arguments: values of ARG.
    """

    def __init__(self, base: Path, work: Path, arguments: dict[str, str]) -> None:
        self.base = base
        self.work = work
        self.arguments = arguments
        self.stages: dict[str, Stage] = {}
        self.stage = Stage(base)  # before the first FROM, nothing runs

    def do(self, step: Step) -> None:
        """Carry out one step; CalledProcessError where its command fails."""
        print(f"==> {step.word} {step.rest}", flush=True)
        action = getattr(self, f"_{step.word.lower()}", None)
        if action is None:
            raise SystemExit(f"instruction {step.word} is not known here")
        action(step.rest)

    def run(self, command: list[str]) -> None:
        """Run a command in the stage's root, as its user and in its folder, with its own /proc and the host's /dev."""
        stage = self.stage
        chroot = ["chroot", f"--userspec={stage.user}:{stage.user}", str(stage.root)]
        inside = [*chroot, "/usr/bin/env", "-C", stage.folder]  # chroot itself knows no folder
        wrapped = ["unshare", "--mount", "sh", "-c", _MOUNTS, "sh", str(stage.root), *inside, *command]
        subprocess.run(wrapped, env=self.arguments | stage.environ, check=True)

    def _from(self, rest: str) -> None:
        name = rest.split(" AS ")[-1] if " AS " in rest else str(len(self.stages))
        root = self.work / name
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.base), str(root)], check=True)
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        self.stage = self.stages[name] = Stage(root)

    def _arg(self, rest: str) -> None:
        name, _, value = rest.partition("=")
        self.arguments.setdefault(name, value.strip('"'))

    def _env(self, rest: str) -> None:
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            self.stage.environ[name] = value.replace("$PATH", self.stage.environ["PATH"])

    def _workdir(self, rest: str) -> None:
        self.stage.folder = rest
        self._inside(rest).mkdir(parents=True, exist_ok=True)

    def _user(self, rest: str) -> None:
        self.stage.user = rest

    def _copy(self, rest: str) -> None:
        words = shlex.split(rest)
        origin = CONTEXT
        if words[0].startswith("--from="):
            origin = self.stages[words.pop(0).removeprefix("--from=")].root
        *sources, target = words
        for source in sources:
            place = origin / source.lstrip("/")
            goal = self._inside(target) / place.name if target.endswith("/") else self._inside(target)
            goal.parent.mkdir(parents=True, exist_ok=True)
            # a folder's content goes into the folder, also where it is there already
            what = f"{place}/." if place.is_dir() else str(place)
            subprocess.run(["cp", "-a", what, str(goal)] if not place.is_dir() else _into(what, goal), check=True)

    def _run(self, rest: str) -> None:
        self.run(["/bin/sh", "-c", rest])

    def _entrypoint(self, rest: str) -> None:
        self.stage.entrypoint = json.loads(rest)

    def _inert(self, rest: str) -> None:
        """Describe the image, which there is none of."""

    _cmd = _healthcheck = _volume = _inert

    def _inside(self, path: str) -> Path:
        return self.stage.root / os.path.join(self.stage.folder, path).lstrip("/")


def _into(what: str, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    return ["cp", "-a", what, str(folder)]


def main(argv: list[str]) -> None:
    """Carry out the steps, then the entry point with each command that was asked for."""
    own, asked = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, ["--version"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="root file system in the place of the base image")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages; must not exist")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(own)
    if os.geteuid() != 0:
        parser.error("needs root, for chroot and mounts")
    options.work.mkdir()
    build = Build(options.base, options.work, dict(pair.split("=", 1) for pair in options.build_arg))
    for step in steps(options.dockerfile.read_text(encoding="utf-8")):
        build.do(step)
    print(f"==> {shlex.join([*build.stage.entrypoint, *asked])}", flush=True)
    build.run([*build.stage.entrypoint, *asked])


if __name__ == "__main__":
    main(sys.argv[1:])
