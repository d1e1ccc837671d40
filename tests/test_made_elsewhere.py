"""Avatars as other programs of this family leave them: files typed here by hand, opened by every script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from moving_ball import MODES, write_head
from PIL import Image
from toy_capture import BALL

import export
import render
import view
from arguments import parse_export, parse_render, parse_view
from scene import load_avatar
from utils.errors import UserError

TIMESTEPS = 4
FACES = np.asarray(BALL.faces)
COUNT = len(FACES) + 50  # one on each triangle, and some have another
CFG_ARGS = (
    "Namespace(sh_degree=3, source_path='/data/306/UNION10', target_path='', model_path='output/306', images='images', "
    "resolution=-1, white_background=True, data_device='cuda', eval=True, bind_to_mesh=True, "
    "disable_flame_static_offset=False, not_finetune_flame_params=False, select_camera_id=-1)"
)
NAMES = [
    *"x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split(),
    *(f"f_rest_{index}" for index in range(45)),
    *"opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3 binding_0".split(),
]


def write_ply(path: Path, names: list[str], seed: int = 0) -> dict[str, np.ndarray]:
    """A PLY with these columns of noise; the columns."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=COUNT).astype("<f4") * 0.3 for name in names}
    columns.update({name: columns[name] - 1 for name in names if name.startswith("scale_")})
    columns["opacity"] += 2
    if "binding_0" in names:
        columns["binding_0"] = np.r_[: len(FACES), rng.integers(len(FACES), size=50)].astype("<f4")
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {COUNT}"]
    lines += [f"property float {name}" for name in names] + ["end_header\n"]
    path.write_bytes("\n".join(lines).encode() + np.stack([columns[name] for name in names], axis=1).tobytes())
    return columns


def write_motion(path: Path) -> None:
    rng = np.random.default_rng(1)
    widths = {"expr": MODES, "rotation": 3, "neck_pose": 3, "jaw_pose": 3, "eyes_pose": 6, "translation": 3}
    arrays = {name: 0.1 * rng.normal(size=(TIMESTEPS, width)) for name, width in widths.items()}
    vertices = len(BALL.vertices)
    arrays |= {"shape": np.ones(1), "static_offset": 0.002 * rng.normal(size=(1, vertices, 3))}
    arrays["dynamic_offset"] = np.zeros((TIMESTEPS, vertices, 3))
    np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()})


