"""Which Python is used, and how .venv is made: with stand-ins for the programs it starts, and once for real."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from places import ROOT

from utils import environment
from utils.errors import UserError

FILES = ("requirements.txt", "tests/requirements.txt")
INSTALLED = ["requirements.txt tests/requirements.txt"]


class Machine:
    """Interpreters by name, each with what it can do and has; a broken installation installs nothing."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.venv, self.of_venv = root / ".venv", str(root / ".venv" / "bin" / "python")
        self.pythons: dict[str, SimpleNamespace] = {}
        self.created, self.installs = list[str](), list[str]()
        self.driver, self.broken, self.lacks = False, "", "missing: torch"  # the last: what the running Python lacks
        for name, value in (
            ("ROOT", root),
            ("VENV", self.venv),
            ("PYTHON", Path(self.of_venv)),
            ("UNFINISHED", self.venv / "unfinished"),
        ):
            monkeypatch.setattr(environment, name, value)
        monkeypatch.setattr(environment, "_ask", self.ask)
        monkeypatch.setattr(environment, "call", lambda *command: self.ask(*command) is None)
        monkeypatch.setattr(environment, "missing", lambda *files: self.lacks)
        monkeypatch.chdir(root)
        for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_PATH"):
            monkeypatch.delenv(name, raising=False)
        for name in ("PATH", "CUDA_HOME"):
            monkeypatch.setenv(name, str(root / name))

    def python(self, name: str, old: bool = False, ensurepip: bool = True, venv: bool = True, pip: bool = True) -> None:
        self.pythons[name] = SimpleNamespace(
            version=f"of {name}", old=old, ensurepip=ensurepip, venv=venv, pip=pip, own=True, has=set()
        )
        if name == self.of_venv:
            (self.venv / "bin").mkdir(parents=True)
            (self.venv / "a package").touch()

    def ask(self, name: str, *words: str) -> str | None:
        if name == "nvidia-smi":
            return "" if self.driver else None
        python = self.pythons.get(name)
        if python is None:
            return None
        files = [os.path.relpath(word) for word in words if word.endswith(".txt")]
        works = True
        match words:
            case "-c", code:
                works = not python.old and (python.ensurepip if "ensurepip" in code else python.own)
            case "-m", "venv", folder:
                assert os.listdir(folder) == ["unfinished"]
                self.created.append(name)
                self.pythons[self.of_venv] = SimpleNamespace(**{**vars(python), "pip": python.venv, "has": set()})
                (self.venv / "bin").mkdir()
                works = python.venv
            case "-m", "ensurepip":
                works = python.pip = python.ensurepip
            case "-m", "pip", "install", *_:
                self.installs.append(" ".join(files))
                works = self.broken not in files
                python.has.update(files if works else ())
            case "-m", "pip", _:
                works = python.pip
            case "-m", "utils.environment", *_:
                return ", ".join(f"missing: torch of {file}" for file in files if file not in python.has)
        return python.version if works else None


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path, monkeypatch)
    made.python("python3.12")
    return made


Capture = pytest.CaptureFixture[str]

# ---- which interpreter ----------------------------------------------------------


def test_a_complete_active_environment_is_used_and_left_alone(machine: Machine, capsys: Capture) -> None:
    machine.lacks = ""
    path = os.environ["PATH"]
    assert environment.ensure(*FILES) == Path(sys.executable).name
    assert not machine.installs and not machine.venv.exists() and os.environ["PATH"] == path
    assert capsys.readouterr().out == ""


def test_an_incomplete_active_environment_is_named_and_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("VIRTUAL_ENV", "/some/where")
    assert environment.ensure(*FILES) == machine.of_venv
    out = capsys.readouterr().out
    assert "== The active environment is left as it is (missing: torch); .venv is used instead\n" in out
    assert "CUDA build of several GB" in out and "No NVIDIA driver found" in out and machine.installs == INSTALLED
    assert not environment.UNFINISHED.exists()
    # PyTorch calls `ninja`, which comes with gsplat, by its name.
    assert os.environ["PATH"].startswith(f"{machine.venv}/bin{os.pathsep}")
    # The next run finds all there.
    monkeypatch.delenv("VIRTUAL_ENV")
    assert environment.ensure(*FILES) == machine.of_venv
    assert capsys.readouterr().out == "" and machine.installs == INSTALLED and machine.created == ["python3.12"]


