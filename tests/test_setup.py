"""The shell scripts, in a copied tree with stand-ins for python, pip, nvidia-smi and nvcc: nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from utils import environment

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("train_efficient.sh", "utils/environment.sh", "requirements.txt", "requirements-cuda.txt", "tests/run.sh",
          "tests/requirements.txt")
TOOLS = ("bash", "cat", "cp", "dirname", "env", "find", "grep", "mkdir", "rm", "sed", "sort",
         "touch")

pytestmark = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="needs a POSIX shell")

# A stand-in for an interpreter: notes its arguments, and plays the commands that the
# scripts use. What is "installed" is a list of requirements files beside its bin/.
PYTHON = r"""#!/bin/sh
{ printf '%s' "${0##*/}"; for word; do printf '\t%s' "$word"; done; printf '\n'; } >> "$STUB_LOG"
home=$(dirname -- "$(dirname -- "$0")")
case "$1 $2" in
  --version*) echo "Python <version>" ;;
  -c*ensurepip*) [ <old> = False ] && [ <ensurepip> = True ] ;;
  -c*samefile*) [ -e "$home/pyvenv.cfg" ] ;;
  -c*version_info*) [ <old> = False ] ;;
  "-m ensurepip") [ <ensurepip> = True ] && touch "$home/pip" ;;
  "-m venv")
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg"
    [ <venv_works> = True ] && touch "$3/pip" ;;
  "-m pip")
    [ -e "$home/pip" ] || exit 1
    [ "$3" = install ] || exit 0
    case " $* " in *" -r ${STUB_PIP_FAILS:-nothing} "*) echo "no network" >&2; exit 1 ;; esac
    for word; do case "$word" in *.txt) echo "$word" >> "$home/installed" ;; esac; done ;;
  "-m utils.environment")
    for word; do
      case "$word" in *.txt) grep -qx "$word" "$home/installed" 2>/dev/null || missing="$missing $word" ;; esac
    done
    [ -z "$missing" ] || { echo "missing: torch of$missing"; exit 1; } ;;
  "-m scene.synthetic") mkdir -p "$3" ;;
  train.py*)
    [ -z "${STUB_TRAINING_STOPS:-}" ] || exit 130
    while [ "$1" != -m ]; do shift; done
    mkdir -p "$2" && touch "$2/results.json" ;;
  render.py*)
    for split in val test; do
      mkdir -p "$3/$split/ours_3000/renders" "$3/$split/ours_3000/gt"
      touch "$3/$split/ours_3000/renders.mp4" "$3/$split/ours_3000/comparison.png"
    done ;;
  "-m pytest") ;;
  *) echo "the stand-in does not know: $*" >&2; exit 99 ;;
esac
"""


class Machine:
    """A temporary machine: a PATH with only stand-ins on it, and the scripts in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "the repository"
        self.elsewhere = folder / "some where"
        self.bin = folder / "machine" / "bin"
        self.log = folder / "calls"
        for made in (self.repository, self.elsewhere, self.bin):
            made.mkdir(parents=True)
        for name in COPIED:
            (self.repository / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, self.repository / name)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.variables = {"PATH": str(self.bin), "STUB_LOG": str(self.log), "HOME": str(folder),
                          "CUDA_HOME": str(folder / "no toolkit")}

    def program(self, path: Path, text: str = "#!/bin/sh\n") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def python(self, name: str, *, version: str = "3.12.1", old: bool = False, ensurepip: bool = True,
               venv_works: bool = True, folder: Path | None = None) -> None:
        """Puts an interpreter on the PATH (or into `folder`)."""
        text = PYTHON
        for word, value in {"version": version, "old": old, "ensurepip": ensurepip, "venv_works": venv_works}.items():
            text = text.replace(f"<{word}>", str(value))
        self.program((folder or self.bin) / name, text)

    def active_python(self, *requirements: str) -> None:
        """An activated environment in which these requirements files are fulfilled."""
        self.python("python")
        (self.bin.parent / "installed").write_text("".join(f"{name}\n" for name in requirements))

    def run(self, script: str, *arguments: str, cwd: Path | None = None, **variables: str
            ) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run([str(self.repository / script), *arguments], cwd=cwd or self.repository, text=True,
                              env={**self.variables, **variables}, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=60)

    def calls(self, start: str = "") -> list[list[str]]:
        """The calls of interpreters, [name, argument, ...], whose arguments begin with `start`."""
        calls = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [call for call in calls if " ".join(call[1:]).startswith(start)]

    @property
    def venv(self) -> Path:
        return self.repository / ".venv"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    return result.stdout


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


@pytest.mark.parametrize(("interpreters", "chosen"), [
    ({"python3.12": {}, "python3.11": {}}, "python3.12"),
    ({"python3.12": {"ensurepip": False}, "python3.11": {}, "python3": {}}, "python3.11"),
    ({"python3.12": {"venv_works": False}, "python3.11": {"ensurepip": False}, "python3": {}}, "python3"),
    ({"python3": {"old": True}, "python": {}}, "python"),
])
def test_the_first_interpreter_that_can_make_an_environment(
    machine: Machine, interpreters: dict[str, dict[str, bool]], chosen: str,
) -> None:
    for name, properties in interpreters.items():
        machine.python(name, version=f"of {name}", **properties)
    out = succeeded(machine.run("tests/run.sh"))
    assert f"Creating .venv with Python of {chosen}" in out
    assert subprocess.run([machine.venv / "bin" / "python", "--version"], env=machine.variables, text=True,
                          capture_output=True).stdout == f"Python of {chosen}\n"
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
        "ensure_environment requirements.txt >/dev/null\necho \"$PATH\"\n")
    (machine.repository / "show.sh").chmod(0o755)
    assert succeeded(machine.run("show.sh")).startswith(f"{machine.venv / 'bin'}:")


