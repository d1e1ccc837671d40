"""train_efficient.sh: its modes, its menu on a pseudo-terminal, and its demo, with stand-ins for python."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from stand_ins import NEEDS_SHELL, Machine, succeeded

from arguments import PRESETS, parse_train

pytestmark = NEEDS_SHELL

SCRIPT = "train_efficient.sh"
RIGGED = ["--eval", "--bind_to_mesh", "--white_background", "--port", "60000"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.active_python("requirements.txt")
    return made


@pytest.fixture
def data(machine: Machine) -> str:
    (machine.repository / "data" / "head 306").mkdir(parents=True)
    return "data/head 306"


def trained(machine: Machine) -> list[str]:
    """The arguments of the one call of train.py."""
    (call,) = machine.calls("train.py")
    return call[2:]


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert all(word in result.stderr for word in words), result.stderr


# ---- without questions -----------------------------------------------------------------


def test_subject_and_data_folder_from_the_environment(machine: Machine, data: str) -> None:
    out = succeeded(machine.run(SCRIPT, "balanced", SUBJECT="306", DATA_DIR=data))
    assert trained(machine) == [
        "-s",
        data,
        "-m",
        "output/balanced_306",
        *RIGGED,
        "--interval",
        "60000",
        "--preset",
        "balanced",
    ]
    shown = next(line for line in out.splitlines() if line.startswith("+ "))
    assert shlex.split(shown)[1:] == machine.calls("train.py")[0]
    assert "render.py -m output/balanced_306" in out


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_mode_whose_command_parses(machine: Machine, data: str, preset: str) -> None:
    succeeded(machine.run(SCRIPT, preset, "-s", data, "--iterations", "6000", "--no_amp"))
    words = trained(machine)
    assert words == [
        "-s",
        data,
        "-m",
        f"output/{preset}_head 306",
        *RIGGED,
        "--interval",
        "60000",
        "--preset",
        preset,
        "--iterations",
        "6000",
        "--no_amp",
    ]
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
def test_typed_folders_win_in_every_spelling(machine: Machine, line: str) -> None:
    (machine.repository / "here").mkdir()
    succeeded(machine.run(SCRIPT, "ultra", *line.split(), "--seed", "3", SUBJECT="306", DATA_DIR="elsewhere"))
    words = trained(machine)
    assert words[:4] == ["-s", "here", "-m", "out"] and words[-2:] == ["--seed", "3"]


def test_a_shortened_run_keeps_its_shortened_interval(machine: Machine, data: str) -> None:
    succeeded(machine.run(SCRIPT, "ultra", "-s", data, "--iterations", "6000", "--scale_schedule"))
    assert parse_train(trained(machine)).run.interval == 600
    succeeded(machine.run(SCRIPT, "ultra", "-s", data, "--iterations", "6000", "--scale_schedule", "--interval", "7"))
    assert parse_train(trained(machine)).run.interval == 7


def test_paths_are_those_of_the_callers_folder(machine: Machine) -> None:
    (machine.elsewhere / "my data").mkdir()
    out = succeeded(machine.run(SCRIPT, "quality", "-s", "my data", cwd=machine.elsewhere))
    (call,) = machine.calls(f"{machine.repository}/train.py")
    assert call[2:6] == ["-s", "my data", "-m", "output/quality_my data"]
    assert (machine.elsewhere / "output" / "quality_my data").is_dir()
    shown = next(line for line in out.splitlines() if line.startswith("+ "))
    assert shlex.split(shown)[1:] == call


def test_the_status_of_the_training_is_passed_on(machine: Machine, data: str) -> None:
    stopped = machine.run(SCRIPT, "baseline", "-s", data, STUB_TRAINING_STOPS="yes")
    assert stopped.returncode == 130 and "Pictures and metrics" not in stopped.stdout


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        ("balanced", {"SUBJECT": "306"}, ["SUBJECT is 306", "DATA_DIR", "-s"]),
        ("balanced", {"SUBJECT": "306", "DATA_DIR": "data/306"}, ["SUBJECT is 306", "no folder data/306", "DATA_DIR"]),
        ("balanced", {}, ["DATA_DIR", "-s"]),
        ("balanced -s nowhere", {}, ["no folder nowhere", "-s"]),
        ("balanced -m out -s", {}, ["-s needs a value"]),
        ("balanced --model_path=", {}, ["--model_path is empty"]),
        ("demo -s mine", {}, ["balanced -s mine"]),
        ("fancy -s mine", {}, ["unknown mode 'fancy'", "balanced, ultra, quality, baseline, demo"]),
    ],
)
def test_mistakes_are_one_sentence(machine: Machine, words: str, variables: dict[str, str], told: list[str]) -> None:
    refused(machine.run(SCRIPT, *words.split(), **variables), *told)
    assert not machine.calls()


# ---- on a terminal ---------------------------------------------------------------------


def talk(machine: Machine, *answers: tuple[str, str], cwd: Path | None = None, **variables: str) -> tuple[int, str]:
    """Runs the script without arguments on a pseudo-terminal.

    Args:
        answers: (what is waited for, what is typed then).

    Returns:
        Its exit status and everything that stood on the terminal.
    """
    machine.log.write_text("")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [str(machine.repository / SCRIPT)],
        cwd=cwd or machine.repository,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**machine.variables, "TERM": "dumb", **variables},
    )
    os.close(slave)
    shown, seen = "", 0
    waiting, deadline = list(answers), time.monotonic() + 60
    while time.monotonic() < deadline:
        if waiting and (found := shown.find(waiting[0][0], seen)) >= 0:
            expected, answer = waiting.pop(0)
            seen = found + len(expected)
            os.write(master, answer.encode())
        if select.select([master], [], [], 0.05)[0]:
            try:
                piece = os.read(master, 4096)
            except OSError:  # Linux's way to say that the other side is closed
                break
            if not piece:
                break
            shown += piece.decode()
    else:
        process.kill()
        raise AssertionError(f"waited in vain for {waiting[:1]}; the terminal shows: {shown}")
    os.close(master)
    return process.wait(10), shown.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("number", "preset"), [("1", "balanced"), ("2", "ultra"), ("3", "quality"), ("4", "baseline"), ("", "balanced")]
)
def test_the_menu(machine: Machine, data: str, number: str, preset: str) -> None:
    status, shown = talk(machine, ("1 to 4 [1]: ", f"{number}\n"), ("data set: ", f"{data}\n"))
    assert status == 0, shown
    lines = shown.splitlines()
    assert [line.split() for line in lines[1:5]] == [
        ["1", "Balanced"],
        ["2", "Ultra-Efficient"],
        ["3", "Quality-First"],
        ["4", "Baseline"],
    ]
    assert trained(machine) == [
        "-s",
        data,
        "-m",
        f"output/{preset}_head 306",
        *RIGGED,
        "--interval",
        "60000",
        "--preset",
        preset,
    ]
    assert shlex.split(next(line for line in lines if line.startswith("+ ")))[1:] == machine.calls("train.py")[0]


def test_wrong_answers_are_asked_again_and_the_environment_is_offered(machine: Machine, data: str) -> None:
    status, shown = talk(
        machine,
        ("[1]: ", "5\n"),
        ("There is no '5' in the list.\r\n1 to 4 [1]: ", "3\n"),
        (f"data set [{data}]: ", "nowhere\n"),
        (f"There is no folder 'nowhere'.\r\nFolder of the data set [{data}]: ", "\n"),
        SUBJECT="306",
        DATA_DIR=data,
    )
    assert status == 0, shown
    assert trained(machine)[:4] == ["-s", data, "-m", "output/quality_306"]


def test_the_home_folder_and_the_callers_folder(machine: Machine) -> None:
    home = Path(machine.variables["HOME"])
    (home / "at home").mkdir()
    status, shown = talk(machine, ("[1]: ", "2\n"), ("data set: ", "~/at home\n"), cwd=machine.elsewhere)
    assert status == 0, shown
    (call,) = machine.calls(f"{machine.repository}/train.py")
    assert call[2:6] == ["-s", f"{home}/at home", "-m", "output/ultra_at home"]


def test_leaving_the_menu(machine: Machine) -> None:
    status, shown = talk(machine, ("[1]: ", "\x04"))
    assert status == 2 and "error: no answer" in shown and not machine.calls()


def test_without_a_terminal_there_are_no_questions(machine: Machine) -> None:
    result = machine.run(SCRIPT)
    assert result.returncode == 2 and not result.stdout
    assert "train_efficient.sh balanced" in result.stderr and not machine.calls()


# ---- the demo -------------------------------------------------------------------------


def test_the_demo_twice(machine: Machine) -> None:
    machine.active_python("requirements.txt")
    root = machine.repository / "output" / "demo"
    out = succeeded(machine.run("train_efficient.sh", "demo", "--lambda_dssim", "0.3"))
    data, training, rendering = machine.calls()[1:]  # after the check of the environment
    assert data == ["python", "-m", "synthetic", f"{root}/data"]
    assert training[:6] == ["python", "train.py", "-s", f"{root}/data", "-m", f"{root}/model"]
    assert training[training.index("--preset") + 1] == "balanced" and "--scale_schedule" in training
    assert training[-4:] == ["--start_checkpoint", "auto", "--lambda_dssim", "0.3"]
    assert rendering[:6] == ["python", "render.py", "-m", f"{root}/model", "--iteration", "4000"]
    for path in (
        "val/ours_4000/renders",
        "test/ours_4000/renders",
        "val/ours_4000/renders.mp4",
        "test/ours_4000/comparison.png",
    ):
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
    out = succeeded(
        machine.run(
            "train_efficient.sh", "demo", cwd=machine.elsewhere, DEMO_DIR=str(folder) if name == "/absolute" else name
        )
    )
    assert f"Video:      {folder}/model/val/ours_4000/renders.mp4" in out
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


def test_the_demo_with_its_own_length_and_folder(machine: Machine) -> None:
    out = succeeded(machine.run(SCRIPT, "demo", "--iterations", "6_00", "-m", "my model", cwd=machine.elsewhere))
    model = machine.elsewhere / "my model"
    training, rendering = machine.calls("train.py")[0], machine.calls("render.py")[0]
    assert training[training.index("-m") + 1] == str(model) == rendering[rendering.index("-m") + 1]
    assert training[training.index("--iterations") + 1] == "600" == rendering[rendering.index("--iteration") + 1]
    assert training.count("-m") == training.count("--iterations") == 1
    assert f"Video:      {model}/val/ours_600/renders.mp4" in out

    # Another length is not done yet, even where its avatar is saved: it trains on, and only its own pictures are named.
    unmeasured = model / "point_cloud" / "iteration_900" / "point_cloud.ply"
    unmeasured.parent.mkdir()
    unmeasured.touch()
    out = succeeded(machine.run(SCRIPT, "demo", "--iterations=900", "-m", "my model", cwd=machine.elsewhere))
    assert len(machine.calls("train.py")) == 1 and "ours_900" in out and "ours_600" not in out
    out = succeeded(machine.run(SCRIPT, "demo", "--iterations=600", "-m", "my model", cwd=machine.elsewhere))
    assert not machine.calls("train.py") and "ours_600" in out and "ours_900" not in out


@pytest.mark.parametrize("arguments", [["help"], ["--help"], ["-h"], ["demo", "--help"], ["ultra", "-h"]])
def test_help_from_another_folder(machine: Machine, arguments: list[str]) -> None:
    out = succeeded(machine.run("train_efficient.sh", *arguments, cwd=machine.elsewhere))
    assert "train_efficient.sh demo" in out and "DEMO_DIR" in out
    assert not machine.calls()


def test_called_by_a_relative_path_where_CDPATH_is_set(machine: Machine) -> None:
    (machine.elsewhere / machine.repository.name).mkdir()
    result = subprocess.run(
        ["bash", f"{machine.repository.name}/train_efficient.sh", "help"],
        text=True,
        cwd=machine.repository.parent,
        capture_output=True,
        env={**machine.variables, "CDPATH": str(machine.elsewhere)},
    )
    assert "train_efficient.sh demo" in succeeded(result)
