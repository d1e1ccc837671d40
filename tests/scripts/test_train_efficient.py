"""The two commands: what they parse, ask and decide, in this process; and the shell's part."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from places import ROOT

from arguments import PRESETS, parse_train
from scripts import train_efficient
from utils import environment
from utils.errors import UserError

RIGGED = ["--eval", "--bind_to_mesh", "--white_background"]
Run = Callable[..., list[list[str]]]
Shell = Callable[..., subprocess.Popen[str]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in another folder than the repository, and gives the commands that it starts.

    Stand-ins for them write what the demo looks for.
    """
    repository, caller, started = tmp_path / "the repository", tmp_path / "some where", list[list[str]]()

    def call(*command: str) -> int:
        started.append(list(command))
        value = dict(zip(command, command[1:]))
        model = Path(value.get("-m", ""))
        if command[1] == "train.py" and "--iterations" in value:
            saved = model / "point_cloud" / f"iteration_{value['--iterations']}" / "point_cloud.ply"
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.touch()
            if "STOPPED" in os.environ:
                return 130
            (model / "results.json").write_text(json.dumps({"iterations": int(value["--iterations"])}))
        elif command[1] == "render.py":
            for name in ("renders", "gt", "renders.mp4", "comparison.png"):
                (model / "val" / f"ours_{value['--iteration']}" / name).mkdir(parents=True, exist_ok=True)
        return 0

    def start(*words: str, cwd: Path = caller, **variables: str) -> list[list[str]]:
        started.clear()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["", str(cwd), *words])
            for name, value in variables.items():
                patch.setenv(name, value)
            train_efficient.main()
        return list(started)

    for folder in (repository / "data" / "head 306", caller / "head 306"):
        folder.mkdir(parents=True)
        (folder / "transforms_train.json").touch()
    (caller / "transforms.json").touch()  # an export that was never split
    for name in ("SUBJECT", "DATA_DIR", "DEMO_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(caller)  # and back at the end
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(environment, "ROOT", repository)
    monkeypatch.setattr(environment, "call", call)
    monkeypatch.setattr(environment, "ensure", lambda *files: "python")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python")
    return start


# ---- a preset ---------------------------------------------------------------------------


def test_subject_and_data_folder_from_the_environment(run: Run, capsys: Capture) -> None:
    (command,) = run("balanced", cwd=environment.ROOT, SUBJECT="306", DATA_DIR="data/head 306")
    named = ["-s", "data/head 306", "-m", "output/balanced_306"]
    assert command == ["python", "train.py", *named, *RIGGED, "--interval", "60000", "--preset", "balanced"]
    shown, last = capsys.readouterr().out.splitlines()
    assert shlex.split(shown) == ["+", *command]
    assert last == "Pictures and metrics: python render.py -m output/balanced_306"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_mode_whose_command_parses(run: Run, preset: str) -> None:
    """Called from another folder: paths are those of that folder."""
    ((_, script, *words),) = run(preset, "-s", "head 306", "--iterations", "6000", "--no_amp")
    assert script == f"{environment.ROOT}/train.py"
    assert words[:4] == ["-s", "head 306", "-m", f"output/{preset}_head 306"]
    assert words[4:] == [*RIGGED, "--interval", "60000", "--preset", preset, "--iterations", "6000", "--no_amp"]
    options = parse_train(words)
    assert options.innovations.preset == preset and not options.innovations.use_amp
    assert options.optimization.iterations == 6000 and options.model.eval and options.model.bind_to_mesh


@pytest.mark.parametrize(
    "line",
    [
        "-s here -m out",
        "-mout -shere",
        "-m=out -s=here",
        "--model_path=out --source_path here",
        "-s no -m no --model_path out --source_path=here",
    ],
)
def test_typed_folders_win_in_every_spelling(run: Run, line: str) -> None:
    Path("here").mkdir()
    Path("here", "transforms.json").touch()
    others = ["--seed", "3", "--lambda_dssim=0.3", "--test_iterations", "1", "2"]
    (command,) = run("ultra", *others[:2], *line.split(), *others[2:], SUBJECT="306", DATA_DIR="no")
    assert command[2:6] == ["-s", "here", "-m", "out"] and command[-6:] == others


def test_a_shortened_run_keeps_its_shortened_interval(run: Run) -> None:
    words = ["ultra", "-s", "head 306", "--iterations", "6000", "--scale_schedule"]
    assert parse_train(run(*words)[0][2:]).run.interval == 600
    assert parse_train(run(*words, "--interval", "7", "-m", "other")[0][2:]).run.interval == 7


@pytest.mark.parametrize(
    ("words", "variables", "sentence"),
    [
        ("balanced", {"SUBJECT": "306"}, "SUBJECT is 306, but nothing says .*: set DATA_DIR, or give -s DATA"),
        ("balanced", {"SUBJECT": "306", "DATA_DIR": "a/b"}, r"SUBJECT is 306, but there is no folder a/b \(DATA_DIR\)"),
        ("balanced", {}, "nothing says which data set to train on"),
        ("balanced -s nowhere", {}, r"there is no folder nowhere \(-s\)"),
        ("balanced -m out -s", {}, "-s needs a value"),
        ("balanced --model_path=", {}, "--model_path is empty"),
        ("demo -s mine", {}, "balanced -s mine"),
        (
            "fancy -s mine",
            {},
            "unknown mode 'fancy'; the modes are: balanced, ultra, quality, baseline, fast, full, demo",
        ),
        ("Balancd -s mine", {}, r"unknown mode 'balancd'; did you mean balanced\?; the modes are"),
        ("Balanced -s heat_306", {}, r"there is no folder heat_306; did you mean head 306\? \(-s\)"),
        (
            "ultra -s full",
            {},
            r"there is no transforms_train.json in the folder full; did you mean full/a head\? \(-s\)",
        ),
        ("ultra -s empty", {}, r"there is nothing in the folder empty \(-s\)"),
    ],
)
def test_mistakes_are_one_sentence(run: Run, words: str, variables: dict[str, str], sentence: str) -> None:
    for folder in ("empty", "full/a head"):
        Path(folder).mkdir(parents=True)
    Path("full/a head/transforms.json").touch()
    with pytest.raises(UserError, match=sentence):
        run(*words.split(), **variables)


# ---- the menu --------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is typed on a terminal."""
    typed: list[str] = []

    def answer(question: str) -> str:
        print(question)
        if not typed:
            raise EOFError
        return typed.pop(0)

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(os, "isatty", lambda descriptor: True)
    return typed


@pytest.mark.parametrize(
    ("answer", "preset"),
    [("1", "balanced"), ("Ultra", "ultra"), ("QUALITY-FIRST", "quality"), ("baseline", "baseline"), ("", "balanced")],
)
def test_the_menu(run: Run, capsys: Capture, answers: list[str], answer: str, preset: str) -> None:
    answers += [answer, "~/some where "]
    (command,) = run()
    assert command[2:6] == ["-s", os.path.abspath("."), "-m", f"output/{preset}_some where"]
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [
        ["1", "Balanced"],
        ["2", "Ultra-Efficient"],
        ["3", "Quality-First"],
        ["4", "Baseline"],
        ["5", "Fast"],
        ["6", "Full"],
    ]
    assert max(map(len, out[: out.index("+ ")].splitlines())) <= 120
    assert out.split("--scale_schedule\n")[1].startswith("1 to 6, or a name [1]: \nFolder of the data set: \n+ ")


def test_the_menu_says_what_the_readme_says() -> None:
    for name in ("README.md", "doc/README_zh.md"):
        rows = [line for line in (ROOT / name).read_text().splitlines() if line.startswith("| `")]
        for preset, (_, does) in train_efficient.PRESETS.items():
            (row,) = (row for row in rows if row.startswith(f"| `{preset}`"))
            for figure in re.findall(r"\+[0-9.]+ dB|×[0-9.]+", does):
                assert figure in row


def test_wrong_answers_are_asked_again_and_the_folder_is_offered(run: Run, capsys: Capture, answers: list[str]) -> None:
    answers += ["9", "ultro", "3", "nowhere", ""]
    (command,) = run(DATA_DIR="head 306", SUBJECT="306")
    assert command[2:6] == ["-s", "head 306", "-m", "output/quality_306"]
    out, again = capsys.readouterr().out, "Folder of the data set [head 306]: \n"
    number = "1 to 6, or a name [1]: \n"
    assert (
        f"There is no '9' in the list.\n{number}There is no 'ultro' in the list; did you mean ultra?\n{number}" in out
    )
    assert f"{again}There is no folder nowhere.\n{again}+ " in out
    answers += ["1", "", "head 306"]
    run()
    assert "Type the folder of a capture" in capsys.readouterr().out
    with pytest.raises(UserError, match="^no answer, so nothing is done"):
        run()


# ---- the demo -------------------------------------------------------------------------


def test_the_demo_twice(run: Run, capsys: Capture) -> None:
    root = environment.ROOT / "output" / "demo"
    data, training, rendering, page = commands = run("demo", "--lambda_dssim", "0.3")
    out = capsys.readouterr().out
    assert data == ["python", "-m", "synthetic", f"{root}/data"]
    assert training[:6] == ["python", "train.py", "-s", f"{root}/data", "-m", f"{root}/model"]
    assert training[training.index("--preset") + 1] == "balanced" and "--scale_schedule" in training
    assert training[-4:] == ["--start_checkpoint", "auto", "--lambda_dssim", "0.3"]
    assert rendering[:6] == ["python", "render.py", "-m", f"{root}/model", "--iteration", "4000"]
    place, opened = f"{root}/model/val/ours_4000", f"{root}/model/avatar.html"
    saved = ["-m", f"{root}/model", "--iteration", "4000"]
    assert page == ["python", "export.py", *saved, "--format", "html", "-o", opened]
    pictures = f"Pictures:   {place}/renders (photographs: gt beside it)\n"
    video = f"Video:      {place}/renders.mp4\nOpen this:  {opened} (in a browser)\n"
    assert out.endswith(f"{pictures}Comparison: {place}/comparison.png\n{video}")
    assert "activate" not in out  # the Python that runs is the one of the shell
    # What is shown can be pasted where the command was typed.
    shown = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("+ ")]
    assert shown == [["cd", str(environment.ROOT)], *commands]

    assert run("demo") == [data, rendering, page]
    out = capsys.readouterr().out
    assert "Training is skipped" in out and "to train anew: remove" in out
    run("demo", "--seed", "3")
    assert "to train anew with --seed 3: remove" in capsys.readouterr().out