# ---- the demo -------------------------------------------------------------------------


def test_the_demo_twice(machine: Machine) -> None:
    machine.active_python("requirements.txt")
    root = machine.repository / "output" / "demo"
    out = succeeded(machine.run("train_efficient.sh", "demo", "--lambda_dssim", "0.3"))
    data, training, rendering = machine.calls()[1:]  # after the check of the environment
    assert data == ["python", "-m", "scene.synthetic", f"{root}/data"]
    assert training[:6] == ["python", "train.py", "-s", f"{root}/data", "-m", f"{root}/model"]
    assert training[-4:] == ["--start_checkpoint", "auto", "--lambda_dssim", "0.3"]
    assert rendering[:4] == ["python", "render.py", "-m", f"{root}/model"]
    for path in ("val/ours_3000/renders", "test/ours_3000/renders", "val/ours_3000/renders.mp4",
                 "test/ours_3000/comparison.png"):
        assert f" {root}/model/{path}" in out
    assert "*" not in out

    out = succeeded(machine.run("train_efficient.sh", "demo"))
    assert machine.calls()[1:] == [data, rendering]
    assert "Training is skipped" in out and "to train anew: remove" in out
    assert "to train anew with --seed 3: remove" in succeeded(machine.run("train_efficient.sh", "demo", "--seed", "3"))


def test_a_demo_that_was_stopped_goes_on(machine: Machine) -> None:
    machine.active_python("requirements.txt")
    stopped = machine.run("train_efficient.sh", "demo", STUB_TRAINING_STOPS="yes")
    assert stopped.returncode == 130 and not machine.calls("render.py")
    succeeded(machine.run("train_efficient.sh", "demo"))
    assert len(machine.calls("train.py")) == 1 and len(machine.calls("render.py")) == 1


@pytest.mark.parametrize("name", ["my demo", "/absolute"])
def test_the_folder_is_relative_to_the_caller(machine: Machine, tmp_path: Path, name: str) -> None:
    machine.active_python("requirements.txt")
    folder = tmp_path / "an absolute place" if name == "/absolute" else machine.elsewhere / name
    out = succeeded(machine.run("train_efficient.sh", "demo", cwd=machine.elsewhere,
                                DEMO_DIR=str(folder) if name == "/absolute" else name))
    assert f"Video:      {folder}/model/val/ours_3000/renders.mp4" in out
    assert not (machine.repository / "output").exists()


def test_the_shown_commands_can_be_pasted(machine: Machine) -> None:
    machine.active_python("requirements.txt")
    out = succeeded(machine.run("train_efficient.sh", "demo", cwd=machine.elsewhere))
    shown = [line[2:] for line in out.splitlines() if line.startswith("+ ")]
    first = machine.calls()[1:]
    shutil.rmtree(machine.repository / "output")
    machine.log.write_text("")
    subprocess.run(["bash", "-c", "\n".join(shown)], cwd=machine.elsewhere, env=machine.variables, check=True)
    assert machine.calls() == first


@pytest.mark.parametrize("arguments", [["help"], ["--help"], ["-h"], [], ["demo", "--help"]])
def test_help_from_another_folder(machine: Machine, arguments: list[str]) -> None:
    out = succeeded(machine.run("train_efficient.sh", *arguments, cwd=machine.elsewhere))
    assert "train_efficient.sh demo" in out and "DEMO_DIR" in out
    assert not machine.calls()


def test_called_by_a_relative_path_where_CDPATH_is_set(machine: Machine) -> None:
    (machine.elsewhere / machine.repository.name).mkdir()
    result = subprocess.run(["bash", f"{machine.repository.name}/train_efficient.sh", "help"], text=True,
                            cwd=machine.repository.parent, capture_output=True,
                            env={**machine.variables, "CDPATH": str(machine.elsewhere)})
    assert "train_efficient.sh demo" in succeeded(result)


def test_an_unknown_mode(machine: Machine) -> None:
    result = machine.run("train_efficient.sh", "prove it")
    assert result.returncode == 2 and not result.stdout
    assert result.stderr == "error: unknown mode 'prove it'; the modes are: demo\n"


# ---- the check of the requirements ------------------------------------------------------


def pretend(folder: Path, name: str, version: str | None) -> None:
    """Puts the metadata of a package into `folder`; without a version, what a broken-off installation leaves."""
    made = folder / f"{name}-{version or '1.0'}.dist-info"
    made.mkdir()
    if version:
        (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize(("version", "accepted"), [
    ("2.10.2", False), ("2.11.0", True), ("2.13.0+cpu", True), ("2.13.1a0+git12", True), ("2.14.0", False),
    ("1.13.0", False), ("3.0.0", False)])
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
        done = subprocess.run([sys.executable, "-m", "utils.environment", *(str(tmp_path / name) for name in files)],
                              cwd=ROOT, text=True, capture_output=True, env=dict(os.environ))
        return done.returncode, done.stdout + done.stderr

    assert check("here.txt") == (0, "")
    assert check("here.txt", "absent.txt") == (1, "missing: no-such-package\n")
