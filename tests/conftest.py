"""What holds for every test: the kernels are built, the process is as it was, CUDA tests skip without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_sessionstart() -> None:
    from ops import kernels

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
