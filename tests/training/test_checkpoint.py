"""Checkpoints: what goes in comes out, and nothing else is let in."""

from __future__ import annotations

import collections
import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from places import ROOT

from training import checkpoint
from utils.errors import UserError


def state() -> dict:
    make = torch.Generator().manual_seed(3)
    return {
        "iteration": 600,
        "gaussians": {
            "xyz": torch.randn(50, 3, generator=make),
            "binding": torch.arange(50),
            "mask": torch.zeros(0, 3, dtype=torch.bool),
        },
        "rng": {
            "torch": torch.get_rng_state(),
            "python": random.Random(1).getstate(),
            "numpy": np.random.PCG64(5).state,
        },  # has 128-bit integers
        "optimizer": {0: {"step": 5, "moments": [torch.ones(2), 0.5, None]}},
        "flags": (True, "text", None, float("inf"), -0.0),
    }


def same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other):
            same(left, right)
    else:
        assert one == other


def test_round_trip(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "out" / "chkpnt600.pth", state())
    same(state(), checkpoint.load(tmp_path / "out" / "chkpnt600.pth"))
    assert os.listdir(tmp_path / "out") == ["chkpnt600.pth"]


def test_the_file_opens_without_this_program(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pth", state())
    content = torch.load(tmp_path / "c.pth", weights_only=True)
    assert content["format"] == checkpoint.FORMAT and content["iteration"] == 600


def test_an_optimizer_continues_bit_for_bit(tmp_path: Path) -> None:
    def run(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            (parameter.sin() * torch.rand(5)).sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    first = torch.nn.Parameter(torch.ones(5))
    adam = torch.optim.Adam([first], lr=0.1)
    run(first, adam, 3)
    checkpoint.save(tmp_path / "c.pth", {"p": first, "adam": adam.state_dict(), "rng": torch.get_rng_state()})
    run(first, adam, 4)

    loaded = checkpoint.load(tmp_path / "c.pth")
    assert not loaded["p"].requires_grad and type(loaded["p"]) is torch.Tensor
    second = torch.nn.Parameter(loaded["p"])
    adam = torch.optim.Adam([second], lr=7.0)
    adam.load_state_dict(loaded["adam"])
    torch.set_rng_state(loaded["rng"])
    run(second, adam, 4)
    assert torch.equal(first, second)


def test_views_do_not_drag_their_storage_along(tmp_path: Path) -> None:
    wide = torch.arange(1_000_000, dtype=torch.float32)
    checkpoint.save(tmp_path / "c.pth", {"slice": wide[5:8], "spread": torch.ones(1).expand(1000)})
    assert (tmp_path / "c.pth").stat().st_size < 20_000
    loaded = checkpoint.load(tmp_path / "c.pth")
    assert loaded["slice"].tolist() == [5, 6, 7] and loaded["spread"].sum() == 1000


def test_ordered_dicts_become_dicts(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pth", {"net": torch.nn.Linear(2, 1).state_dict(), "o": collections.OrderedDict(a=1)})
    loaded = checkpoint.load(tmp_path / "c.pth")
    assert type(loaded["net"]) is dict and list(loaded["net"]) == ["weight", "bias"] and loaded["o"] == {"a": 1}


@pytest.mark.parametrize(
    "value, place",
    [
        (np.float32(1), "state['a']"),
        ([{"b": Path("x")}], "state['a'][0]['b']"),
        ({(1, 2): 3}, "state['a']"),
        (torch.eye(2).to_sparse(), "state['a']"),
        ({1, 2}, "state['a']"),
        (lambda: 0, "state['a']"),
    ],
)
def test_other_types_are_refused_at_saving(tmp_path: Path, value: object, place: str) -> None:
    with pytest.raises(TypeError) as caught:
        checkpoint.save(tmp_path / "c.pth", {"a": value})
    assert str(caught.value).startswith(place) and not list(tmp_path.iterdir())


# ------------------------------------------------------------------ bad files


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_cut_short(tmp_path: Path, share: float) -> None:
    path = tmp_path / "chkpnt600.pth"
    checkpoint.save(path, state())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match="chkpnt600.pth") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


def test_one_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    values = torch.full((1000,), 0.7)
    checkpoint.save(path, {"a": values})
    data = bytearray(path.read_bytes())
    place = data.find(values.numpy().tobytes()) + 1234
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum"):
        checkpoint.load(path)


class Bomb:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def test_hostile_pickles_do_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "PWNED"
    content = {"format": checkpoint.FORMAT, "version": 1, "a": Bomb(trap)}
    torch.save(content, tmp_path / "zip.pth")
    torch.save(content, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content))
    for name in ("zip.pth", "legacy.pth", "plain.pth"):
        with pytest.raises(UserError, match=name) as caught:
            checkpoint.load(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not trap.exists()
    torch.load(tmp_path / "zip.pth", weights_only=False)  # the trap does work
    assert trap.exists()


def with_pickle(path: Path, content: object) -> Path:
    """A checkpoint file whose pickle is `content`, past our own checks at saving."""
    torch.save(content, path)
    return path


def ours(**content: object) -> dict:
    return {"format": checkpoint.FORMAT, "version": 1, **content}


def test_nested_references_end(tmp_path: Path) -> None:
    shared = ["ha"]
    loaded = checkpoint.load(with_pickle(tmp_path / "a.pth", ours(a=[shared, shared])))
    assert loaded["a"][0] is loaded["a"][1]
    for kind in (list, tuple):
        laughs = kind(["ha"])
        for _ in range(60):
            laughs = kind([laughs, laughs])  # 2**60 leaves when walked
        with pytest.raises(UserError, match="values"):
            checkpoint.load(with_pickle(tmp_path / "a.pth", ours(a=laughs)))
    loop: list = []
    loop.append(loop)
    with pytest.raises(UserError, match="b.pth"):
        checkpoint.load(with_pickle(tmp_path / "b.pth", ours(a=loop)))


def test_tensor_that_shows_more_than_the_file_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more bytes"):
        checkpoint.load(with_pickle(tmp_path / "c.pth", ours(a=torch.zeros(1).expand(2**50))))


def test_compressed_archive(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "c.pth", {"a": torch.zeros(1_000_000)})
    with (
        zipfile.ZipFile(tmp_path / "c.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match="compress"):
        checkpoint.load(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"iteration": 5},
        ({}, 30000),
        {"format": "other", "version": 1},
        torch.zeros(3),
        None,
        {"format": checkpoint.FORMAT},
        {"format": checkpoint.FORMAT, "version": 999},
        {"format": checkpoint.FORMAT, "version": "1"},
        {"format": torch.zeros(2), "version": 1},
        ours(a=torch.eye(2).to_sparse()),
        ours(a={1, 2}),
        ours(a={(1, 2): 3}),
    ],
)
def test_files_of_others(tmp_path: Path, content: object) -> None:
    with pytest.raises(UserError, match="c.pth"):
        checkpoint.load(with_pickle(tmp_path / "c.pth", content))


def test_not_a_checkpoint_at_all(tmp_path: Path) -> None:
    for name, data in (("t.pth", b"hello"), ("e.pth", b""), ("z.pth", b"PK\5\6" + b"\0" * 18)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            checkpoint.load(tmp_path / name)
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError):
            checkpoint.load(path)


# ------------------------------------------------------------------ newest


def test_newest_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "none") is None
    for number in (90, 200, 1000):
        checkpoint.save(tmp_path / f"chkpnt{number}.pth", {"iteration": number})
    (tmp_path / "chkpnt_best.pth").write_bytes(b"x")
    (tmp_path / ".tmp-chkpnt9999.pth").write_bytes(b"x")
    assert checkpoint.newest(tmp_path) == tmp_path / "chkpnt1000.pth"  # by number, not by name
    assert capsys.readouterr().err == ""
    broken = tmp_path / "chkpnt1000.pth"
    broken.write_bytes(broken.read_bytes()[:400])
    (tmp_path / "chkpnt5000.pth").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "chkpnt200.pth"
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2 and "chkpnt5000" in warnings[0] and "chkpnt1000" in warnings[1]


def test_full_disk_keeps_the_old_file_and_names_the_reason(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk; in a process of its own, since it cannot be lifted again."""
    path = tmp_path / "c.pth"
    checkpoint.save(path, {"a": 1})
    script = (
        "import resource, signal, sys, torch\n"
        "from training import checkpoint\n"
        "from utils.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    checkpoint.save(sys.argv[1], {'a': torch.zeros(1_000_000)})\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "cannot write" in result.stdout and "c.pth" in result.stdout and "too large" in result.stdout
    assert os.listdir(tmp_path) == ["c.pth"] and checkpoint.load(path) == {"a": 1}
