from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt.generations import CHECKPOINT, Generation, Generations
from edge_sfda.errors import CheckpointError, DivergenceError, UsageError, WriteError
from edge_sfda.manifest import Manifest

KILLS = 200


def _state(value: float) -> dict[str, Tensor]:
    return {"weight": torch.full((4, 3), value), "count": torch.tensor(int(value))}


@pytest.fixture
def manifest(make_manifest: Callable[..., Manifest]) -> Manifest:
    return make_manifest()


@pytest.fixture
def kept(ram_path: Path, manifest: Manifest) -> Generations:
    """The source and generations 1 to 3, whose weights are their numbers."""
    generations = Generations(ram_path / "generations")
    generations.start(_state(0), manifest)
    for number in (1, 2, 3):
        generations.accept(_state(number), manifest, report={"reason": f"the {number}th"})
    return generations


def _value(generation: Generation) -> float:
    return float(generation.load().state["weight"][0, 0])


def _names(generations: Generations) -> list[str]:
    return sorted(path.name for path in generations.folder.iterdir() if path.name != ".lock")


def test_accepted_generation_is_the_newest_with_its_report_and_files(kept: Generations, manifest: Manifest) -> None:
    accepted = kept.accept(_state(4), manifest, report={"scores": {"a": 0.5}}, files={"model.onnx": b"\x08\x01"})
    newest = kept.newest()
    assert newest == accepted
    assert (newest.number, newest.path.name, _value(newest)) == (4, "0004", 4.0)
    assert newest.report == {"scores": {"a": 0.5}}
    assert (newest.path / "model.onnx").read_bytes() == b"\x08\x01"
    assert newest.manifest.tensors_sha256 == newest.load().manifest.tensors_sha256 != ""


def test_source_and_the_newest_few_are_kept(ram_path: Path, manifest: Manifest) -> None:
    generations = Generations(ram_path, keep=2)
    generations.start(_state(0), manifest)
    for number in range(1, 6):
        generations.accept(_state(number), manifest, report={})
    assert _names(generations) == ["0000", "0004", "0005"]
    assert [_value(g) for g in generations.all()] == [0, 4, 5]


def test_starting_again_keeps_what_is_there(kept: Generations, manifest: Manifest) -> None:
    assert kept.start(_state(0), manifest).number == 0
    assert kept.newest().number == 3


def test_starting_from_another_source_is_told(kept: Generations, manifest: Manifest) -> None:
    with pytest.raises(CheckpointError, match="generations of another source .* choose another folder"):
        kept.start(_state(9), manifest)
    assert kept.newest().number == 3


def test_nothing_is_accepted_without_a_source(ram_path: Path, manifest: Manifest) -> None:
    with pytest.raises(CheckpointError, match="no source to go back to"):
        Generations(ram_path).accept(_state(1), manifest, report={})


def test_rollback_withdraws_and_numbers_are_not_given_twice(kept: Generations, manifest: Manifest) -> None:
    assert kept.rollback().number == 2
    assert kept.newest().number == 2
    assert _names(kept) == ["0000", "0001", "0002", "0003.withdrawn"]
    assert kept.accept(_state(4), manifest, report={}).number == 4
    assert kept.rollback(3).number == 0
    assert _value(kept.newest()) == 0


@pytest.mark.parametrize("steps", [0, -1, 4])
def test_rollback_beyond_the_source_is_told(kept: Generations, steps: int) -> None:
    with pytest.raises(UsageError, match=f"cannot go back {steps} generations.* give 1 to 3"):
        kept.rollback(steps)
    assert kept.newest().number == 3


def test_rollback_from_the_source_is_told(ram_path: Path, manifest: Manifest) -> None:
    generations = Generations(ram_path)
    generations.start(_state(0), manifest)
    with pytest.raises(UsageError, match="nothing to go back from"):
        generations.rollback()


def test_return_to_a_generation_withdraws_all_after_it(kept: Generations) -> None:
    assert kept.return_to(1).number == 1
    assert kept.return_to(0).number == 0
    with pytest.raises(UsageError, match=r"no generation 3; it has 0"):
        kept.return_to(3)


