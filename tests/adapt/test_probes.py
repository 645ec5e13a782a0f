from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edge_sfda.adapt.probes import LabelledProbes, Probes
from edge_sfda.config import ProbeConfig
from edge_sfda.data.datasets import open_dataset
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.errors import ConfigError, FrameError, LabelError
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing


def _frame(index: int) -> Tensor:
    return torch.tensor([index % 256, index // 256, 0], dtype=torch.uint8)[:, None, None].expand(3, 2, 2)


def _index(frame: Tensor) -> int:
    return int(frame[0, 0, 0]) + 256 * int(frame[1, 0, 0])


def test_frame_is_a_probe_or_learned_from_never_both() -> None:
    probes = Probes(ProbeConfig(count=8, share=0.3))
    learned = {index for index in range(2000) if not probes.offer(_frame(index))}
    kept = {_index(frame) for frame in probes.frames()}
    assert len(kept) == len(probes) == 8
    assert not kept & learned
    assert (probes.offered, probes.set_aside) == (2000, 2000 - len(learned))
    assert 0.25 < probes.set_aside / probes.offered < 0.35


def test_every_frame_of_the_stream_is_as_likely_to_be_kept() -> None:
    places: list[int] = []
    for seed in range(300):
        probes = Probes(ProbeConfig(count=4, share=0.5, seed=seed))
        for index in range(100):
            probes.offer(_frame(index))
        places += [_index(frame) for frame in probes.frames()]
    quarters = torch.histc(torch.tensor(places, dtype=torch.float32), 4, 0, 100)
    # 1200 draws of a quarter each: deviation 15
    assert (quarters - 300).abs().max() < 60


def test_restart_forgets_and_goes_on() -> None:
    probes = Probes(ProbeConfig(count=4, share=0.9))
    assert probes.frames().shape[0] == 0
    for index in range(50):
        probes.offer(_frame(index))
    probes.restart()
    assert len(probes) == len(probes.frames()) == 0
    for index in range(1000, 1050):
        probes.offer(_frame(index))
    assert all(_index(frame) >= 1000 for frame in probes.frames())


def test_same_seed_gives_the_same_probes() -> None:
    def run(seed: int) -> list[bool]:
        probes = Probes(ProbeConfig(seed=seed))
        return [probes.offer(_frame(index)) for index in range(64)]

    assert run(1) == run(1) != run(2)


def test_probes_are_copies() -> None:
    probes = Probes(ProbeConfig(count=4, share=0.9))
    frame = torch.zeros(3, 2, 2, dtype=torch.uint8)
    while not probes.offer(frame):
        pass
    frame += 9
    probes.frames().add_(5)
    assert int(probes.frames().max()) == 0


@pytest.mark.parametrize(
    "frame",
    [torch.zeros(3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.uint8), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)],
)
def test_frame_of_another_kind_is_told(frame: Tensor) -> None:
    with pytest.raises(FrameError, match=r"expected uint8 RGB \[3, H, W\]"):
        Probes(ProbeConfig()).offer(frame)


def test_frame_of_another_size_is_told() -> None:
    probes = Probes(ProbeConfig(share=0.9))
    while not probes.offer(_frame(0)):
        pass
    with pytest.raises(FrameError, match="keep to one size"):
        probes.offer(torch.zeros(3, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("wrong", [{"count": 3}, {"share": 0.0}, {"share": 1.0}, {"seed": -1}])
def test_settings_out_of_range_are_told(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"probes.{next(iter(wrong))}"):
        ProbeConfig(**wrong)


@pytest.mark.parametrize(
    ("frames", "labels"), [((3, 3, 8, 8), (2, 8, 8)), ((3, 3, 8, 8), (3, 8, 4)), ((0, 3, 8, 8), (0, 8, 8))]
)
def test_labels_of_another_size_are_told(frames: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(LabelError, match="labelled probes of"):
        LabelledProbes(torch.zeros(frames, dtype=torch.uint8), torch.zeros(labels, dtype=torch.uint8))


def test_labelled_set_becomes_probes_of_the_networks_size() -> None:
    labelled = open_dataset(["scene:day?frames=70&size=16x32&fps=1"])
    probes = LabelledProbes.of(labelled, Manifest(NetSpec("nano"), SCENE_CLASSES, Preprocessing(32, 48)))
    assert (probes.frames.shape, probes.labels.shape) == ((64, 3, 32, 48), (64, 32, 48))
    assert probes.frames.dtype == probes.labels.dtype == torch.uint8
    assert int(probes.labels.max()) < len(SCENE_CLASSES)


def test_labelled_set_of_other_classes_is_told(make_manifest) -> None:
    with pytest.raises(LabelError, match="the network has a, b, c, d"):
        LabelledProbes.of(open_dataset(["scene:day?frames=2&size=16x32"]), make_manifest())
