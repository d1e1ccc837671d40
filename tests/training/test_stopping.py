"""Stopping train.py from outside, checkpoints by the clock, and one run per folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from places import ROOT
from runs import assert_same_run, flags, in_each_iteration, train_on

from training import listeners, setup
from utils.errors import UserError
from utils.files import only_writer
from utils.interrupt import Alarm, StopSignals

STEPS = 300
SCHEDULE = f"--iterations {STEPS} --interval {STEPS} --densify_from_iter 50 --densification_interval 50"


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """A suite started in the background or with nohup ignores SIGINT and SIGHUP, and so would these tests."""
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stops."""
    model = tmp_path_factory.mktemp("stopping-whole") / "model"
    train_on(capture, model, SCHEDULE)
    return model


def test_a_signal_saves_and_the_run_goes_on_bit_identical(whole: Path, capture: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    words = flags(capture, stopped, SCHEDULE, "--checkpoint_every_minutes 1e-4")
    process = subprocess.Popen([sys.executable, "train.py", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(stopped.glob("chkpnt*.pth")):  # it is in its loop
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 143 and "Traceback" not in told
    reached = max(int(path.stem.removeprefix("chkpnt")) for path in stopped.glob("chkpnt*.pth"))
    assert f"stopped by SIGTERM after iteration {reached}" in told and "--start_checkpoint auto" in told
    assert reached < STEPS and not (stopped / "results.json").exists()
    train_on(capture, stopped, SCHEDULE, "--start_checkpoint auto")
    assert_same_run(whole, stopped, STEPS)


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_the_iteration_is_finished(
    whole: Path,
    capture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    stopped = tmp_path / "stopped"

    def interrupted(step: int, terms: object) -> object:
        if step == 123:
            signal.raise_signal(number)
        return terms

    with monkeypatch.context() as patch:
        in_each_iteration(patch, interrupted)
        with pytest.raises(SystemExit) as end:
            train_on(capture, stopped, SCHEDULE)
    assert end.value.code == status and f"stopped by {number.name} after iteration 123" in capsys.readouterr().err
    assert [path.name for path in stopped.glob("chkpnt*.pth")] == ["chkpnt123.pth"]
    train_on(capture, stopped, SCHEDULE, "--start_checkpoint auto")
    assert_same_run(whole, stopped, STEPS)


def test_stopped_in_the_last_iteration_it_only_measures_when_resumed(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    save = listeners.save_avatar

    def interrupted(*args: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        save(*args)

    monkeypatch.setattr(listeners, "save_avatar", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train_on(capture, model, "--iterations 9")
    assert stopped.value.code == 143 and "after iteration 9" in capsys.readouterr().err
    monkeypatch.undo()
    assert train_on(capture, model, "--iterations 9 --start_checkpoint auto")["metrics"]["val"]


def test_signals_act_at_once_while_nothing_can_be_lost(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first iteration, and while the end, which is saved, is measured."""

    def interrupted(*args: object, **named: object) -> None:
        signal.raise_signal(signal.SIGINT)

    for place, name, kept in ((setup, "dataset_of", []), (listeners.Evaluation, "final", ["chkpnt9.pth"])):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                train_on(capture, tmp_path / "model", "--iterations 9")
        assert [path.name for path in (tmp_path / "model").glob("chkpnt*.pth")] == kept


def test_the_early_evaluation_moves_no_bit(capture: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name, more in (("with", ""), ("without", "--test_iterations 1000")):
        train_on(capture, tmp_path / name, "--iterations 100", *more.split(), quiet=False)
        assert ("[1] val: psnr " in capfd.readouterr().out) == (name == "with")
    assert_same_run(tmp_path / "with", tmp_path / "without", 100)


def test_checkpoints_by_the_clock_and_only_the_newest(capture: Path, tmp_path: Path) -> None:
    clock = "--iterations 9 --interval 100 --checkpoint_every_minutes 1e-9 --checkpoint_iterations 2"
    train_on(capture, tmp_path / "model", clock)
    # Three, and those that were typed.
    assert {path.stem for path in (tmp_path / "model").glob("chkpnt*")} == {f"chkpnt{step}" for step in (2, 7, 8, 9)}
    assert [path.name for path in (tmp_path / "model" / "point_cloud").iterdir()] == ["iteration_9"]


def test_a_folder_takes_one_run_at_a_time(capture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    with only_writer(model):
        with pytest.raises(UserError, match="another run is writing into .*model"):
            train_on(capture, model, "--iterations 9")
        assert [path.name for path in model.iterdir()] == [".lock"]
    program = (
        "import time\nfrom utils.files import only_writer\n"
        f"with only_writer({str(model)!r}):\n    print('held', flush=True)\n    time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="another run"), only_writer(model):
        pass
    holder.kill()  # a dead process holds nothing
    holder.wait()
    with only_writer(model):
        pass


def test_the_second_signal_is_the_ordinary_one() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """nohup, and what a shell starts in the background."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("utils.interrupt.time.monotonic", lambda: now[0])
    alarm, never = Alarm(5.0), Alarm(0.0)
    now[0] = 104.9
    assert not alarm.due()
    now[0] = 105.0
    assert alarm.due() and not never.due()
    alarm.restart()
    assert not alarm.due()
