"""The bar, the TensorBoard curves, the stage timer and results.json."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import curves

from evaluation import results
from training import reporter as report
from training import stages
from training.reporter import Reporter


def test_curves_hold_the_means_under_the_names_of_the_losses(tmp_path: Path) -> None:
    with Reporter(tmp_path, 25, every=10, quiet=True) as reporter:
        for iteration in range(1, 26):
            reporter.step(iteration, {"total": torch.tensor(float(iteration)), "xyz": 2.0}, points=iteration)
    found = curves(tmp_path)
    assert set(found) == {"loss/total", "loss/xyz", "points/total", "time/iteration_ms"}
    # Means of 1..10, 11..20, 21..25: the last iteration is read although it is no multiple.
    assert found["loss/total"] == {10: 5.5, 20: 15.5, 25: 23.0}
    assert [*found["loss/xyz"].values()] == [2.0, 2.0, 2.0]
    assert [*found["points/total"].values()] == [10, 20, 25]


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
    found = curves(tmp_path)
    assert found["loss/total"] == {step: 1.0 if step <= 40 else 3.0 for step in range(10, 101, 10)}
    assert found["val/psnr"] == {40: 20.0, 60: 22.0} and "val/lpips_vgg" not in found


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
    assert [*curves(tmp_path)["time/iteration_ms"].values()] == pytest.approx([20.0, 20.0, 40.0], rel=1e-4)


def test_pictures_show_the_ground_truth_once(tmp_path: Path) -> None:
    image, target = torch.rand(3, 8, 6), torch.rand(3, 8, 6)
    with Reporter(tmp_path, 100, quiet=True) as reporter:
        reporter.picture(10, "val/0003", image, target)
        reporter.picture(20, "val/0003", image, target)
    found = curves(tmp_path)
    assert list(found["val/0003/render"]) == list(found["val/0003/error"]) == [10, 20]
    (ground_truth,) = found["val/0003/ground_truth"].items()
    assert ground_truth[0] == 10 and Image.open(io.BytesIO(ground_truth[1])).size == (6, 8)


def test_the_bar_shows_losses_and_quiet_shows_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for quiet in (False, True):
        with Reporter(tmp_path, 10, every=10, quiet=quiet) as reporter:
            for iteration in range(1, 11):
                reporter.step(iteration, {"total": 0.25}, points=12_345)
            reporter.evaluation(10, "val", {"psnr": 31.5, "lpips_vgg": None})
        out, err = capfd.readouterr()
        if quiet:
            assert out == "" and err == ""
        else:
            assert "total 0.2500" in err and "12.3k" in err and "10/10" in err
            assert out == "[10] val: psnr 31.5000\n"


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
