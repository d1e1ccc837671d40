"""The ablation benchmark: what it makes of runs, which runs it does, and the turns of its timing."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import ROOT
from runs import train_on

from arguments import ManyOptions
from benchmarks.ablation import __main__ as ablation
from benchmarks.ablation import measure, report
from benchmarks.common import HEAD, format_tables
from benchmarks.timing import ratio, time_in_turns
from utils.errors import UserError

FLAGS = ["-s", "/captures/somebody", "--iterations", "100", "--seed", "0"]


# ---- which runs -------------------------------------------------------------------


def make_run(out: Path, row: str, seed: int, psnr: float, *, points: int = 1000, flip: float = 0.1) -> Path:
    """A finished and measured run, as far as the report looks."""
    folder = out / "runs" / f"{row}_seed{seed}"
    folder.mkdir(parents=True)
    means = {"psnr": psnr, "ssim": 0.9, "l1": 0.01, "flip": flip, "lpips_vgg": None}
    regions = {
        "eyes": {"psnr": psnr - 5, "error_share": 0.25, "area_share": 0.1},
        "rest": {"psnr": psnr + 5, "error_share": 0.75, "area_share": 0.9},
    }
    files = {
        "ablation": {"flags": FLAGS},
        "results": {
            "metrics": {"val": means, "test": means},
            "points": points,
            "seconds": 8.0,
            "peak_memory": {"host_bytes": 2 * 10**9, "cuda_bytes": None},
            "device": "Abacus, 2 threads",
            "git_commit": "0123456789abcdef-dirty",
        },
        "measured": {
            "regions": {"val": regions},
            "curves": {
                "points": [[50, 900], [100, points]],
                "seconds": [[50, 4.0], [100, 8.0]],
                "val/psnr": [[50, psnr - 1]],
            },
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_to_do_with_a_folder(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "baseline", 0, 30.0)
    assert ablation.what_to_do(tmp_path / "nothing", FLAGS) == "start"
    assert ablation.what_to_do(folder, FLAGS) == "skip"
    (folder / "results.json").unlink()
    assert ablation.what_to_do(folder, FLAGS) == "start"  # killed before its first checkpoint
    (folder / "chkpnt33.pth").touch()
    assert ablation.what_to_do(folder, FLAGS) == "continue"


def test_runs_of_others_are_left_alone(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "baseline", 0, 30.0)
    with pytest.raises(UserError, match="other flags"):
        ablation.what_to_do(folder, [*FLAGS, "--use_amp"])
    (folder / "ablation.json").unlink()
    with pytest.raises(UserError, match="not made by this benchmark"):
        ablation.what_to_do(folder, FLAGS)
    assert (folder / "results.json").exists()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """In place of train.py: writes down how it was called, and fails at its first try."""
    path = tmp_path / "train.py"
    path.write_text(
        "import pathlib, sys\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('-m') + 1])\n"
        "first = not (out / 'chkpnt33.pth').exists()\n"
        "(out / 'chkpnt33.pth').touch()\n"
        "(out / 'called').write_text(' '.join(sys.argv[1:]))\n"
        "if first: sys.exit('error: no room')\n"
        "(out / 'results.json').write_text('{\"iterations\": 100}')\n"
    )
    return path


def test_train_one_starts_continues_and_tells_failures(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "ROOT", script.parent)
    folder = tmp_path / "runs" / "baseline_seed0"
    with pytest.raises(UserError, match="status 1: error: no room"):
        ablation.train_one(folder, FLAGS, 100)
    assert "--save_iterations 100 --checkpoint_iterations 33 66 100" in (folder / "called").read_text()
    ablation.train_one(folder, FLAGS, 100)
    assert (folder / "called").read_text().endswith("--start_checkpoint auto --quiet")
    assert ablation.what_to_do(folder, FLAGS) == "skip"
    assert not list(folder.glob("*.pth"))


def test_on_a_cluster(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows are subjects: what fails stands in the summary, and is gone on with; here without Ray."""
    monkeypatch.setattr("fleet.work.ROOT", script.parent)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(ablation, "ManyOptions", lambda address, **given: ManyOptions(local=True, **given))
    words = f"-s {tmp_path} --out {tmp_path} --address HOST:1 --cpus 2 --iterations 100 --rows baseline,amp --seeds 1"
    options = ablation.parse(words.split())
    make_run(tmp_path, "amp", 0, 30.0)
    (tmp_path / "runs" / "amp_seed0" / "ablation.json").write_text(
        json.dumps({"flags": ablation.command_of(options, "amp", 0)})
    )
    with pytest.raises(UserError, match="^baseline_seed0 failed: why, says .*summary.md"):
        ablation.run_quality(options)
    assert "no room" in (tmp_path / "runs" / "summary.md").read_text()
    ablation.run_quality(options)
    folder = tmp_path / "runs" / "baseline_seed0"
    called = (folder / "called").read_text()
    assert "--iterations 100 --seed 0" in called and "--threads 2 --start_checkpoint auto" in called
    assert ablation.what_to_do(folder, ablation.command_of(options, "baseline", 0)) == "skip"
    assert not list(folder.glob("*.pth")) and "baseline_seed0: done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "baseline,magic"], "no such row"),
        (["--iterations", "0"], "--iterations must"),
        (["--together", "1"], "--together"),
        (["--cpus", "2"], "--cpus is for --address"),
        (["--iterations", "30"], "too short to be timed"),
        (["--", "--no_such_flag"], "row baseline: unrecognized arguments"),
    ],
)
def test_bad_options(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ablation.parse(["-s", str(tmp_path), "--out", str(tmp_path / "out"), "--rows", "baseline", *words])
    assert not (tmp_path / "out").exists()


def test_train_accepts_every_row(tmp_path: Path) -> None:
    assert ablation.parse(["-s", str(tmp_path), "--out", str(tmp_path)]).rows == list(ablation.ROWS)


def test_a_part_of_the_warm_start_is_the_whole_less_the_others() -> None:
    assert (
        ablation.ROWS["warm_colors"]
        == (
            "--use_warm_start --warm_opacity 0.1 --warm_scale 1 --no_warm_skip_resets --warm_feature_lr_factor 1 "
            "--warm_expr_lr_factor 1 --warm_trans_lr_factor 1 --warm_pose_lr_factor 1"
        ).split()
    )


def test_the_flags_of_a_run(tmp_path: Path) -> None:
    words = f"-s {tmp_path} --out out --rows baseline,baseline --scale_schedule -- --densify_grad_threshold 0.001"
    options = ablation.parse(words.split())
    assert options.rows == ["baseline"]
    expected = f"-s {tmp_path} {' '.join(HEAD)} --scale_schedule --densify_grad_threshold 0.001 --iterations 6000"
    assert ablation.command_of(options, "baseline", 2) == [*expected.split(), "--seed", "2"]


# ---- aggregation ------------------------------------------------------------------


def test_spread() -> None:
    assert report.spread([1.0, None, 4.0, 2.5]) == report.Spread(2.5, 1.5, 3)
    assert report.spread([None]) is None


def test_changes_pair_runs_of_the_same_seed(tmp_path: Path) -> None:
    # The seeds are 2 dB apart, the change is the same in each: its spread must not see the seeds.
    for seed in (0, 1):
        make_run(tmp_path, "baseline", seed, 30.0 + 2 * seed, points=1000, flip=0.1)
        make_run(tmp_path, "ultra", seed, 30.5 + 2 * seed, points=1200, flip=0.08)
    make_run(tmp_path, "ultra", 2, 99.0)  # has no baseline: counts as a value, not as a change
    runs = ablation.collect(tmp_path, measure.Judge())
    assert [(run["row"], run["seed"]) for run in runs] == [
        ("baseline", 0),
        ("baseline", 1),
        ("ultra", 0),
        ("ultra", 1),
        ("ultra", 2),
    ]
    ultra = report.compare(runs, {"ultra": {0: 1.0, 1: 1.1, 2: 1.6}})["ultra"]
    assert ultra["change"]["val/psnr"] == pytest.approx((0.5, 0.0, 2))
    assert ultra["change"]["val/psnr/eyes"] == pytest.approx((0.5, 0.0, 2))
    assert ultra["change"]["points"] == pytest.approx((1.2, 0.0, 2))
    assert ultra["change"]["test/flip"] == pytest.approx((0.8, 0.0, 2))
    assert ultra["value"]["val/psnr"].seeds == 3
    assert ultra["value"]["time_ratio"] == pytest.approx((1.1, 0.3, 3))  # the median, not the mean
    assert "val/lpips_vgg" not in ultra["value"] and "seconds" not in ultra["change"]


def test_cells() -> None:
    three = report.Spread(31.184, 0.052, 3)
    assert report.cell(three, ".2f") == "31.18 ±0.05"
    assert report.cell(three._replace(seeds=1), "+.1f") == "+31.2"
    assert report.cell(three, "+.2f") == "+31.18 ±0.05"
    assert report.cell(None, ".2f") is report.percent(None) is None
    assert report.percent(report.Spread(0.85, 0.02, 2)) == "-15.0 ±2.0 %"


def test_the_report_of_fabricated_runs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for seed in (0, 1):
        make_run(tmp_path, "baseline", seed, 30.0, flip=0.1)
        make_run(tmp_path, "ultra", seed, 31.0, flip=0.09)
    make_timings(tmp_path, baseline=1.0, ultra=1.25)
    tables = ablation.report(tmp_path, measure.Judge())
    baseline, ultra = tables[0].rows
    assert ultra["seeds"] == 2 and ultra["time"] == "1.250" and ultra["memory, GB"] == "2.00 ±0.00"
    assert ultra["val PSNR"] == "+1.00 ±0.00" and ultra["test FLIP"] == "-10.0 ±0.0 %"
    assert baseline["val PSNR"] == "30.00 ±0.00" and "val LPIPS" not in baseline
    assert tables[1].rows[0]["eyes"] == "25.00 ±0.00 (25 %)" and tables[1].rows[1]["eyes"] == "+1.00 ±0.00"

    with open(tmp_path / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["row"], line["seed"], line["time_ratio"]) for line in lines] == [
        ("baseline", "0", "1.0"),
        ("baseline", "1", ""),
        ("ultra", "0", "1.25"),
        ("ultra", "1", ""),
    ]
    assert float(lines[2]["val/psnr/eyes"]) == 26.0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["commit"] == "0123456789abcdef-dirty" and found["machine"] == "Abacus, 2 threads"
    assert format_tables(report.Table(**table) for table in found["tables"]) == format_tables(tables)
    for name in ("psnr_val", "points", "regions_val"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert image.width > image.height > 100
    assert not (tmp_path / "psnr_test.png").exists()  # no curve, no plot


def make_timings(out: Path, **factors: float) -> None:
    (out / "timing").mkdir()
    for row, factor in factors.items():
        (out / "timing" / f"{row}_0.json").write_text(
            json.dumps({"flags": FLAGS, "slice": 25, "seconds": [factor] * 4, "baseline": [1.0] * 4})
        )


def test_the_report_of_timings_alone(tmp_path: Path) -> None:
    make_timings(tmp_path, ultra=1.25, baseline=1.0)
    (tmp_path / "command.json").write_text('{"command": "c", "commit": "0123", "machine": "Abacus"}')
    (table,) = ablation.report(tmp_path, measure.Judge())
    assert table.rows == [{"row": "baseline", "time": "1.000"}, {"row": "ultra", "time": "1.250"}]
    found = json.loads((tmp_path / "results.json").read_text())
    assert (found["command"], found["commit"], found["machine"]) == ("c", "0123", "Abacus")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        ablation.report(tmp_path, measure.Judge())


def test_clocks(tmp_path: Path) -> None:
    make_run(tmp_path, "baseline", 0, 30.0)
    make_run(tmp_path, "ultra", 0, 31.0)
    runs = ablation.collect(tmp_path, measure.Judge())
    assert report.clocks(runs)["ultra"] == [(50, 4.0), (100, 8.0)]
    # Timed on a machine twice as fast: a row that takes 1.5 times as long still does so in the runs' seconds.
    for run, seconds in zip(runs, ([1.0, 1.0], [1.5, 1.5])):
        ablation.add_clock(run, {"slice": 25, "seconds": seconds, "baseline": [1.0, 1.0]})
    assert report.clocks(runs) == {"baseline": [(26, 4.0), (51, 8.0)], "ultra": [(26, 6.0), (51, 12.0)]}


def test_curves_over_seeds_and_time() -> None:
    assert report.mean_curve([[[10, 1.0], [20, 2.0]], [[20, 4.0], [30, 9.0]]]) == [(20, 3.0)]
    assert report.mean_curve([]) == []
    assert report.over_time([(20, 5.0), (40, 6.0)], [(11, 1.0), (21, 2.0)]) == [(2.0, 5.0)]


# ---- regions ----------------------------------------------------------------------


def test_triangles_belong_where_most_of_their_vertices_do() -> None:
    faces = np.array([[0, 1, 2], [2, 3, 4], [4, 5, 6], [6, 7, 8]])
    masks = {"face": np.arange(6), "nose": np.array([3, 4]), "lips": np.array([5]), "scalp": np.arange(9)}
    names = [measure.REGIONS[place] for place in measure.face_regions(faces, masks)]
    assert names == ["face", "nose", "face", "rest"]


def test_outline_against_distances() -> None:
    y, x = np.mgrid[:40, :50]
    foreground = (x - 25) ** 2 + (y - 39) ** 2 < 15**2  # cut by the lower edge of the image
    ours = measure.outline(foreground)
    here, there = np.argwhere(foreground), np.argwhere(~foreground)
    distance = np.linalg.norm(here[:, None] - there[None], axis=-1)
    expected = np.zeros_like(foreground)
    expected[tuple(here[distance.min(axis=1) <= 2].T)] = True
    expected[tuple(there[distance.min(axis=0) <= 2].T)] = True
    np.testing.assert_array_equal(ours, expected)
    assert not ours[39, 25]  # the image's edge is no outline
    assert not measure.outline(np.ones((4, 4), bool)).any() and not measure.outline(np.zeros((4, 4), bool)).any()


def test_regions_partition_the_error() -> None:
    rng = np.random.default_rng(0)
    face = rng.integers(-1, 3, (30, 20))
    regions = np.array([measure.REGIONS.index(name) for name in ("eyes", "face", "rest")])
    foreground = np.zeros((30, 20), bool)
    foreground[8:22, 5:15] = True
    labels = measure.label_pixels(face, regions, foreground)
    assert labels[12, 10] == (regions[face[12, 10]] if face[12, 10] >= 0 else measure.REGIONS.index("rest"))
    assert (labels[6:10, 5:15] == measure.REGIONS.index("silhouette")).all()
    image, target = rng.random((2, 3, 30, 20))
    errors = measure.RegionError()
    errors.add(image, target, labels)
    errors.add(target, target, labels)
    summary = errors.summary()
    assert sum(part["error_share"] for part in summary.values()) == pytest.approx(1)
    assert sum(part["area_share"] for part in summary.values()) == pytest.approx(1)
    eyes = labels == measure.REGIONS.index("eyes")
    # Twice the pixels, the same error.
    assert summary["eyes"]["psnr"] == pytest.approx(-10 * math.log10(np.square(image - target)[:, eyes].mean() / 2))
    assert summary["mouth"]["psnr"] is None


def test_measuring_a_run(capture: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = train_on(capture, folder, "--iterations 20 --test_iterations 10")
    measured = measure.Judge().measure(folder, results)
    view = measured["regions"]["val"]
    # Nothing of the ball is an eye or a nose: its outline and the rest are the picture.
    assert view["eyes"]["psnr"] is None and view["silhouette"]["area_share"] > 0.05
    assert view["silhouette"]["error_share"] + view["rest"]["error_share"] == pytest.approx(1)
    assert [step for step, _ in measured["curves"]["points"]] == [10, 20]
    assert measured["curves"]["seconds"][-1] == [20, pytest.approx(results["seconds"], abs=2e-3)]
    assert [step for step, _ in measured["curves"]["val/psnr"]] == [10]  # the last one looks at other views
    results["metrics"]["test"]["psnr"] += 0.1
    with pytest.raises(ValueError, match="drawn differently"):
        measure.Judge().measure(folder, results)


# ---- timing -----------------------------------------------------------------------


def test_ratio_forgives_interruptions_and_counts_what_lasts() -> None:
    base = [9.0] + [1.0] * 40 + [3.0] * 40
    own = [1.0] + [0.5] * 40 + [3.6] * 40  # half the time at first, then a fifth more, where it takes long
    expected = (40 * 0.5 + 40 * 3.6) / (40 * 1.0 + 40 * 3.0)
    assert ratio(own, base) == pytest.approx(expected)
    for place in (3, 17, 50, 51, 75):
        own[place] += 30.0
    for place in (5, 60):
        base[place] += 30.0
    assert ratio(own, base) == pytest.approx(expected)


def test_ratio_cancels_drift() -> None:
    drift = 1 + 0.3 * np.sin(np.arange(201) / 15)
    assert ratio((1.1 * drift).tolist(), drift.tolist()) == pytest.approx(1.1)


@pytest.mark.parametrize("slices", [[1.0], [1.0, 2.0, 3.0]])
def test_ratio_needs_pairs(slices: list[float]) -> None:
    with pytest.raises(ValueError, match="do not pair"):
        ratio(slices, [1.0])


def test_what_is_timed_already(tmp_path: Path) -> None:
    options = ablation.parse(["-s", str(tmp_path), "--out", str(tmp_path), "--rows", "baseline"])
    assert not ablation.timing_is_done(options, "baseline", 1)
    path = ablation.timing_of(tmp_path, "baseline", 1)
    path.parent.mkdir()
    path.write_text(json.dumps({"flags": ablation.command_of(options, "baseline", 1)}))
    assert ablation.timing_is_done(options, "baseline", 1)
    options.extra = ["--sh_degree", "0"]
    with pytest.raises(UserError, match="other flags"):
        ablation.timing_is_done(options, "baseline", 1)


def test_trainings_take_turns(capture: Path) -> None:
    flags = ["-s", str(capture), *HEAD, "--iterations", "11", "--device", "cpu", "--threads", "1"]
    turns: list[None] = []
    seconds = time_in_turns(
        {"ours": flags, "": [*flags, "--sh_degree", "0"]}, 3, length=3, on_slice=lambda: turns.append(None)
    )
    # Iterations 2 to 10: the first ends the building, the last would evaluate.
    assert {name: len(slices) for name, slices in seconds.items()} == {"ours": 3, "": 3} and len(turns) == 6
    assert all(value > 0 for slices in seconds.values() for value in slices)


def test_a_training_that_stops_ends_the_timing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="timed training of ours stopped: .*nowhere"):
        time_in_turns({"ours": ["-s", str(tmp_path / "nowhere"), "--iterations", "9"]}, 1)
