"""What holds for every test: the kernels are built, the process is as it was, CUDA tests skip without a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import SCHEDULE, command
from toy_avatar import write_avatar
from toy_capture import TIMESTEPS, write_capture

from ops import kernels


def pytest_sessionstart() -> None:
    kernels.available()  # built here, so that no test meets the line that says so


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    """Training sets PyTorch's threads and anomaly mode for the whole process; the next test starts without."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.autograd.set_detect_anomaly(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, none here")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def lpips_cache_of_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LPIPS reads n/a, whatever this machine has installed; who asks learns what LPIPS_CACHE was."""
    before = os.environ.get("LPIPS_CACHE", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPIPS_CACHE", str(tmp_path_factory.mktemp("lpips") / "no-weights"))
        yield before


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training views, three of val, three of test; nobody writes into it."""
    return write_capture(tmp_path_factory.mktemp("shared") / "capture", TIMESTEPS, size=(32, 48))


@pytest.fixture(scope="session")
def finished(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run by the command, never stopped: its folder and what it said; nobody writes into it."""
    model = tmp_path_factory.mktemp("finished") / "model"
    done = command(capture, model, SCHEDULE)
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(model=model, stdout=done.stdout, stderr=done.stderr)


@pytest.fixture(scope="session")
def puppet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an avatar of the procedural head; nobody writes into it."""
    return write_avatar(tmp_path_factory.mktemp("puppet") / "avatar")


@pytest.fixture(params=["torch", "native"])
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the native kernels and with their twins in PyTorch."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "available", lambda: False)
    elif not kernels.available():
        pytest.skip("no compiler")
    return request.param
