"""The formats that strangers hand us: a valid file or two of each, how it is spoilt, and who reads it."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import plyfile
import torch
from PIL import Image
from scipy import sparse
from torture import fuzz_mutations as spoil
from torture.fuzz_mutations import ARRAYS, Format, Spoiler, saved_bytes
from torture.fuzz_tensors import tensors
from toy_capture import write_capture
from toy_datasets import write_colmap
from toy_head import toy_arrays, toy_head

from arguments import parse_train, read_cfg_args, write_cfg_args
from innovations.expression_appearance import FILE_NAME as APPEARANCE_NAME
from innovations.expression_appearance import read_appearance
from scene.cameras import read_cameras_json
from scene.dataset import load_dataset
from scene.dataset.blender import read_points
from scene.dataset.common import image_size
from scene.flame.head_model import load_head_model
from scene.flame.parameters import MOTION, FlameParameters, row_columns
from scene.images import decode as image_decode
from scene.motion.blendshapes import mapping_from_names, read_mapping, read_weights
from scene.motion.key_frames import KeyFrames
from scene.ply import read_ply, write_ply
from utils.blendshapes import NAMES
from utils.errors import UserError

LARGEST_DECODED = 4_000_000  # pixels; larger ones are legal, but would take the time of all others


def formats(folder: Path) -> dict[str, Format]:
    """All formats, with the files around them that their readers need, written below `folder`."""
    torch.manual_seed(0)
    return {
        **_pictures(folder),
        **_arrays(folder),
        **_heads(folder),
        **_clouds(folder),
        **tensors(folder),
        **_captures(folder),
        **_colmap(folder),
        **_motions(folder),
        "cfg_args": _options(folder),
    }


# ---- pictures -------------------------------------------------------------------


def _decode(path: Path) -> None:
    size = image_size(path)
    if size[0] * size[1] > LARGEST_DECODED:
        return
    job = {"image": str(path), "mask": str(path), "source_size": size, "size": (7, 5), "background": [1.0, 0.5, 0.0]}
    try:
        image_decode.verify(job)
        image_decode.decode(job)
    except image_decode.DecodeError as error:  # which the image cache tells as it is
        raise UserError(str(error)) from error


def _pictures(folder: Path) -> dict[str, Format]:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 4), dtype=np.uint8)
    images = [
        Image.fromarray(pixels),
        Image.fromarray(pixels[..., :3]),
        Image.fromarray(pixels[..., 0]),
        Image.fromarray(pixels[..., :3]).quantize(8),
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257),
    ]

    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    rgb = images[1]
    others = [
        saved(rgb, "WEBP"),
        saved(images[0], "WEBP", lossless=True),
        saved(rgb, "BMP"),
        saved(images[3], "BMP"),
        *(
            saved(rgb, "TIFF", compression=kind)
            for kind in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
        ),
        saved(images[4], "TIFF"),
    ]
    return {
        "png": Format(folder / "a.png", [saved(image, "PNG") for image in images], spoil.spoil_png, _decode),
        "jpeg": Format(
            folder / "a.jpg",
            [saved(rgb, "JPEG"), saved(images[2], "JPEG", progressive=True)],
            spoil.spoil_bytes,
            _decode,
        ),
        "tiff_webp_bmp": Format(folder / "a.img", others, spoil.spoil_bytes, _decode),
    }


# ---- arrays, head models ----------------------------------------------------------


def _arrays(folder: Path) -> dict[str, Format]:
    head = toy_head()
    rng = np.random.default_rng(0)
    motion = {name: rng.normal(size=(3, width)).astype(np.float32) for name, width in {"expr": 6, **MOTION}.items()}
    whole = {
        **motion,
        "shape": np.zeros(4, np.float32),
        "static_offset": np.zeros((1, 40, 3), np.float32),
        "dynamic_offset": np.zeros((3, 40, 3), np.float32),
        "timestep_index": np.arange(3),
    }

    def saved(values: dict[str, Any], compress: bool = False) -> bytes:
        stream = io.BytesIO()
        (np.savez_compressed if compress else np.savez)(stream, **values)
        return stream.getvalue()

    def format_of(name: str, original: dict[str, Any], read: Callable[[Path], Any]) -> Format:
        def spoiler(random: Random, data: bytes, other: bytes) -> bytes:
            kind = random.random()
            if kind < 0.3:
                return spoil.spoil_bytes(random, data, other)
            if kind < 0.6:
                return spoil.spoil_zip(random, data, other)
            values = spoil.spoil_values(random, original, ARRAYS)
            try:
                return saved(values if isinstance(values, dict) else {"expr": values}, random.random() < 0.5)
            except Exception:  # what NumPy cannot write
                return spoil.spoil_bytes(random, data, other)

        return Format(folder / name, [saved(original), saved(original, True)], spoiler, read)

    changes = {
        "modes": rng.normal(size=(5, 2, 3)).astype(np.float32),
        "mean": np.zeros(9),
        "directions": rng.normal(size=(9, 2)),
        "low": np.zeros(2),
        "high": np.ones(2),
    }
    return {
        "flame_param_npz": format_of("flame_param.npz", whole, lambda path: FlameParameters.load(path, head)),
        "expression_appearance": format_of(APPEARANCE_NAME, changes, lambda path: read_appearance(path, 5, 9)),
    }


def _heads(folder: Path) -> dict[str, Format]:
    arrays = toy_arrays(vertices=12, faces=8, modes=5)
    arrays = {**arrays, "n_shape": 3, "J_regressor": sparse.csc_matrix(arrays["J_regressor"])}
    masks = {"lips": np.arange(4), "nose": np.arange(3, 9)}
    values = (*ARRAYS, sparse.csr_matrix(np.eye(5)), arrays["weights"].tolist(), slice(3), len, object(), b"x" * 100)

    def spoiler(original: dict[str, Any]) -> Spoiler:
        def run(random: Random, data: bytes, other: bytes) -> bytes:
            if random.random() < 0.6:
                return spoil.spoil_pickle(random, data, other)
            return spoil.dump_pickle(random, spoil.spoil_values(random, original, values))

        return run

    def read_masks(path: Path) -> None:
        load_head_model(path.parent / "head.pkl")

    (folder / "masks").mkdir()
    (folder / "masks" / "head.pkl").write_bytes(pickle.dumps(arrays))
    dumped = [[pickle.dumps(value, protocol=protocol) for protocol in (0, 2, 4, 5)] for value in (arrays, masks)]
    return {
        "head_model": Format(folder / "head_model.pkl", dumped[0], spoiler(arrays), load_head_model),
        "head_masks": Format(folder / "masks" / "masks.pkl", dumped[1], spoiler(masks), read_masks),
    }


# ---- point clouds -----------------------------------------------------------------


HEADER_LINES = (
    b"element vertex 1000000000000\n",
    b"element face 4000000\nproperty list uchar float a\n",
    b"property list uint double q\n",
    b"property list char int q\n",
    b"property double x\n",
    b"element x\n",
    b"element\x0bvertex 99\n",
    b"comment \r\n",
    b"obj_info \xff\n",
    b"format ascii 1.0\n",
    b"element vertex 10\n",
    b"property list float float q\n",
    b"element e 2000000\n",
)


def _clouds(folder: Path) -> dict[str, Format]:
    fields = {
        "xyz": torch.randn(3, 3),
        "features_dc": torch.randn(3, 1, 3),
        "features_rest": torch.randn(3, 3, 3),
        "opacity": torch.randn(3, 1),
        "scaling": torch.randn(3, 3),
        "rotation": torch.randn(3, 4),
    }
    ours = [
        saved_bytes(lambda path: write_ply(path, {**fields, "binding": binding}), folder / "seed.ply")
        for binding in (None, torch.arange(3))
    ]
    points = np.array(
        [(0.5, 1, 2, 200, 100, 0), (3, 4, 5, 1, 2, 3)],
        dtype=[("x", "f4"), ("y", "f4"), ("z", "f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1")],
    )
    faces = np.array([([0, 1, 0],), ([1, 0, 1],)], dtype=[("vertex_indices", "i4", (3,))])

    def saved(**options: Any) -> bytes:
        stream = io.BytesIO()
        elements = [plyfile.PlyElement.describe(points, "vertex"), plyfile.PlyElement.describe(faces, "face")]
        plyfile.PlyData(elements, **options).write(stream)
        return stream.getvalue()

    def as_text(data: bytes) -> bytes:
        cloud = plyfile.PlyData.read(io.BytesIO(data))
        cloud.text = True
        stream = io.BytesIO()
        cloud.write(stream)
        return stream.getvalue()

    others = [saved(text=True), saved(byte_order="<"), saved(byte_order=">")]

    def spoiler(random: Random, data: bytes, other: bytes) -> bytes:
        if random.random() < 0.4:
            return spoil.spoil_bytes(random, data, other)
        header, found, body = data.partition(b"end_header\n")
        lines = header.splitlines(keepends=True)
        place = random.randrange(len(lines))
        kind = random.randrange(5)
        if kind == 0:
            lines[place] = spoil.spoil_bytes(random, lines[place], other)
        elif kind == 1:
            lines.insert(place, random.choice(lines))
        elif kind == 2:
            del lines[place]
        elif kind == 3:
            lines.insert(place, random.choice(HEADER_LINES))
        else:
            header = b"".join(lines).replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n")))
            return header + found + body
        return b"".join(lines) + found + body

    return {
        "ply": Format(folder / "a.ply", [*ours, as_text(ours[1])], spoiler, read_ply),
        "points_ply": Format(folder / "points3d.ply", others, spoiler, read_points),
    }


# ---- data sets and options ----------------------------------------------------------


def either(random: Random, data: bytes, other: bytes) -> bytes:
    return (spoil.spoil_zip if random.random() < 0.6 else spoil.spoil_bytes)(random, data, other)


def _captures(folder: Path) -> dict[str, Format]:
    capture = write_capture(folder / "capture", [3, 4, 5], size=(16, 12))
    blender = folder / "blender"
    blender.mkdir()
    (blender / "images").symlink_to(capture / "images")
    frames = json.loads((capture / "transforms_train.json").read_text())["frames"]
    static = [
        {"file_path": f"./images/{Path(frame['file_path']).stem}", "transform_matrix": frame["transform_matrix"]}
        for frame in frames
    ]
    rest = {"eval_split": True, "white_background": False}
    json_files = {
        "transforms_rigged": (
            capture,
            [{"frames": frames}, {"frames": frames[:1], "camera_angle_x": 0.5, "fl_x": 9}],
            True,
        ),
        "transforms_blender": (blender, [{"camera_angle_x": 0.7, "frames": static}], False),
    }
    found = {
        name: Format(
            place / "transforms_train.json",
            [json.dumps(value).encode() for value in values],
            spoil.spoil_json,
            lambda path, bind=bind: load_dataset(path.parent, bind_to_mesh=bind, **rest),
        )
        for name, (place, values, bind) in json_files.items()
    }
    one = capture / "flame_param" / "00003.npz"
    found["flame_timestep_npz"] = Format(
        one, [one.read_bytes()], either, lambda path: load_dataset(capture, bind_to_mesh=True, **rest)
    )
    for place, values, _ in json_files.values():
        (place / "transforms_train.json").write_text(json.dumps(values[0]))
    return found


def _colmap(folder: Path) -> dict[str, Format]:
    """Each of the three files of a reconstruction, binary and text, while the other two are whole."""
    found = {}
    for kind in ("bin", "txt"):
        for name in ("cameras", "images", "points3D"):
            source = write_colmap(folder / f"colmap_{kind}_{name}", kind)
            path = source / "sparse" / "0" / f"{name}.{kind}"
            read = partial(load_dataset, source, bind_to_mesh=False, eval_split=False, white_background=False)
            found[f"colmap_{name}_{kind}"] = Format(
                path, [path.read_bytes()], spoil.spoil_bytes, lambda _, read=read: read()
            )
    return found


def _motions(folder: Path) -> dict[str, Format]:
    """What clips are made of: key frames, camera paths, lists of cameras, blendshape weights and their mappings."""
    head = toy_head()
    eye = np.eye(4).tolist()
    camera = {"position": [0, 0, 1], "quaternion": [0, 1, 0, 0], "fov_degrees": 20, "shift": [0, 0], "camera_id": "a"}
    keys = [{"seconds": t, "camera": camera, "pose": {"expr": [0.5], "jaw_pose": [0.3, 0, 0]}} for t in (0, 1.5, 2)]
    path = [{"camera_to_world": sum(eye, []), "fov": 40, "aspect": 1.5} for _ in range(3)]
    views = {
        "key_frames": {"format": "head avatar key frames", "version": 1, "size": [64, 48], "key_frames": keys},
        "camera_path": {"camera_type": "perspective", "fps": 24, "seconds": 1, "camera_path": path, "render_width": 64,
                        "render_height": 48, "default_fov": 50},
    }  # fmt: skip
    entry = {"id": 0, "img_name": "00001_02", "width": 64, "height": 48, "fx": 90.0, "fy": 91.0, "cx": 30.0, "cy": 20.0,
             "position": [0, 0, 1], "rotation": np.eye(3).tolist(), "camera_id": "c"}  # fmt: skip
    table = ",".join(["Timecode", *NAMES]) + "".join(f"\n00:00:0{t}:07.5" + ",0.25" * 52 for t in range(4))
    stream = io.BytesIO()
    np.savez(stream, expr=np.ones((52, 6)), jaw_pose=np.ones((52, 3)))

    def play(path: Path) -> None:
        keys = KeyFrames.load(path)
        if keys.has_views:
            keys.views()(0.3).camera(64, 48)
        if keys.has_poses:
            columns = row_columns(6)
            keys.motion(np.zeros(columns["translation"].stop), columns, 1.0 / max(1.0, keys.seconds))

    def file(name: str, value: object, read: Callable[[Path], object]) -> Format:
        return Format(folder / name, [json.dumps(value).encode()], spoil.spoil_json, read)

    names = {"expression": ["jawOpen", "browInnerUp_L"], "theta0_rad": 0.4}
    return {
        **{name: file(f"{name}.json", value, play) for name, value in views.items()},
        "cameras_json": file("cameras.json", [entry, {**entry, "camera_id": None}], read_cameras_json),
        "mode_names": file("expr_names.json", names, lambda path: mapping_from_names(path, head)),
        "blendshapes_csv": Format(folder / "weights.csv", [table.encode()], spoil.spoil_bytes, read_weights),
        "mapping_npz": Format(folder / "map.npz", [stream.getvalue()], either, lambda path: read_mapping(path, head)),
    }


def _options(folder: Path) -> Format:
    options = parse_train(["-s", str(folder), "-m", str(folder / "model"), "--bind_to_mesh", "--preset", "balanced"])
    path = folder / "cfg_args"
    text = saved_bytes(lambda path: write_cfg_args(path, options), path)
    pieces = (
        b"__import__('os').system('exit 3')",
        b"[" * 90_000,
        b"(" * 5000,
        b"-" * 50_000 + b"1",
        b"1+" * 50_000 + b"1",
        b"open('x','w')",
        b"0x" + b"f" * 9000,
        b"'a' " * 3000,
        b"{[]: 1}",
        b"f'{1}'",
        b"lambda: 0",
        b"**{}",
        b"1j",
        b"b'x'",
        b"'\\ud800'",
        b"'\\0'",
        b"{1: 2}",
        b"...",
        b"not 1",
        b"10**9999999",
        b"9" * 5000,
        b"1e999",
        b"None",
        b"\xff",
    )

    def spoiler(random: Random, data: bytes, other: bytes) -> bytes:
        if random.random() < 0.5:
            return spoil.spoil_bytes(random, data, other)
        words = data.split(b"=")
        place = random.randrange(1, len(words))
        value, comma, name = words[place].rpartition(b",")
        words[place] = random.choice(pieces) + comma + name
        return b"=".join(words)

    return Format(path, [text], spoiler, read_cfg_args)
