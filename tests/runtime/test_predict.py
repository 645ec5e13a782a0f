from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from edge_sfda import Segmenter, checkpoint
from edge_sfda.data.frames import Frame, FrameSource
from edge_sfda.data.scene import SCENE_CLASSES
from edge_sfda.errors import ArtefactError, CheckpointError, EngineError, FrameError, LabelError, UsageError
from edge_sfda.manifest import Manifest, NetSpec, Preprocessing
from edge_sfda.nets import Predictor, build, load
from edge_sfda.runtime import predict
from edge_sfda.runtime.engine import EngineConfig
from edge_sfda.runtime.engine_fake import FAKE_CLASSES, FakeEngine, bright, fake_info


def _frame(height: int = 16, width: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def nano_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    manifest = Manifest(NetSpec("nano"), SCENE_CLASSES, Preprocessing(48, 64))
    path = tmp_path / "nano.safetensors"
    checkpoint.save(path, build(manifest.net, len(SCENE_CLASSES)).state_dict(), manifest)
    return path


def test_frame_gives_a_mask_of_its_size(tiny_onnx) -> None:
    with Segmenter.load(tiny_onnx(), device="cpu", threads=1) as segment:
        mask = segment(_frame())
    assert (mask.dtype, mask.shape) == (np.uint8, (16, 24))
    assert (mask == bright(_frame()[None])[0]).all()


def test_prediction_has_confidence_and_times(tiny_onnx) -> None:
    seen = Segmenter.load(tiny_onnx(), device="cpu", threads=1).predict(_frame())
    assert seen.confidence is not None
    assert np.allclose(seen.confidence, _frame()[..., 0] / np.float32(255))
    assert seen.logits is None
    assert seen.times.capture_ms == 0
    assert min(seen.times.pre_ms, seen.times.net_ms, seen.times.post_ms) > 0


def test_results_are_the_callers_own(tiny_onnx) -> None:
    segment = Segmenter.load(tiny_onnx(), device="cpu", threads=1)
    first = segment.predict(_frame())
    kept = first.mask.copy(), first.confidence.copy()  # type: ignore[union-attr]
    segment.predict(255 - _frame())
    assert (first.mask == kept[0]).all()
    assert (first.confidence == kept[1]).all()
    first.mask[:] = 0  # writable


def test_checkpoint_and_predictor_give_the_same(nano_checkpoint: Path) -> None:
    segment = Segmenter.load(nano_checkpoint, device="cpu", threads=1)
    frame = _frame(100, 90)
    mask, confidence = Predictor(*load(nano_checkpoint))(frame)
    seen = segment.predict(frame)
    assert (seen.mask == mask).all()
    assert np.array_equal(seen.confidence, confidence)
    assert seen.logits is not None
    assert seen.logits.shape == (10, 12, 16)
    assert segment.classes == SCENE_CLASSES


def test_real_export_agrees_with_its_checkpoint_through_the_same_calls(exported, scene_frames, tmp_path: Path) -> None:
    (tmp_path / "scene.onnx").write_bytes(exported().SerializeToString())
    asset = Path(predict.__file__).parents[1] / "assets" / "scene_day_nano.safetensors"
    images = [frame.image for frame in scene_frames(2)]
    onnx_masks = Segmenter.load(tmp_path / "scene.onnx", device="cpu", threads=1).batch(images).mask
    torch_masks = Segmenter.load(asset, device="cpu", threads=1).batch(images).mask
    assert (onnx_masks == torch_masks).mean() >= 0.999


def test_batch_is_its_frames_one_by_one(tiny_onnx) -> None:
    segment = Segmenter.load(tiny_onnx(), device="cpu", threads=1)
    frames = np.stack([_frame(seed=i) for i in range(3)])
    for given in (frames, list(frames), torch.from_numpy(frames)):
        seen = segment.batch(given)
        assert (seen.mask == np.stack([segment(frame) for frame in frames])).all()
        assert seen.confidence is not None
        assert seen.confidence.shape == (3, 16, 24)


def test_batch_larger_than_the_engines_is_cut() -> None:
    engine = FakeEngine(max_batch=2)
    frames = np.stack([_frame(seed=i) for i in range(5)])
    seen = Segmenter(engine).batch(frames)
    assert [shape[0] for shape in engine.calls] == [2, 2, 1]
    assert (seen.mask == bright(frames)).all()


def test_artefact_of_one_size_is_given_frames_of_it_and_gives_masks_of_theirs() -> None:
    engine = FakeEngine(fake_info(frame_size=(32, 48)))
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:, 48:] = 255
    seen = Segmenter(engine).predict(frame)
    assert engine.calls == [(1, 32, 48, 3)]
    assert (seen.mask == (frame[..., 0] == 255)).all()
    assert seen.confidence is not None
    assert seen.confidence.shape == (64, 96)