@pytest.mark.parametrize(
    ("interpreters", "chosen"),
    [
        ({"python3.12": {}, "python3.11": {}}, "python3.12"),
        ({"python3.12": {"ensurepip": False}, "python3.11": {}, "python3": {}}, "python3.11"),
        ({"python3.12": {"venv": False}, "python3.11": {"ensurepip": False}, "python3": {}}, "python3"),
        ({"python3": {"old": True}, "python": {}}, "python"),
        ({}, None),
        ({"python3": {"old": True}}, None),
        ({"python3": {"ensurepip": False}}, None),
        ({"python3": {"venv": False}}, None),
    ],
)
def test_the_first_interpreter_that_can_make_an_environment(
    machine: Machine, capsys: Capture, interpreters: dict[str, dict[str, bool]], chosen: str | None
) -> None:
    machine.pythons.clear()
    for name, properties in interpreters.items():
        machine.python(name, **properties)
    if chosen:
        environment.ensure(*FILES)
        assert f"== Creating .venv with Python of {chosen}\n" in capsys.readouterr().out
        assert machine.created[-1] == chosen and machine.venv.exists()
    else:
        with pytest.raises(UserError, match=r"^no Python 3.11 or newer was found .* install python3-venv"):
            environment.ensure(*FILES)
        assert not machine.venv.exists()


# ---- .venv ------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["old", "no pip", "the system's", "no python", "a file"])
def test_what_is_no_environment_is_left_for_its_owner(machine: Machine, wrong: str) -> None:
    if wrong == "a file":
        machine.venv.touch()
    else:
        machine.python(machine.of_venv, old=wrong == "old", pip=wrong != "no pip", ensurepip=wrong != "no pip")
        machine.pythons[machine.of_venv].own = wrong != "the system's"
    if wrong == "no python":
        del machine.pythons[machine.of_venv]
    with pytest.raises(UserError, match=r"^\.venv is not an environment of Python 3.11 .*: remove or rename"):
        environment.ensure(*FILES)
    assert not machine.created and not machine.installs
    assert machine.venv.is_file() or (machine.venv / "a package").exists()


def test_an_environment_without_pip_is_completed(machine: Machine) -> None:
    machine.python(machine.of_venv, pip=False)
    environment.ensure(*FILES)
    assert (machine.venv / "a package").exists() and not machine.created and machine.installs == INSTALLED


@pytest.mark.parametrize("left", ["unfinished", ""])
def test_what_was_stopped_while_it_was_made_is_made_anew(machine: Machine, left: str) -> None:
    if left:
        machine.python(machine.of_venv)
        environment.UNFINISHED.touch()
    else:
        machine.venv.mkdir()
    environment.ensure(*FILES)
    assert machine.created == ["python3.12"] and os.listdir(machine.venv) == ["bin"]


def test_a_failed_installation_is_continued(machine: Machine) -> None:
    machine.broken = "tests/requirements.txt"
    with pytest.raises(UserError, match=r"^installing requirements.txt .* failed; .*running this again continues"):
        environment.ensure(*FILES)
    machine.broken = ""
    environment.ensure(*FILES)
    assert machine.installs == INSTALLED * 2 and machine.created == ["python3.12"]


