"""export.py from the outside: what it says, what it writes and where, and its mistakes in one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from moving_ball import write_avatar

import export
from arguments.export_options import FORMATS as CHOICES
from exporters import FORMATS
from utils.errors import run_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("export") / "ball")


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, output and error output."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        run_script(export.main)
    return ended.value.code, *capsys.readouterr()


def test_the_list_has_every_format(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(FORMATS) == CHOICES
    status, out, _ = run(monkeypatch, capsys, "--list")
    assert (
        status == 0 and all(f"{name}\n    keeps: " in out for name in CHOICES) and out.count("loses: ") == len(CHOICES)
    )


def test_a_page_is_written_whole_and_says_what_it_lost(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(monkeypatch, capsys, "-m", folder, "--format", "html")
    page = folder / "avatar.html"
    assert (status, err) == (0, "") and f"{page}: " in out
    assert "5 of 960 Gaussians are too faint" in out and "5 of 6 expressions are kept" in out
    text = page.read_text(encoding="utf-8")
    assert "<title>ball</title>" in text and "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    # The same bytes again; another motion and another title are other bytes; nothing else is left in the folder.
    motion = tmp_path / "motion.npz"
    np.savez(motion, **{**dict(np.load(next(folder.rglob("flame_param.npz")))), "expr": np.ones((9, 6), np.float32)})
    for words, same in (([], True), (["--motion", motion], False), (["--title", "<b>Jo & I</b>"], False)):
        other = tmp_path / "other.html"
        assert run(monkeypatch, capsys, "-m", folder, "--format", "html", "-o", other, *words)[0] == 0
        assert (other.read_bytes() == page.read_bytes()) is same
    assert "<title>&lt;b&gt;Jo &amp; I&lt;/b&gt;</title>" in other.read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["motion.npz", "other.html"]


def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_avatar(tmp_path / "scene", bound=False)
    (tmp_path / "taken").write_text("a file")
    html = ["--format", "html"]
    for words, message in (
        (["--format", "html"], "--model_path is missing"),
        (["-m", folder], "error: --format is missing"),
        (["-m", folder, "--format", "obj"], "must be one of html, ply, spz, glb"),
        (["-m", tmp_path, *html], "holds no avatar"),
        (["-m", folder, *html, "--quality", "best"], "--quality must be one of high, small"),
        (["-m", folder, *html, "--motion", "nowhere.npz"], "nowhere.npz"),
        (["-m", folder, *html, "--mapping", "nowhere.npz"], "nowhere.npz"),
        (["-m", scene, *html, "--motion", "sweep"], "is not bound to a head mesh"),
        (["-m", folder, *html, "-o", tmp_path], "cannot write"),
        (["-m", folder, *html, "--embed", "-o", tmp_path / "taken"], "cannot write"),
    ):
        status, out, err = run(monkeypatch, capsys, *words)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (words, err)
        assert message in err and "Traceback" not in err, (words, err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene", "taken"]
