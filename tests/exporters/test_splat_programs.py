"""Our splats in the programs of others: PlayCanvas' converter and viewer, and Khronos' validator.

They are JavaScript, and nothing here downloads them:

    npm install --prefix FOLDER @playcanvas/splat-transform@3.7.0 gltf-validator
    SPLAT_PROGRAMS=FOLDER ./tests/run.sh tests/exporters/test_splat_programs.py
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_ball import write_avatar
from PIL import Image
from splat_files import picture, psnr, read_glb, read_ply, write

from benchmarks.html_page import browser, chromium
from ops.types import Camera
from scene import load_avatar
from utils.errors import UserError

MODULES = Path(os.environ.get("SPLAT_PROGRAMS", "none"), "node_modules").absolute()
NODE = shutil.which("node")
SIDE, DISTANCE, FIELD = 300, 5.0, 40.0  # pixels, units, degrees: of the camera before the face

pytestmark = pytest.mark.skipif(
    NODE is None or not (MODULES / "@playcanvas/splat-transform").is_dir(),
    reason="no splat-transform: name the folder of its node_modules in SPLAT_PROGRAMS, see the head of this file",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("programs") / "ball", network=True)


def convert(*words: object) -> str:
    """What splat-transform says; `-g cpu`: without a graphics card."""
    command = [str(NODE), str(MODULES / "@playcanvas/splat-transform/bin/cli.mjs"), "-g", "cpu", "-w"]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["ply", "spz"])
def test_splat_transform_reads_the_same_numbers(folder: Path, tmp_path: Path, kind: str) -> None:
    path = write(folder, kind, "-o", tmp_path / f"ball.{kind}", "--up", "y-down")
    about = convert(path, "--info", "json", "null")
    told = json.loads(about[about.index("{") : about.rindex("}") + 1])
    count = len(load_avatar(folder, device="cpu").model)
    assert (told["format"], told["numGaussians"], told["shBands"], told["model"]) == (kind, count, 3, "default")
    convert(path, tmp_path / "again.ply")
    ours = read_ply(path if kind == "ply" else write(folder, "ply", "-o", tmp_path / "ours.ply"))
    theirs = read_ply(tmp_path / "again.ply")
    coarse = kind == "spz"
    assert (ours.means - theirs.means).abs().max() < (1e-5 if coarse else 1e-6)
    assert (ours.scales.log() - theirs.scales.log()).abs().max() < (0.5 / 16 + 1e-4 if coarse else 1e-5)
    assert (ours.opacities - theirs.opacities).abs().max() < (0.5 / 255 + 1e-4 if coarse else 1e-5)
    limits = (0.5 / 0.15 / 255, 0.5 / 128) if coarse else (0.0, 0.0)
    for part, limit, bound in ((slice(0, 1), limits[0], 3.3), (slice(1, None), limits[1], 0.99)):
        mine = ours.sh[:, part]
        held = mine.abs() < bound  # what is larger is cut off, and that is said
        assert (mine - theirs.sh[:, part]).abs()[held].max() <= limit + 1e-4 and held.float().mean() > 0.95


def test_its_glb_is_ours(folder: Path, tmp_path: Path) -> None:
    """It writes GLB, but reads none: so its translation of our PLY is compared with our own."""
    place = ("--up", "y", "--scale", 1)
    convert(write(folder, "ply", "-o", tmp_path / "ball.ply", *place), "-r", "0,0,180", tmp_path / "theirs.glb")
    ours, theirs = (
        read_glb(path) for path in (write(folder, "glb", "-o", tmp_path / "ours.glb"), tmp_path / "theirs.glb")
    )
    for name, mine, other in zip(ours._fields, ours, theirs):
        if name == "quats":
            other = other * (mine * other).sum(1, keepdim=True).sign()
            mine, other = (torch.nn.functional.normalize(each, dim=1) for each in (mine, other))
        assert torch.allclose(mine, other, atol=1e-5), name


def test_the_validator_finds_no_fault_but_the_names_of_the_extension(folder: Path, tmp_path: Path) -> None:
    """It does not know KHR_gaussian_splatting, which prescribes names of attributes that glTF alone would not allow."""
    if not (MODULES / "gltf-validator").is_dir():
        pytest.skip("no gltf-validator in SPLAT_PROGRAMS")
    path = write(folder, "glb", "-o", tmp_path / "ball.glb")
    script = (
        "require(process.argv[1]).validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[2])),"
        "{maxIssues: 0}).then(report => console.log(JSON.stringify(report)))"
    )
    command = [str(NODE), "-e", script, str(MODULES / "gltf-validator"), str(path)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    faults = [message for message in report["issues"]["messages"] if message["severity"] < 2]
    assert {fault["code"] for fault in faults} == {"MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
    assert all("/attributes/KHR_gaussian_splatting:" in fault["pointer"] for fault in faults)
    assert report["info"]["totalVertexCount"] == len(load_avatar(folder, device="cpu").model)


@pytest.mark.parametrize("kind", ["ply", "spz"])
def test_the_viewer_shows_it_upright_and_in_its_colors(folder: Path, tmp_path: Path, kind: str) -> None:
    """SuperSplat's viewer, before the face, shows what the native rasterizer draws of the same file."""
    try:
        chromium()
    except UserError as error:
        pytest.skip(str(error))
    words = ("--up", "y-down", "--sh_degree", 0)  # compressing more takes it minutes
    path = write(folder, kind, "-o", tmp_path / f"ball.{kind}", *words)
    settings: dict[str, Any] = {
        "version": 2,
        "tonemapping": "none",
        "highPrecisionRendering": False,
        "background": {"color": [1, 1, 1]},
        "cameras": [{"initial": {"position": [0, 0, -DISTANCE], "target": [0, 0, 0], "fov": FIELD}}],
        "postEffectSettings": {
            "sharpness": {"enabled": False, "amount": 0},
            "bloom": {"enabled": False, "intensity": 1, "blurLevel": 2},
            "grading": {"enabled": False, "brightness": 0, "contrast": 1, "saturation": 1, "tint": [1, 1, 1]},
            "vignette": {"enabled": False, "intensity": 0.5, "inner": 0.3, "outer": 0.75, "curvature": 1},
            "fringing": {"enabled": False, "intensity": 0.5},
        },
        "animTracks": [],
        "annotations": [],
        "startMode": "default",
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    convert("--viewer-settings", tmp_path / "settings.json", path, tmp_path / "page.html")
    with browser() as started:
        page = started.new_page(viewport={"width": SIDE, "height": SIDE})
        page.add_init_script("window.firstFrame = () => { window.drawn = true; };")
        page.goto((tmp_path / "page.html").as_uri() + "?noui&noanim&aa")
        page.wait_for_function("window.drawn", timeout=30_000)
        shown = page.screenshot()
    (tmp_path / "page.png").write_bytes(shown)
    pixels = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB"), np.float32) / 255
    seen = torch.from_numpy(pixels).permute(2, 0, 1)
    matrix = torch.eye(4)
    matrix[2, 3] = DISTANCE
    focal = SIDE / 2 / np.tan(np.radians(FIELD) / 2)
    camera = Camera(matrix, focal, focal, SIDE / 2, SIDE / 2, SIDE, SIDE)
    avatar = load_avatar(folder, device="cpu")
    truth = picture(avatar, read_ply(write(folder, "ply", "-o", tmp_path / "truth.ply", *words)), camera)
    assert psnr(truth, seen) > 22
    for other in (truth.flip(1), truth.flip(2), truth.flip(1, 2), 1 - truth):
        assert psnr(other, seen) < psnr(truth, seen) - 6
