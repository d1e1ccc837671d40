"""Builds, loads and calls the kernels: the CPU library of `csrc/`, a plain C ABI without PyTorch's headers.

All of `csrc/*.cpp` become one shared library on first use. Without PyTorch's
headers that takes seconds instead of half a minute, needs no ninja, and works
with any PyTorch. The library is cached under a key made of the sources, the
compiler and its flags, so an edit or another machine gets its own file.

The table of C signatures is the sources themselves: what they mark
`NATIVE_EXPORT` is what `run` calls, with the types written there.

Environment:
    NATIVE_ARCH   value of -march (default "native"), e.g. x86-64-v3
    NATIVE_FLAGS  more compiler flags, after ours and split at spaces, e.g. of a sanitizer
    NATIVE_CACHE  folder for the built libraries
    CXX           the compiler (default: c++, g++ or clang++, the first found)
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

SOURCES = Path(__file__).parent / "csrc"

# The numbers that the kernels and their PyTorch twins share, each explained in csrc/constants.h.
CONSTANTS = {
    name: float(number)
    for name, number in re.findall(
        r"constexpr \w+ (\w+) = ([-+.e\d]+)f?;", (SOURCES / "constants.h").read_text(encoding="utf-8")
    )
}

# ---- building -------------------------------------------------------------------------------------


class KernelsUnavailable(RuntimeError):
    """The library cannot be built here; the message says why."""


def cache_folder() -> Path:
    """Where built libraries are kept between runs."""
    if "NATIVE_CACHE" in os.environ:
        return Path(os.environ["NATIVE_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return base / "efficient-gaussian-avatars" / "native"


def _trusted(path: Path, *, shared: bool = False) -> bool:
    """Whether nobody but this user and root can change what is at `path`.

    Args:
        shared: others may add to the folder `path`, as to /tmp, but not remove or rename what is there.
    """
    if not hasattr(os, "getuid"):  # Windows
        return True
    status = path.stat()
    others = status.st_mode & 0o002 or status.st_mode & 0o020 and not _private_group(status.st_gid)
    return status.st_uid in (os.getuid(), 0) and not (others and not (shared and status.st_mode & stat.S_ISVTX))


def _private_group(number: int) -> bool:
    """Whether a group has this user as its only member, as the first group of each user often has."""
    try:
        import grp
        import pwd

        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(number)
    except (ImportError, KeyError):
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def _safe_folder(folder: Path, name: str) -> Path:
    """`folder`, made where it is missing, if the library `name` in it can only be ours; else a folder of this process.

    A library runs as soon as it is loaded: one that somebody else can exchange is a program of theirs.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = Path(os.path.realpath(folder))
    trusted = _trusted(place) and all(_trusted(parent, shared=True) for parent in place.parents)
    if trusted and (not (place / name).exists() or _trusted(place / name)):
        return folder
    print(
        f"note: {folder} or what is in it can be changed by others, so the native CPU library is built for this "
        "process alone; name a folder of your own in NATIVE_CACHE (chmod go-w)",
        file=sys.stderr,
    )
    private = tempfile.mkdtemp(prefix="native-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def _compiler() -> str:
    named = os.environ.get("CXX")
    candidates = [named] if named else ["c++", "g++", "clang++"]
    for candidate in candidates:
        found = shutil.which(candidate)
        if found:
            return found
    raise KernelsUnavailable(f"no C++ compiler found (looked for {', '.join(candidates)})")


def _flags() -> list[tuple[str, ...]]:
    """The flags, each with what may take its place where a compiler does not know it; the best first."""
    # No -ffast-math: it would let the compiler drop the NaN checks, and no
    # -ffp-contract=off: fused multiply-add is both faster and more exact.
    arch = os.environ.get("NATIVE_ARCH", "native")
    flags = [
        ("-std=c++17 -O3",),
        ("-fPIC", ""),  # Windows has only such code
        ("-shared",),
        ("-fopenmp", "-Xpreprocessor -fopenmp -lomp", ""),  # Apple's Clang has it in parts, or not: then one thread
        ("-fno-math-errno -fno-trapping-math",),
        ("-fvisibility=hidden", ""),
        (f"-march={arch}", f"-mcpu={arch}", ""),
    ]
    if platform.machine() in ("x86_64", "AMD64"):
        # GCC otherwise halves the vector width on AVX-512 machines.
        flags.append(("-mprefer-vector-width=512", ""))
    return [*flags, (os.environ.get("NATIVE_FLAGS", ""),)]


def _accepted(compiler: str, flags: list[tuple[str, ...]]) -> list[str]:
    """Of each alternatives the first that the compiler takes, all of them the first where it can be."""

    def takes(words: str) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "probe.cpp")
            path.write_text(
                "#ifdef _OPENMP\n#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n#endif\n"
            )
            command = [compiler, *words.split(), str(path), "-o", f"{path}.so"]
            return subprocess.run(command, capture_output=True).returncode == 0

    chosen = [alternatives[0] for alternatives in flags]
    if not takes(" ".join(chosen)):
        chosen = []
        for alternatives in flags:
            tried = next((one for one in alternatives if takes(f"-shared {one}")), alternatives[0])
            chosen.append(tried)
    return " ".join(chosen).split()


