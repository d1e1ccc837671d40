"""Many subjects: which there are, what is done for each whatever goes wrong, and on whose machine."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from places import ROOT
from runs import flags, gaussians, train_on

import train_many
from arguments import ManyOptions
from fleet.cluster import _check_machines, _fit, run_on_ray
from fleet.report import rows_of
from fleet.subjects import Subject, read_subjects
from fleet.work import MARK, Stopped, Work, do, state_of
from utils.errors import UserError, run_script

# A program in the place of train.py: `python fake.py FOLDER WHAT`.
FAKE = """
import os, pathlib, signal, sys, time
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
tries = folder / "tries"
count = int(tries.read_text()) + 1 if tries.exists() else 1
tries.write_text(str(count))
print("6 training views, 1,320 Gaussians, rasterizer native on cpu", flush=True)
if what == "dies once" and count == 1 or what == "dies":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "full":
    print(f"error: cannot write {folder}/chkpnt5.pth: Disk quota exceeded; make room there", file=sys.stderr)
    sys.exit(2)
if what == "busy" and count == 1:
    print(f"error: another run is writing into {folder}: wait", file=sys.stderr)
    sys.exit(2)
if what == "waits":
    def save(number, frame):
        (folder / "saved").write_text("")
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (folder / "waiting").write_text("")
    time.sleep(60)
print("Training: 50/100 it, 12.5 it/s, 00:04 left, 2.4k Gaussians, total 0.1", file=sys.stderr, flush=True)
print("[100] val: psnr 31.2500, ssim 0.9", flush=True)
print("[100] test: psnr 20.0, ssim 0.9", flush=True)
(folder / "results.json").write_text('{"iterations": 100, "points": 2400}')
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MARK).write_text('{"mark": "x"}')
    return path


def work(fake: Path, what: str, **changes: object) -> Work:
    folder = fake.parent / "out" / what.replace(" ", "_")
    folder.mkdir(exist_ok=True)
    given = Work(folder.name, str(folder), 100, (str(fake), str(folder), what), retries=1, mark="x")
    return given._replace(**changes)


