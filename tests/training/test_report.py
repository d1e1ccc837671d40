"""The bar, the TensorBoard curves, the stage timer and results.json."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from arguments.schedule import DueIterations
from evaluation import results
from training import reporter as report
from training import stages
from training.reporter import Reporter
from utils import progress
from utils.images import to_bytes


def curves(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def test_curves_hold_the_means_under_the_names_of_the_losses(tmp_path: Path) -> None:
    with Reporter(tmp_path, 25, every=10, quiet=True) as reporter:
        for iteration in range(1, 26):
            reporter.step(iteration, {"total": torch.tensor(float(iteration)), "xyz": 2.0}, points=iteration)
    events = curves(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "loss/total",
        "loss/xyz",
        "points/total",
        "time/iteration_ms",
        "time/iterations_per_second",
    }
    # Means of 1..10, 11..20, 21..25: the last iteration is read although it is no multiple.
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(10, 5.5), (20, 15.5), (25, 23.0)]
    assert [e.value for e in events.Scalars("loss/xyz")] == [2.0, 2.0, 2.0]
    assert [e.value for e in events.Scalars("points/total")] == [10, 20, 25]


def test_a_killed_and_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    def steps(reporter: Reporter, first: int, last: int, value: float) -> None:
        for iteration in range(first, last + 1):
            reporter.step(iteration, {"total": torch.tensor(value)}, points=1)

    killed = Reporter(tmp_path, 100, every=10, quiet=True)
    steps(killed, 1, 40, 1.0)
    killed.evaluation(40, "val", {"psnr": 20.0, "lpips_vgg": None})
    killed.flush()  # the checkpoint at 40
    steps(killed, 41, 75, 2.0)
    killed.evaluation(60, "val", {"psnr": 21.0})
    killed.flush()  # these reached the disk too, and no checkpoint knows of them
    with Reporter(tmp_path, 100, start=40, every=10, quiet=True) as resumed:
        steps(resumed, 41, 100, 3.0)
        resumed.evaluation(60, "val", {"psnr": 22.0})
    events = curves(tmp_path)
    found = [(e.step, e.value) for e in events.Scalars("loss/total")]
    assert found == [(step, 1.0 if step <= 40 else 3.0) for step in range(10, 101, 10)]
    assert [(e.step, e.value) for e in events.Scalars("1_val/psnr")] == [(40, 20.0), (60, 22.0)]
    assert "1_val/lpips_vgg" not in events.Tags()["scalars"]


def test_losses_stay_on_the_device_between_readings(tmp_path: Path) -> None:
    # A meta tensor has no value: whatever fetches one fails.
    loss = torch.zeros((), device="meta", requires_grad=True) * 2
    with Reporter(tmp_path, 100, every=10, quiet=True) as reporter:
        for iteration in range(1, 10):
            reporter.step(iteration, {"total": loss, "l1": loss}, points=1)
        assert all(not value.requires_grad for value in reporter._pending["total"])  # holds no graph alive
        with pytest.raises((RuntimeError, NotImplementedError)):
            reporter.step(10, {"total": loss, "l1": loss}, points=1)


@pytest.mark.cuda
def test_only_a_reading_synchronizes_cuda(tmp_path: Path) -> None:
    with Reporter(tmp_path, 100, every=10, quiet=True) as reporter:
        loss = torch.ones((), device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            for iteration in range(1, 10):
                reporter.step(iteration, {"total": loss, "l1": loss}, points=1)
            with pytest.raises(RuntimeError):
                reporter.step(10, {"total": loss, "l1": loss}, points=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Clock:
    """Stands in for `time`: moves only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_iteration_time_leaves_out_pauses_and_survives_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)

    def run(reporter: Reporter, first: int, last: int, seconds: float) -> None:
        for iteration in range(first, last + 1):
            clock.now += seconds
            reporter.step(iteration, {"total": 1.0}, points=1)

    reporter = Reporter(tmp_path, 40, every=10, quiet=True)
    assert reporter.iterations_per_second is None
    run(reporter, 1, 15, 0.02)
    with reporter.pause():
        clock.now += 1000.0
    run(reporter, 16, 20, 0.02)
    assert reporter.seconds == pytest.approx(0.4)
    assert reporter.iterations_per_second == pytest.approx(50.0)
    state = reporter.state_dict()
    reporter.close()

    clock.now += 5000.0
    with Reporter(tmp_path, 40, start=20, every=10, quiet=True) as resumed:
        resumed.load_state_dict(json.loads(json.dumps(state)))
        run(resumed, 21, 30, 0.04)
        assert resumed.seconds == pytest.approx(0.8)
        assert resumed.iterations_per_second == pytest.approx(50.0)  # the median of 20, 20 and 40 ms
    times = [e.value for e in curves(tmp_path).Scalars("time/iteration_ms")]
    assert times == pytest.approx([20.0, 20.0, 40.0], rel=1e-4)