def _cpu_identity() -> str:
    """What `-march=native` depends on, so that a shared home folder stays safe."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


class _Termination:
    """What SIGTERM does while a library is built: an exception, with which compiler and half a library go too.

    `held` it waits: in the middle of a process's start nobody could kill that process yet.
    """

    def __init__(self) -> None:
        self.held = False
        self._asked = 0

    def __call__(self, number: int, frame: object) -> None:
        self._asked = number
        if not self.held:
            self.let_go()

    def let_go(self) -> None:
        """What was asked for while it was held happens now."""
        self.held = False
        if self._asked:
            sys.exit(128 + self._asked)


@contextlib.contextmanager
def _ended_in_order() -> Iterator[_Termination]:
    termination = _Termination()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield termination
        return
    signal.signal(signal.SIGTERM, termination)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _build(compiler: str, flags: list[str], path: Path) -> None:
    """Makes the library `path`, unless another process has meanwhile: of runs that start at once, one builds.

    It appears whole under its name or not at all, whenever the process or the machine dies.
    """
    sources = sorted(str(source) for source in SOURCES.glob("*.cpp"))
    # The lock is let go of when the process dies, however it does.
    with _ended_in_order() as termination, FileLock(path.parent / ".lock"):
        if path.exists():
            return
        print("Building the native CPU library (once) ...", file=sys.stderr)
        for leftover in path.parent.glob(".tmp-*.so"):  # only who holds the lock writes them
            leftover.unlink(missing_ok=True)
        temporary = path.with_name(f".tmp-{path.name}")
        try:
            termination.held = True
            command = [compiler, *flags, *sources, "-o", str(temporary)]
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
                try:
                    termination.let_go()
                    _, told = process.communicate()
                except BaseException:
                    process.kill()
                    raise
            if process.returncode != 0:
                raise KernelsUnavailable(f"{compiler} failed on the native sources:\n{told[-4000:]}")
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _library_path(compiler: str, flags: list[str]) -> Path:
    """Where the library is that this compiler makes of the sources with these flags."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    key = hashlib.sha256("\0".join([version, *flags, _cpu_identity()]).encode())
    for source in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        key.update(source.name.encode() + b"\0" + source.read_bytes())
    return cache_folder() / f"native-{key.hexdigest()[:20]}.so"


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, built when necessary.

    Raises:
        KernelsUnavailable: no compiler, or the compilation failed.
    """
    compiler, alternatives = _compiler(), _flags()
    flags = " ".join(first for first, *_ in alternatives).split()
    path = _library_path(compiler, flags)
    try:
        if not path.exists():
            flags = _accepted(compiler, alternatives)
            path = _library_path(compiler, flags)
        path = _safe_folder(path.parent, path.name) / path.name
        if not path.exists():
            _build(compiler, flags, path)
    except OSError as error:
        raise KernelsUnavailable(f"cannot write to {path.parent}: {error.strerror or error}") from error
    # PyTorch is imported above, so its OpenMP runtime is already loaded and,
    # having the same soname, is the one that this library binds to: one thread
    # pool for both instead of two that spin against each other.
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # a cache on a file system mounted noexec, a runtime library missing
        raise KernelsUnavailable(f"cannot load {path}: {error}") from error


# ---- who can use them -----------------------------------------------------------------------------


@functools.cache
def available() -> bool:
    """Whether the kernels work here; warns once with the reason if not."""
    try:
        library()
        return True
    except KernelsUnavailable as error:
        warnings.warn(f"The native CPU kernels are unavailable, the slow reference is used: {error}", stacklevel=2)
        return False


def usable(*tensors: Tensor, dtype: torch.dtype = torch.float32, contiguous: bool = False) -> bool:
    """Whether the kernels can work on `tensors`: on the CPU, of `dtype`, and the library is available."""
    return all(t.dtype is dtype and t.is_cpu and (not contiguous or t.is_contiguous()) for t in tensors) and available()


# ---- calling --------------------------------------------------------------------------------------


class View(ctypes.Structure):
    """The C struct `splat::View`: a camera and what is constant over a picture."""

    _fields_ = [
        ("rotation", ctypes.c_float * 9),  # world to camera, row-major
        ("translation", ctypes.c_float * 3),  # metres
        ("center", ctypes.c_float * 3),  # metres, world space
        *((name, ctypes.c_float) for name in ("fx", "fy", "cx", "cy")),  # pixels
        *((name, ctypes.c_int32) for name in ("width", "height")),  # pixels
        ("scale_modifier", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("sh_degree", "sh_bases")),
    ]


class Slot(ctypes.Structure):
    """The C struct `Slot` of csrc/adam.cpp: one parameter, its gradient and state; addresses first."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("value", "gradient", "mean", "square", "step", "factors")),
        *((name, ctypes.c_int64) for name in ("count", "row")),
        *((name, ctypes.c_double) for name in ("rate", "beta1", "beta2", "eps")),
    ]


