"""Builds and loads the native CPU library: plain C ABI, no PyTorch headers.

All of `csrc/*.cpp` become one shared library on first use. Without PyTorch's
headers that takes seconds instead of half a minute, needs no ninja, and works
with any PyTorch. The library is cached under a key made of the sources, the
compiler and its flags, so an edit or another machine gets its own file.

Environment:
    NATIVE_ARCH   value of -march (default "native"), e.g. x86-64-v3
    NATIVE_FLAGS  more compiler flags, after ours and split at spaces, e.g. of a sanitizer
    NATIVE_CACHE  folder for the built libraries
    CXX           the compiler (default: c++, g++ or clang++, the first found)
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import atomic_path, locked, remove_leftovers

SOURCES = Path(__file__).parent / "csrc"


class NativeUnavailable(RuntimeError):
    """The native library cannot be built here; the message says why."""


def cache_folder() -> Path:
    """Where built libraries are kept between runs."""
    if "NATIVE_CACHE" in os.environ:
        return Path(os.environ["NATIVE_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return base / "efficient-gaussian-avatars" / "native"


def _compiler() -> str:
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise NativeUnavailable(f"no C++ compiler found (looked for {', '.join(candidates)})")


def _flags() -> list[str]:
    arch = os.environ.get("NATIVE_ARCH", "native")
    flags = [
        "-std=c++17",
        "-O3",
        "-fPIC",
        "-shared",
        "-fopenmp",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
        f"-march={arch}",
    ]
    if platform.machine() in ("x86_64", "AMD64"):
        # GCC otherwise halves the vector width on AVX-512 machines.
        flags.append("-mprefer-vector-width=512")
    # No -ffast-math: it would let the compiler drop the NaN checks, and no
    # -ffp-contract=off: fused multiply-add is both faster and more exact.
    return flags + os.environ.get("NATIVE_FLAGS", "").split()


def _cpu_identity() -> str:
    """What `-march=native` depends on, so that a shared home folder stays safe."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _build(compiler: str, flags: list[str], target: Path) -> None:
    """Makes `target`, unless another process has meanwhile: of runs that start at once, one builds."""
    sources = sorted(str(path) for path in SOURCES.glob("*.cpp"))
    with locked(target.parent, wait=True) as alone:
        if target.exists():
            return
        print("Building the native CPU library (once) ...", file=sys.stderr)
        if alone:
            remove_leftovers(target.parent)
        with atomic_path(target) as temporary:
            result = subprocess.run([compiler, *flags, *sources, "-o", str(temporary)], capture_output=True, text=True)
            if result.returncode != 0:
                raise NativeUnavailable(f"{compiler} failed on the native sources:\n{result.stderr[-4000:]}")


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, built when necessary.

    Raises:
        NativeUnavailable: no compiler, or the compilation failed.
    """
    compiler, flags = _compiler(), _flags()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256("\0".join([version, *flags, _cpu_identity()]).encode())
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        key.update(path.name.encode() + b"\0" + path.read_bytes())
    target = cache_folder() / f"native-{key.hexdigest()[:20]}.so"
    if not target.exists():
        try:
            _build(compiler, flags, target)
        except (OSError, UserError) as error:
            raise NativeUnavailable(str(error)) from error
    # PyTorch is imported above, so its OpenMP runtime is already loaded and,
    # having the same soname, is the one that this library binds to: one thread
    # pool for both instead of two that spin against each other.
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:  # a cache on a file system mounted noexec, a runtime library missing
        raise NativeUnavailable(f"cannot load {target}: {error}") from error


@functools.cache
def available() -> bool:
    """Whether the native library works here; warns once with the reason if not."""
    try:
        library()
        return True
    except NativeUnavailable as error:
        warnings.warn(f"The native CPU kernels are unavailable, the slow reference is used: {error}")
        return False


def check(status: int, message: str = "the native library ran out of memory") -> None:
    """Raises MemoryError when a native function returned that it had too little memory."""
    if status != 0:
        raise MemoryError(message)


def pointer(tensor: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> ctypes.c_void_p:
    """The address of a contiguous CPU tensor of `dtype`, or NULL for None."""
    if tensor is None:
        return ctypes.c_void_p(None)
    if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"expected a contiguous {dtype} CPU tensor, got {tensor.dtype} {tuple(tensor.shape)} "
            f"on {tensor.device}, strides {tensor.stride()}"
        )
    return ctypes.c_void_p(tensor.data_ptr())
