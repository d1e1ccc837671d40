"""Files from strangers: nothing in them runs, writes, hangs, or takes memory without bound; each ends in one line."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import bounded, refusal
from PIL import Image
from torture import fuzz_readers
from torture.fuzz_formats import formats
from torture.fuzz_mutations import Format
from toy_capture import write_capture
from toy_datasets import load

from scene.dataset.blender import read_points
from scene.dataset.colmap import read_cameras, read_images
from scene.dataset.colmap import read_points as read_colmap_points
from scene.dataset.common import image_size, locate, read_json
from scene.images import decode as image_decode
from scene.ply import read_ply
from utils.errors import UserError, one_line
from utils.files import only_writer, refuse_escaping_links
from utils.npz import read_npz
from utils.untrusted import read_regular

# ---- anything that is not a file of a bearable size --------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Format]:
    found = formats(tmp_path_factory.mktemp("formats"))
    del found["lpips_pickle"]  # is read from an archive of known checksum
    return found


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_terabyte(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # without taking any room


PLANTED = {
    "pipe": as_pipe,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terabyte": as_terabyte,
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to("/no/file"),
    "empty": Path.touch,
}


@pytest.mark.parametrize("what", PLANTED)
def test_no_reader_waits_or_fills_the_memory(what: str, known: dict[str, Format]) -> None:
    for name, kind in known.items():
        if name == "head_masks" and what != "terabyte" and what != "empty":
            continue  # masks that are no file are no masks
        kind.place.write_bytes(kind.seeds[0])
        kind.read(kind.place)
        kind.place.unlink()
        try:
            PLANTED[what](kind.place)
            assert refusal(lambda: kind.read(kind.place)), name
        finally:
            kind.place.rmdir() if kind.place.is_dir() and not kind.place.is_symlink() else kind.place.unlink()
            kind.place.write_bytes(kind.seeds[0])


def test_read_regular(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345" and read_regular(path, 4) is None
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", 5) == b"12345"
    for name in ("", "a\0b"):
        with pytest.raises(OSError):
            read_regular(tmp_path / name, 5)


# ---- paths --------------------------------------------------------------------------


def test_paths_stay_below_the_parent(tmp_path: Path) -> None:
    source = tmp_path / "captures" / "one"
    for text in ("images/a.png", "../two/images/a.png", "x/../../two/a.png", str(source.parent / "two/a.png")):
        assert locate(text, source, source, "w").is_relative_to(source.parent)
    for text in (
        "../../a.png",
        "images/../../../a.png",
        "/etc/passwd",
        "../" * 50 + "etc/passwd",
        "../../captures2/x.png",
        "\0",
        "",
        "\ud800",
        5,
        None,
        ["a"],
    ):
        assert refusal(lambda: locate(text, source, source, "w")).startswith("w ")


def test_links_are_followed_and_texts_are_not(tmp_path: Path) -> None:
    """Captures linked to another disk work; `..` behind a link means the text, not where the link leads."""
    disk = write_capture(tmp_path / "disk" / "deep" / "er", [3, 4], size=(8, 6))
    capture = tmp_path / "captures" / "one"
    capture.mkdir(parents=True)
    for name in ("images", "flame_param", "canonical_flame_param.npz", "transforms_train.json"):
        (capture / name).symlink_to(disk / name)
    assert len(load(capture).train) == 2
    (capture / "transforms_train.json").unlink()
    frames = json.loads((disk / "transforms_train.json").read_text())
    frames["frames"][0]["file_path"] = "images/../../../disk/deep/er/images/00003_00.png"
    (capture / "transforms_train.json").write_text(json.dumps(frames))
    assert "points outside of" in refusal(lambda: load(capture))


def test_results_stay_in_their_folder(tmp_path: Path) -> None:
    home, model = tmp_path / "home", tmp_path / "model"
    (home / "secret").mkdir(parents=True)
    (home / "profile").write_text("mine")
    (model / "test").mkdir(parents=True)
    (model / "again").symlink_to(model / "test")  # stays inside
    refuse_escaping_links(model)
    (model / "test" / "ours_7").symlink_to(home / "secret")
    assert "ours_7 is a symbolic link that leads out" in refusal(lambda: refuse_escaping_links(model))
    (model / ".lock").symlink_to(home / "profile")
    with pytest.raises(UserError), only_writer(model):
        pass
    assert (home / "profile").read_text() == "mine"
    (model / ".lock").unlink()
    os.mkfifo(model / ".lock")
    with bounded(), pytest.raises(UserError), only_writer(model):
        pass


def test_messages_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2J\n b\x9b\x07é") == "a\\x1b[2J b\\x9b\\x07é"


# ---- sizes that lie -----------------------------------------------------------------


PLY = b"ply\nformat %s 1.0\n%sproperty float x\nproperty float y\nproperty float z\nend_header\n" + b"1 " * 40
HEADERS = {
    "rows": (b"binary_little_endian", b"element vertex 1000000000000\n"),
    "text rows": (b"ascii", b"element vertex 1000000000000\n"),
    "rows in a second element": (b"ascii", b"element a 999999999999\nproperty char b\nelement vertex 1\n"),
    "rows without properties": (b"ascii", b"element a 999999999999\nelement vertex 1\n"),
    "rows behind another line break": (b"ascii", b"comment \relement a 99999999999\relement vertex 1\n"),
    "rows behind a tab": (b"ascii", b"element\x0bvertex 99999999999\n"),
    "long lists": (b"binary_little_endian", b"element vertex 2\nproperty list uint double b\n"),
    "lists": (b"binary_little_endian", b"element a 9999999\nproperty list uchar float b\nelement vertex 1\n"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_ply_headers(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(PLY % HEADERS[name] + bytes(10_000_000 if name == "lists" else 0))
    for read in (read_ply, read_points):
        refusal(lambda: read(tmp_path / "a.ply"))


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of zeros, which compresses a thousandfold, with more chunks before its pixels."""
    squeeze = zlib.compressobj(9)
    pixels = b"".join([squeeze.compress(bytes((width + 1) * 100)) for _ in range(height // 100)] + [squeeze.flush()])
    every = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        *chunks,
        (b"IDAT", pixels),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in every
    )


def test_image_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    job = {"image": str(path), "mask": None, "source_size": (400, 300), "size": (400, 300), "background": [0, 0, 0]}
    path.write_bytes(png(30_000, 6_000))  # 180 megapixels in 180 KB
    assert "pixels" in refusal(lambda: image_size(path))
    for act in (image_decode.check, image_decode.decode):
        with bounded(), pytest.raises(image_decode.DecodeError, match=r"a\.png"):
            act(job)
    text = zlib.compress(bytes(200 << 20), 1)
    path.write_bytes(png(400, 300, (b"zTXt", b"a\0\0" + text), (b"iCCP", b"a\0\0" + text)))
    refusal(lambda: image_size(path))
    with bounded(), pytest.raises(image_decode.DecodeError):
        image_decode.decode(job)


def test_no_image_starts_a_program(tmp_path: Path) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file's name."""
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9)).save(path, "EPS")
    assert Image.open(path).format == "EPS"
    assert "cannot read the image" in refusal(lambda: image_size(path))
    job = {"image": str(path), "mask": None, "source_size": None, "size": (9, 9), "background": [0, 0, 0]}
    with pytest.raises(image_decode.DecodeError, match="cannot read the image"):
        image_decode.decode(job)