_POINTERS: dict[str, tuple[torch.dtype | None, Any]] = {
    "void": (None, None),
    "float": (torch.float32, ctypes.c_float),
    "double": (torch.float64, ctypes.c_double),
    "int32_t": (torch.int32, ctypes.c_int32),
    "int64_t": (torch.int64, ctypes.c_int64),
    "uint8_t": (torch.uint8, ctypes.c_uint8),
    "bool": (torch.bool, ctypes.c_bool),
}
_NUMBERS = {base: number for base, (_, number) in _POINTERS.items() if number}
_STRUCTURES: dict[str, Any] = {"View": View, "Slot": Slot}
_RESULTS: dict[str, Any] = {**_NUMBERS, "int": ctypes.c_int, "void": None, "void*": ctypes.c_void_p}
_NOT_TYPE = re.compile(r"\bconst\b|\w+::|\w+\s*$|\s")  # a parameter's name, and what is not looked at
_EXPORT = re.compile(r"NATIVE_EXPORT\s+([\w*]+)\s+(\w+)\(([^)]*)\)")


def address(tensor: Tensor, dtype: torch.dtype = torch.float32) -> int:
    """The address of a contiguous CPU tensor of `dtype`.

    Raises:
        ValueError: it is another tensor.
    """
    if tensor.dtype is not dtype or not tensor.is_cpu or not tensor.is_contiguous():
        raise ValueError(
            f"expected a contiguous {dtype} CPU tensor, got {tensor.dtype} {tuple(tensor.shape)} "
            f"on {tensor.device}, strides {tensor.stride()}"
        )
    return tensor.data_ptr()


def run(name: str, *arguments: Any, no_room: str = "the native library ran out of memory") -> Any:
    """Calls the exported C function `name`; returns its result, None for a status.

    `T*` in C takes a contiguous CPU tensor of that type, None for null, or a list of numbers to be
    read; `T**` a list of addresses; a structure's pointer the structure, or a list of them.

    Raises:
        MemoryError: with the text `no_room`, the function returned that it had too little memory.
        ValueError: a tensor of another type or layout, or another number of arguments.
    """
    function, kinds, is_status = _function(name)
    values = []
    for argument, (dtype, element) in zip(arguments, kinds, strict=True):
        if isinstance(argument, Tensor):
            argument = address(argument, dtype)
        elif isinstance(argument, list):
            argument = (element * len(argument))(*argument)
        values.append(argument)
    result = function(*values)
    if not is_status:
        return result
    if result != 0:
        raise MemoryError(no_room)


@functools.cache
def _function(name: str) -> tuple[Any, list[tuple[Any, Any]], bool]:
    """The C function, of each argument the types of a tensor and of a list's items, and whether it returns a status."""
    result, parameters = _signatures()[name]
    types: list[Any] = []
    kinds: list[tuple[Any, Any]] = []
    for parameter in parameters:
        base = parameter.rstrip("*")
        if base in _STRUCTURES:
            types.append(ctypes.POINTER(_STRUCTURES[base]))
            kinds.append((None, _STRUCTURES[base]))
        elif parameter == base:
            types.append(_NUMBERS[base])
            kinds.append((None, None))
        else:
            types.append(ctypes.c_void_p)
            kinds.append((None, ctypes.c_void_p) if parameter.endswith("**") else _POINTERS[base])
    function = getattr(library(), name)
    function.restype, function.argtypes = _RESULTS[result], types
    return function, kinds, result == "int"


@functools.cache
def _signatures() -> dict[str, tuple[str, list[str]]]:
    """Of every exported function the C types of its result and its arguments, without const and namespaces."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.cpp")))
    return {
        name: (result, [_NOT_TYPE.sub("", part) for part in parameters.split(",") if part])
        for result, name, parameters in _EXPORT.findall(text)
    }
