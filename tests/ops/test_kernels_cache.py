"""The folder of built libraries: nothing is loaded from it that somebody else could have put there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import ROOT
from test_concurrency import LOAD, compiler

from ops import kernels

OURS, THEIRS = 42, 13
PROGRAM = "from ops import kernels\n"


def start(
    folder: Path, cache: Path, before: str = "", uid: int | None = None, program: str = ""
) -> subprocess.Popen[str]:
    """Loads the library of a compiler that makes one within a second; as if this user were `uid`."""
    environment = {**os.environ, "NATIVE_CACHE": str(cache), "CXX": str(compiler(folder, before))}
    program = PROGRAM + program + (f"import os\nos.getuid = lambda: {uid}\n" if uid is not None else "") + LOAD
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def loaded(folder: Path, cache: Path, **more: int) -> tuple[int, str]:
    process = start(folder, cache, **more)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return int(out), err


def plant(cache: Path) -> Path:
    """Another library under the name that would be loaded; the folder's `ours` holds it already."""
    (library,) = cache.glob("native-*.so")
    library.unlink()  # a new file: the old one may be loaded
    source = f"int answer(void) {{ return {THEIRS}; }}"
    subprocess.run(["c++", "-x", "c", "-shared", "-fPIC", "-", "-o", str(library)], input=source, text=True, check=True)
    return library


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    assert loaded(folder, folder / "native") == (OURS, "Building the native CPU library (once) ...\n")
    library = plant(folder / "native")
    assert loaded(folder, folder / "native") == (THEIRS, "")  # whose file it is is all that counts
    assert library.stat().st_mode & 0o022 == 0 and (folder / "native").stat().st_mode & 0o777 == 0o700
    return folder / "native"


@pytest.fixture
def cache(planted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(planted, tmp_path / "native")


@pytest.mark.parametrize("what", ["folder by all", "folder by a group", "sticky folder", "file by all", "parent"])
def test_what_others_can_write_is_not_loaded(what: str, cache: Path, tmp_path: Path) -> None:
    (library,) = cache.glob("native-*.so")
    place, mode = {
        "folder by all": (cache, 0o777),
        "folder by a group": (cache, 0o770),
        "sticky folder": (cache, 0o1777),
        "file by all": (library, 0o777),
        "parent": (tmp_path, 0o777),
    }[what]
    if what == "folder by a group":
        try:
            os.chown(cache, -1, os.getgid() + 12345)
        except PermissionError:
            pytest.skip("only root can give a folder to a group")
    before = tmp_path.stat().st_mode
    os.chmod(place, mode)
    try:
        answer, told = loaded(tmp_path, cache)
    finally:
        os.chmod(tmp_path, before)
    assert answer == OURS and "can be changed by others" in told and "NATIVE_CACHE" in told
    assert len(list(cache.iterdir())) == 2  # the library and the lock, as they were


def test_what_another_user_owns_is_not_loaded(cache: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        (library,) = cache.glob("native-*.so")
        os.chown(library, 12345, -1)
        assert loaded(tmp_path, cache)[0] == OURS
        os.chown(cache, 12345, -1)
        assert loaded(tmp_path, cache)[0] == OURS
    else:
        assert loaded(tmp_path, cache, uid=12345)[0] == OURS


def test_the_private_folder_is_removed(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    cache.chmod(0o777)
    assert loaded(tmp_path, cache)[0] == OURS
    assert not list((tmp_path / "temporary").iterdir())


def test_a_group_of_one_user_is_no_other() -> None:
    assert not kernels._private_group(os.getgid() + 12345)


# The signal comes while the compiler starts, before the program can know its process.
AT_THE_START = """
import os, signal, subprocess
class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if "-o" in command and "probe" not in str(command):
            os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = Popen
"""


@pytest.mark.parametrize("program", ["", AT_THE_START], ids=["while it compiles", "while it starts"])
def test_terminated_while_compiling_nothing_is_left(tmp_path: Path, program: str) -> None:
    cache = tmp_path / "native"
    compiles = f'echo $$ > {tmp_path}/pid; printf half > "$2"; exec sleep 600'
    process = start(tmp_path, cache, before=compiles, program=program)
    if not program:
        deadline = time.monotonic() + 60
        while not list(cache.glob(".tmp-*.so")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in told
    assert [path.name for path in cache.iterdir()] == [".lock"]
    if not (tmp_path / "pid").exists():
        return  # killed before its first line
    # Killed, it is gone as soon as somebody has asked how it ended, which may be the system, a moment later.
    status = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    deadline = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while status.read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < deadline, "the compiler goes on"
            time.sleep(0.01)