def npy(shape: str, kind: str = "'<f4'", body: bytes = b"") -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + body


@pytest.mark.parametrize("lie", [False, True])
def test_zip_bombs(lie: bool, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("expr.npy", "w") as entry:
            entry.write(npy("(157286400,)"))
            for _ in range(600):
                entry.write(bytes(1 << 20))
    data = bytearray(path.read_bytes())
    if lie:  # `zipfile` unpacks all of it even so
        for place in (data.find(b"PK\1\2") + 24, 22):
            struct.pack_into("<I", data, place, 100)
        path.write_bytes(data)
    refusal(lambda: read_npz(path, ("expr",)))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_a_bound(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("expr.npy", npy("(2,)", body=bytes(8)))
    assert "unusual" in refusal(lambda: read_npz(tmp_path / "a.npz", ("expr",)))


@pytest.mark.parametrize(
    "content",
    [
        npy("(1000000000000,)"),
        npy("(-1,)"),
        npy("(2, -3)", body=bytes(24)),
        npy("(1,)", "'|O'", b"cos\nsystem\n."),
        npy("(1,)", "[('a', '<f4')]", bytes(4)),
        npy("(" * 900),
        npy("(1,)", "'<f4'" * 50),
        npy("(3L,)", body=bytes(8)),
        b"\x93NUMPY\1\0",
        b"",
    ],
)
def test_npy_headers(content: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("expr.npy", content)
    refusal(lambda: read_npz(tmp_path / "a.npz", ("expr",)))


def test_one_bomb_for_many_timesteps(tmp_path: Path) -> None:
    """Sixty megabytes unpacked from as many kilobytes are fine once, and too much for each of a thousand moments."""
    capture = write_capture(tmp_path / "capture", [0, 1], size=(8, 6))
    arrays = dict(np.load(capture / "flame_param/00000.npz"))
    np.savez_compressed(
        capture / "flame_param/00000.npz", **{**arrays, "dynamic_offset": np.ones((1, 300_000, 3), np.float32)}
    )
    frames = json.loads((capture / "transforms_train.json").read_text())["frames"]
    many = [
        {**frames[0], "timestep_index": index}
        if index < 1
        else {**frames[-1], "flame_param_path": "flame_param/00001.npz", "timestep_index": index}
        for index in range(2000)
    ]
    (capture / "transforms_train.json").write_text(json.dumps({"frames": many}))
    (capture / "transforms_test.json").unlink()
    (capture / "transforms_val.json").unlink()
    text = refusal(lambda: load(capture))
    assert "dynamic_offset" in text and "GiB" in text


JSON = {
    "deep": b'{"frames": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 100_000,
    "digits": b'{"frames": ' + b"9" * 100_000 + b"}",
    "many": b'{"frames": [' + b"{}," * 12_000_000 + b"{}]}",
    "not an object": b"NaN",
    "not text": b"\xff\xfe{}",
    "only brackets": b"[" * 1_000_000,
}


@pytest.mark.parametrize("name", JSON)
def test_json(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(JSON[name])
    refusal(lambda: read_json(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "key, value",
    [
        ("w", 10**30),
        ("w", float("nan")),
        ("fl_x", 1e308),
        ("fl_x", 10**400),
        ("cx", -1e300),
        ("timestep_index", 1e300),
        ("transform_matrix", [[1e200] * 4] * 4),
        ("transform_matrix", [[1, 0, 0, 1e30], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        ("camera_id", [[["x"]]]),
        ("file_path", {"a": 1}),
        ("file_path", "images/\0.png"),
        ("file_path", "a" * 100_000),
    ],
)
def test_json_values(key: str, value: object, tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "capture", [0, 1], size=(8, 6))
    content = json.loads((capture / "transforms_train.json").read_text())
    content["frames"][0][key] = value
    (capture / "transforms_train.json").write_text(json.dumps(content))
    text = refusal(lambda: load(capture))
    assert key in text


def test_the_narrowest_angle_is_no_division_by_zero(tmp_path: Path) -> None:
    capture = write_capture(tmp_path / "capture", [0, 1], size=(8, 6))
    content = json.loads((capture / "transforms_train.json").read_text())
    for name in ("fl_x", "fl_y"):
        del content["frames"][0][name]
    content["frames"][0]["camera_angle_x"] = 5e-324
    (capture / "transforms_train.json").write_text(json.dumps(content))
    assert "camera_angle_x" in refusal(lambda: load(capture))


@pytest.mark.parametrize("read", [read_cameras, read_images, read_colmap_points])
@pytest.mark.parametrize("count", [10**12, 2**64 - 1, 30_000_000])
def test_colmap_counts(read: Callable[[Path], object], count: int, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", count))
        file.truncate(1 << 36)  # zeros that take no room, so that 30 million records could be there
    refusal(lambda: read(path))
    with open(tmp_path / "file.txt", "wb") as file:
        file.truncate(1 << 36)  # one line
    refusal(lambda: read(tmp_path / "file.txt"))


# ---- thousands of spoilt files; the long version is tests/torture/fuzz_readers.py ------


def test_spoilt_files_of_every_format(known: dict[str, Format], tmp_path: Path) -> None:
    arguments = argparse.Namespace(count=100, seed=1, keep=tmp_path / "findings", format=None)
    results = fuzz_readers.run([*known, "lpips_pickle"], arguments)
    kept = sorted(path.name for path in (tmp_path / "findings").glob("*"))
    assert not kept and all(counts["findings"] == 0 for counts in results.values()), kept
    assert all(counts["read"] + counts["refused"] == 100 for counts in results.values())
    assert all(counts["read"] > 0 and counts["refused"] > 30 for counts in results.values())


def test_the_fuzzer_notices(tmp_path: Path) -> None:
    """What it is there for: a reader that writes, one that fails in its own way, one that takes too much."""
    place = tmp_path / "file"
    watch = fuzz_readers.Watch()

    def fill(path: Path) -> None:
        try:
            raise MemoryError
        except MemoryError as error:
            raise UserError("no room") from error

    for read, expected in (
        (lambda path: path.with_suffix(".out").write_text("x"), "open"),
        (lambda path: {}["x"], "KeyError"),
        (fill, "gigabyte"),
        (lambda path: os.system("true"), "os.system"),
        (lambda path: pickle.loads(b"cos\ngetpid\n)R."), "pickle.find_class"),
        (lambda path: tempfile.mkdtemp(dir=tmp_path), "os.mkdir"),
    ):
        assert expected in fuzz_readers.outcome(Format(place, [], None, read), watch, b"x")
    assert fuzz_readers.outcome(Format(place, [], None, lambda path: None), watch, b"x") == "read"
