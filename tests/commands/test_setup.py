"""The shell scripts, in a copied tree with stand-ins for python, pip, nvidia-smi and nvcc: nothing is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import NEEDS_SHELL, ROOT, Machine, succeeded

from utils import environment

pytestmark = NEEDS_SHELL


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ---- which interpreter ----------------------------------------------------------


def test_a_complete_active_environment_is_used_and_left_alone(machine: Machine) -> None:
    machine.active_python("requirements.txt", "tests/requirements.txt")
    machine.python("python3.12")
    succeeded(machine.run("tests/run.sh", "-k", "a b"))
    assert machine.calls("-m pytest") == [["python", "-m", "pytest", "-k", "a b"]]
    assert not machine.calls("-m pip") and not machine.calls("-m venv") and not machine.venv.exists()


def test_an_incomplete_active_environment_is_named_and_left_alone(machine: Machine) -> None:
    machine.active_python("requirements.txt")
    out = succeeded(machine.run("tests/run.sh", VIRTUAL_ENV=str(machine.bin.parent)))
    assert "left as it is (missing: torch of tests/requirements.txt)" in out
    assert (machine.venv / "installed").read_text() == "requirements.txt\ntests/requirements.txt\n"
    assert (machine.bin.parent / "installed").read_text() == "requirements.txt\n"


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        ({"python3.12": {}, "python3.11": {}}, "python3.12"),
        ({"python3.12": {"ensurepip": False}, "python3.11": {}, "python3": {}}, "python3.11"),
        ({"python3.12": {"venv_works": False}, "python3.11": {"ensurepip": False}, "python3": {}}, "python3"),
        ({"python3": {"old": True}, "python": {}}, "python"),
    ],
)
def test_the_first_interpreter_that_can_make_an_environment(
    machine: Machine, interpreters: dict[str, dict[str, bool]], chosen: str
) -> None:
    for name, properties in interpreters.items():
        machine.python(name, version=f"of {name}", **properties)
    out = succeeded(machine.run("tests/run.sh"))
    assert f"Creating .venv with Python of {chosen}" in out
    assert (
        subprocess.run(
            [machine.venv / "bin" / "python", "--version"], env=machine.variables, text=True, capture_output=True
        ).stdout
        == f"Python of {chosen}\n"
    )
    # the next run finds all there
    assert succeeded(machine.run("tests/run.sh")) == ""
    assert not machine.calls("-m pip") and not machine.calls("-m venv")


@pytest.mark.parametrize("properties", [None, {"old": True}, {"ensurepip": False}, {"venv_works": False}])
def test_no_usable_interpreter(machine: Machine, properties: dict[str, bool] | None) -> None:
    if properties is not None:
        machine.python("python3", **properties)
    result = machine.run("train_efficient.sh", "demo")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no Python 3.11 or newer") and result.stderr.count("\n") == 1
    assert not machine.venv.exists()


# ---- .venv ------------------------------------------------------------------------


def test_a_half_made_environment_is_replaced(machine: Machine) -> None:
    machine.python("python3.11", version="3.11.9")
    machine.python("python", folder=machine.venv / "bin", ensurepip=False)
    (machine.venv / "pyvenv.cfg").touch()
    (machine.venv / "left over").touch()
    out = succeeded(machine.run("tests/run.sh"))
    assert "Creating .venv with Python 3.11.9" in out
    assert not (machine.venv / "left over").exists()


def test_an_environment_without_pip_is_completed(machine: Machine) -> None:
    machine.python("python3.11")
    machine.python("python", folder=machine.venv / "bin")
    (machine.venv / "pyvenv.cfg").touch()
    (machine.venv / "own package").touch()
    succeeded(machine.run("tests/run.sh"))
    assert (machine.venv / "own package").exists() and not machine.calls("-m venv")


def test_nothing_is_installed_through_a_venv_that_is_the_systems_python(machine: Machine) -> None:
    machine.python("python3.11")
    machine.python("python", folder=machine.venv / "bin")
    (machine.venv / "pip").touch()  # without pyvenv.cfg it is the interpreter that it links to
    assert "Creating .venv" in succeeded(machine.run("tests/run.sh"))


def test_an_environment_of_an_old_python_is_not_deleted(machine: Machine) -> None:
    machine.python("python3.11")
    machine.python("python", folder=machine.venv / "bin", version="3.10.4", old=True)
    for name in ("pyvenv.cfg", "pip"):
        (machine.venv / name).touch()
    result = machine.run("tests/run.sh")
    assert result.returncode == 2 and "Python 3.10.4" in result.stderr and "remove the folder .venv" in result.stderr
    assert (machine.venv / "pip").exists()


def test_a_failed_installation_is_continued(machine: Machine) -> None:
    machine.python("python3.12")
    failed = machine.run("tests/run.sh", STUB_PIP_FAILS="tests/requirements.txt")
    assert failed.returncode == 2 and "error: installing" in failed.stderr and "no network" in failed.stderr
    assert "CUDA build" in failed.stdout
    out = succeeded(machine.run("tests/run.sh"))
    assert "Installing into .venv" in out and "Creating" not in out
    assert len(machine.calls("-m pip install")) == 1 and len(machine.calls("-m pytest")) == 1


def test_our_own_environment_activated_is_ours(machine: Machine) -> None:
    machine.python("python3.12")
    activated = {"VIRTUAL_ENV": str(machine.venv), "PATH": f"{machine.venv / 'bin'}:{machine.bin}"}
    succeeded(machine.run("tests/run.sh"))
    (machine.venv / "installed").write_text("requirements.txt\n")
    out = succeeded(machine.run("tests/run.sh", **activated))
    assert "Installing into .venv" in out and "left as it is" not in out

    machine.program(machine.bin / "nvidia-smi")
    assert "Installed gsplat" in succeeded(machine.run("tests/run.sh", **activated))


# ---- NVIDIA -------------------------------------------------------------------------


def test_gsplat_is_tried_again_until_it_is_there(machine: Machine) -> None:
    machine.python("python3.12")
    machine.program(machine.bin / "nvidia-smi")
    machine.program(machine.bin / "nvcc")
    out = machine.run("tests/run.sh", STUB_PIP_FAILS="requirements-cuda.txt").stdout
    assert "could not be installed" in out and len(machine.calls("-m pytest")) == 1
    out = succeeded(machine.run("tests/run.sh"))
    assert "NVIDIA driver found: installing gsplat" in out and "Installed gsplat" in out
    assert [call[-1] for call in machine.calls("-m pip install")] == ["requirements-cuda.txt"]
    assert succeeded(machine.run("tests/run.sh")) == ""
    assert not machine.calls("-m pip")


@pytest.mark.parametrize("where", [None, "PATH", "CUDA_HOME"])
def test_a_missing_toolkit_is_told(machine: Machine, where: str | None) -> None:
    machine.python("python3.12")
    machine.program(machine.bin / "nvidia-smi")
    if where == "PATH":
        machine.program(machine.bin / "nvcc")
    elif where == "CUDA_HOME":
        machine.program(Path(machine.variables["CUDA_HOME"]) / "bin" / "nvcc")
    assert ("will need the CUDA toolkit" in succeeded(machine.run("tests/run.sh"))) == (where is None)


def test_an_active_environment_is_only_told_about_gsplat(machine: Machine) -> None:
    machine.active_python("requirements.txt", "tests/requirements.txt")
    machine.program(machine.bin / "nvidia-smi")
    out = succeeded(machine.run("tests/run.sh"))
    assert out.count("\n") == 1 and "pip install -r requirements-cuda.txt" in out
    assert not machine.calls("-m pip")


def test_a_driver_that_does_not_work_counts_as_none(machine: Machine) -> None:
    machine.python("python3.12")
    machine.program(machine.bin / "nvidia-smi", "#!/bin/sh\nexit 9\n")
    assert "No NVIDIA driver found" in succeeded(machine.run("tests/run.sh"))
    assert "requirements-cuda.txt" not in machine.log.read_text()


def test_programs_of_the_environment_are_on_the_path(machine: Machine) -> None:
    """PyTorch calls `ninja`, which comes with gsplat, by its name."""
    machine.python("python3.12")
    (machine.repository / "show.sh").write_text(
        "#!/usr/bin/env bash\nset -euo pipefail\nsource utils/environment.sh\n"
        'ensure_environment requirements.txt >/dev/null\necho "$PATH"\n'
    )
    (machine.repository / "show.sh").chmod(0o755)
    assert succeeded(machine.run("show.sh")).startswith(f"{machine.venv / 'bin'}:")


# ---- the check of the requirements ------------------------------------------------------


def pretend(folder: Path, name: str, version: str | None) -> None:
    """Puts the metadata of a package into `folder`; without a version, what a broken-off installation leaves."""
    made = folder / f"{name}-{version or '1.0'}.dist-info"
    made.mkdir()
    if version:
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(
    ("version", "accepted"),
    [
        ("2.10.2", False),
        ("2.11.0", True),
        ("2.13.0+cpu", True),
        ("2.13.1a0+git12", True),
        ("2.14.0", False),
        ("1.13.0", False),
        ("3.0.0", False),
    ],
)
def test_the_range_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool) -> None:
    pretend(tmp_path, "torch", version)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "list.txt").write_text("torch==2.13.0\n")
    found = environment.missing([str(tmp_path / "list.txt")])
    assert found == ([] if accepted else [f"torch 2.11 to 2.13 (found {version})"])


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, "toy_whole", "1.0")
    pretend(tmp_path, "toy_broken", None)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "list.txt"
    file.write_text("# a comment: absent-one==1\n\ntoy-whole==7\ntoy-broken==1.0\nabsent-two\n")
    assert environment.missing([str(file)]) == ["toy-broken", "absent-two"]


def test_the_check_as_the_scripts_run_it(tmp_path: Path) -> None:
    (tmp_path / "here.txt").write_text("pytest==1.0\n")
    (tmp_path / "absent.txt").write_text("no-such-package==1.0\n")

    def check(*files: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "utils.environment", *(str(tmp_path / name) for name in files)],
            cwd=ROOT,
            text=True,
            capture_output=True,
            env=dict(os.environ),
        )
        return done.returncode, done.stdout + done.stderr

    assert check("here.txt") == (0, "")
    assert check("here.txt", "absent.txt") == (1, "missing: no-such-package\n")
