"""Pickles and checkpoints from strangers: nothing in them runs, hangs, or takes memory without bound."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hostile import bounded, refusal, with_pickle

from innovations.color_calibration import ColorCalibration
from scene.flame.head_pickle import read_pickle
from scene.gaussian_model import GaussianModel
from training import checkpoint
from training.sampler import ShuffledSampler
from utils import tensor_reader
from utils.array_pickle import ArrayUnpickler, resolve
from utils.errors import UserError
from utils.lpips_weights import _WeightsUnpickler, read_arrays
from utils.npz import read_npz
from utils.plain_pickle import Refused


class Trap:
    """Makes a file when it is unpickled by pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


def torch_file(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def test_no_pickle_runs(tmp_path: Path) -> None:
    proof, path = tmp_path / "ran", tmp_path / "file"
    objects = np.array([Trap(proof)], dtype=object)
    np.savez(tmp_path / "objects.npz", expr=objects)
    tensors = {"format": checkpoint.FORMAT, "version": 1, "a": Trap(proof)}
    attacks: dict[str, tuple[bytes, Callable[[Path], object]]] = {
        "head": (pickle.dumps({"v_template": Trap(proof)}), read_pickle),
        "head array": (pickle.dumps({"f": objects}), read_pickle),
        "lpips": (pickle.dumps({"a": Trap(proof)}), lambda path: read_arrays(path.read_bytes())),
        "npz": ((tmp_path / "objects.npz").read_bytes(), lambda path: read_npz(path, ("expr",))),
        "checkpoint": (torch_file(tensors), checkpoint.load),
        "plain": (pickle.dumps(tensors), checkpoint.load),
        "color": (torch_file(tensors), ColorCalibration.load),
    }
    for name, (content, read) in attacks.items():
        path.write_bytes(content)
        refusal(lambda: read(path))
        assert not proof.exists(), name
    np.load(tmp_path / "objects.npz", allow_pickle=True)["expr"]  # the trap does work
    assert proof.exists()


HUGE = struct.pack("<Q", 20 << 30)
PICKLES = {
    "bytearray by opcode": b"\x80\x05\x96" + HUGE + b".",
    "bytes by opcode": b"\x80\x04\x8e" + HUGE + b".",
    "bytearray by name": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "frame": b"\x80\x04\x95" + HUGE + b".",
    "sets": b"\x80\x04" + b"\x8f" * 600_000 + b".",
    "marks": b"(" * 600_000 + b".",
    "deep": b"]" * 240_000 + b"a" * 239_999 + b".",
    "classes": b"".join(b"cchumpy.a\nC%d\n" % index for index in range(200_000)) + b".",
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_ask_for_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(PICKLES[name])
    refusal(lambda: read_pickle(path))
    path.write_bytes(with_pickle(torch_file({"a": 1}), lambda _: PICKLES[name]))
    refusal(lambda: checkpoint.load(path))


def test_no_stand_in_can_be_changed(tmp_path: Path) -> None:
    """BUILD sets attributes of what has no `__setstate__`: of a class, for every later file of this process."""
    for reader in (ArrayUnpickler, _WeightsUnpickler, tensor_reader._Reader):
        assert all("__setstate__" in dir(stand_in) for stand_in in reader.globals.values())
    path = tmp_path / "file.pt"
    good = torch_file({"a": torch.arange(4.0)})
    for name in (b"torch._utils\n_rebuild_tensor_v2\n", b"torch._utils\n_rebuild_parameter\n"):
        planted = b"\x80\x02c" + name + b"N}X\x08\0\0\0__init__ccollections\nOrderedDict\ns\x86b0}."
        path.write_bytes(with_pickle(good, lambda _: planted))
        with pytest.raises(Refused):
            tensor_reader.load_tensors(path)
    path.write_bytes(good)
    assert torch.equal(tensor_reader.load_tensors(path)["a"], torch.arange(4.0))
    # The attribute of an instance, here the numbers of the storage themselves.
    path.write_bytes(with_pickle(good, lambda content: content.replace(b"Q", b"Q}X\x06\0\0\0valuesK\x01sb", 1)))
    assert torch.equal(tensor_reader.load_tensors(path)["a"], torch.arange(4.0))


def test_head_models_whose_values_explode(tmp_path: Path) -> None:
    path = tmp_path / "head.pkl"
    laughs: Any = [1.0] * 10
    for _ in range(10):
        laughs = [laughs] * 10
    path.write_bytes(pickle.dumps({"a": laughs}))
    with bounded(), pytest.raises(ValueError, match="more than 1,000,000 numbers"):
        resolve(read_pickle(path)["a"])
    # Each expression names the one before it twice: 2^200 evaluations.
    doubled = b"\x80\x02}(U\x01aK\x00"
    for _ in range(200):
        doubled += b"q\x000cchumpy.reordering\nSelect\n)\x81}(U\x01ah\x00U\x04idxsh\x00ub"
    path.write_bytes(doubled + b"u.")
    with bounded(), pytest.raises(ValueError, match="nested"):
        resolve(read_pickle(path)["a"])


def test_pairs_of_pairs(tmp_path: Path) -> None:
    """2^60 numbers in as many bytes: to hash or to print them would take for ever."""
    pairs = b"K\x01" + b"q\0h\0\x86" * 60
    array = b"cnumpy\nndarray\n)R(K\x01%bcnumpy\ndtype\nU\x02f8\x85R\x89U\x08aaaaaaaatb"
    for content in (
        b"}%bK\x01s." % pairs,
        b"}(%bK\x01u." % pairs,
        b"(%bK\x01d." % pairs,
        b"\x8f(%b\x90." % pairs,
        b"(%b\x91." % pairs,
        pairs + b"cnumpy\ndtype\n)R.",
        b"c_codecs\nencode\n(Vx\n%btR." % pairs,
    ):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + content)
        refusal(lambda: read_pickle(tmp_path / "a.pkl"))
        with bounded(), pytest.raises(UserError):
            read_arrays(b"\x80\x04" + content)
    for shape in (pairs, pairs + b"\x85"):
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02}U\x01a" + array % shape + b"s.")
        with bounded(), pytest.raises(ValueError, match="impossible shape"):
            resolve(read_pickle(tmp_path / "a.pkl")["a"])


