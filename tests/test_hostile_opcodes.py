"""Pickles made opcode by opcode: none changes the reader, and none takes longer than its size allows."""

from __future__ import annotations

import io
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile import refusal, with_pickle
from test_hostile_pickles import torch_file

from arguments import parse_train
from scene.flame.head_pickle import read_pickle
from training import checkpoint
from utils.errors import UserError
from utils.tensor_reader import load_tensors

SECONDS = 4.0  # of the processor for one file; the slowest takes a half


def quickly(read: Callable[[], object]) -> str:
    begin = time.process_time()
    text = refusal(read)
    assert time.process_time() - begin < SECONDS
    return text


def text(name: str) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode()


ORDERED = b"ccollections\nOrderedDict\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
LONG_TUPLE = b"(" + b"K\x01" * 100_000 + b"tr\x00\x00\x00\x00"
PRIME = (1 << 61) - 1  # to which Python's hash of an integer is reduced
HUGE = b"\x8b" + struct.pack("<i", 250_000) + b"\x7f" * 250_000

SLOW = {
    "a long key, often": LONG_TUPLE + b"}" + b"j\0\0\0\0K\x01s" * 60_000,
    "a huge key, often": HUGE + b"r\0\0\0\0}" + b"j\0\0\0\0K\x01s" * 100_000,
    "keys of one hash": b"}"
    + b"".join(b"\x8a" + bytes([20]) + (n * PRIME).to_bytes(20, "little") + b"K\x01s" for n in range(1, 60_000)),
    "many keys": b"}" + b"".join(b"J" + struct.pack("<i", n) + b"K\x01s" for n in range(100_000)),
    "references of one hash": b"N" + b"".join(b"p%d\n" % (n * PRIME) for n in range(1, 60_000)),
    "a call with many arguments, often": LONG_TUPLE + b"cnumpy\nndarray\nj\0\0\0\0R0" * 50_000,
    "an object with many arguments, often": LONG_TUPLE + b"cnumpy\nndarray\nj\0\0\0\0\x810" * 50_000,
    "a text encoded, often": text("x" * 2_000_000) + b"q\0]" + b"c_codecs\nencode\nh\0X\x06\0\0\0latin1\x86Ra" * 5000,
    "digits": b"I" + b"9" * 3_000_000 + b"\n",
    "hexadecimal digits": b"]" + (b"I0x" + b"f" * 50_000 + b"\na") * 40,
}


@pytest.mark.parametrize("name", SLOW)
def test_no_pickle_takes_longer_than_its_size_allows(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x80\x02" + SLOW[name] + b".")
    quickly(lambda: read_pickle(path))
    path.write_bytes(with_pickle(torch_file({"a": 1}), lambda _: b"\x80\x02" + SLOW[name] + b"."))
    quickly(lambda: checkpoint.load(path))


def test_many_storages(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"a/data/{number}", b"")
        pickled = b"\x80\x02](" + b"".join(
            b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(str(number)) + text("cpu") + b"K\0tQ"
            for number in range(20_000)
        )
        archive.writestr("a/data.pkl", pickled + b"e.")
    path = tmp_path / "file.pt"
    path.write_bytes(content.getvalue())
    quickly(lambda: checkpoint.load(path))


def build_on_class(name: bytes) -> bytes:
    return b"\x80\x02c" + name + b"N}" + text("__init__") + ORDERED + b"s\x86b0}."


@pytest.mark.parametrize(
    "planted",
    [
        build_on_class(b"torch._utils\n_rebuild_tensor_v2\n"),
        build_on_class(b"torch._utils\n_rebuild_parameter\n"),
        build_on_class(b"collections\nOrderedDict\n"),
        b"\x80\x02" + REBUILD + b")\x81}" + text("value") + b"K\x01sb.",
        b"\x80\x02" + ORDERED + b")R}" + text("__class__") + REBUILD + b"sb" + REBUILD + b"N)b0.",
        b"\x80\x02ctorch\nFloatStorage\n}" + text("itemsize") + b"K\x01sb.",
    ],
)
def test_a_refused_checkpoint_changes_nothing_for_the_next(
    planted: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "chkpnt60.pth"
    checkpoint.save(good, {"step": 60, "avatar": torch.arange(4.0), "options": {"model": {}}})
    (tmp_path / "chkpnt999.pth").write_bytes(with_pickle(good.read_bytes(), lambda _: planted))
    assert checkpoint.newest(tmp_path) == good
    assert "chkpnt999.pth" in capsys.readouterr().err
    assert torch.equal(checkpoint.load(good)["avatar"], torch.arange(4.0))
    assert torch.equal(load_tensors(good)["avatar"], torch.arange(4.0))


@pytest.mark.parametrize("number", [10**5000, -(10**5000), 1 << 250], ids=["large", "negative", "printable"])
def test_huge_integers_in_the_options(number: int, tmp_path: Path) -> None:
    path = tmp_path / "chkpnt7.pth"
    content = {"format": checkpoint.FORMAT, "version": 1, "step": 7, "avatar": {}}
    torch.save({**content, "options": {"model": {"sh_degree": number}}}, path)
    options = parse_train(["-s", str(tmp_path), "-m", str(tmp_path), "--start_checkpoint", str(path)])
    with pytest.raises(UserError) as caught:
        checkpoint.to_resume(tmp_path, options)
    assert len(str(caught.value)) < 1000
    torch.save({**content, "version": number, "options": {}}, path)
    refusal(lambda: checkpoint.load(path))


def test_torch_save_writes_no_other_opcodes(tmp_path: Path) -> None:
    """Of every type of value that it may hold: else a new version of PyTorch would write what cannot be read."""
    values = [True, False, None, 0, 255, 65535, -1, 2**31, 2**200, 0.5, "", "é" * 300, (), (1,), (1, 2), (1, 2, 3)]
    content = {
        "values": [*values, tuple(range(9)), [], [1], {}, {"a": 1}, {1: {}, None: 2}],
        "tensors": [torch.zeros(n) for n in range(300)],  # beyond 256 references
        "layer": torch.nn.Linear(2, 3).state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(content, tmp_path / "file.pt")
    loaded = load_tensors(tmp_path / "file.pt")
    assert loaded["values"] == content["values"] and len(loaded["tensors"]) == 300