@pytest.mark.parametrize(("height", "how"), [(64, cv2.INTER_LINEAR), (100, cv2.INTER_AREA)])
def test_frames_are_resized_as_the_networks_own_input_is(height: int, how: int) -> None:
    given: list[np.ndarray] = []
    engine = FakeEngine(fake_info(frame_size=(32, 48)), segment=lambda x: given.append(x.copy()) or bright(x))
    frame = _frame(height, 96)
    Segmenter(engine)(frame)
    assert (given[0][0] == cv2.resize(frame, (48, 32), interpolation=how)).all()


@pytest.mark.parametrize("artefact", ["bgr", "rgb"])
@pytest.mark.parametrize("callers", ["bgr", "rgb", None])
def test_channels_are_swapped_only_where_the_orders_differ(artefact: str, callers: str | None) -> None:
    given: list[np.ndarray] = []
    info = fake_info(colour_order=artefact)
    engine = FakeEngine(info, segment=lambda x: given.append(x.copy()) or bright(x))
    segment = Segmenter(engine, colour_order=callers)
    segment(_frame())
    swapped = callers is not None and callers != artefact
    assert (given[0][0] == (_frame()[..., ::-1] if swapped else _frame())).all()


def test_unknown_colour_order_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="'yuv' is not known"):
        Segmenter(FakeEngine(), colour_order="yuv")


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (_frame().astype(np.float32), "expected uint8"),
        (_frame().transpose(2, 0, 1), "expected"),
        (np.zeros((0, 0, 3), np.uint8), "empty"),
        (_frame(7, 24), "too small"),
        ("frame.png", "is a str"),
    ],
)
def test_bad_frame_is_named_and_the_next_good_one_is_segmented(frame: Any, words: str) -> None:
    segment = Segmenter(FakeEngine())
    with pytest.raises(FrameError, match=words):
        segment(frame)
    assert segment(_frame()).shape == (16, 24)


class _Gpu:
    __cuda_array_interface__ = {"typestr": "|u1", "shape": (16, 24, 3), "data": (4096, False), "version": 2}  # noqa: RUF012


def test_frame_on_a_gpu_for_an_engine_on_the_cpu_is_an_error() -> None:
    with pytest.raises(FrameError, match=r"lies on GPU \? and the engine runs on fake"):
        Segmenter(FakeEngine())(_Gpu())


@pytest.mark.parametrize(
    ("info", "order", "words"),
    [
        (fake_info(frame_size=(32, 48)), None, "--dynamic"),
        (fake_info(), "rgb", "swap its channels"),
    ],
)
def test_frame_on_a_gpu_is_not_changed_on_the_way(info: Any, order: str | None, words: str) -> None:
    engine = FakeEngine(info)
    engine.device = 0
    with pytest.raises(FrameError, match=words):
        Segmenter(engine, colour_order=order)(_Gpu())


def test_overlay_has_the_palette_in_the_frames_order() -> None:
    frame, mask = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8)
    red, green, blue = FAKE_CLASSES.palette[1]
    assert Segmenter(FakeEngine()).overlay(frame, mask, alpha=1)[0, 0].tolist() == [blue, green, red]
    rgb = Segmenter(FakeEngine(), colour_order="rgb").overlay(frame, mask, alpha=1)
    assert rgb[0, 0].tolist() == [red, green, blue]
    with pytest.raises(LabelError):
        Segmenter(FakeEngine()).overlay(frame, mask[:4])


def test_palette_is_rgb_rows_of_the_classes() -> None:
    assert Segmenter(FakeEngine()).palette.tolist() == [list(colour) for colour in FAKE_CLASSES.palette]