def test_the_demo_tells_how_to_go_on_in_an_environment_of_its_own(
    run: Run, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "ensure", lambda *files: ".venv/bin/python")
    run("demo")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f": source {shlex.quote(f'{environment.VENV}/bin/activate')}")


@pytest.mark.parametrize("name", ["my demo", "/an absolute place"])
def test_the_folder_is_relative_to_the_caller(run: Run, tmp_path: Path, capsys: Capture, name: str) -> None:
    name = str(tmp_path) + name if name.startswith("/") else name
    folder = os.path.abspath(name)
    run("demo", DEMO_DIR=name)
    assert f"Video:      {folder}/model/val/ours_4000/renders.mp4" in capsys.readouterr().out
    assert not (environment.ROOT / "output").exists()


def test_the_demo_with_its_own_length_and_folder(run: Run, capsys: Capture) -> None:
    model = Path("my model").absolute()
    _, training, rendering, _ = run("demo", "--iterations", "6_00", "-m", "my model")
    assert training[training.index("-m") + 1] == str(model) == rendering[rendering.index("-m") + 1]
    assert training[training.index("--iterations") + 1] == "600" == rendering[rendering.index("--iteration") + 1]
    assert training.count("-m") == training.count("--iterations") == 1
    assert f"Video:      {model}/val/ours_600/renders.mp4" in capsys.readouterr().out

    # Another length is not done yet, even where its avatar is saved; only pictures of the asked length are named.
    with pytest.raises(SystemExit) as stopped:
        run("demo", "--iterations=900", "-m", "my model", STOPPED="yes")
    assert stopped.value.code == 130
    assert len(run("demo", "--iterations=600", "-m", "my model")) == 3
    capsys.readouterr()
    assert len(run("demo", "--iterations=900", "-m", "my model")) == 4
    out = capsys.readouterr().out
    assert "ours_900" in out and "ours_600" not in out


