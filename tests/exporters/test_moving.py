"""Avatars that move in other people's programs: what readers that are not ours find in the files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plyfile
import pytest
import torch
from lam_reader import array, columns, read_lam
from moving_ball import TIMESTEPS, write_avatar
from places import ROOT

from arguments import parse_export
from export import export
from exporters import brush, lam
from exporters.view import first_view
from ops.types import Gaussians
from scene import Avatar, load_avatar
from scene.motion.blendshapes import find_mapping
from utils.blendshapes import NAMES
from utils.errors import UserError

MOVING = ("brush", "lam", "frames", "npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("moving") / "ball", expressive=True)


@pytest.fixture(scope="module")
def avatar(folder: Path) -> Avatar:
    return load_avatar(folder, device="cpu")


def write(folder: Path, kind: str, *words: object) -> Path:
    return export(parse_export(["-m", str(folder), "--format", kind, "--quiet", *map(str, words)]))


def matrices(quats: np.ndarray) -> np.ndarray:
    """[N, 3, 3] of quaternions [N, 4] wxyz."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    flat = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)]
    flat += [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)]
    flat += [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return np.stack(flat, axis=1).reshape(-1, 3, 3)


def covariances(gaussians: Gaussians) -> np.ndarray:
    """[N, 3, 3]: what of rotations and deviations is seen."""
    turned = matrices(gaussians.quats.double().numpy()) * gaussians.scales.double().numpy()[:, None]
    return turned @ turned.transpose(0, 2, 1)


# ---- brush ------------------------------------------------------------------------------------------


def in_triangles(vertices: np.ndarray, faces: np.ndarray, rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Means [N, 3] and covariances [N, 3, 3], by the rule of the viewer's reader (`transform_splat`)."""
    v0, v1, v2 = vertices[faces[rows["binding"].astype(int)]].transpose(1, 0, 2)
    a0 = (v1 - v0) / np.linalg.norm(v1 - v0, axis=1, keepdims=True)
    a1 = np.cross(a0, v2 - v0)
    a1 /= np.linalg.norm(a1, axis=1, keepdims=True)
    a2 = -np.cross(a1, a0)
    turn = np.stack([a0, a1, a2], axis=2)
    scale = (np.linalg.norm(v1 - v0, axis=1) + np.abs((a2 * (v2 - v0)).sum(1)))[:, None] / 2
    means = np.einsum("nij,nj->ni", turn, columns(rows, "x", "y", "z")) * scale + (v0 + v1 + v2) / 3
    log_scales = columns(rows, "scale_0", "scale_1", "scale_2") + np.log(scale)
    turned = turn @ matrices(columns(rows, "rot_0", "rot_1", "rot_2", "rot_3")) * np.exp(log_scales)[:, None]
    return means, turned @ turned.transpose(0, 2, 1)


def moments(data: plyfile.PlyData) -> list[np.ndarray]:
    """The vertices [V, 3] at each moment."""
    base = columns(data["base_vertex"], "x", "y", "z")
    found = []
    for element in data.elements:
        if element.name.startswith("delta_vertex_"):
            number = element.name.removeprefix("delta_vertex_")
            low, high = (columns(data[f"meta_delta_{end}_{number}"], "x", "y", "z")[0] for end in ("min", "max"))
            assert (high > low).all()
            found.append(base + low + columns(element, "x", "y", "z") / 65535 * (high - low))
    return found


def test_brush_moves_as_the_avatar_does(folder: Path, avatar: Avatar, tmp_path: Path) -> None:
    path = write(folder, "brush", "-o", tmp_path / "moving.ply", "--up", "world")
    data = plyfile.PlyData.read(path)
    assert data.comments == ["vertical axis: y"]
    names = ["faces", "base_vertex", "vertex"]
    for moment in range(TIMESTEPS):
        names += [f"{part}_{moment:05d}" for part in ("meta_delta_min", "meta_delta_max", "delta_vertex")]
    assert [element.name for element in data.elements] == names
    # The reader takes numbers of triangles as uint only, and shares of the range as ushort only.
    assert [p.val_dtype for p in data["faces"].properties] == ["u4"] * 3
    assert [p.val_dtype for p in data["delta_vertex_00003"].properties] == ["u2"] * 3
    assert {p.val_dtype for p in data["vertex"].properties} == {"f4"}
    faces = columns(data["faces"], "index_0", "index_1", "index_2").astype(int)
    rows = data["vertex"]
    for moment, vertices in enumerate(moments(data)):
        with torch.no_grad():
            gaussians, wanted = avatar.model(moment)
        assert np.abs(vertices - wanted.numpy()).max() < 2e-6  # 16 bits of some centimeters
        means, spread = in_triangles(vertices, faces, rows)
        assert np.abs(means - gaussians.means.numpy()).max() < 5e-6
        np.testing.assert_allclose(spread, covariances(gaussians), atol=1e-7)
    sh = np.zeros((len(rows.data), 16, 3))
    sh[:, 0] = columns(rows, "f_dc_0", "f_dc_1", "f_dc_2")
    for channel in range(3):
        sh[:, 1:, channel] = columns(rows, *(f"f_rest_{15 * channel + k}" for k in range(15)))
    np.testing.assert_allclose(sh, avatar.model(0)[0].sh.detach(), atol=1e-6)
    np.testing.assert_allclose(rows["opacity"], avatar.model.opacity.detach()[:, 0])


def test_brush_stands_as_the_viewer_looks(folder: Path, avatar: Avatar, tmp_path: Path) -> None:
    vertices = moments(plyfile.PlyData.read(write(folder, "brush", "-o", tmp_path / "upright.ply")))
    world = [avatar.model(moment)[1].double().numpy() for moment in range(TIMESTEPS)]
    view = first_view(avatar, avatar.motion().values.double().numpy())
    up, back = np.array(view["up"]), np.array(view["back"])
    # Its camera stands at -z, x is right and y down.
    axes = np.stack([np.cross(up, back), -up, -back])
    for found, wanted in zip(vertices, world):
        np.testing.assert_allclose(found, (wanted - view["target"]) @ axes.T, atol=2e-6)


def test_a_moment_in_which_nothing_moves_has_a_range_too() -> None:
    data = np.frombuffer(brush.packed(np.zeros((5, 3)))[:24], "<f4")
    assert (data[3:] > data[:3]).all() and np.isfinite(data).all() and (data[3:] > np.finfo(np.float32).tiny).all()


# ---- lam --------------------------------------------------------------------------------------------


def test_lam_is_where_the_avatar_is_at_each_blendshape(folder: Path, avatar: Avatar, tmp_path: Path) -> None:
    found = read_lam(write(folder, "lam", "-o", tmp_path / "anna.zip"))
    names = ("", "skin.glb", "offset.ply", "animation.glb", "vertex_order.json")
    assert found.names == [f"anna/{name}" for name in names]
    assert len(found.vertices) == len(found.ply.data) == len(avatar.model) - 5  # some are too faint
    joints = array(found.skin, found.skin.accessors[1].bufferView, "u1", 4)
    bones = [found.skin.nodes[joint].name for joint in found.skin.skins[0].joints]
    assert bones == ["hip", "head"] and not found.animation.meshes and not found.skin.animations
    assert {bones[joint] for joint in joints[:, 0]} == {"head"}
    assert len(found.animation.animations) == 12 and found.animation.nodes[1].name == "head"
    assert len(found.moves) == 51 and set(found.moves) == set(NAMES) - {"tongueOut"}

    seen = (avatar.model.opacity.sigmoid() >= 1 / 255).flatten()
    np.testing.assert_allclose(found.ply["opacity"], avatar.model.opacity.detach()[seen, 0], atol=1e-3)
    rgb = columns(found.ply, "f_dc_0", "f_dc_1", "f_dc_2")
    assert rgb.min() >= 0.5 / 255 - 1e-6 and rgb.max() <= 255.5 / 255 + 1e-6
    at_rest = found.vertices + columns(found.ply, "x", "y", "z")
    assert sorted(found.order) == list(range(len(at_rest))) and (np.diff(at_rest[found.order, 2]) >= 0).all()

    rest = avatar.neutral()
    mapping = find_mapping(None, folder / "head_model.pkl", avatar.head)
    before = avatar.gaussians(rest)[0].means[seen].detach().double().numpy()
    view = first_view(avatar, rest[None].double().numpy())
    axes = np.stack([np.cross(view["up"], view["back"]), view["up"], view["back"]])  # x right, y up, z to the viewer
    np.testing.assert_allclose(at_rest, (before - view["target"]) @ axes.T + lam.CENTER, atol=1e-5)
    for name, move in found.moves.items():
        pose = rest + torch.from_numpy(mapping[NAMES.index(name)]).float()
        after = avatar.gaussians(pose)[0].means[seen].detach().double().numpy()
        assert np.abs(move - (after - before) @ axes.T).max() < lam.STILL, name
        assert move.any() == mapping[NAMES.index(name)].any(), name


# ---- frames, npz ------------------------------------------------------------------------------------


def test_frames_are_the_plys_of_each_moment_and_a_manifest(folder: Path, avatar: Avatar, tmp_path: Path) -> None:
    frames = write(folder, "frames", "-o", tmp_path / "frames", "--up", "world", "--scale", 1)
    about = json.loads((frames / "manifest.json").read_text())
    assert about["files"] == [f"{moment:05d}.ply" for moment in range(TIMESTEPS)]
    assert about["timesteps"] == list(range(TIMESTEPS)) and about["gaussians"] == len(avatar.model)
    low, high = [], []
    for timestep, name in zip(about["timesteps"], about["files"]):
        words = ["--timestep", timestep, "--up", "world", "--scale", 1, "-o", tmp_path / "one.ply"]
        assert (frames / name).read_bytes() == write(folder, "ply", *words).read_bytes()
        means = avatar.model(timestep)[0].means.detach().double().numpy()
        low, high = [*low, means.min(0)], [*high, means.max(0)]
    np.testing.assert_allclose([about["bounds"]["low"], about["bounds"]["high"]], [np.min(low, 0), np.max(high, 0)])
    # Of another motion, in the axes of viewers: the manifest says how to come back.
    other = write(folder, "frames", "-o", tmp_path / "other", "--motion", "sweep", "--fps", 4)
    about = json.loads((other / "manifest.json").read_text())
    assert about["fps"] == 4 and about["timesteps"] is None and about["up"] == "y-down" and about["scale"] == 10
    assert sorted(path.name for path in other.glob("*.ply")) == about["files"]
    row = plyfile.PlyData.read(other / "00000.ply")["vertex"]
    back = columns(row, "x", "y", "z") / about["scale"] @ np.array(about["turn"]) + about["origin"]
    np.testing.assert_allclose(back, avatar.gaussians(avatar.neutral())[0].means.detach(), atol=1e-5)


def test_the_arrays_are_posed_as_the_page_says(folder: Path, avatar: Avatar, tmp_path: Path) -> None:
    path = write(folder, "npz", "-o", tmp_path / "avatar.npz")
    page = (ROOT / "doc" / "export.md").read_text(encoding="utf-8")
    recipe = re.search(r"## The rig in plain arrays.*?```python\n(.*?)```", page, re.DOTALL)
    assert recipe is not None
    space: dict[str, Any] = {}
    exec(recipe[1].replace("avatar.npz", str(path)), space)
    rig = space["rig"]
    for moment in range(TIMESTEPS):
        given = {name: rig[f"motion_{name}"][moment] for name in avatar.motion().columns}
        found = space["pose"](**given)
        with torch.no_grad():
            wanted, _ = avatar.model(moment)
        np.testing.assert_allclose(found["means"], wanted.means, atol=2e-6)
        np.testing.assert_allclose(found["covariances"], covariances(wanted), atol=1e-7)
        np.testing.assert_allclose(found["sh"], wanted.sh, atol=1e-5)
    np.testing.assert_allclose(rig["gaussian_opacities"], wanted.opacities, rtol=1e-6)
    np.testing.assert_allclose(rig["gaussian_sh"], avatar.model.features.detach(), atol=1e-6)
    assert np.abs(rig["gaussian_sh"] - wanted.sh.numpy()).max() > 0.1
    assert list(rig["blendshape_names"]) == list(NAMES) and rig["blendshapes"].shape[0] == 52
    assert list(rig["expression_names"]) == ["eyeBlink_L", "eyeBlink_R", "jawOpen"]
    first_cells = re.findall(r"^\| (`.*?) \|", recipe[0], re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`([a-z_]+)`", cell)}
    assert listed >= set(rig) and {"gaussian_means", "motion_offsets"} <= listed


# ---- what all of them say and refuse ----------------------------------------------------------------


def test_who_cannot_change_colors_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for kind in MOVING:
        export(parse_export(["-m", str(folder), "--format", kind, "-o", str(tmp_path / f"{kind}.zip")]))
        said[kind] = capsys.readouterr().out
    assert "the colors are those of the first moment: they do not follow the expression" in said["brush"]
    assert "the colors are those of the face at rest: they do not follow the expression" in said["lam"]
    assert "expression" not in said["frames"] + said["npz"]


@pytest.mark.parametrize("kind", MOVING)
def test_the_same_avatar_gives_the_same_bytes(folder: Path, tmp_path: Path, kind: str) -> None:
    twice = []
    for turn in ("one", "two"):
        name = {"brush": "a.ply", "lam": "a.zip", "frames": "frames", "npz": "a.npz"}[kind]
        path = write(folder, kind, "-o", tmp_path / turn / name)
        files = sorted(each for each in path.iterdir() if each.name != ".lock") if path.is_dir() else [path]
        twice.append([each.read_bytes() for each in files])
    assert twice[0] == twice[1] and twice[0]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_scene_has_arrays_and_nothing_that_moves(tmp_path: Path) -> None:
    scene = write_avatar(tmp_path / "scene", bound=False)
    for kind in ("brush", "lam", "frames"):
        with pytest.raises(UserError, match="not bound to a head mesh"):
            write(scene, kind)
    arrays = np.load(write(scene, "npz"))
    assert {name.split("_")[0] for name in arrays.files} == {"gaussian"} and "gaussian_triangles" not in arrays.files
    np.testing.assert_array_equal(arrays["gaussian_means"], load_avatar(scene, device="cpu").model.xyz.detach())
    assert sorted(path.name for path in scene.iterdir() if path.is_file()) == ["avatar.npz", "cfg_args"]


def test_mistakes_are_told_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "00000.ply").write_text("somebody's")
    monkeypatch.setattr(lam, "MOST_GAUSSIANS", 100)
    for words, message in (
        (["lam"], "has 955 Gaussians, the renderer takes 100: give --prune"),
        (["lam", "-o", tmp_path / "avatar.glb"], "files that end in .zip"),
        (["lam", "--motion", "sweep"], "--motion is about"),
        (["lam", "--mapping", tmp_path / "none.npz"], "none.npz does not exist"),
        (["brush", "--fps", "25"], "--fps is about"),
        (["npz", "--up", "z"], "--up is about"),
        (["frames", "--timestep", "3"], "--timestep is about"),
        (["frames", "-o", tmp_path / "frames"], "name another folder"),
        (["brush", "--motion", tmp_path / "none.npz"], "none.npz does not exist"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            write(folder, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]
    (folder / "expr_names.json").rename(folder / "hidden")
    try:
        with pytest.raises(UserError, match="name a mapping with --mapping"):
            write(folder, "lam")
    finally:
        (folder / "hidden").rename(folder / "expr_names.json")