@pytest.fixture(params=["cfg_args", "no cfg_args", "the files alone"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of an avatar; the head model is not in it."""
    output = tmp_path / "306"
    saved = output if request.param == "the files alone" else output / "point_cloud" / "iteration_600000"
    saved.mkdir(parents=True)
    if request.param == "cfg_args":
        (output / "cfg_args").write_text(CFG_ARGS)
    write_ply(saved / "point_cloud.ply", NAMES)
    write_motion(saved / "flame_param.npz")
    write_head(tmp_path / "head.pkl")
    return output


def quaternion_matrix(quats: np.ndarray) -> np.ndarray:
    """[N, 4] wxyz of any length -> [N, 3, 3]."""
    w, x, y, z = (quats / np.linalg.norm(quats, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def test_its_gaussians_ride_on_the_mesh_as_the_files_say(folder: Path) -> None:
    ply = next(folder.rglob("point_cloud.ply"))
    columns = write_ply(ply, NAMES)
    avatar = load_avatar(folder, head_model=folder.parent / "head.pkl", device="cpu")
    assert avatar.iteration == (0 if ply.parent == folder else 600_000) and avatar.path == ply
    assert avatar.background.tolist() == [1.0] * 3
    assert bool(avatar.note) == (not (folder / "cfg_args").exists())
    motion = np.load(ply.parent / "flame_param.npz")
    assert avatar.motion().timesteps == list(range(TIMESTEPS))
    np.testing.assert_array_equal(avatar.motion().static_offset, motion["static_offset"][0])
    np.testing.assert_array_equal(avatar.motion().values[2, :MODES], motion["expr"][2])

    def of(*names: str) -> np.ndarray:
        return np.stack([columns[name] for name in names], axis=1).astype(np.float64)

    for timestep in range(TIMESTEPS):
        with torch.no_grad():
            gaussians, vertices = avatar.gaussians(avatar.pose(timestep))
        corners = vertices.double().numpy()[FACES[columns["binding_0"].astype(int)]]
        v0, v1, v2 = corners.transpose(1, 0, 2)
        a0 = (v1 - v0) / np.linalg.norm(v1 - v0, axis=1, keepdims=True)
        a1 = np.cross(a0, v2 - v0)
        a1 /= np.linalg.norm(a1, axis=1, keepdims=True)
        a2 = -np.cross(a1, a0)
        turn = np.stack([a0, a1, a2], axis=2)
        size = 0.5 * (np.linalg.norm(v1 - v0, axis=1) + np.abs((a2 * (v2 - v0)).sum(1)))[:, None]
        means = size * np.einsum("nij,nj->ni", turn, of("x", "y", "z")) + corners.mean(1)
        np.testing.assert_allclose(gaussians.means, means, atol=2e-6)
        np.testing.assert_allclose(gaussians.scales, size * np.exp(of("scale_0", "scale_1", "scale_2")), rtol=2e-5)
        turned = turn @ quaternion_matrix(of("rot_0", "rot_1", "rot_2", "rot_3"))
        np.testing.assert_allclose(quaternion_matrix(gaussians.quats.numpy()), turned, atol=2e-5)
    np.testing.assert_allclose(gaussians.opacities, 1 / (1 + np.exp(-columns["opacity"].astype(float))), rtol=1e-5)
    assert avatar.model.active_sh_degree == 3
    harmonics = gaussians.sh.detach().numpy()
    for channel in range(3):
        np.testing.assert_array_equal(harmonics[:, 0, channel], columns[f"f_dc_{channel}"])
        for coefficient in range(15):
            stored = columns[f"f_rest_{15 * channel + coefficient}"]
            np.testing.assert_array_equal(harmonics[:, 1 + coefficient, channel], stored)


def test_every_script_opens_it_without_a_capture(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)  # where a capture without a name would be looked for
    place = ["-m", str(folder), "--head_model", str(folder.parent / "head.pkl"), "--device", "cpu"]
    guessed = "" if (folder / "cfg_args").exists() else "note: "

    picture = folder.parent / "picture.png"
    render.render_avatar(parse_render([*place, *f"--motion neutral --size 48 64 -o {picture}".split()]))
    pixels = np.asarray(Image.open(picture)).astype(int)
    assert (pixels[0, 0] == 255).all() and (pixels[32, 24] < 250).any()
    assert capsys.readouterr().err.startswith(guessed)

    stage = view.open_stage(parse_view([*place, "--quiet"]))
    assert stage.rows == TIMESTEPS and not stage.shots
    assert capsys.readouterr().err.startswith(guessed)

    page = export.export(parse_export([*place, *"--format html --quiet".split()]))
    assert page == folder / "avatar.html" and page.stat().st_size > 50_000
    assert capsys.readouterr().err.startswith(guessed)

    with pytest.raises(UserError, match="where it is with -s|capture /data/306/UNION10"):
        render.render_avatar(parse_render(place))


def test_a_scene_alone_opens_too(tmp_path: Path) -> None:
    write_ply(tmp_path / "point_cloud.ply", [name for name in NAMES[:-1] if not name.startswith("f_rest_")])
    avatar = load_avatar(tmp_path, device="cpu")
    assert avatar.head is None and avatar.model.active_sh_degree == 0 and "black" in avatar.note
    assert avatar.model(0)[0].means.shape == (COUNT, 3)


def test_what_is_missing_is_told_in_one_sentence(folder: Path) -> None:
    head = folder.parent / "head.pkl"
    for iteration in (5, 600_001):
        with pytest.raises(UserError, match=f"--iteration {iteration} was not saved"):
            load_avatar(folder, head_model=head, iteration=iteration)
    with pytest.raises(UserError, match="with --head_model"):
        load_avatar(folder)
    next(folder.rglob("flame_param.npz")).unlink()
    with pytest.raises(UserError, match="flame_param.npz does not exist: .*binding_0"):
        load_avatar(folder, head_model=head)
    (folder / "cfg_args").unlink(missing_ok=True)
    (folder / "cfg_args").mkdir()
    with pytest.raises(UserError, match="cannot read .*cfg_args"):
        load_avatar(folder, head_model=head)