def test_a_picture_has_rendering_truth_and_error_side_by_side(tmp_path: Path) -> None:
    image, truth = torch.rand(3, 8, 6), torch.rand(3, 8, 6)
    with Reporter(tmp_path, 100, quiet=True) as reporter:
        reporter.picture(10, "val", "camera_8_timestep_00003", image, truth)
        reporter.picture(20, "val", "camera_8_timestep_00003", image, image)
    found = curves(tmp_path).Images("1_val/camera_8_timestep_00003/render_truth_error")
    assert [(e.step, e.width, e.height) for e in found] == [(10, 18, 8), (20, 18, 8)]
    first, second = (np.asarray(Image.open(io.BytesIO(e.encoded_image_string))) for e in found)
    assert (first[:, :6] == to_bytes(image)).all() and (first[:, 6:12] == to_bytes(truth)).all()
    assert first[:, 12:].max() > 20 and second[:, 12:].max() < 10


def test_options_are_text_and_hparams(tmp_path: Path) -> None:
    with Reporter(tmp_path, 100, quiet=True) as reporter:
        reporter.options({"iterations": 100, "use_amp": True, "target_path": None, "cameras": (1, 2)}, ["val"])
        reporter.evaluation(100, "val", {"psnr": 30.0})
    events = curves(tmp_path)
    (text,) = events.Tensors("options/text_summary")
    assert b"| cameras | `(1, 2)` |" in text.tensor_proto.string_val[0]
    metadata = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    content = HParamsPluginData.FromString(metadata).experiment
    assert {info.name for info in content.hparam_infos} == {"iterations", "use_amp", "target_path", "cameras"}
    assert "1_val/psnr" in {info.name.tag for info in content.metric_infos} & set(events.Tags()["scalars"])


def test_gauges_are_curves_of_fewer_points(tmp_path: Path) -> None:
    with Reporter(tmp_path, 250, every=10, quiet=True) as reporter:
        reporter.gauges = lambda step: {"learning_rate/xyz": step}
        for step in range(1, 251):
            reporter.step(step, {"total": 1.0}, points=1)
    assert [(e.step, e.value) for e in curves(tmp_path).Scalars("learning_rate/xyz")] == [
        (100, 100.0),
        (200, 200.0),
        (250, 250.0),
    ]


# ---- what is said ---------------------------------------------------------------------

LOSSES = {"total": 0.25, "l1": 0.123456, "scale": 0.0, "col_reg": 1.234e-5}


def steps(folder: Path, *, quiet: bool = False, last: int = 200) -> None:
    with Reporter(folder, last, every=10, quiet=quiet) as reporter:
        reporter.next_evaluation = DueIterations(last, 1000, frozenset(), early=150).after
        for iteration in range(1, last + 1):
            reporter.step(iteration, LOSSES, points=12_345)
            if iteration == 100:
                reporter.say("a line")
                reporter.say("for the log", shown=False)
        reporter.evaluation(last, "val", {"psnr": 31.5, "lpips_vgg": None})
        reporter.warn("a warning")


