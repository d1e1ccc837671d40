"""Reading head models: official-style pickles without chumpy, hostile ones refused, teeth, and where to look."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from toy_head import toy_arrays, write_pickle

from scene.flame import head_model, head_pickle, teeth
from scene.flame.head_model import find_head_model, load_head_model
from scene.flame.head_pickle import read_pickle
from utils.array_pickle import resolve
from utils.errors import UserError


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_reads_what_was_written(tmp_path: Path, protocol: int) -> None:
    arrays = toy_arrays()
    head = load_head_model(write_pickle(tmp_path / "head_model.pkl", arrays, protocol))
    assert (head.n_vertices, head.n_faces, head.n_shape, head.n_expr) == (40, 60, 300, 100)
    np.testing.assert_allclose(head.v_template, arrays["v_template"], rtol=1e-6)
    np.testing.assert_array_equal(head.faces, arrays["f"])
    np.testing.assert_allclose(head.shapedirs, arrays["shapedirs"][..., :300], rtol=1e-6)
    np.testing.assert_allclose(head.exprdirs, arrays["shapedirs"][..., 300:], rtol=1e-6)
    np.testing.assert_allclose(head.joint_regressor, arrays["J_regressor"].toarray(), rtol=1e-6)
    assert head.faces.dtype == torch.int64 and head.masks == {}


def test_number_layouts(tmp_path: Path) -> None:
    """Fortran order, big endian, scalars, and matrices compressed by rows or with entries named twice."""
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(5, 7))
    twice = sparse.csc_matrix((np.array([1.0, 2.0, 5.0]), np.array([0, 0, 2]), np.array([0, 2, 3])), shape=(3, 2))
    content = {
        "fortran": np.asfortranarray(dense),
        "big": dense.astype(">f4"),
        "rows": sparse.csr_matrix(dense),
        "scalar": np.float32(2.5),
        "number": 7,
        "empty": np.zeros((0, 3)),
        "twice": twice,
        "half": dense.astype(np.float16),
        "flags": dense > 0,
        "list": [1, 2],
    }
    for protocol in (2, 4, 5):
        read = read_pickle(write_pickle(tmp_path / "x.pkl", content, protocol))
        for key, value in content.items():
            expected = value.toarray() if sparse.issparse(value) else value
            np.testing.assert_array_equal(resolve(read[key]), expected)


def chumpy_pickle(path: Path) -> None:
    """Writes a file with chumpy arrays, in a process of its own that has a module of that name."""
    script = """
        import pickle, sys, types
        sys.path[:0] = [sys.argv[2], sys.argv[3]]
        import numpy as np
        from toy_head import toy_arrays

        def fake(module, name):
            cls = type(name, (), {"__module__": module})
            for part in ("chumpy", module):
                sys.modules.setdefault(part, types.ModuleType(part))
            setattr(sys.modules[module], name, cls)
            return cls

        def make(cls, **state):
            made = cls.__new__(cls)
            made.__dict__.update(_dirty_vars={"x"}, _itr=None, _depends_on_deps={}, **state)
            return made

        Ch, Select, Add = fake("chumpy.ch", "Ch"), fake("chumpy.reordering", "Select"), fake("chumpy.ch_ops", "add")
        arrays = toy_arrays()
        arrays["shapedirs"] = make(Ch, x=arrays["shapedirs"])
        backwards = np.arange(40 * 3)[::-1]
        arrays["v_template"] = make(Select, a=make(Ch, x=arrays["v_template"]), idxs=backwards,
                                    preferred_shape=(40, 3))
        arrays["v_shaped"] = make(Add, a=arrays["v_template"], b=arrays["v_template"])  # present, but not needed
        pickle.dump(arrays, open(sys.argv[1], "wb"), protocol=2)
    """
    here = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path), str(here.parent), str(here)], check=True)


def test_chumpy_is_read_without_chumpy(tmp_path: Path) -> None:
    chumpy_pickle(tmp_path / "flame2023.pkl")
    assert b"chumpy.ch\nCh\n" in (tmp_path / "flame2023.pkl").read_bytes()
    head = load_head_model(tmp_path / "flame2023.pkl")
    arrays = toy_arrays()
    np.testing.assert_allclose(head.shapedirs, arrays["shapedirs"][..., :300], rtol=1e-6)
    np.testing.assert_allclose(head.v_template, arrays["v_template"].ravel()[::-1].reshape(-1, 3), rtol=1e-6)
    assert "chumpy" not in sys.modules


def test_python_2_strings() -> None:
    """A Python-2 pickle holds array bytes in a string opcode, and old module paths for sparse matrices."""
    values = np.array([1.5, -2.0])
    stream = (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tb\x89U\x10" + values.tobytes() + b"tbs."
    )
    np.testing.assert_array_equal(pickle.loads(stream, encoding="latin1")["a"], values)  # the stream is right
    read = head_pickle._HeadUnpickler(stream, encoding="latin1").load()
    np.testing.assert_array_equal(resolve(read["a"]), values)
    matrix = pickle.dumps(sparse.csc_matrix(np.eye(3)), protocol=2).replace(b"scipy.sparse._csc", b"scipy.sparse.csc")
    np.testing.assert_array_equal(resolve(head_pickle._HeadUnpickler(matrix).load()), np.eye(3))


class _Runs:
    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_hostile_pickles_are_refused(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    hostile = {
        "posix.system": _Runs(os.system, f"touch {proof}"),
        "builtins.eval": _Runs(eval, f"open({str(proof)!r}, 'w')"),
        "builtins.getattr": _Runs(getattr, "x", "upper"),
        "numpy": _Runs(np.load, "x"),
        "encoding": b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        "builtins.bytes": b"cbuiltins\nbytes\n(I1000000000\ntR.",
        "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n(I1\ncbuiltins\nobject\nNtR.",
    }
    for name, value in hostile.items():
        path = tmp_path / "head_model.pkl"
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            write_pickle(path, {**toy_arrays(), "extra": value})
        with pytest.raises(UserError, match="refused.*" + name.replace(".", r"\.")) as caught:
            load_head_model(path)
        assert str(path) in str(caught.value)
    assert not proof.exists()


def test_attributes_cannot_be_planted(tmp_path: Path) -> None:
    """BUILD on a stand-in class would change it for every later file."""
    path = tmp_path / "x.pkl"
    path.write_bytes(b"cnumpy\nndarray\n(N(dVresolve\nI1\nstb.")
    with pytest.raises(UserError, match="a state for something that has none"):
        read_pickle(path)
    np.testing.assert_array_equal(resolve(read_pickle(write_pickle(path, {"a": np.ones(2)}))["a"]), np.ones(2))


def test_a_file_cannot_ask_for_more_memory_than_its_size(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\xff.")  # the C unpickler would make a table of 2^33 entries
    with pytest.raises(UserError, match="a reference of too large a number"):
        read_pickle(path)
    path.write_bytes(b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"abc.")
    with pytest.raises(UserError, match="not a readable pickle"):
        read_pickle(path)
    good = toy_arrays()
    huge = pickle.dumps(good, protocol=2).replace(b"K(K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86", 1)
    assert huge != pickle.dumps(good, protocol=2)
    path.write_bytes(huge)
    with pytest.raises(UserError, match="bytes of float64"):
        load_head_model(path)


def bad_indices() -> sparse.csc_matrix:
    matrix = sparse.csc_matrix(toy_arrays()["J_regressor"])
    matrix.indices[3] = 99999
    return matrix


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("v_template", None, "no 'v_template'"),
        ("v_template", np.zeros((40, 2)), r"'v_template' has shape \(40, 2\), expected \(any, 3\)"),
        ("v_template", np.full((40, 3), np.nan), "'v_template' holds values that are not finite"),
        ("f", np.array([[0, 1, 40]], dtype=np.uint32), "'f' names vertex 40"),
        ("f", np.array([[0, -1, 4]]), "'f' names vertex -1"),
        ("f", np.array([[0.0, 1.0, 2.0]]), "'f' holds float64, expected integers"),
        ("shapedirs", np.zeros((40, 3, 20)), "'shapedirs' has 20 columns.*n_shape"),
        ("posedirs", np.zeros((40, 3, 27)), "'posedirs' has shape"),
        ("weights", np.zeros((40, 5)), "'weights' do not sum to 1"),
        ("J_regressor", bad_indices(), "'J_regressor' is sparse matrix whose indices do not fit"),
        ("J_regressor", np.array([object()] * 3), "'J_regressor' is array of"),
        ("kintree_table", np.array([[-1, 0, 0, 1, 1], [0, 1, 2, 3, 4]]), "five joints"),
    ],
)
def test_bad_fields(tmp_path: Path, key: str, value: object, words: str) -> None:
    arrays = toy_arrays()
    if value is None:
        del arrays[key]
    elif value.dtype == object:
        arrays[key] = np.array([None, 1], dtype=object)
    else:
        arrays[key] = value
    with pytest.raises(UserError, match=words):
        load_head_model(write_pickle(tmp_path / "head_model.pkl", arrays))


def test_column_split_by_key(tmp_path: Path) -> None:
    arrays = {**toy_arrays(modes=17), "n_shape": 12}
    head = load_head_model(write_pickle(tmp_path / "head_model.pkl", arrays))
    assert (head.n_shape, head.n_expr) == (12, 5)


def test_truncated_file(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "head_model.pkl", toy_arrays())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="not a readable pickle"):
        load_head_model(path)


def test_masks(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "head_model.pkl", toy_arrays())
    write_pickle(tmp_path / "masks.pkl", {"lips": np.array([3, 5]), "nose": np.array([0, 39])})
    masks = load_head_model(path).masks
    assert masks["lips"].tolist() == [3, 5] and masks["nose"].tolist() == [0, 39]
    write_pickle(tmp_path / "FLAME_masks.pkl", {"face": np.array([1, 40])})  # looked at first
    with pytest.raises(UserError, match="FLAME_masks.pkl: 'face' names vertex 40"):
        load_head_model(path)


def test_teeth(tmp_path: Path) -> None:
    """Counts and places by closed form, on lips that lie at known places."""
    arrays = toy_arrays(teeth.FLAME_VERTICES, 4, 4)
    arrays["n_shape"] = 3
    arrays["f"] = np.resize(arrays["f"], (teeth.FLAME_FACES, 3))
    facts = json.loads((Path(teeth.__file__).parent / "teeth.json").read_text())
    upper, lower = facts["lip_outside_ring_upper"], facts["lip_outside_ring_lower"]
    x, z = np.linspace(-0.02, 0.02, 15), np.linspace(0.05, 0.09, 15)
    gap = 0.01  # between the lips, so d = 0.01; their midpoints lie at y = 0.2
    arrays["v_template"][upper] = np.stack([x, np.full(15, 0.2 + gap / 2), z], 1)
    arrays["v_template"][lower] = np.stack([x, np.full(15, 0.2 - gap / 2), z], 1)
    head = load_head_model(write_pickle(tmp_path / "head_model.pkl", arrays))

    assert (head.n_vertices, head.n_faces) == (5143, 10144)
    rows = dict(zip(facts["added_vertex_groups_of_15_in_order"], head.v_template[5023:].split(15)))
    places = {
        "upper_edge": (0.201, -0.015),
        "upper_root": (0.221, -0.015),
        "upper_edge_back": (0.201, -0.025),
        "upper_root_back": (0.221, -0.025),
        "lower_edge": (0.199, -0.019),
        "lower_root": (0.179, -0.019),
        "lower_edge_back": (0.199, -0.029),
        "lower_root_back": (0.179, -0.029),
    }
    assert rows.keys() == places.keys()
    for name, (y, back) in places.items():
        np.testing.assert_allclose(rows[name], np.stack([x, np.full(15, y), z + back], 1), atol=1e-7)

    # Faces: each new vertex used, upper and lower teeth in separate pieces.
    new = head.faces[9976:]
    assert sorted(set(new.flatten().tolist())) == list(range(5023, 5143))
    joint = head.weights[5023:].argmax(1)[new - 5023]
    assert (joint == joint[:, :1]).all()
    # Upper teeth follow the neck joint, lower teeth the jaw, entirely; no expression, pose or joint depends on them.
    expected = torch.tensor([1 if name.startswith("upper") else 2 for name in rows]).repeat_interleave(15)
    assert torch.equal(head.weights[5023:], torch.nn.functional.one_hot(expected, 5).float())
    assert not head.exprdirs[5023:].any() and not head.posedirs[5023:].any()
    assert not head.joint_regressor[:, 5023:].any()
    lips = (head.shapedirs[upper] + head.shapedirs[lower]) / 2
    np.testing.assert_allclose(head.shapedirs[5023:].unflatten(0, (8, 15)), lips.expand(8, -1, -1, -1), rtol=1e-5)
    assert head.masks["teeth"].tolist() == list(range(5023, 5143))


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, source, avatar = tmp_path / "repo", tmp_path / "data", tmp_path / "out"
    monkeypatch.setattr(head_model, "ROOT", repo)
    with pytest.raises(UserError) as caught:
        find_head_model(None, source, avatar)
    for word in (
        str(source / "head_model.pkl"),
        "flame2023.pkl",
        "flame.is.tue.mpg.de",
        "registration",
        "./train_efficient.sh demo",
        "--head_model",
    ):
        assert word in str(caught.value)
    with pytest.raises(UserError, match="--head_model .*nowhere.pkl does not exist"):
        find_head_model("nowhere.pkl", source)
    places = [repo / "flame_model/assets/flame/flame2023.pkl", avatar / "head_model.pkl", source / "head_model.pkl"]
    for path in places:  # each is preferred to the ones before
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_head_model(None, source, avatar) == path
    assert find_head_model(str(places[0]), source) == places[0]