def test_withdrawn_generations_are_pruned_as_well(ram_path: Path, manifest: Manifest) -> None:
    generations = Generations(ram_path, keep=2)
    generations.start(_state(0), manifest)
    for number in range(1, 5):
        generations.accept(_state(number), manifest, report={})
        generations.rollback()
    assert _names(generations) == ["0000", "0003.withdrawn", "0004.withdrawn"]


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _flip_a_bit(folder / CHECKPOINT),
        lambda folder: _flip_a_bit(folder / "report.json"),
        lambda folder: (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:-1]),
        lambda folder: (folder / CHECKPOINT).unlink(),
        lambda folder: (folder / "generation.json").unlink(),
        lambda folder: (folder / "generation.json").write_text("{"),
        lambda folder: (folder / "generation.json").write_text("[]"),
        lambda folder: (folder / "generation.json").write_text('{"format": 1, "number": 3, "sha256": {}}'),
        lambda folder: (folder / "generation.json").write_text(
            '{"format": 1, "number": 3, "sha256": {"../0002/report.json": ""}}'
        ),
    ],
)
def test_damaged_generation_is_passed_over_with_a_warning(
    kept: Generations, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    damage(kept.folder / "0003")
    assert kept.newest().number == 2
    assert "generation 3 is passed over" in caplog.text
    assert [g.number for g in kept.all()] == [0, 1, 2]


def test_generation_under_another_number_is_passed_over(kept: Generations) -> None:
    os.rename(kept.folder / "0001", kept.folder / "0009")
    assert kept.newest().number == 3


def test_rollback_lands_on_a_whole_generation(kept: Generations) -> None:
    _flip_a_bit(kept.folder / "0002" / CHECKPOINT)
    assert kept.rollback().number == 1


def test_folder_without_a_whole_generation_is_told(kept: Generations) -> None:
    for number in range(4):
        _flip_a_bit(kept.folder / f"{number:04d}" / CHECKPOINT)
    with pytest.raises(CheckpointError, match="no whole generation; start again from the source"):
        kept.newest()
    with pytest.raises(CheckpointError, match="nothing whole to go back to"):
        kept.rollback()
    assert "0003" in _names(kept)


def test_missing_folder_is_told_and_not_made(ram_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot list .*none: No such file"):
        Generations(ram_path / "none").newest()
    assert not (ram_path / "none").exists()


@pytest.mark.parametrize(
    ("state", "report", "files", "error", "words"),
    [
        ({"w": torch.tensor(float("nan"))}, {}, {}, DivergenceError, "not finite"),
        (_state(1), {"score": float("nan")}, {}, CheckpointError, "not JSON"),
        (_state(1), {"score": object()}, {}, CheckpointError, "not JSON"),
        (_state(1), {}, {"../x": b""}, UsageError, "plain name"),
        (_state(1), {}, {"report.json": b""}, UsageError, "plain name"),
        (_state(1), {}, {".hidden": b""}, UsageError, "plain name"),
    ],
)
def test_what_cannot_be_kept_is_told_and_leaves_nothing(kept, manifest, state, report, files, error, words) -> None:
    before = _names(kept)
    with pytest.raises(error, match=words):
        kept.accept(state, manifest, report=report, files=files)
    assert _names(kept) == before


@contextmanager
def _disk_of(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes: writes then fail in the kernel, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)


def test_full_disk_leaves_the_generations_as_they_were(kept: Generations, manifest: Manifest) -> None:
    before = _names(kept)
    with _disk_of(4096), pytest.raises(WriteError, match="free some space"):
        kept.accept({"w": torch.zeros(4096)}, manifest, report={})
    assert _names(kept) == before
    assert kept.newest().number == 3


def test_two_of_a_kind_are_refused(ram_path: Path) -> None:
    with pytest.raises(UsageError, match="expected 2 or more"):
        Generations(ram_path, keep=1)


# A process of one thread, so that it may fork: children write in a loop until they are killed, and the parent looks.
_KILLER = """
import logging, os, random, signal, sys, time
import torch
from edge_sfda.adapt.generations import Generations
from edge_sfda.manifest import Classes, Manifest, NetSpec, Preprocessing

torch.set_num_threads(1)
kills, folder = int(sys.argv[1]), sys.argv[2]
logging.getLogger("edge_sfda").addHandler(logging.StreamHandler(sys.stdout))  # a damaged one would be told
manifest = Manifest(NetSpec("nano"), Classes(("a", "b"), ((0, 0, 0), (1, 1, 1))), Preprocessing(64, 64))
rng = random.Random(0)

def state(value):
    return {"weight": torch.full((64, 64), float(value)), "other": torch.full((64,), float(value))}

generations = Generations(folder, keep=2)
begun = time.perf_counter()
generations.start(state(0), manifest)
write_s = time.perf_counter() - begun
newest, landed = 0, 0
for _ in range(kills):
    highest = max(int(name[:4]) for name in os.listdir(folder) if name[:4].isdigit())
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        while True:
            value = rng.randrange(1000)
            files = {"model.onnx": b"x" * 5000}
            number = generations.accept(state(value), manifest, report={"value": value}, files=files).number
            os.write(tell, b"%d\\n" % number)
            if number % 5 == 0:
                generations.rollback()
                os.write(tell, b"%d\\n" % (number - 1))
    os.close(tell)
    with os.fdopen(told) as lines:
        done = [int(lines.readline()) for _ in range(rng.randrange(3))]
        time.sleep(rng.uniform(0, write_s))  # where in the child's work it is killed
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done += [int(line) for line in lines]
    landed += len(done)
    expected = done[-1] if done else newest
    found = generations.newest()
    # or what came next was done already, and not yet told: one more, or one rolled back
    next_one = max([*done, highest]) + 1
    assert found.number in (expected, next_one) or (expected % 5 == 0 and found.number < expected), (expected, found)
    value = found.report.get("value", 0)
    assert all(bool((tensor == value).all()) for tensor in found.load().state.values())
    newest = found.number
print(f"kills {kills}, generations {landed}, unfinished {len(list(generations.folder.glob('.edge-sfda-*')))}")
"""


def test_process_killed_at_any_moment_leaves_the_newest_whole_generation(ram_path: Path) -> None:
    command = [sys.executable, "-c", _KILLER, str(KILLS), str(ram_path / "generations")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.startswith(f"kills {KILLS}, generations "), ran.stdout
    assert int(ran.stdout.split()[3].rstrip(",")) > KILLS / 2, "too few writes between the kills to mean anything"


def test_report_is_one_that_people_can_read(kept: Generations) -> None:
    assert json.loads((kept.folder / "0002" / "report.json").read_text()) == {"reason": "the 2th"}