def test_subjects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("anna", "ben", "more/anna"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert read_subjects(["[ab]*"]) == [Subject("anna", str(tmp_path / "anna")), Subject("ben", str(tmp_path / "ben"))]
    (tmp_path / "t.csv").write_text("source,name,flags\nanna,,\nmore/anna,anna2,--seed 3 -w\n")
    rows = [{"source": "anna"}, {"source": "more/anna", "name": "anna2", "flags": ["--seed", "3", "-w"]}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert read_subjects(["t.csv"]) == read_subjects(["t.json"])
    assert read_subjects(["t.csv"])[1] == Subject("anna2", str(tmp_path / "more/anna"), ("--seed", "3", "-w"))
    for text, message in (
        ("source,name\nanna,\nmore/anna,Anna\n", "two subjects have the name"),
        ("source,name\nanna,../x\n", "no name for a folder"),
        ("source,nmae\nanna,x\n", "'nmae' is no column"),
        ("name\nx\n", "source.* is missing"),
        ("", "no rows"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(UserError, match=message):
            read_subjects(["bad.csv"])
    with pytest.raises(UserError, match="neither a folder"):
        read_subjects(["c*"])


def test_what_goes_wrong_with_one_subject_is_its_state(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.work.APPEARS_IN", 0.0)
    state = do(work(fake, "fine"))
    assert state == state_of(fake.parent / "out" / "fine")
    expected = dict(state="done", attempts=1, psnr=31.25, points=2400, step=100, rate=12.5, left="00:04")
    assert state.items() >= expected.items()
    assert do(work(fake, "dies once")).items() >= dict(state="done", attempts=2).items()
    dead = do(work(fake, "dies"))
    assert dead["state"] == "failed" and "killed by SIGKILL" in dead["reason"] and dead["attempts"] == 2
    full = do(work(fake, "full"))
    assert full["state"] == "failed" and "Disk quota exceeded" in full["reason"] and full["attempts"] == 1
    assert do(work(fake, "busy")).items() >= dict(state="done", attempts=1).items()
    apart = do(work(fake, "fine", mark="of another folder"))
    assert apart["state"] == "failed" and "all machines share" in apart["reason"]


def test_stopped_it_has_saved(fake: Path) -> None:
    stop, one = threading.Event(), work(fake, "waits")

    def when_it_waits() -> None:
        while not Path(one.folder, "waiting").exists():
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=when_it_waits).start()
    with pytest.raises(Stopped):
        do(one, stop)
    assert Path(one.folder, "saved").exists() and state_of(Path(one.folder))["state"] == "stopped"


def test_an_interrupted_driver_waits_until_all_is_saved(fake: Path) -> None:
    one = work(fake, "waits")
    # Started by a shell in its background, the tests ignore SIGINT, and so would all that they start.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from fleet.cluster import *; "
        f"run_locally([Work{tuple(one)!r}], lambda: None)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not Path(one.folder, "waiting").exists():
        assert driver.poll() is None
        time.sleep(0.01)
    driver.send_signal(signal.SIGINT)
    assert "stopping: what trains saves first" in driver.communicate(timeout=60)[1]
    assert Path(one.folder, "saved").exists() and state_of(Path(one.folder))["state"] == "stopped"


def test_a_child_ends_with_its_worker(fake: Path) -> None:
    one = work(fake, "waits")
    code = f"from fleet.work import *; do(Work{tuple(one)!r})"
    worker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not Path(one.folder, "waiting").exists():
        assert worker.poll() is None
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    deadline = time.monotonic() + 30
    while not Path(one.folder, "saved").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_was_rendered_since_stands_in_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "it"
    place = folder / "val" / "ours_100" / "metrics.json"
    place.parent.mkdir(parents=True)
    (folder / "results.json").write_text('{"iterations": 100, "points": 7, "metrics": {"val": {"psnr": 30.0}}}')
    place.write_text('{"split": "val", "mean": {"psnr": 31.0, "ssim": 0.9, "flip": null}}')
    (row,) = rows_of(tmp_path, [{"name": "it", "state": "done"}])
    assert row.items() >= {"points": 7, "val psnr": 31.0, "val ssim": 0.9}.items() and "val flip" not in row


def test_a_training_is_the_one_alone(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With a capture that is none beside it; again, only that is tried; changed flags are refused."""
    (tmp_path / "none").mkdir()
    (tmp_path / "table.csv").write_text(f"source,name\n{capture},it\nnone,<b>\n".replace("<b>", "none"))
    length = ["--iterations", "40", "--metrics", "psnr"]
    own = [word for word in flags(capture, tmp_path, *length)[4:] if word != "--quiet"]

    def many(*more: str) -> tuple[int, str, str]:
        words = ["train_many.py", str(tmp_path / "table.csv"), "-o", str(tmp_path / "out"), "--local", *own, *more]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            run_script(train_many.main)
        return ended.value.code, *capfd.readouterr()

    status, said, told = many()
    assert status == 2 and "error: 1 of 2 subjects failed (none)" in told
    assert "it: done" in said and "none: failed:" in told and "Traceback" not in told
    train_on(capture, tmp_path / "alone", *length)
    alone, together = (gaussians(place, 40) for place in (tmp_path / "alone", tmp_path / "out" / "it"))
    for name, value in alone.items():
        assert value is None or torch.equal(value, together[name]), name
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").read_text().splitlines()))
    assert [row["state"] for row in rows] == ["done", "failed"] and float(rows[0]["val psnr"]) > 5
    assert "not a rigged capture" in rows[1]["reason"]
    page = (tmp_path / "out" / "index.html").read_text()
    assert 'src="it/preview.png"' in page and "://" not in page
    assert (tmp_path / "out" / "it" / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "status.json").read_text())["totals"] == {"done": 1, "failed": 1}

    before = (tmp_path / "out" / "it" / "results.json").stat().st_mtime_ns
    assert many()[0] == 2 and (tmp_path / "out" / "it" / "results.json").stat().st_mtime_ns == before
    status, _, told = many("--seed", "1")
    assert status == 2 and "was trained with other flags" in told and len(told.splitlines()) == 1
    assert many("--port", "60000")[2].startswith("error: --port is for train.py alone")
    assert "train.py --help" in many("--itertions", "3")[2]


def test_on_ray(fake: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (requirements-cluster.txt)")
    options = ManyOptions(output=str(fake.parent / "out"), retries=1)
    works = [work(fake, what) for what in ("fine", "dies once", "full")]
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # only --address joins a cluster
    seen: list[tuple[str, str]] = []

    def tell() -> None:
        import ray

        if not seen:
            with pytest.raises(UserError) as blind:
                _check_machines(ray, ray.nodes(), works[0]._replace(mark="of another folder"))
            seen.append((ray.nodes()[0]["NodeManagerAddress"], str(blind.value)))

    ended = run_on_ray(works, options, tell)
    ((address, sentence),) = seen
    assert address == "127.0.0.1"  # Ray asks nobody for a password
    assert "does not see" in sentence and "give an output folder that all machines share" in sentence
    assert {name: state["state"] for name, state in ended.items()} == dict(fine="done", dies_once="done", full="failed")


def test_what_no_machine_has_is_refused() -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 1.0}}]
    ray = SimpleNamespace(nodes=lambda: nodes)
    assert _fit(ray, ManyOptions(cpus=8)) == nodes[:1]
    for options in (ManyOptions(cpus=9), ManyOptions(gpus=0.5), ManyOptions(memory=1.0)):
        with pytest.raises(UserError, match="no machine has --cpus .*there are: 8 CPUs, 0 GPUs"):
            _fit(ray, options)


def test_where_no_cluster_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with another version's sentence in full."""
    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(init=init_of_another, exceptions=SimpleNamespace(RayError=OSError))
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="Ray: 2.9.3.*Ray: 2.60.0.*needs the same versions of Ray and Python"):
            run_on_ray([], ManyOptions(address=f"127.0.0.1:{port}"), lambda: None)
    with pytest.raises(UserError, match=f"nothing answers at --address 127.0.0.1:{port}"):
        run_on_ray([], ManyOptions(address=f"127.0.0.1:{port}"), lambda: None)


def init_of_another(**settings: object) -> None:
    raise RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.9.3\n    Python: 3.11.7\nThis process on node "
        "127.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )


def test_without_ray_one_sentence(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="requirements-cluster.txt.*--local"):
        run_on_ray([], ManyOptions(), lambda: None)
