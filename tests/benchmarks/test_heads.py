"""The comparison over several heads: the mean, and the worst in the right direction."""

from __future__ import annotations

import pytest

from benchmarks.ablation.report import compare
from benchmarks.heads import HEADS, parse, tables_of
from utils.errors import UserError


def run(row: str, psnr: float, points: int) -> dict[str, object]:
    metrics = {"val": {"psnr": psnr, "lpips_vgg": 0.1}}
    memory = {"host_bytes": 1, "cuda_bytes": None}
    return {"row": row, "seed": 0, "seconds": 1.0, "points": points, "metrics": metrics, "peak_memory": memory}


def test_mean_and_worst_over_the_heads() -> None:
    one = compare([run("baseline", 30.0, 100), run("ultra", 32.0, 80)], {})
    other = compare([run("baseline", 25.0, 100), run("ultra", 26.5, 120)], {"ultra": {0: 1.25}})
    psnr, lpips, points, time = tables_of({"one": one, "other": other})
    assert psnr.rows == [{"row": "ultra", "one": "+2.00", "other": "+1.50", "mean": "+1.75", "worst": "+1.50"}]
    assert points.rows == [{"row": "ultra", "one": "0.80", "other": "1.20", "mean": "1.00", "worst": "1.20"}]
    assert time.rows == [{"row": "ultra", "one": None, "other": "1.250", "mean": "1.250", "worst": "1.250"}]
    assert lpips.rows[0]["worst"] == "1.000"


def test_heads_of_ones_own_stand_beside_the_procedural_ones(tmp_path) -> None:
    options, extra = parse(["--out", str(tmp_path), "--captures", f"mine={tmp_path}", "--", "--scale_schedule"])
    assert list(options.heads) == [*HEADS, "mine"] and extra == ["--scale_schedule"]
    options, _ = parse(["--out", str(tmp_path), "--no_procedural", "--captures", f"mine={tmp_path}"])
    assert options.heads == {"mine": tmp_path}


@pytest.mark.parametrize(
    "words", [["--captures", "mine"], ["--captures", "short=x"], ["--no_procedural"], ["--rows", "ultra"]]
)
def test_what_cannot_be_compared_is_refused(tmp_path, words: list[str]) -> None:
    with pytest.raises(UserError):
        parse(["--out", str(tmp_path), *words])