def test_checkpoints_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "chkpnt1.pth"
    good = torch_file({"format": checkpoint.FORMAT, "version": 1, "a": torch.arange(4.0)})
    path.write_bytes(good)
    assert torch.equal(checkpoint.load(path)["a"], torch.arange(4.0))
    for old, new in (
        (b"K\x04t", b"J\xff\xff\xff\x7ft"),  # numbers in the storage
        (b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),  # numbers in the tensor
        (b"K\x01\x85", b"K\x09\x85"),
        (b"K\x01\x85", b"J\xff\xff\xff\xff\x85"),
    ):  # strides
        spoilt = with_pickle(good, lambda content: content.replace(old, new, 1))
        assert spoilt != with_pickle(good, bytes)
        path.write_bytes(spoilt)
        refusal(lambda: checkpoint.load(path))
    # A thousand tensors that name one record are one record; a thousand entries of one place in the file are none.
    data = bytearray(good)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entry = archive.getinfo(next(name for name in archive.namelist() if name.endswith("data/0")))
        directory = archive.start_dir
    row = data.find(entry.filename.encode(), directory) - 46
    length = 46 + sum(struct.unpack_from("<3H", data, row + 28))
    data[row + length : row + length] = data[row : row + length] * 1000
    end = len(data) - 22
    struct.pack_into(
        "<HHI",
        data,
        end + 8,
        archive_count := 1000 + len(archive.infolist()),
        archive_count,
        struct.unpack_from("<I", data, end + 12)[0] + 1000 * length,
    )
    path.write_bytes(data)
    refusal(lambda: checkpoint.load(path))