def test_a_log_gets_plain_lines_and_quiet_shows_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    steps(tmp_path)
    out, err = capfd.readouterr()
    *lines, warning = err.split("\n")[:-1]
    assert len(lines) == 20 and warning == "a warning"
    for line in lines:
        assert line == line.strip() and line.isprintable()
        assert line.endswith("12.3k Gaussians, total 0.25, l1 0.12, col_reg 1.2e-05")
    assert lines[-1].startswith("Training: 200/200 it, ") and ", 00:00 left, " in lines[-1]
    estimate, line, evaluation = out.splitlines()
    assert " iterations/s: about 00:0" in estimate and "the next evaluation is at iteration 150, in 00:00" in estimate
    assert (line, evaluation) == ("a line", "[200] val: psnr 31.5000")
    said = [estimate, line, "for the log", evaluation, "a warning"]
    assert (tmp_path / "train.log").read_text().splitlines() == said
    monkeypatch.undo()
    steps(tmp_path, quiet=True)
    assert capfd.readouterr() == ("", "a warning\n")
    again = (tmp_path / "train.log").read_text().splitlines()  # a resumed run goes on in it
    assert again[:5] == said and again[6:] == said[1:]


def test_the_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "train.log").symlink_to(tmp_path / "mine")
    steps(tmp_path, quiet=True)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("columns", "shown", "hidden"),
    [
        (200, "12.3k Gaussians, total 0.25, l1 0.12, col_reg 1.2e-05", "scale"),
        (92, "12.3k Gaussians, total 0.25, l1 0.12", "col_reg"),
        (80, "12.3k Gaussians, total 0.25", "col_reg"),
        (70, "12.3k Gaussians, total 0.25", "l1"),
    ],
)
def test_the_bar_shows_what_the_terminal_has_room_for(tmp_path: Path, columns: int, shown: str, hidden: str) -> None:
    """On a terminal of so many columns: rate, time left, Gaussians, the total loss, then the others."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    paths = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:0] = {paths!r}\nfrom pathlib import Path\nfrom test_report import steps\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}steps(Path({str(tmp_path)!r}))"], stdout=theirs, stderr=theirs, cwd=tmp_path
    )
    os.close(theirs)
    text = ""
    with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
        while part := os.read(terminal, 65536):
            text += part.decode()
    os.close(terminal)
    assert process.wait(60) == 0, text
    final = next(part for part in reversed(text.replace("\n", "\r").split("\r")) if "200/200" in part)
    assert len(final) <= columns and shown in final and hidden not in final and "it/s, 00:00 left" in final


def test_stages_add_up_per_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    timer = stages.Stages(True)
    for forward in (1.0, 0.010, 0.030, 0.020):  # the first one builds kernels: skipped below
        for part in (forward / 2, forward / 2):
            with timer("forward"):
                clock.now += part
        clock.now += 0.001  # between the stages: in the total only
        with timer("loss"):
            clock.now += 0.004
        timer.end_iteration()
        clock.now += 7.0  # between the iterations: nowhere
    assert timer.medians(skip=1) == pytest.approx({"forward": 20.0, "loss": 4.0, "total": 25.0})
    assert "40.0 iterations/s" in timer.table(skip=1)


def test_stages_switched_off_record_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "time", None)  # reading the clock would fail
    timer = stages.Stages(False, "cuda")  # and so would synchronising, without a GPU
    with timer("forward"):
        pass
    timer.end_iteration()
    assert timer.medians() == {}


def test_results_are_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.write_results(
        path,
        metrics={"val": {"psnr": math.inf, "l1": 0.5, "lpips_vgg": None}},
        iterations=10,
        points=3,
        seconds=1.5,
        iterations_per_second=20.0,
        device="cpu",
        backend="reference",
        note=[1, math.nan],
    )

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read["metrics"]["val"] == {"psnr": None, "l1": 0.5, "lpips_vgg": None}
    assert read["iterations"] == 10 and read["points"] == 3 and read["note"] == [1, None]
    assert read["peak_memory"]["host_bytes"] > 50e6 and read["peak_memory"]["cuda_bytes"] is None
    assert read["versions"]["torch"] == torch.__version__