class _Source(FrameSource):
    """Gives what it is told, and knows whether it was closed."""

    len_hint: int | None = None
    fps: float | None = None

    def __init__(self, images: list[np.ndarray]) -> None:
        self.frames = [Frame(image, seq, float(seq)) for seq, image in enumerate(images)]
        self.closed = False

    def __next__(self) -> Frame:
        if not self.frames:
            raise StopIteration
        return self.frames.pop(0)

    def close(self) -> None:
        self.closed = True


def test_stream_gives_frames_with_what_was_seen_and_closes_its_source() -> None:
    source = _Source([_frame(), _frame(20, 30)])
    seen = list(Segmenter(FakeEngine()).stream(source))
    assert [(frame.seq, result.mask.shape) for frame, result in seen] == [(0, (16, 24)), (1, (20, 30))]
    assert all(result.times.capture_ms > 0 for _, result in seen)
    assert source.closed


def test_stream_that_is_left_early_closes_its_source() -> None:
    source = _Source([_frame(), _frame()])
    stream = Segmenter(FakeEngine()).stream(source)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert source.closed


def test_stream_of_sources_text_is_bgr_whatever_callers_give() -> None:
    given: list[np.ndarray] = []
    engine = FakeEngine(segment=lambda x: given.append(x.copy()) or bright(x))
    stream = Segmenter(engine, colour_order="rgb").stream("scene:day?frames=1&size=48x64")
    for frame, _ in stream:
        assert (given[0][0] == frame.image).all()


def test_closed_segmenter_says_so() -> None:
    engine = FakeEngine()
    with Segmenter(engine) as segment:
        pass
    segment.close()
    assert engine.closed
    for call in (lambda: segment(_frame()), lambda: segment.classes, lambda: segment.swap("x.onnx")):
        with pytest.raises((EngineError, ArtefactError)):
            call()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeEngine]:
    """Engines by name, which stand in for files."""
    made: dict[str, FakeEngine] = {}
    monkeypatch.setattr(predict, "open_engine", lambda path, config: made[str(path)])
    return made


def test_loading_runs_the_engine_once(engines) -> None:
    engines["a"] = FakeEngine(fake_info(frame_size=(32, 48)))
    Segmenter.load("a")
    assert engines["a"].calls == [(1, 32, 48, 3)]


def test_engine_that_fails_to_warm_is_closed(engines) -> None:
    def fail(frames: np.ndarray) -> np.ndarray:
        raise EngineError("no memory")

    engines["a"] = FakeEngine(segment=fail)
    with pytest.raises(EngineError, match="no memory"):
        Segmenter.load("a")
    assert engines["a"].closed


def _inverted(frames: np.ndarray) -> np.ndarray:
    return 1 - bright(frames)


def test_swap_takes_the_other_one_warmed_at_the_frames_size_and_closes_the_old(engines) -> None:
    old, engines["new"] = FakeEngine(), FakeEngine(segment=_inverted)
    segment = Segmenter(old)
    segment(_frame())
    segment.swap("new")
    assert (segment(_frame()) == _inverted(_frame()[None])[0]).all()
    assert engines["new"].calls[0] == (1, 16, 24, 3)
    assert old.closed


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (fake_info(replace(FAKE_CLASSES, names=("dark", "bright"))), "has the classes dark, bright"),
        (fake_info(replace(FAKE_CLASSES, palette=((0, 0, 0), (1, 1, 1)))), "their colours differ"),
        (fake_info(outputs=("mask",)), "gives no confidence"),
    ],
)
def test_swap_to_what_callers_do_not_expect_is_refused_and_the_old_one_stays(engines, info, words: str) -> None:
    old, engines["new"] = FakeEngine(), FakeEngine(info)
    segment = Segmenter(old)
    with pytest.raises(ArtefactError, match=words):
        segment.swap("new")
    assert engines["new"].closed
    assert segment(_frame()).shape == (16, 24)


def test_swap_to_a_damaged_file_leaves_the_old_one(tiny_onnx, tmp_path: Path) -> None:
    segment = Segmenter.load(tiny_onnx(), device="cpu", threads=1)
    before = segment(_frame())
    (tmp_path / "bad.onnx").write_bytes(tiny_onnx().read_bytes()[:-30])
    with pytest.raises(ArtefactError, match="damaged"):
        segment.swap(tmp_path / "bad.onnx")
    assert (segment(_frame()) == before).all()