# ---- through the shell --------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Starts one of the two commands in another folder, where the only python is a stand-in.

    It runs our scripts, in a copied tree, and shows the arguments of all else.
    """
    repository, elsewhere, programs = (tmp_path / name for name in ("a repository", "some where", "bin"))
    for made in (repository / "tests", elsewhere / repository.name, programs):
        made.mkdir(parents=True)
    for folder in (elsewhere, elsewhere / repository.name):
        (folder / "transforms.json").touch()
    for room in ("scripts", "utils"):
        shutil.copytree(ROOT / room, repository / room)
    for name in ("train_efficient.sh", "tests/run.sh"):
        shutil.copy(ROOT / name, repository / name)
    for name in ("requirements.txt", "tests/requirements.txt", "tests/requirements-triton.txt"):
        (repository / name).touch()
    for tool in ("bash", "dirname"):
        (programs / tool).symlink_to(shutil.which(tool) or pytest.skip("needs a POSIX shell"))
    scripts = f'case "$1" in -S) exit $OLD ;; -u) exec {shlex.quote(sys.executable)} "$@" ;; esac'
    for name in {"python", Path(sys.executable).name}:
        (programs / name).write_text(f"#!/bin/sh\n{scripts}\nprintf '[%s]' \"$@\"\necho\nexit $STATUS\n")
        (programs / name).chmod(0o755)
    variables = {"PATH": str(programs), "CDPATH": str(elsewhere), "HOME": str(tmp_path), "TERM": "dumb", "OLD": "0"}

    def start(
        script: str, *words: str, terminal: int | None = None, status: int = 0, old: int = 0
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", f"../{repository.name}/{script}", *words],
            cwd=elsewhere,
            env=variables | {"STATUS": str(status), "OLD": str(old)},
            stdin=terminal or subprocess.DEVNULL,
            stdout=terminal or subprocess.PIPE,
            stderr=terminal or subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.mark.parametrize(
    ("command", "status", "out", "error"),
    [
        ("train_efficient.sh demo --help", 0, train_efficient.__doc__, ""),
        ("train_efficient.sh", 2, "", train_efficient.__doc__),  # no questions where there is no terminal
        ("train_efficient.sh fancy", 2, "", "error: unknown mode 'fancy'; the modes are: balanced"),
        ("train_efficient.sh ultra -s 'a repository'", 0, "[-s][a repository][-m][output/ultra_a repository]", ""),
        ("train_efficient.sh ultra -s 'a repository'", 130, "[-s][a repository]", ""),
        ("tests/run.sh -k 'a b'", 0, "[-m][pytest][-k][a b]\n", ""),
        ("tests/run.sh", 0, "[-m][ruff][check]\n[-m][ruff][format][--check]\n[-m][mypy]\n[-m][pytest][-n]", ""),
        ("tests/run.sh", 3, "[-m][ruff][check]\n", ""),
    ],
)
def test_the_shells_part(shell: Shell, command: str, status: int, out: str, error: str) -> None:
    process = shell(*shlex.split(command), status=status)
    shown = process.communicate(timeout=60)
    assert process.returncode == status and ("Pictures and metrics" in shown[0]) == ("-s" in command and not status)
    assert out in shown[0] and error in shown[1] and bool(out) == bool(shown[0]) and bool(error) == bool(shown[1])


def test_no_python(shell: Shell) -> None:
    process = shell("tests/run.sh", old=1)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 2 and not out and error.startswith("error: no Python 3.11 or newer was found")


def test_a_terminal(shell: Shell) -> None:
    terminal, theirs = pty.openpty()
    process = shell("train_efficient.sh", terminal=theirs)
    os.close(theirs)
    shown, answers = "", {"[1]: ": "Ultra\n", "data set: ": "~/some where\n"}
    with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
        while select.select([terminal], [], [], 60)[0]:
            shown += os.read(terminal, 4096).decode()
            for question in list(answers):
                if shown.endswith(question):
                    os.write(terminal, answers.pop(question).encode())
    os.close(terminal)
    assert process.wait(10) == 0 and "some where][-m][output/ultra_some where]" in shown


def test_any_python_can_start_the_scripts() -> None:
    for path in (*ROOT.glob("scripts/*.py"), ROOT / "utils" / "environment.py", ROOT / "utils" / "errors.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))
