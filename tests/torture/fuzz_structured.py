"""Spoilers that know the structure: pickles by opcodes, JSON and npz by fields, PLY by elements, folders by files.

Changing bytes at random finds what a damaged file does. What an attacker does is valid in every byte: a pickle that
uses one long value again and again, a capture whose fields are legal one by one and too much together.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import pickle
import pickletools
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from hostile import with_pickle
from runs import flags
from test_hostile_files import png
from torture.fuzz_mutations import EXTREME_VALUES, Format, saved_bytes
from toy_capture import write_capture
from toy_head import toy_arrays

from arguments import parse_train
from evaluation.results import measured_iterations
from scene.dataset.blender import read_points
from scene.dataset.common import image_size
from scene.flame.head_model import load_head_model
from scene.images import decode as image_decode
from scene.images.workers import affordable
from scene.ply import read_ply
from training import checkpoint, setup
from utils.errors import UserError


def structured(folder: Path) -> dict[str, Format]:
    """The formats, with the files around them that their readers need, written below `folder`."""
    return {
        **_pickles(folder),
        "capture_json": _capture_json(folder),
        "capture_npz": _capture_npz(folder),
        "ply_elements": _ply(folder),
        "pictures": _pictures(folder),
        "output_folder": _output_folder(folder),
    }


# ---- pickles, by opcodes ------------------------------------------------------------

GLOBALS = (
    b"torch._utils _rebuild_tensor_v2;torch._utils _rebuild_parameter;collections OrderedDict;torch FloatStorage;"
    b"numpy ndarray;numpy dtype;numpy.core.multiarray _reconstruct;numpy.core.multiarray scalar;_codecs encode;"
    b"copyreg _reconstructor;builtins set;builtins bytes;scipy.sparse.csc csc_matrix;chumpy.ch Ch"
).split(b";")
ATTRIBUTES = ("__init__", "__init__", "__setstate__", "__new__", "__class__", "resolve", "value", "state")
PRIME = (1 << 61) - 1  # Python reduces the hashes of integers to it
MODEL = {"sh_degree": 3, "bind_to_mesh": False, "white_background": False, "disable_flame_static_offset": False}
OFTEN = (1, 30, 60_000)
GET = b"j\x00\x40\x00\x00"  # what was made, and lies at this place of the memo
PUT = b"r\x00\x40\x00\x00"


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _class(random: Random) -> bytes:
    return b"c" + random.choice(GLOBALS).replace(b" ", b"\n") + b"\n"


def _made(random: Random) -> bytes:
    """A value: short or very long, a class, an object or a state that names attributes."""
    kind, size = random.randrange(9), random.choice((3, 1000, 100_000))
    if kind < 2:
        return b"(" + b"K\x01" * size + b"t"
    if kind == 2:
        return b"\x8b" + struct.pack("<i", 3 * size) + b"\x7f" * (3 * size)
    if kind == 3:
        return _text("x" * 10 * size)
    if kind == 4:
        return b"K\x01" + b"q\x00h\x00\x86" * random.choice((3, 60))
    if kind == 5:
        return _class(random)
    if kind == 6:
        return _class(random) + random.choice((b")R", b")\x81", b"(t\x81"))
    if kind == 7:
        return random.choice((b"I%b\n", b"L%bL\n", b"F%b\n", b"I0x%b\n")) % (b"9" * size)
    return b"}" + _text(random.choice(ATTRIBUTES)) + random.choice((b"K\x01", _class(random), b"N")) + b"s"


def _used(random: Random) -> bytes:
    """What was made, in use: as a key, an argument, a state, an item; once, or again and again."""
    often = random.choice(OFTEN)
    kind = random.randrange(10)
    if kind < 2:
        return b"}" + (GET + b"K\x01s") * often
    if kind == 2:
        return random.choice((b"(%bd", b"}(%bu")) % ((GET + b"N") * often)
    if kind == 3:
        return random.choice((b"\x8f(%b\x90", b"(%b\x91", b"](%be")) % (GET * often)
    if kind == 4:
        return (_class(random) + GET + random.choice((b"", b"\x85", b"\x86"))[: random.randrange(2)] + b"R0") * often
    if kind == 5:
        return (_class(random) + GET + b"\x810") * often
    if kind == 6:
        return random.choice((b"", b")R", b")\x81")).join((_class(random), GET + b"b"))
    if kind in (7, 8):  # attributes as if in slots, which BUILD sets on a class too
        state = b"}" + _text(random.choice(ATTRIBUTES)) + random.choice((b"K\x01", _class(random))) + b"s"
        return random.choice((b"%bN%b\x86b", b"%b)\x81N%b\x86b")) % (_class(random), state)
    step = random.choice((1, PRIME))
    numbers = [number * step for number in range(1, often)]
    if random.random() < 0.5:
        return b"N" + b"".join(b"p%d\n" % number for number in numbers)
    return b"}" + b"".join(b"\x8a\x14" + number.to_bytes(20, "little") + b"Ns" for number in numbers)


def spoil_opcodes(random: Random, data: bytes) -> bytes:
    """A pickle with valid opcodes put in where one ends, doubled, exchanged or left out."""
    places = [place or 0 for _, _, place in pickletools.genops(data)][1:]
    if random.random() < 0.7:
        place = random.choice((places[0], places[-1], random.choice(places)))
        added = _made(random) + PUT + b"".join(_used(random) for _ in range(random.choice((1, 1, 2))))
        return data[:place] + added + random.choice((b"", b"0", b".")) + data[place:]
    first, second = sorted(random.sample(range(len(places)), 2))
    pieces = [data[start:end] for start, end in zip(places, [*places[1:], len(data)])]
    kind = random.randrange(3)
    if kind == 0:
        pieces[first], pieces[second] = pieces[second], pieces[first]
    elif kind == 1:
        pieces[first] *= random.choice((2, 100))
    else:
        del pieces[first]
    return data[: places[0]] + b"".join(pieces)


def _then_good(read: Callable[[Path], Any], good: Path) -> Callable[[Path], None]:
    """Reads a good file after the spoilt one: it must come out as before."""
    before = repr(read(good))

    def run(path: Path) -> None:
        try:
            read(path)
        finally:
            try:
                after = repr(read(good))
            except UserError as error:
                raise AssertionError("a good file is no longer read") from error
            assert after == before, "a good file is read differently now"

    return run


def _pickles(folder: Path) -> dict[str, Format]:
    state = {"step": 7, "avatar": {"xyz": torch.arange(6.0).reshape(2, 3)}, "options": {"model": MODEL}}
    good = folder / "good.pth"
    saved = saved_bytes(lambda path: checkpoint.save(path, state), good)
    heads = folder / "heads"
    heads.mkdir()
    arrays = {**toy_arrays(vertices=12, faces=8, modes=5), "n_shape": 3}
    (heads / "good.pkl").write_bytes(pickle.dumps(arrays, protocol=2))

    def resume(path: Path) -> Any:
        options = parse_train(["-s", str(folder), "-m", str(folder / "nothing"), "--start_checkpoint", str(path)])
        return checkpoint.to_resume(folder / "nothing", options)

    return {
        "checkpoint_opcodes": Format(
            folder / "chkpnt8.pth",
            [saved],
            lambda random, data, _: with_pickle(data, lambda content: spoil_opcodes(random, content)),
            _then_good(resume, good),
        ),
        "head_opcodes": Format(
            heads / "head.pkl",
            [pickle.dumps(arrays, protocol=protocol) for protocol in (0, 2, 4)],
            lambda random, data, _: spoil_opcodes(random, data),
            _then_good(lambda path: load_head_model(path).v_template, heads / "good.pkl"),
        ),
    }


# ---- captures, by fields --------------------------------------------------------------

NAMES = ("\udcff", "ä", "\x1b[2J", "x" * 200, "a\nb", "\u202e", "%s{0}", " ", "'\"")
UNITS = ('{"":0}', "{}", "[]", "0", '"ab"', '{"a":{}}', "[0]", "1e9", '"\u20ac"')


def _load_capture(capture: Path, model: Path) -> None:
    """What train.py does with a capture until it decodes the images, and what evaluations write of its cameras."""
    dataset = setup.load_capture(parse_train(flags(capture, model)))
    for view in dataset.train:
        f"{view.camera.name}/{view.camera.camera_id}".encode()  # as the names of curves are


def _capture_json(folder: Path) -> Format:
    capture = write_capture(folder / "by_fields", [3, 4, 5], size=(16, 12))
    path = capture / "transforms_train.json"
    content = json.loads(path.read_text())
    image = capture / content["frames"][0]["file_path"]
    names = [f"images/{name}.png" for name in NAMES]
    for name in names:
        shutil.copy(image, capture / name)

    def spoil(random: Random, data: bytes, other: bytes) -> bytes:
        value = json.loads(data)
        for frame in random.sample(value["frames"], random.choice((1, len(value["frames"])))):
            kind = random.randrange(4)
            field = random.choice([*frame, "camera_angle_x", "fg_mask_path", "k1"])
            if kind == 0:
                frame["file_path"] = random.choice(names)
            elif kind == 1:
                frame["camera_id"] = random.choice(NAMES)
            elif kind == 2:
                frame[field] = random.choice([item for item in EXTREME_VALUES if item != 10**4000])
            else:
                frame.pop(field, None)
        text = json.dumps(value)
        if random.random() < 0.1:
            often = random.choice((1000, 500_000, 5_300_000))
            text = text[:-1] + ', "more": [' + ",".join([random.choice(UNITS)] * often) + "]}"
        return text.encode()

    return Format(path, [path.read_bytes()], spoil, lambda _: _load_capture(capture, folder / "model"))


def _capture_npz(folder: Path) -> Format:
    capture = write_capture(folder / "by_arrays", [0, 1], size=(16, 12))
    frames = json.loads((capture / "transforms_train.json").read_text())["frames"]
    many = [{**frames[0], "timestep_index": 100 + index} for index in range(60)]
    (capture / "transforms_train.json").write_text(json.dumps({"frames": many}))
    path = capture / "flame_param" / "00000.npz"
    whole = dict(np.load(path))

    @functools.cache
    def packed(name: str, size: int, value: float) -> bytes:
        shape = (1, size, 3) if name.endswith("offset") else (1, size)
        stream = io.BytesIO()
        np.savez_compressed(stream, **{**whole, name: np.full(shape, value, np.float32)})
        return stream.getvalue()

    def spoil(random: Random, data: bytes, other: bytes) -> bytes:
        name = random.choice((*whole, "dynamic_offset", "dynamic_offset", "expr"))
        return packed(name, random.choice((1, 162, 5143, 300_000, 5_000_000)), random.choice((0.0, 1e-3)))

    return Format(path, [path.read_bytes()], spoil, lambda _: _load_capture(capture, folder / "model"))


# ---- clouds, pictures ------------------------------------------------------------------


def _ply(folder: Path) -> Format:
    types = dict(char="b", uchar="B", short="h", ushort="H", int="i", uint="I", float="f", double="d")
    header = "ply\nformat binary_little_endian 1.0\nelement vertex 2\n" + "".join(
        f"property float {axis}\n" for axis in "xyz"
    )

    def spoil(random: Random, data: bytes, other: bytes) -> bytes:
        """Elements and properties that are valid each, with a body that fits, or nearly."""
        form = random.choice(("binary_little_endian", "binary_big_endian", "ascii"))
        lines, body = [f"ply\nformat {form} 1.0\n"], io.BytesIO()
        order = "<" if "little" in form else ">"
        for name in random.choice((["vertex"], ["face", "vertex"], ["vertex", "vertex"], ["a" * 300, "vertex"])):
            announced = random.choice((0, 1, 2, 2, 2, 1000, 10**7, 2**31, 10**18))
            lines.append(f"element {name} {announced}\n")
            rows = min(announced, 1000)
            for column in range(random.choice((0, 3, 3, 3, 60, 2000))):
                kind, label = random.choice([*types]), "xyz"[column] if column < 3 else f"f_rest_{column}"
                count = random.choice(("uchar", "uint", "double")) if random.random() < 0.1 else None
                lines.append(f"property {f'list {count} ' if count else ''}{kind} {label}\n")
                body.write(b"1 " * rows if form == "ascii" else struct.pack(order + types[kind], 1) * min(rows, 10**5))
        return "".join([*lines, "end_header\n"]).encode() + body.getvalue()

    def read(path: Path) -> None:
        with contextlib.suppress(UserError):
            read_ply(path)
        read_points(path)

    seed = header.encode() + b"end_header\n" + struct.pack("<6f", *range(6))
    return Format(folder / "elements.ply", [seed], spoil, read)


def _pictures(folder: Path) -> Format:
    made = functools.cache(png)

    def spoil(random: Random, data: bytes, other: bytes) -> bytes:
        return made(*random.choice(((100, 100), (4000, 3000), (13_300, 13_300), (100_000, 1700))))

    def read(path: Path) -> None:
        size = image_size(path)
        affordable([SimpleNamespace(source_size=size, image_path=path)], 4)
        job = {"image": str(path), "mask": None, "source_size": size, "size": (7, 5), "background": [1.0, 0.5, 0.0]}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as in the worker
                image_decode.decode(job)
        except image_decode.DecodeError as error:
            raise UserError(str(error)) from error

    return Format(folder / "large.png", [png(100, 100)], spoil, read)


# ---- what a run finds in its folder ---------------------------------------------------

SAVED = ("chkpnt3.pth", "chkpnt60.pth", "chkpnt_best.pth", "point_cloud/iteration_3/point_cloud.ply", "results.json")


def _output_folder(folder: Path) -> Format:
    """An input names a folder, whose files are whole, cut or missing, and how a run is started in it."""
    state = {"step": 3, "avatar": {}, "options": {"model": MODEL}}
    good = saved_bytes(lambda path: checkpoint.save(path, state), folder / "whole.pth")

    outputs = folder / "outputs"
    for number, states in enumerate(itertools.product(("none", "whole", "cut"), repeat=len(SAVED))):
        (outputs / str(number) / "point_cloud" / "iteration_3").mkdir(parents=True)
        for name, how in zip(SAVED, states):
            content = b'{"iterations": 60}' if name.endswith("json") else good
            if how != "none":
                (outputs / str(number) / name).write_bytes(content if how == "whole" else content[: len(content) // 2])

    def spoil(random: Random, data: bytes, other: bytes) -> bytes:
        return json.dumps([random.randrange(3 ** len(SAVED)), random.choice((None, "auto"))]).encode()

    def read(path: Path) -> None:
        number, start = json.loads(path.read_bytes())
        output = outputs / str(number)
        words = ["-s", str(folder), "-m", str(output), *(["--start_checkpoint", start] if start else [])]
        with contextlib.redirect_stderr(io.StringIO()):  # the warnings
            from_zero = checkpoint.to_resume(output, parse_train(words)) is None
        checkpoints, avatar = [(output / name).exists() for name in SAVED[:3]], (output / SAVED[3]).exists()
        finished = measured_iterations(output / "results.json") > 0
        lost = any(checkpoints) or avatar
        if start == "auto":  # a run that was killed before its first checkpoint begins anew
            lost = any(checkpoints[:2]) or lost and finished
        assert not (from_zero and lost), "a run from the start would replace what is there"

    return Format(folder / "folder.json", [b"[0, null]"], spoil, read)