def test_swap_to_another_colour_order_is_made_up_for(engines) -> None:
    given: list[np.ndarray] = []
    engines["new"] = FakeEngine(fake_info(colour_order="rgb"), segment=lambda x: given.append(x.copy()) or bright(x))
    segment = Segmenter(FakeEngine())
    segment.swap("new")
    segment(_frame())
    assert (given[-1][0] == _frame()[..., ::-1]).all()


def test_calls_go_on_while_another_artefact_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slow(path: str, config: EngineConfig) -> FakeEngine:
        loading.set()
        assert go_on.wait(30)
        return FakeEngine(segment=_inverted)

    monkeypatch.setattr(predict, "open_engine", slow)
    segment = Segmenter(FakeEngine())
    swap = threading.Thread(target=segment.swap, args=("new",))
    swap.start()
    assert loading.wait(30)
    assert (segment(_frame()) == bright(_frame()[None])[0]).all()
    go_on.set()
    swap.join(30)
    assert (segment(_frame()) == _inverted(_frame()[None])[0]).all()


def test_old_engine_is_closed_after_its_last_call(engines) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slow(frames: np.ndarray) -> np.ndarray:
        inside.set()
        assert go_on.wait(30)
        assert not old.closed
        return bright(frames)

    old, engines["new"] = FakeEngine(segment=slow), FakeEngine()
    segment = Segmenter(old)
    results: list[np.ndarray] = []
    call = threading.Thread(target=lambda: results.append(segment(_frame())))
    call.start()
    assert inside.wait(30)
    swap = threading.Thread(target=segment.swap, args=("new",))
    swap.start()
    go_on.set()
    call.join(30)
    swap.join(30)
    assert len(results) == 1
    assert old.closed


def test_many_threads_get_each_its_own_mask_while_artefacts_are_swapped(tiny_onnx) -> None:
    paths = [tiny_onnx("a.onnx"), tiny_onnx("b.onnx", turn=True)]
    segment = Segmenter.load(paths[0], device="cpu", threads=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        frame = _frame(16 + 2 * seed, 24, seed)
        expected = bright(frame[None])[0]
        for _ in range(20):
            mask = segment(frame)
            if not ((mask == expected).all() or (mask == 1 - expected).all()):
                wrong.append(seed)

    threads: list[threading.Thread] = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for index in range(4):
        segment.swap(paths[(index + 1) % 2])
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("none.onnx", ArtefactError, "no ONNX model at"),
        ("none.engine", ArtefactError, "cannot read"),
        ("none.safetensors", CheckpointError, "cannot read checkpoint"),
        ("student.onnx.rejected", ArtefactError, "did not agree with its checkpoint"),
    ],
)
def test_missing_artefact_is_named(tmp_path: Path, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Segmenter.load(tmp_path / name)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "", "cpu:0"])
def test_unknown_device_is_wrong_usage(device: str) -> None:
    with pytest.raises(UsageError, match="expected auto, cpu, cuda"):
        Segmenter.load("a.onnx", device=device)


def test_device_that_is_not_here_is_an_engine_error(nano_checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(EngineError, match="torch cannot use it"):
        Segmenter.load(nano_checkpoint, device="cuda")


def test_inference_over_onnxruntime_imports_no_torch(tiny_onnx) -> None:
    code: str = (
        "import sys, numpy as np\nfrom edge_sfda import Segmenter\n"
        "light = sorted({'torch', 'matplotlib', 'onnxruntime', 'onnx', 'tensorrt', 'rich'} & set(sys.modules))\n"
        "with Segmenter.load(sys.argv[1], device='cpu', threads=1) as segment:\n"
        "    segment.overlay(f := np.zeros((16, 24, 3), np.uint8), segment(f))\n"
        "    assert len(list(segment.stream('scene:day?frames=2&size=48x64'))) == 2\n"
        "print(light, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, tiny_onnx()], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[] False"


def test_checkpoint_without_torch_is_an_engine_error(nano_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match="running a checkpoint needs torch"):
        Segmenter.load(nano_checkpoint)


def test_frame_on_a_gpu_of_another_number_is_an_error() -> None:
    engine = FakeEngine()
    engine.device = 1

    class OnGpu(_Gpu):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __dlpack__(self) -> object:
            raise AssertionError("the interface is enough")

    with pytest.raises(FrameError, match="lies on GPU 0 and the engine runs on GPU 1"):
        Segmenter(engine)(OnGpu())
