"""What a run finds in its output folder: never replaced unasked, gone on from where it can be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import flags
from toy_capture import write_capture

import train
from arguments import parse_train
from training import listeners
from utils.errors import UserError
from utils.files import only_writer, write_json


@pytest.fixture(autouse=True)
def _without_lpips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LPIPS_CACHE", str(tmp_path / "no-weights"))


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("folder") / "capture", [0, 1, 2], size=(16, 12))


def run(capture: Path, model: Path, *more: object) -> dict[str, Any]:
    words = ("--iterations", 6, "--interval", 3, "--quiet", "--threads", 1, *more)
    return train.train(parse_train(flags(capture, model, *words)))


@pytest.fixture(scope="module")
def finished(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("folder-finished") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPIPS_CACHE", str(model / "no-weights"))
        run(capture, model)
    return model


def content(model: Path) -> dict[Path, tuple[int, bytes]]:
    """All files but curves and log, which are open from the beginning."""
    files = (path for path in model.rglob("*") if path.is_file() and "tfevents" not in path.name)
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.name != "train.log"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize("left", ["all", "unreadable", "avatar", "named"])
def test_a_run_is_not_replaced_unasked(left: str, finished: Path, capture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished, model)
    expected = "chkpnt6.pth"
    if left in ("avatar", "named"):
        (model / "chkpnt6.pth").rename(model / "chkpnt_best.pth")
        (model / "chkpnt3.pth").unlink()
        expected = "chkpnt_best.pth"
    if left == "avatar":
        (model / "chkpnt_best.pth").unlink()
        expected = "point_cloud/iteration_3/point_cloud.ply"
    if left == "named":
        shutil.rmtree(model / "point_cloud")
    if left == "unreadable":
        for path in model.glob("*.pth"):
            cut(path)
    before = content(model)
    with pytest.raises(UserError, match=rf"already holds a run \({expected}\).*--start_checkpoint auto.*--overwrite"):
        run(capture, model)
    assert content(model) == before


def test_auto_goes_on_only_from_what_it_can_read(
    finished: Path, capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished, model)
    (model / "results.json").unlink()
    cut(model / "chkpnt6.pth")
    assert run(capture, model, "--start_checkpoint", "auto")["iterations"] == 6  # from the older one
    assert capsys.readouterr().err.count("warning: checkpoint passed over: ") == 1
    for path in model.glob("*.pth"):
        cut(path)
    before = content(model)
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read.*chkpnt6.pth is cut short.*--overwrite"):
        run(capture, model, "--start_checkpoint", "auto")
    assert content(model) == before and capsys.readouterr().err == ""


def test_auto_does_not_replace_a_finished_avatar_whose_checkpoints_are_gone(
    finished: Path, capture: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished, model)
    for path in model.glob("*.pth"):
        path.unlink()
    with pytest.raises(UserError, match="finished avatar.*no checkpoint.*--overwrite"):
        run(capture, model, "--start_checkpoint", "auto")
    (model / "results.json").unlink()  # killed between its first avatar and its first checkpoint
    assert run(capture, model, "--start_checkpoint", "auto")["iterations"] == 6


def test_overwrite_starts_over_and_keeps_what_was_rendered(finished: Path, capture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(finished, model)
    (model / "val" / "ours_6").mkdir(parents=True)
    (model / "chkpnt_best.pth").write_bytes(b"mine")
    (model / "chkpnt9.pth").write_bytes(b"x")
    (curves,) = model.glob("events*")
    curves.rename(model / "events.out.tfevents.1.before")
    before = content(model)
    with pytest.raises(UserError, match="--overwrite.*--start_checkpoint.*one of them"):
        run(capture, model, "--overwrite", "--start_checkpoint", "auto")
    with pytest.raises(UserError, match="nowhere"):  # the input is bad: nothing is removed
        run(tmp_path / "nowhere", model, "--overwrite")
    assert content(model) == before
    assert run(capture, model, "--overwrite", "--iterations", 2)["iterations"] == 2
    assert {path.name for path in model.glob("*.pth")} == {"chkpnt2.pth", "chkpnt_best.pth"}
    assert [path.name for path in (model / "point_cloud").iterdir()] == ["iteration_2"]
    assert len(list(model.glob("events*"))) == 1 and not (model / "events.out.tfevents.1.before").exists()
    assert (model / "val" / "ours_6").is_dir()


@pytest.mark.parametrize("what", ["lock", "folder", "replaced"])
@pytest.mark.parametrize("moment", ["avatar", "checkpoint", "end"])
def test_a_run_whose_folder_was_taken_away_writes_nothing_more(
    what: str, moment: str, capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    left: list[dict[Path, tuple[int, bytes]]] = []
    cls, name = {
        "avatar": (listeners.SavedAvatars, "before_density"),
        "checkpoint": (listeners.Checkpoints, "end_of_step"),
        "end": (listeners.Evaluation, "final"),
    }[moment]
    plain = getattr(cls, name)

    def strike(listener: Any, *more: Any) -> Any:
        if moment == "end" or more[0] == 3:
            if what == "folder":
                shutil.rmtree(model)
            else:
                (model / ".lock").unlink()
            if what == "replaced":
                (model / ".lock").touch()  # another run got in, and ended
                (model / "chkpnt2.pth").write_bytes(b"another's")
                (model / "point_cloud/iteration_3").mkdir(parents=True, exist_ok=True)
                (model / "point_cloud/iteration_3/point_cloud.ply").write_bytes(b"another's")
            left.append(content(model))
        return plain(listener, *more)

    monkeypatch.setattr(cls, name, strike)
    with pytest.raises(UserError, match=r"\.lock, which kept other runs out, was removed or replaced"):
        run(capture, model)
    assert content(model) == left[0]
    assert what != "folder" or not model.exists()


def test_the_lock_is_asked_for_below_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    with only_writer(tmp_path / "link"):
        write_json(tmp_path / "link" / "a" / "b.json", 1)
        (tmp_path / "real" / ".lock").unlink()
        with pytest.raises(UserError, match="was removed"):
            write_json(tmp_path / "link" / "a" / "b.json", 2)
        write_json(tmp_path / "elsewhere.json", 3)
    write_json(tmp_path / "link" / "a" / "b.json", 4)
