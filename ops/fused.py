"""The Triton kernels of an operation, on GPUs where they compute what they should.

They are compiled where they run, by a compiler and for a card that nobody may have tried together. So each operation is
compared once with its twin in PyTorch, values and gradients; where that fails, the twin goes on doing the work and one
line says why.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.kernels import cache_folder

LEAST_CAPABILITY = (7, 0)  # of NVIDIA's cards, for Triton
OWN, LARGEST = 2e-3, 1e-4  # what a number may be off by: shares of itself, and of the largest of its kind

Check = Callable[[Any, torch.device], str | None]  # the kernels' module, where -> what is wrong with them


def kernels(operation: str, check: Check, *tensors: Tensor) -> Any:
    """The module `ops.triton_kernels.<operation>` if it can work on `tensors`, else None."""
    if not all(runs_on(tensor.device) and tensor.dtype is torch.float32 for tensor in tensors):
        return None
    return _trusted(operation, check, tensors[0].device)


def runs_on(device: torch.device) -> bool:
    """Whether there is anything to gain; in Triton's interpreter, on the CPU, there is not."""
    return device.type == "cuda"


@functools.cache
def _trusted(operation: str, check: Check, device: torch.device) -> Any:
    reason = _missing(device)
    if reason:
        _say(f"note: what surrounds the rasterizer runs in plain PyTorch on {device}, slower: {reason}")
        return None
    module = f"ops.triton_kernels.{operation}"
    here = Path(__file__)
    sources = [here.parent / f"{operation}.py", *sorted((here.parent / "triton_kernels").glob("*.py"))]
    version = importlib.import_module("triton").__version__
    code = [version, *(source.read_text(encoding="utf-8") for source in sources), operation]

    def test() -> str | None:
        _say("Compiling what surrounds the rasterizer for the GPU (once) ...")
        return check(importlib.import_module(module), device)

    reason = fault(test, device, code)
    if reason:
        _say(f"note: {operation} runs in plain PyTorch on {device}, slower: of its Triton kernels {reason}")
    return None if reason else importlib.import_module(module)


@functools.cache
def _missing(device: torch.device) -> str | None:
    """Why Triton cannot work on `device`, None if it can."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # of a broken one, anything
        return f"Triton cannot be imported ({_first_line(error)})"
    return too_old(device)


@functools.cache
def _say(text: str) -> None:
    print(text, file=sys.stderr)


# ---- trust ----------------------------------------------------------------------------------------


def too_old(device: torch.device | str) -> str | None:
    """Why Triton cannot compile for a card, None if it can."""
    if torch.device(device).type != "cuda" or torch.version.hip:
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= LEAST_CAPABILITY:
        return None
    name, number = torch.cuda.get_device_name(device), ".".join(map(str, capability))
    return f"{name} has compute capability {number}, and Triton needs 7.0 (Volta) or newer"


def machine(device: torch.device | str) -> str:
    """What decides how a kernel comes out: card, driver, PyTorch and the system."""
    card = str(torch.cuda.get_device_properties(device)) if torch.device(device).type == "cuda" else platform.machine()
    words = [card, torch.__version__, str(torch.version.cuda), str(torch.version.hip), platform.platform()]
    for driver in (Path("/proc/driver/nvidia/version"), Path("/sys/module/amdgpu/version")):
        with contextlib.suppress(OSError):
            words.append(driver.read_text())
    return "\n".join(words)


def fault(test: Callable[[], str | None], device: torch.device | str, code: Iterable[str]) -> str | None:
    """What is wrong by `test` on `device`; None when nothing is, or was when the same `code` was tested there before.

    Only a pass is remembered: what failed is tried again the next time, since memory may have been short.
    """
    own = Path(__file__).read_text(encoding="utf-8")  # which says what may be off
    key = hashlib.sha256("\0".join([machine(device), own, *code]).encode())
    passed = cache_folder() / f"self-test-{key.hexdigest()[:20]}"
    if passed.exists():
        return None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            if found := test():
                return f"the self-test fails: {found}"
    except Exception as error:  # a compiler and a driver can fail in any way
        return f"the self-test cannot run ({_first_line(error)})"
    with contextlib.suppress(OSError):  # then it is tested the next time as well
        passed.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        passed.touch()
    return None


def _first_line(error: Exception) -> str:
    """Of whatever text, for a terminal."""
    text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]


def off(name: str, expected: Tensor, actual: Tensor, allowed: Tensor | float | None = None) -> str | None:
    """How far `actual` is from `expected`, where that is more than `allowed`; default: the two shares above."""
    largest = expected.abs().max()
    if allowed is None:
        allowed = OWN * expected.abs() + LARGEST * largest
    error = (actual - expected).abs()
    if (error <= allowed).all():  # NaN is no less
        return None
    return f"its {name} is off by up to {error.max():.2g}, where {largest:.2g} is the largest"


def difference(
    ours: Callable[..., Sequence[Tensor]],
    twin: Callable[..., Sequence[Tensor]],
    inputs: dict[str, Any],  # in the order of the arguments; tensors in float64 or of integers
    device: torch.device,
) -> str | None:
    """What comes out of `ours`, in float32 on `device`, otherwise than of its twin in float64; None if nothing does.

    Compared are the results, and the gradients of the inputs that require one.
    """
    found: list[dict[str, Tensor]] = []
    for function, place, dtype in ((twin, torch.device("cpu"), torch.float64), (ours, device, torch.float32)):
        arguments = {}
        for name, value in inputs.items():
            if isinstance(value, Tensor):
                kind = dtype if value.is_floating_point() else value.dtype
                value = value.detach().to(place, kind, copy=True).requires_grad_(value.requires_grad)
            arguments[name] = value
        results = {f"result {number + 1}": result for number, result in enumerate(function(*arguments.values()))}
        random = torch.Generator().manual_seed(0)
        pulled = [result for result in results.values() if result.requires_grad]
        weights = [torch.randn(result.shape, generator=random, dtype=torch.float64) for result in pulled]
        torch.autograd.backward(pulled, [weight.to(place, dtype) for weight in weights])
        for name, value in arguments.items():
            if isinstance(value, Tensor) and value.requires_grad:
                assert value.grad is not None, name
                results[f"gradient of the {name}"] = value.grad
        found.append(results)
    expected, actual = ({name: value.detach().double().cpu() for name, value in one.items()} for one in found)
    return next(filter(None, (off(name, value, actual[name]) for name, value in expected.items())), None)