def test_our_own_environment_activated_is_ours(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    machine.python(machine.of_venv)
    monkeypatch.setattr(sys, "prefix", str(machine.venv))
    monkeypatch.setenv("VIRTUAL_ENV", str(machine.venv))
    machine.driver = True
    assert environment.ensure(*FILES) == machine.of_venv
    out = capsys.readouterr().out
    assert "Installing into .venv" in out and "left as it is" not in out and "Installed gsplat" in out


# ---- NVIDIA -------------------------------------------------------------------------


def test_gsplat_is_tried_again_until_it_is_there(machine: Machine, capsys: Capture) -> None:
    machine.driver, machine.broken = True, "requirements-cuda.txt"
    assert environment.ensure(*FILES) == machine.of_venv
    out = capsys.readouterr().out
    assert "gsplat could not be installed" in out and "CUDA build" not in out and "No NVIDIA" not in out
    machine.broken = ""
    environment.ensure(*FILES)
    assert "== Installed gsplat; it compiles its kernels on first use" in capsys.readouterr().out
    environment.ensure(*FILES)
    assert machine.installs == [*INSTALLED, "requirements-cuda.txt", "requirements-cuda.txt"]


@pytest.mark.parametrize("where", ["", "PATH", "CUDA_HOME/bin"])
def test_a_missing_toolkit_is_told(machine: Machine, capsys: Capture, where: str) -> None:
    machine.driver = True
    if where:
        Path(where).mkdir(parents=True)
        Path(where, "nvcc").touch(0o755)
    environment.ensure(*FILES)
    assert ("will need the CUDA toolkit" in capsys.readouterr().out) == (not where)


def test_an_active_environment_is_only_told_about_gsplat(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    machine.driver = True
    monkeypatch.setattr(environment, "missing", lambda *files: "missing: gsplat" if "cuda" in files[0] else "")
    environment.ensure(*FILES)
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "(missing: gsplat): python -m pip install -r requirements-cuda.txt" in out
    assert not machine.installs


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
    found = environment.missing(str(tmp_path / "list.txt"))
    assert found == ("" if accepted else f"missing: torch 2.11 to 2.13 (found {version})")


def test_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, "toy_whole", "1.0")
    pretend(tmp_path, "toy_broken", None)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "list.txt"
    file.write_text("# a comment: absent-one==1\n\ntoy-whole==7\ntoy-broken==1.0\nabsent-two\n")
    assert environment.missing(str(file)) == "missing: toy-broken, absent-two"


# ---- for real ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train.py", "render.py", "-m benchmarks.report", "-m utils.lpips_weights"])
@pytest.mark.parametrize("made", [False, True])
def test_a_python_without_the_requirements_names_one_that_has_them(tmp_path: Path, script: str, made: bool) -> None:
    for name in ("train.py", "render.py", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("utils", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    python, remedy = tmp_path / ".venv" / "bin" / "python", "`./train_efficient.sh demo` makes a .venv that has it"
    if made:
        python.parent.mkdir(parents=True)
        python.write_text("#!/bin/sh\n")  # asked what it lacks, it says nothing
        python.chmod(0o755)
        remedy = f"{python} has it: start the script with that, or type `source .venv/bin/activate` first"
    done = subprocess.run([sys.executable, "-S", *script.split()], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {sys.executable} cannot run this (missing: torch, numpy,")
    assert remedy in done.stderr


def test_an_environment_is_really_made(tmp_path: Path) -> None:
    """Stopped after the first half, then completed; the package comes from a file."""
    (tmp_path / "utils").mkdir()
    for name in ("__init__", "environment", "errors"):
        (tmp_path / "utils" / f"{name}.py").write_bytes((ROOT / "utils" / f"{name}.py").read_bytes())
    wheel = tmp_path / "toy_one-1.0-py3-none-any.whl"
    (tmp_path / "requirements.txt").write_text(f"toy-one @ {wheel.as_uri()}\n")

    def ensure() -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-u", "-c", "from utils.environment import *; print('= ' + ensure('requirements.txt'))"],
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}", "CUDA_HOME": ""},
            text=True,
            capture_output=True,
        )
        return done.returncode, done.stdout + done.stderr

    status, out = ensure()
    assert status and "UserError: installing requirements.txt into .venv failed" in out
    with zipfile.ZipFile(wheel, "w") as file:
        for name, text in {"METADATA": "Metadata-Version: 2.1\nName: toy-one\nVersion: 1.0\n", "RECORD": ""}.items():
            file.writestr(f"toy_one-1.0.dist-info/{name}", text)
        file.writestr("toy_one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    status, out = ensure()
    assert status == 0 and "== Creating" not in out and "== Installing into .venv" in out
    assert out.splitlines()[-1] == f"= {tmp_path / '.venv' / 'bin' / 'python'}"
    assert "== Installing" not in ensure()[1]


def test_an_interrupted_command_ends_by_itself() -> None:
    """Ctrl-C goes to all that run on the terminal; a training that saves is waited for, and tells how it ended."""
    command = "import signal, time; signal.signal(2, lambda *_: (time.sleep(0.5), exit(7))); print(); time.sleep(60)"
    caller = f"import sys; from utils.environment import call; sys.exit(call(sys.executable, '-uc', {command!r}))"
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 7
