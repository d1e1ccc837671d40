"""A machine for the tests of the shell scripts: a copied tree, and stand-ins for python and pip on its PATH."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

COPIED = (
    "train_efficient.sh",
    "utils/environment.sh",
    "requirements.txt",
    "requirements-cuda.txt",
    "tests/run.sh",
    "tests/requirements.txt",
)
TOOLS = ("bash", "cat", "cp", "dirname", "env", "find", "grep", "mkdir", "rm", "sed", "sort", "touch")

NEEDS_SHELL = pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason="needs a POSIX shell")

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
  "-m synthetic") mkdir -p "$3" ;;
  *train.py*)
    [ -z "${STUB_TRAINING_STOPS:-}" ] || exit 130
    length=600000
    for word; do
      case "$before" in -m) model=$word ;; --iterations) length=$word ;; esac
      before=$word
    done
    mkdir -p "$model/point_cloud/iteration_$length"
    touch "$model/point_cloud/iteration_$length/point_cloud.ply"
    printf '{\n  "metrics": 1,\n  "iterations": %s,\n  "points": 1\n}\n' "$length" > "$model/results.json" ;;
  render.py*)
    while [ "$1" != --iteration ]; do [ "$1" != -m ] || model=$2; shift; done
    for split in val test; do
      mkdir -p "$model/$split/ours_$2/renders" "$model/$split/ours_$2/gt"
      touch "$model/$split/ours_$2/renders.mp4" "$model/$split/ours_$2/comparison.png"
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
        self.variables = {
            "PATH": str(self.bin),
            "STUB_LOG": str(self.log),
            "HOME": str(folder),
            "CUDA_HOME": str(folder / "no toolkit"),
        }

    def program(self, path: Path, text: str = "#!/bin/sh\n") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def python(
        self,
        name: str,
        *,
        version: str = "3.12.1",
        old: bool = False,
        ensurepip: bool = True,
        venv_works: bool = True,
        folder: Path | None = None,
    ) -> None:
        """Puts an interpreter on the PATH (or into `folder`)."""
        text = PYTHON
        for word, value in {"version": version, "old": old, "ensurepip": ensurepip, "venv_works": venv_works}.items():
            text = text.replace(f"<{word}>", str(value))
        self.program((folder or self.bin) / name, text)

    def active_python(self, *requirements: str) -> None:
        """An activated environment in which these requirements files are fulfilled."""
        self.python("python")
        (self.bin.parent / "installed").write_text("".join(f"{name}\n" for name in requirements))

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [str(self.repository / script), *arguments],
            cwd=cwd or self.repository,
            text=True,
            env={**self.variables, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )

    def calls(self, start: str = "") -> list[list[str]]:
        """The calls of interpreters, [name, argument, ...], whose arguments begin with `start`."""
        calls = [line.split("\t") for line in self.log.read_text().splitlines()]
        return [call for call in calls if " ".join(call[1:]).startswith(start)]

    @property
    def venv(self) -> Path:
        return self.repository / ".venv"


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    """What a script printed, if it ended well and without errors."""
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    return result.stdout