def test_tensors_are_those_of_torch_load(tmp_path: Path) -> None:
    """Every type that is written, views and shared memory, empty and scalar tensors, parameters, state dicts."""
    base = torch.arange(12.0).reshape(3, 4)
    content = {
        "layer": torch.nn.Linear(2, 3).state_dict(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "base": base,
        "view": base[1:, ::2].T,
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(5),
        "plain": (1, [2.5, None], {"a": "é"}),
        **{str(kind): torch.ones(3).to(kind) for kind in tensor_reader._DTYPES.values()},
    }
    path = tmp_path / "file.pt"
    torch.save(content, path)
    mine, theirs = tensor_reader.load_tensors(path), torch.load(path, weights_only=True)
    assert list(mine) == list(theirs) and mine["plain"] == theirs["plain"]
    for name, value in mine.items():
        pairs = value.items() if isinstance(value, dict) else [(None, value)]
        for key, tensor in pairs:
            if isinstance(tensor, torch.Tensor):
                other = theirs[name] if key is None else theirs[name][key]
                assert tensor.dtype == other.dtype and tensor.stride() == other.stride() and torch.equal(tensor, other)
    mine["base"][1, 0] = -1.0
    assert mine["view"][0, 0] == -1.0  # shared, as it was


def test_checkpoints_of_other_things_do_not_reach_the_kernels() -> None:
    points = np.eye(3, dtype=np.float32)
    state = GaussianModel.from_points(points, points, sh_degree=1, device="cpu").state_dict()
    flame = SimpleNamespace(faces=torch.zeros(2, 3, dtype=torch.int64))
    bad = [
        ({"opacity": torch.zeros(2, 1)}, {}),
        ({"rotation": torch.zeros(3, 3)}, {}),
        ({"xyz": torch.zeros(3, 3).long()}, {}),
        ({}, {"sh_degree": 2}),
        ({}, {"sh_degree": 10**9}),
        ({}, {"active_sh_degree": 3}),
        ({}, {"binding": torch.zeros(3).long()}),
    ]
    for fields, rest in bad:
        changed = {**state, **rest, "fields": {**state["fields"], **fields}}
        with pytest.raises(UserError, match="does not fit this run .avatar"), checkpoint.fitting("avatar"):
            GaussianModel.from_state(changed, flame=None, flame_parameters=None, device="cpu")
    for binding in (torch.tensor([0, 1, 2]), torch.tensor([0, -1, 0]), torch.zeros(2).long(), torch.zeros(3), None):
        with pytest.raises(UserError), checkpoint.fitting("avatar"):
            GaussianModel.from_state({**state, "binding": binding}, flame=flame, flame_parameters=None, device="cpu")
    sampler = ShuffledSampler(3, seed=0)
    for change in (
        {"order": torch.tensor([0, 5])},
        {"order": torch.tensor([-1])},
        {"order": torch.tensor([0.5])},
        {"position": -4},
        {"position": "x"},
        {"generator": torch.zeros(3)},
    ):
        with pytest.raises(UserError), checkpoint.fitting("sampler"):
            sampler.load_state_dict({**sampler.state_dict(), **change})


def test_moments_of_another_shape_do_not_reach_the_kernel() -> None:
    """PyTorch's fused Adam would read and write outside of them."""
    color = ColorCalibration(["a"], hidden_dim=4, num_layers=2, per_camera=True)
    color(torch.rand(3, 4, 4), "a").sum().backward()
    color.optimizer.step()
    good = color.state_dict()
    for name in ("exp_avg", "exp_avg_sq", "step"):
        moments = good["optimizer"]["state"]
        spoilt = {**moments, 0: {**moments[0], name: torch.zeros(1, 1)}}
        state = {**good, "optimizer": {**good["optimizer"], "state": spoilt}}
        with pytest.raises(UserError, match=f"color: {name}"), checkpoint.fitting("color"):
            color.load_state_dict(state)
