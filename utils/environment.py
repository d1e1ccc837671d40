"""Finds or makes a Python that has what requirements files list, with what Python 3.8 brings along.

`python -m utils.environment requirements.txt ...` tells what the Python that runs it lacks.

The pins in the files are the set that the documented figures were made with; an environment that someone already
has counts as good when every package is present and PyTorch lies in the range the code supports.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from utils.errors import fail, run_script

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
UNFINISHED = VENV / "unfinished"  # there while we make .venv: nothing else is ever removed
CANDIDATES = ("python3.12", "python3.11", "python3.13", "python3", "python")
MINIMUM_PYTHON = (3, 11)
TORCH_RANGE = ((2, 11), (2, 14))  # first supported, first not supported


def ensure(*files: str) -> str:
    """The Python that has what `files` list: the active one, else that of .venv, made or completed when needed.

    Nobody's own environment is changed. `UserError` where there is none and none can be made.
    """
    absent, driver = missing(*files), _ask("nvidia-smi") is not None
    ours = VENV.exists() and os.path.samefile(sys.prefix, VENV)
    if not absent and not ours:
        if driver and (absent := missing("requirements-cuda.txt")):
            remedy = "python -m pip install -r requirements-cuda.txt"
            print(f"== NVIDIA driver found; the active environment lacks something for it ({absent}): {remedy}")
        return os.path.basename(sys.executable)
    if not ours and (os.environ.get("VIRTUAL_ENV") or os.environ.get("CONDA_PREFIX")):
        print(f"== The active environment is left as it is ({absent}); .venv is used instead")
    python = str(PYTHON)
    if absent if ours else _missing_in(python, *files):
        _make_venv(python)
        _fill_venv(python, files, driver)
    # As activating it would: PyTorch calls `ninja` by name to compile gsplat.
    os.environ["PATH"] = f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}"
    if driver:
        _add_gsplat(python)
    return python


def missing(*files: str) -> str:
    """What this Python lacks, absent or out of range: "missing: a, b", or "" if nothing."""
    from importlib.metadata import distributions  # takes twice as long to import as all the rest: `help` goes without

    problems = []
    if sys.version_info < MINIMUM_PYTHON:
        problems.append(f"Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer (this is {sys.version.split()[0]})")
    for file in files:
        for name in re.findall(r"^[A-Za-z0-9_.-]+", (ROOT / file).read_text(), re.MULTILINE):
            # An installation that was broken off leaves a folder without metadata: no version.
            found = next((package.version for package in distributions(name=name)), None)
            if not found:
                problems.append(name)
            elif name == "torch":
                number = tuple(map(int, re.findall(r"\d+", found)[:2]))
                if not TORCH_RANGE[0] <= number < TORCH_RANGE[1]:
                    problems.append(f"torch 2.11 to 2.13 (found {found})")
    return "missing: " + ", ".join(problems) if problems else ""


def explain_missing_package(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: of a Python without the requirements, a script says which Python has them, and exits 2."""
    lacks = missing("requirements.txt") if issubclass(kind, ModuleNotFoundError) else ""
    if not lacks:
        return sys.__excepthook__(kind, error, trace)
    if _missing_in(str(PYTHON), "requirements.txt"):
        remedy = (
            "`./train_efficient.sh demo` makes a .venv that has it, `python -m pip install -r requirements.txt` adds it"
        )
    else:
        remedy = f"{PYTHON} has it: start the script with that, or type `source .venv/bin/activate` first"
    run_script(lambda: fail(f"{sys.executable} cannot run this ({lacks}); {remedy}"))


def call(*command: str) -> int:
    """Runs a command to its end, which is its own affair on Ctrl-C; its status, 128 + the signal that ended it."""
    before = signal.getsignal(signal.SIGINT)
    if before != signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)  # a handler of ours is not handed on
    status = subprocess.Popen(command).wait()
    signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status


def _ask(*command: str) -> str | None:
    """What a command prints; None if it fails or there is no such program."""
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()


def _missing_in(python: str, *files: str) -> str:
    absent = _ask(python, "-m", "utils.environment", *files)
    return "it cannot be used" if absent is None else absent


def _pip_install(python: str, *files: str) -> bool:
    names = [word for file in files for word in ("-r", str(ROOT / file))]
    return call(python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *names) == 0


def _make_venv(python: str) -> None:
    """Makes .venv, unless there is one with a working pip, or without one that can be added."""
    recent = f"import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < {MINIMUM_PYTHON}"
    if UNFINISHED.exists():
        shutil.rmtree(VENV)
    elif os.path.lexists(VENV) and not (VENV.is_dir() and not os.listdir(VENV)):
        # Without pyvenv.cfg its python is the one that it links to, and packages would go there.
        own = f"{recent} or not __import__('os').path.samefile(sys.prefix, {str(VENV)!r}))"
        pip = (python, "-m", "pip", "--version"), (python, "-m", "ensurepip")
        if _ask(python, "-c", own) is None or all(_ask(*command) is None for command in pip):
            fail(
                f".venv is not an environment of Python 3.11 or newer with a working pip "
                f"({_ask(python, '--version') or 'no Python'}): remove or rename that folder, and run this again"
            )
        return
    for candidate in CANDIDATES:
        # Debian packs ensurepip, without which venv fails half-way, apart from Python.
        number = _ask(candidate, "-c", f"import ensurepip, venv; {recent})")
        if number is not None:
            print(f"== Creating .venv with Python {number}")
            VENV.mkdir(exist_ok=True)
            UNFINISHED.touch()
            if call(candidate, "-m", "venv", str(VENV)) == 0:
                UNFINISHED.unlink()
                return
            shutil.rmtree(VENV)
    fail(
        "no Python 3.11 or newer was found that can make .venv with pip in it "
        "(on Debian and Ubuntu: install python3-venv)"
    )


def _fill_venv(python: str, files: tuple[str, ...], driver: bool) -> None:
    """Installs into .venv what it lacks; a run that was stopped here is continued by the next."""
    absent = _missing_in(python, *files)
    print(f"== Installing into .venv, once ({absent})")
    if " torch" in absent and not driver:
        print(
            "   PyTorch from the package index may be a CUDA build of several GB; a CPU build of the version in "
            "requirements.txt is used when it is already in .venv, or in an active environment with all the rest"
        )
    if not _pip_install(python, *files):
        fail(f"installing {' '.join(files)} into .venv failed; see the lines above (running this again continues)")
    if absent := _missing_in(python, *files):
        fail(f".venv is still not complete ({absent}); remove the folder .venv and run this again")
    if not driver:
        print("== No NVIDIA driver found: the native CPU kernels will be used")


def _add_gsplat(python: str) -> None:
    """Sees to gsplat, the first choice on an NVIDIA GPU, and says what else it will need."""
    if _missing_in(python, "requirements-cuda.txt"):
        print("== NVIDIA driver found: installing gsplat (requirements-cuda.txt) into .venv")
        if not _pip_install(python, "requirements-cuda.txt"):
            note = "the next run tries again, training will say which backend it uses"
            print(f"== gsplat could not be installed (see above); {note}")
            return
        print("== Installed gsplat; it compiles its kernels on first use")
    # The places where PyTorch looks for it.
    toolkit = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    if not shutil.which("nvcc") and not os.access(f"{toolkit}/bin/nvcc", os.X_OK):
        print(
            "== gsplat will need the CUDA toolkit to compile its kernels, and there is no nvcc on PATH, nor in "
            "CUDA_HOME: until then the triton backend draws, which needs none"
        )


if __name__ == "__main__":
    print(missing(*sys.argv[1:]))
