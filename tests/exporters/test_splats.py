"""Ordinary splats of a moment: what other readers find in the files, and that it looks like the avatar."""

from __future__ import annotations

import dataclasses
import gzip
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_ball import write_avatar
from splat_files import picture, psnr, read, read_ply, write
from toy_avatar import write_keys

from arguments import parse_export
from export import export
from exporters import glb, spz
from exporters.colors import FRONT_PITCHES, FRONT_YAWS, HEIGHT
from exporters.moment import AXES
from exporters.view import around, first_view
from ops.types import Camera, Gaussians
from scene import Avatar, load_avatar
from scene.ply import export_world
from utils.errors import UserError

FORMATS = ("ply", "spz", "glb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("splats") / "ball", network=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("splats") / "plain")


# ---- the writers ---------------------------------------------------------------------


def scattered(count: int = 500, degree: int = 3, seed: int = 0) -> Gaussians:
    rng = torch.Generator().manual_seed(seed)
    sh = 0.3 * torch.randn(count, (degree + 1) ** 2, 3, generator=rng)
    sh[:, 0] *= 3
    return Gaussians(
        torch.randn(count, 3, generator=rng),
        torch.nn.functional.normalize(torch.randn(count, 4, generator=rng), dim=1),
        (torch.randn(count, 3, generator=rng) - 4).exp(),
        torch.rand(count, generator=rng),
        sh.clamp(-0.99, 0.99),
    )


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("kind", FORMATS)
def test_another_reader_finds_the_same_numbers(tmp_path: Path, kind: str, degree: int) -> None:
    source = scattered(degree=degree)
    path = tmp_path / f"splats.{kind}"
    {"ply": export_world, "spz": spz.write, "glb": glb.write}[kind](path, source)
    found = read(path)
    assert found.sh.shape == source.sh.shape
    # Half of a step, as the head of exporters/spz.py says; the others hold all digits.
    coarse = kind == "spz"
    reach = source.means.abs().max()
    assert (found.means - source.means).abs().max() < (reach / (1 << 21) if coarse else 1e-6)
    assert (found.scales.log() - source.scales.log()).abs().max() < (0.5 / 16 + 1e-4 if coarse else 1e-5)
    assert (found.opacities - source.opacities).abs().max() < (0.5 / 255 + 1e-4 if coarse else 1e-5)
    constant, others = (found.sh - source.sh)[:, :1], (found.sh - source.sh)[:, 1:]
    assert constant.abs().max() < (0.5 / 0.15 / 255 + 1e-4 if coarse else 1e-6)
    assert not degree or others.abs().max() < (0.5 / 128 + 1e-4 if coarse else 1e-6)
    alike = (torch.nn.functional.normalize(found.quats, dim=1) * source.quats).sum(1).abs()
    assert (2 * alike.clamp(max=1).acos()).max() < (0.006 if coarse else 2e-3)


def test_spz_is_laid_out_as_its_header_says(tmp_path: Path) -> None:
    source = scattered(count=7, degree=1)
    spz.write(tmp_path / "a.spz", source._replace(means=source.means * 1e4))
    content = gzip.decompress((tmp_path / "a.spz").read_bytes())
    magic, version, count, degree, fractional, flags, reserved = struct.unpack("<4sIIBBBB", content[:16])
    assert (magic, version, count, degree, flags, reserved) == (b"NGSP", 3, 7, 1, 0, 0)
    assert len(content) == 16 + 7 * (9 + 1 + 3 + 3 + 4 + 9)
    positions = np.frombuffer(content, np.uint8, 63, 16).reshape(21, 3).astype(np.int64)
    whole = positions @ [1, 256, 65536]
    whole -= (whole >= 1 << 23) << 24
    assert np.allclose(
        whole.reshape(7, 3) / (1 << fractional), 1e4 * source.means.numpy(), atol=0.5 / (1 << fractional)
    )
    spz.write(tmp_path / "b.spz", source._replace(means=source.means * 1e4))
    assert (tmp_path / "a.spz").read_bytes() == (tmp_path / "b.spz").read_bytes()
    with pytest.raises(UserError, match="--scale"):
        spz.write(tmp_path / "c.spz", source._replace(means=source.means * 1e9))
    assert not (tmp_path / "c.spz").exists()


# ---- what is written -----------------------------------------------------------------


def views(avatar: Avatar, rows: np.ndarray) -> tuple[dict[str, Any], list[Camera]]:
    view = first_view(avatar, rows)
    return view, around(view, 160, (-0.8, 0.0, 0.8), (0.2,))


def in_axes(camera: Camera, view: dict[str, Any], up: str, scale: float) -> Camera:
    """A camera of the world, in a file whose first view is along its axes."""
    above, back = np.array(view["up"]), np.array(view["back"])
    turn = np.array(AXES[up]) @ np.stack([np.cross(above, back), above, back])  # file from world
    matrix = camera.world_to_camera.double().numpy()
    matrix[:3, 3] = scale * (matrix[:3, :3] @ view["target"] + matrix[:3, 3])
    matrix[:3, :3] = matrix[:3, :3] @ turn.T
    return dataclasses.replace(camera, world_to_camera=torch.from_numpy(matrix).float())


@pytest.mark.parametrize(
    "kind, up, scale, least", [("ply", "y-down", 10, 60), ("spz", "y", 10, 32), ("glb", "y", 1, 60)]
)
def test_the_file_looks_like_the_avatar(
    plain: Path, tmp_path: Path, kind: str, up: str, scale: int, least: int
) -> None:
    avatar = load_avatar(plain, device="cpu")
    found = read(write(plain, kind, "-o", tmp_path / f"a.{kind}", "--timestep", 4))
    assert len(found.means) == len(avatar.model)
    row = avatar.motion().values[4]
    view, cameras = views(avatar, row[None].double().numpy())
    for camera in cameras:
        truth = avatar.render(camera, row)
        shown = picture(avatar, found, in_axes(camera, view, up, scale))
        assert psnr(truth, shown) > least
        assert psnr(truth, picture(avatar, found, in_axes(camera, view, "z", scale))) < 30


@pytest.mark.parametrize(
    "up, axis, toward", [("y", (1, 1), (2, 1)), ("y-down", (1, -1), (2, -1)), ("z", (2, 1), (1, -1))]
)
def test_the_head_is_upright_and_looks_at_the_viewer(
    puppet: Path, tmp_path: Path, up: str, axis: tuple[int, int], toward: tuple[int, int]
) -> None:
    """Whatever the world of the capture is: this head is turned in it, by 0.5 radians, and two meters away."""
    avatar = load_avatar(puppet, device="cpu")
    found = read_ply(write(puppet, "ply", "-o", tmp_path / "head.ply", "--up", up, "--scale", 1)).means.double()
    assert avatar.head is not None
    own = avatar.head.v_template[avatar.head.faces].mean(1).double()  # x its left, y up, z forward
    means = found - found.mean(0)
    for place, sign, mine in ((0, 1, 0), (*axis, 1), (*toward, 2)):
        ends = own[:, mine] > own[:, mine].quantile(0.98)
        direction = means[ends].mean(0) - means[~ends].mean(0)
        assert direction.abs().argmax() == place and direction[place] * sign > 0, (up, mine, direction)
    assert found.mean(0).abs().max() < 0.15  # around the origin, but for the shoulders
    world = read_ply(write(puppet, "ply", "-o", tmp_path / "world.ply", "--up", "world", "--scale", 1)).means
    assert torch.allclose(world, avatar.model(0)[0].means, atol=1e-6)


def test_the_color_network_is_in_the_colors_and_the_rest_is_said(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    avatar = load_avatar(folder, device="cpu")
    place = ("--up", "world", "--scale", "1")
    export(parse_export(["-m", str(folder), "--format", "ply", "-o", str(tmp_path / "baked.ply"), *place]))
    said = next(line for line in capsys.readouterr().out.splitlines() if "dB PSNR" in line)
    without = read_ply(write(folder, "ply", "-o", tmp_path / "raw.ply", *place, "--no_color_calibration"))
    baked = read_ply(tmp_path / "baked.ply")
    row = avatar.motion().values[0]
    view = first_view(avatar, row[None].double().numpy())
    errors = []
    for camera in around(view, HEIGHT, FRONT_YAWS, FRONT_PITCHES):
        truth = avatar.render(camera, row)
        errors.append(
            [float((picture(avatar, each, camera) - truth).square().mean().detach()) for each in (baked, without)]
        )
    with_it, without_it = (-10 * math.log10(mean) for mean in np.mean(errors, axis=0))
    assert with_it > without_it + 4, (with_it, without_it)
    worst = -10 * math.log10(max(np.array(errors)[:, 0]))
    assert said.endswith(f": {with_it:.1f} dB PSNR, the worst of 10 views {worst:.1f}")


def test_what_shows_least_is_left_out_first(plain: Path, tmp_path: Path) -> None:
    avatar = load_avatar(plain, device="cpu")
    count = len(avatar.model)
    whole = read_ply(write(plain, "ply", "-o", tmp_path / "whole.ply", "--up", "world", "--scale", 1))
    few = read_ply(write(plain, "ply", "-o", tmp_path / "few.ply", "--up", "world", "--scale", 1, "--prune", 0.25))
    assert len(few.means) == round(0.75 * count)
    # The first five are invisible; the others are as they were, in their order.
    kept = (few.means[:, None] == whole.means[None]).all(2).int().argmax(1)
    assert kept.min() >= 5 and (kept.diff() > 0).all() and torch.equal(few.sh, whole.sh[kept])
    _, cameras = views(avatar, avatar.motion().values[:1].double().numpy())
    rng = torch.Generator().manual_seed(0)
    guess = torch.randperm(count, generator=rng)[: len(kept)].sort().values
    for camera in cameras:
        truth = picture(avatar, whole, camera)
        assert psnr(picture(avatar, few, camera), truth) > 10 + psnr(
            picture(avatar, Gaussians(*(value[guess] for value in whole)), camera), truth
        )


def test_a_lower_degree_is_fitted_and_not_cut_off(plain: Path, tmp_path: Path) -> None:
    avatar = load_avatar(plain, device="cpu")
    place = ("--up", "world", "--scale", 1)
    whole = read_ply(write(plain, "ply", "-o", tmp_path / "whole.ply", *place))
    assert torch.allclose(whole.sh, avatar.model.features, atol=0)
    low = read_ply(write(plain, "ply", "-o", tmp_path / "low.ply", *place, "--sh_degree", 1))
    assert low.sh.shape[1] == 4
    _, cameras = views(avatar, avatar.motion().values[:1].double().numpy())
    fitted, cut = (
        np.mean([psnr(picture(avatar, each, camera), picture(avatar, whole, camera)) for camera in cameras])
        for each in (low, whole._replace(sh=whole.sh[:, :4]))
    )
    assert fitted > cut + 1, (fitted, cut)


def test_a_motion_is_a_folder_of_numbered_files(plain: Path, tmp_path: Path) -> None:
    avatar = load_avatar(plain, device="cpu")
    keys = write_keys(
        tmp_path / "keys.json", {"seconds": 0.0, "pose": {}}, {"seconds": 0.5, "pose": {"jaw_pose": [0.3, 0, 0]}}
    )
    motion = ("--motion", keys, "--fps", 4)
    place = ("--up", "world", "--scale", 1)
    out = write(plain, "ply", "-o", tmp_path / "files", *motion, *place)
    names = [f"{index:05d}.ply" for index in range(3)]
    assert sorted(path.name for path in out.glob("*.ply")) == names
    found = [read_ply(out / name).means for name in names]
    rest = avatar.neutral()
    rest[avatar.motion().columns["jaw_pose"].start] = 0.3
    assert torch.allclose(found[2], avatar.gaussians(rest)[0].means, atol=1e-6)
    moved = (found[2] - found[0]).norm(dim=1)
    assert moved.max() > 1e-3
    # As wide a move as it is asked for; what an earlier and longer one left is gone.
    write(plain, "ply", "-o", out, *motion, *place, "--fps", 2, "--motion_scale", 0)
    assert sorted(path.name for path in out.glob("*.ply")) == names[:2]
    assert torch.allclose(read_ply(out / names[1]).means, found[0], atol=1e-6)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "00000.ply").write_text("precious")
    with pytest.raises(UserError, match="would be replaced"):
        write(plain, "ply", "-o", foreign, *motion)
    assert (foreign / "00000.ply").read_text() == "precious"
    assert write(plain, "glb", *motion, "--sh_degree", 0) == plain / "avatar_glb"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_static_scene(tmp_path: Path, kind: str) -> None:
    scene = write_avatar(tmp_path / "scene", bound=False)
    found = read(write(scene, kind, "--up", "world"))
    avatar = load_avatar(scene, device="cpu")
    assert torch.allclose(found.means, avatar.model.xyz.detach(), atol=1e-5)  # of a scene the scale is 1
    for words, message in ((["--timestep", 1], "has one moment"), (["--motion", "sweep"], "does not move")):
        with pytest.raises(UserError, match=message):
            write(scene, kind, *words)


def test_gaussians_that_cannot_be_drawn_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene = write_avatar(tmp_path / "scene", bound=False)
    avatar = load_avatar(scene, device="cpu")
    count = len(avatar.model)
    with torch.no_grad():
        avatar.model.scaling[7] = 200.0
        avatar.model.rotation[9] = 0.0
    avatar.save(scene)
    path = tmp_path / "scene.glb"
    for words, number in (([], count - 2), (["--prune", "0.5"], round((count - 2) / 2))):
        export(parse_export(["-m", str(scene), "--format", "glb", "--up", "world", "-o", str(path), *words]))
        assert "2 Gaussians without a finite size or a rotation are left out" in capsys.readouterr().out
        found = read(path)
        assert len(found.means) == number
        assert all(values.isfinite().all() for values in found) and found.scales.max() < 1
    with torch.no_grad():
        avatar.model.rotation[:] = 0.0
    avatar.save(scene)
    with pytest.raises(UserError, match="none can be drawn"):
        write(scene, "glb")


def test_mistakes_are_told(plain: Path) -> None:
    for words, message in (
        (["ply", "--quality", "small"], "--quality is about --format html"),
        (["html", "--up", "y"], "--up is about --format ply, spz, glb"),
        (["ply", "--smooth", 1], "--smooth needs --motion"),
        (["spz", "--fps", 5], "--fps needs --motion"),
        (["glb", "--mapping", "a.npz"], "--mapping needs --motion"),
        (["glb", "--motion", "sweep", "--timestep", 1], "does not go with --motion"),
        (["ply", "--motion", "sweep", "--rest_frames", 1, 2], "--rest_frames needs --relative"),
        (["ply", "--timestep", 77], "no timestep 77"),
        (["ply", "--prune", 1], "--prune must be at most"),
        (["ply", "--up", "-y"], "expected one argument"),
    ):
        with pytest.raises(UserError, match=message):
            write(plain, *words)
