"""The time to a quality: what is measured, and when the clock stands still."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import time_to_quality
from benchmarks.clocked import Clock
from benchmarks.time_to_quality import Point, first_as_good, saves_of
from utils.errors import UserError


def test_the_clock_stands_still_while_an_avatar_is_saved() -> None:
    clock, steps = Clock((2, 3)), 0
    begun, saving = clock.begun, 0.0
    with pytest.raises(SystemExit):
        for steps in range(1, 10):
            with clock("report"):
                pass
            if steps in (2, 3):
                time.sleep(0.05)
                saving = 0.05 if steps == 2 else saving
            with clock("density"):
                pass
            clock.end_iteration()
    assert steps == 3 and list(clock.times) == [2, 3]
    assert 0 <= clock.times[2] <= clock.times[3] <= time.perf_counter() - begun - 2 * saving


def test_all_three_metrics_must_be_reached() -> None:
    wanted = {"psnr": 30.0, "ssim": 0.9, "flip": 0.07}
    points = [
        Point(1, 1.0, {"psnr": 31.0, "ssim": 0.95, "flip": 0.08}),
        Point(2, 2.0, {"psnr": 29.9, "ssim": 0.95, "flip": 0.05}),
        Point(3, 3.0, {"psnr": 30.0, "ssim": 0.9, "flip": 0.07}),
    ]
    assert first_as_good(points, wanted) is points[2]
    assert first_as_good(points[:2], wanted) is None


def test_saves_are_spread_and_end_with_the_run() -> None:
    assert saves_of(300, 4) == [75, 150, 225, 300]
    assert saves_of(2, 4) == [1, 2]  # rounded, without doubles and without 0


def test_a_reference_and_a_candidate(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, written = tmp_path / "out", tmp_path / "figures.json"
    words = ["-s", str(capture), "--out", str(out), "--iterations", "6", "--lengths", "4", "--saves", "2"]
    more = ["--", "--scale_schedule", "--device", "cpu"]
    argv = [time_to_quality.__file__, *words, "--json", str(written), *more]
    monkeypatch.setattr(sys, "argv", argv)
    time_to_quality.main()
    kept = json.loads((out / "reference.json").read_text())
    assert [point["iteration"] for point in kept["points"]] == [3, 6]
    assert 0 < kept["points"][0]["seconds"] < kept["points"][1]["seconds"]
    assert set(kept["points"][1]["quality"]) == {"psnr", "ssim", "flip"}
    (table,) = json.loads(written.read_text())["tables"]
    reference, candidate = table["rows"]
    assert reference["time"] == "1/1.0" and candidate["run"] == "fast, 4 iterations"
    assert candidate["all three"] in ("yes", "no") and candidate["seconds"] > 0
    assert {path.name for path in out.glob("*.png")} == {"psnr.png", "ssim.png", "flip.png"}
    assert "reference" in capsys.readouterr().out.splitlines()[-1]
    # Another reference does not pass for this one.
    monkeypatch.setattr(sys, "argv", [*argv, "--seed", "1"])
    with pytest.raises(UserError, match=r"reference\.json was made with other flags"):
        time_to_quality.main()
