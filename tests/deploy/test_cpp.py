"""The C++ runner, built against a real ONNX Runtime: the same mask as Python's, and words instead of crashes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_sfda.data.scene_spec import SceneSpec

onnxruntime = pytest.importorskip("onnxruntime")

SOURCE = Path(__file__).parents[2] / "deploy" / "cpp"
MODEL = Path(__file__).parents[2] / "edge_sfda" / "assets" / "scene_day_nano.safetensors"
HEADERS = ("/usr/include", "/usr/include/onnxruntime", "/usr/local/include", "/usr/local/include/onnxruntime")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _include() -> Path:
    for folder in (os.environ.get("ONNXRUNTIME_INCLUDE", ""), *HEADERS):
        if folder and (Path(folder) / "onnxruntime_cxx_api.h").is_file():
            return Path(folder)
    pytest.skip("no onnxruntime_cxx_api.h; install libonnxruntime-dev or set ONNXRUNTIME_INCLUDE")


def _library(folder: Path) -> Path:
    """Return the Python package's library under the name that programs look for, in `folder`."""
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    if not found:
        pytest.skip("this onnxruntime package carries no libonnxruntime.so to link")
    link = folder / "libonnxruntime.so.1"
    link.symlink_to(found[0])
    return link


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("cmake and a C++ compiler are needed")
    build = tmp_path_factory.mktemp("cpp")
    settings = [f"-DONNXRUNTIME_INCLUDE={_include()}", f"-DONNXRUNTIME_LIBRARY={_library(build)}"]
    for command in (["cmake", "-S", SOURCE, "-B", build, *settings], ["cmake", "--build", build]):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout + made.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = [str(build / "edge_sfda_run"), *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that exports the scene's network, once for each setting."""
    import onnx

    from edge_sfda.nets import load
    from edge_sfda.runtime.export import ExportConfig, to_onnx

    folder = tmp_path_factory.mktemp("models")
    net, manifest = load(MODEL)

    def export(*, colour_order: str, dynamic: bool) -> Path:
        path = folder / f"{colour_order}-{dynamic}.onnx"
        if not path.exists():
            onnx.save(to_onnx(net, manifest, ExportConfig(colour_order=colour_order, dynamic=dynamic)), path)
        return path

    return export


def _frame(path: Path, height: int = 192, width: int = 256) -> np.ndarray:
    """Write a frame of the scene as PPM and return it as BGR."""
    spec = SceneSpec.parse(f"scene:dusk?frames=1&size={height}x{width}")
    image, _ = spec.open().render(*spec.moment(0))
    assert cv2.imwrite(str(path), image)
    return np.asarray(image)


@pytest.mark.parametrize(("colour_order", "dynamic", "size"), [("bgr", False, (192, 256)), ("rgb", True, (150, 200))])
def test_mask_is_that_of_python(
    colour_order: str, dynamic: bool, size: tuple[int, int], runner: Run, exported: Callable[..., Path], tmp_path: Path
) -> None:
    model = exported(colour_order=colour_order, dynamic=dynamic)
    image = _frame(tmp_path / "f.ppm", *size)
    done = runner(model, tmp_path / "f.ppm", tmp_path / "m.pgm")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mask = cv2.imread(str(tmp_path / "m.pgm"), cv2.IMREAD_UNCHANGED)
    given = image if colour_order == "bgr" else image[:, :, ::-1]
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = session.run(["mask"], {"frame": np.ascontiguousarray(given)[None]})[0][0]
    assert mask.shape == size
    assert len(np.unique(expected)) > 3
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n", "is not a binary PPM"),
        (b"P6\n256 192\n255\n" + b"\0" * 100, "is cut short"),
        (b"P6\n256 192\n65535\n", "has 65535 as its largest value, expected 255"),
        (b"P6\n0 192\n255\n", "is 192x0, expected 1..8192 pixels a side"),
        (b"P6\n", "its header is cut short"),
        (b"P6\n# by hand\n64 64\n255\n" + b"\0" * (64 * 64 * 3), "is 64x64, the model takes 192x256"),
        (None, "cannot open frame"),
    ],
)
def test_bad_frame_is_named_and_nothing_is_written(
    content: bytes | None, message: str, runner: Run, exported: Callable[..., Path], tmp_path: Path
) -> None:
    frame = tmp_path / "f.ppm"
    if content is not None:
        frame.write_bytes(content)
    done = runner(exported(colour_order="bgr", dynamic=False), frame, tmp_path / "m.pgm")
    assert done.returncode == 1
    assert message in done.stderr
    assert not (tmp_path / "m.pgm").exists()


def test_foreign_and_broken_models_are_refused(runner: Run, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    _frame(tmp_path / "f.ppm")
    value = [helper.make_tensor_value_info(name, TensorProto.UINT8, None) for name in ("frame", "mask")]
    graph = helper.make_graph([helper.make_node("Identity", ["frame"], ["mask"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "foreign.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    foreign = runner(tmp_path / "foreign.onnx", tmp_path / "f.ppm", tmp_path / "m.pgm")
    assert (foreign.returncode, "carries no record of edge-sfda" in foreign.stderr) == (1, True)
    broken = runner(tmp_path / "broken.onnx", tmp_path / "f.ppm", tmp_path / "m.pgm")
    assert broken.returncode == 1
    assert broken.stderr.startswith("error: ")
    assert not (tmp_path / "m.pgm").exists()


def test_folder_that_is_not_there_is_named(runner: Run, exported: Callable[..., Path], tmp_path: Path) -> None:
    _frame(tmp_path / "f.ppm")
    done = runner(exported(colour_order="bgr", dynamic=False), tmp_path / "f.ppm", tmp_path / "no" / "m.pgm")
    assert (done.returncode, "cannot write mask" in done.stderr) == (1, True)


def test_provider_that_the_library_lacks_is_no_silent_fall_back(
    runner: Run, exported: Callable[..., Path], tmp_path: Path
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    _frame(tmp_path / "f.ppm")
    model = exported(colour_order="bgr", dynamic=False)
    done = runner("--provider", "cuda", model, tmp_path / "f.ppm", tmp_path / "m.pgm")
    assert (done.returncode, "this ONNX Runtime has no CUDAExecutionProvider" in done.stderr) == (1, True)


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--provider", "abacus", "a", "b", "c")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], runner: Run) -> None:
    done = runner(*arguments)
    assert (done.returncode, done.stderr.startswith("usage:")) == (2, True)
