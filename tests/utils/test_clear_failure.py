"""How a run ends that cannot go on: advice where memory ran out, and the whole story where the program is at fault."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT
from runs import ending, flags, in_each_iteration

from training import checkpoint
from utils.errors import UserError, run_script, short_of_memory

GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")
SCHEDULE = "--iterations 20 --interval 5"


def host_allocation() -> Exception:
    """What PyTorch itself says when the machine has not so much memory."""
    try:
        torch.empty(1 << 56, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has 64 PB of memory")


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """`error` comes up in the middle of iteration `step`."""

    def broken(iteration: int, terms: object) -> object:
        if iteration == step:
            raise error
        return terms

    in_each_iteration(monkeypatch, broken)


@pytest.mark.parametrize(
    "error, more, place, options",
    [
        (GPU, [], "GPU", ["--densify_grad_threshold (larger)", "--resolution (smaller)", "--data_device cpu"]),
        (
            GPU,
            ["--use_smart_densification"],
            "GPU",
            ["--max_gaussians (smaller)", "--resolution (smaller)", "--data_device cpu"],
        ),
        (RuntimeError("CUDA error: out of memory"), [], "GPU", ["--densify_grad_threshold", "--data_device cpu"]),
        (MemoryError(), [], "computer", ["--densify_grad_threshold (larger)", "--resolution (smaller)", "--ram_share"]),
        (MemoryError("the native library ran out of memory"), [], "computer", ["the native library ran out of memory"]),
        (host_allocation(), [], "computer", ["--densify_grad_threshold", "--resolution", "--ram_share (smaller)"]),
    ],
)
def test_too_little_memory_names_three_options(
    error: Exception,
    more: list[str],
    place: str,
    options: list[str],
    capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = tmp_path / "model"
    fail_at(monkeypatch, 13, error)
    status, _, err = ending(monkeypatch, capfd, flags(capture, model, SCHEDULE, *more))
    assert status == 2 and re.fullmatch(rf"error: the memory of the {place} ran out [^\n]+\n", err)
    assert all(option in err for option in options)
    assert f"{model / 'chkpnt10.pth'} and all before it are kept" in err and "--start_checkpoint auto" in err
    monkeypatch.undo()
    assert checkpoint.load(model / "chkpnt10.pth")["step"] == 10


def test_too_little_memory_before_the_first_checkpoint(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_at(monkeypatch, 2, MemoryError())
    status, _, err = ending(monkeypatch, capfd, flags(capture, tmp_path / "model", SCHEDULE))
    assert status == 2 and "no checkpoint was written yet" in err and err.count("\n") == 1


def test_a_defect_keeps_its_traceback_and_tells_the_run(capture: Path, tmp_path: Path) -> None:
    """In a process of its own: this is what a user sees."""
    model = tmp_path / "my model"
    words = flags(capture, model, SCHEDULE)
    program = (
        "import sys, train\nfrom training import objective\nfrom utils.errors import run_script\n"
        "original, steps = objective.image_terms, []\n"
        "def broken(*arguments):\n    steps.append(1)\n"
        "    return original(*arguments[:-1 if len(steps) == 8 else None])\n"
        f"objective.image_terms = broken\nsys.argv = ['train.py', *{words!r}]\nrun_script(train.main)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr and "TypeError: image_terms()" in done.stderr
    output = done.stderr[done.stderr.index("TypeError") :]
    assert f"command: train.py -s {capture} -m '{model}' --eval" in output
    assert f"options: {model / 'cfg_args'}" in output and f"last checkpoint: {model / 'chkpnt5.pth'}" in output
    assert (model / "cfg_args").is_file()


def test_a_mistake_in_the_data_is_not_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    status, _, err = ending(monkeypatch, capfd, flags(tmp_path / "gone", tmp_path / "model", SCHEDULE))
    assert status == 2 and "defect" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "error, status, output",
    [
        (UserError("no such\nfile"), 2, "error: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (MemoryError("3 GB"), 2, "error: the memory of the computer ran out (3 GB): "),
        (GPU, 2, "error: the memory of the GPU ran out (CUDA out of memory."),
        (OSError(12, "Cannot allocate memory"), 2, "error: the memory of the computer ran out"),
    ],
)
def test_how_every_script_ends(
    error: BaseException, status: int, output: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_script(main)
    err = capfd.readouterr().err
    assert ended.value.code == status and err.startswith(output) and err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(5, "Input/output error"), ValueError()])
def test_other_errors_are_none_of_memory(error: Exception) -> None:
    assert short_of_memory(error) is None

    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_script(main)
