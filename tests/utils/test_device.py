"""Which device is taken, told by stand-ins for what PyTorch says of GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from utils.device import LEAST_FREE, gpu_fault, pick_device
from utils.errors import UserError, warn_once

MiB = 2**20


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Two GPUs: the bytes free on each, and whether its kernels run; the current one."""
    state: dict[str, Any] = {"free": [8 * LEAST_FREE, 8 * LEAST_FREE], "runs": [True, True], "current": 0}

    def ones(*shape: int, device: str) -> torch.Tensor:
        if not state["runs"][int(device[-1])]:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")
        return torch.zeros(*shape)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(state["free"]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Card {'AB'[number]}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (state["free"][number], 2**34))
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: state.update(current=number))
    monkeypatch.setattr("utils.device.torch.ones", ones)
    warn_once.cache_clear()
    yield state
    warn_once.cache_clear()


def test_the_first_gpu_unless_another_is_named(cards: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cuda:0", "cpu")] == ["cuda", "cuda", "cuda", "cpu"]
    assert cards["current"] == 0
    assert str(pick_device("cuda:1")) == "cuda:1" and cards["current"] == 1
    with pytest.raises(UserError, match=r"--device cuda:2: PyTorch sees 2 GPU\(s\) here, cuda:0 to cuda:1"):
        pick_device("cuda:2")
    assert capfd.readouterr().err == ""


def test_a_full_or_old_card_is_passed_over(cards: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    cards["free"][0] = 300 * MiB
    assert str(pick_device("auto")) == "cuda:1" and cards["current"] == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "warning: cuda:0 is left unused: Card A has only 300 MiB of memory free"
    cards["runs"][1] = False
    for _ in range(2):
        assert str(pick_device("auto")) == "cpu"
    (line,) = capfd.readouterr().err.splitlines()  # the other one is known by now
    assert "cuda:1 is left unused: Card B cannot run this PyTorch's kernels (CUDA error: no kernel image" in line
    with pytest.raises(UserError, match="--device cuda:1: Card B cannot run .*; use --device cpu, or another GPU$"):
        pick_device("cuda:1")
    assert gpu_fault(1) and "\n" not in gpu_fault(1)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert str(pick_device("auto")) == "cpu"
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"--device {name}: PyTorch sees no GPU here; use --device cpu"):
            pick_device(name)
