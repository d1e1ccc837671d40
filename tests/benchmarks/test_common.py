"""What the benchmarks share, the comparison of two checkouts, and the pages that the report writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_datasets import load

from benchmarks import common, report, same_bits
from benchmarks.static_scene import static_scene


def test_markdown_aligns_decimals() -> None:
    rows = [{"name": "a", "ms": 29.7, "number": 1200}, {"name": "b", "ms": 3.25, "more": None}]
    assert common.markdown(rows).splitlines() == [
        "| name | ms | number | more |",
        "|---|---|---|---|",
        "| a | 29.70 | 1,200 | – |",
        "| b | 3.25 | – | – |",
    ]


def test_turns_move_on() -> None:
    calls: list[str] = []
    results = common.interleaved({name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}, 2, 1)
    assert "".join(calls) == "abcbcacab"
    assert results == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_the_command_has_no_paths_of_the_machine(tmp_path: Path) -> None:
    options = common.new_parser("", "source_path", "out", "json")
    words = ["-s", str(tmp_path / "somebody"), "--out", "out", "--json", "figures.json"]
    argv = [str(common.ROOT / "benchmarks/ablation/__main__.py"), *words, "--head_model", str(tmp_path / "head.pkl")]
    command = common.typed_command(options.parse_known_args(argv[1:])[0], argv)
    assert command == "python -m benchmarks.ablation -s DATA --out DIR --head_model head.pkl"


def test_a_static_scene_is_one_moment_of_the_capture(capture: Path, tmp_path: Path) -> None:
    scene = load(static_scene(capture, tmp_path / "scene"), bind_to_mesh=False, eval_split=False)
    whole = load(capture, eval_split=False).train
    known = {view.camera.name: view.camera for view in whole}
    assert len(scene.train) == 3 and {view.camera.name[:5] for view in scene.train} == {"00003"}
    for view in scene.train:
        camera = known[view.camera.name]
        torch.testing.assert_close(view.camera.world_to_camera, camera.world_to_camera)
        assert (view.camera.fx, view.camera.fy, view.camera.cx, view.camera.cy) == (60, 62, camera.cx, camera.cy)
    assert scene.points is not None and len(scene.points) == 162
    np.testing.assert_allclose(np.linalg.norm(scene.points, axis=1), 0.1, rtol=1e-5)


def test_differences_of_two_runs(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    saved = old / "point_cloud" / "iteration_1"
    saved.mkdir(parents=True)
    (saved / "point_cloud.ply").write_bytes(b"ply")
    np.savez(saved / "flame_param.npz", expr=np.zeros(3), shape=np.ones(2))
    torch.save({"version": 1, "weights": {"a": torch.zeros(2)}}, saved / "color_calibration.pt")
    (old / "results.json").write_text(json.dumps({"metrics": {"val": {"psnr": 30.0}}, "seconds": 1.0}))
    shutil.copytree(old, new)
    (new / "results.json").write_text(json.dumps({"metrics": {"val": {"psnr": 30.0}}, "seconds": 2.0}))
    assert same_bits.differences(old, new) == []
    changed = new / "point_cloud" / "iteration_1"
    np.savez(changed / "flame_param.npz", expr=np.full(3, 1e-45), shape=np.ones(2))
    torch.save({"version": 1, "weights": {"a": torch.full((2,), -0.0)}}, changed / "color_calibration.pt")
    found = " ".join(same_bits.differences(old, new))
    assert "flame_param.npz expr" in found and "color_calibration.pt a" in found and "shape" not in found
    (changed / "point_cloud.ply").unlink()
    assert same_bits.differences(old, new) == ["the names of the files"]


def test_plots_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(common.UserError, match="pip install -r benchmarks/requirements.txt"):
        common.pyplot()


def test_the_pages_hold_what_the_report_writes() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (common.ROOT / "doc").glob("*.md")}
    assert {name: report.filled(page) for name, page in pages.items()} == pages
    shown = {name for page in pages.values() for _, name, _ in report.BLOCK.findall(page)}
    assert shown == {path.stem for path in report.RESULTS.glob("*.json")}, "published, but on no page"
    assert pages["results.md"].count("<!-- figures") == pages["results.md"].count("<!-- end -->") > 3


def test_a_published_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "raster.json").write_text('{"command": "x"}')
    with pytest.raises(common.UserError, match="raster.json is not a published result"):
        report.filled("<!-- figures: raster -->\n<!-- end -->", tmp_path)
