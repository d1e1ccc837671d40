"""The zip of `--format lam` in the renderer that it is for, drawn by a browser, and in Khronos' validator.

They are JavaScript, and nothing here downloads them:

    npm install --prefix FOLDER gaussian-splat-renderer-for-lam@0.0.8 gltf-validator
    SPLAT_PROGRAMS=FOLDER ./tests/run.sh tests/exporters/test_lam_renderer.py
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import math
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import BROWSER, CHROMIUM
from lam_reader import Lam, columns, read_lam
from moving_ball import write_avatar
from PIL import Image

from arguments import parse_export
from export import export
from gaussian_renderer import choose_rasterizer
from ops.sh import C0
from ops.types import Camera, Gaussians

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r tests/requirements.txt")
MODULES = Path(os.environ.get("SPLAT_PROGRAMS", "none"), "node_modules").absolute()
RENDERER = MODULES / "gaussian-splat-renderer-for-lam/build/gaussian-splat-renderer-for-lam.module.js"
SIZE = (300, 320)  # pixels
PAGE = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><style>body { margin: 0 }</style>
<div id="place" style="width: 300px; height: 320px"></div>
<script type="module">
import { GaussianSplatRenderer } from "./renderer.js";
window.weights = {};
const calls = {  // it multiplies what it is given in place, so each time it gets its own
  getChatState: () => "Idle", getExpressionData: () => ({ ...window.weights }),
  loadProgress: (share) => { window.loaded = share; },
};
await GaussianSplatRenderer.getInstance(document.getElementById("place"), location.origin + "/ball.zip", calls);
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("lam") / "ball")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def drawn(found: Lam, weights: dict[str, float]) -> np.ndarray:
    """[H, W, 3] 0..255: what the native rasterizer makes of the zip, from where the renderer's camera stands."""
    means = found.vertices + columns(found.ply, "x", "y", "z")
    means = means + sum((weight * found.moves[name] for name, weight in weights.items()), np.zeros(means.shape))

    def tensor(*names: str) -> torch.Tensor:
        return torch.from_numpy(columns(found.ply, *names)).float()

    gaussians = Gaussians(
        torch.from_numpy(means).float(),
        torch.nn.functional.normalize(tensor(*(f"rot_{i}" for i in range(4))), dim=1),
        tensor(*(f"scale_{i}" for i in range(3))).exp(),
        tensor("opacity")[:, 0].sigmoid(),
        ((tensor("f_dc_0", "f_dc_1", "f_dc_2") - 0.5 / 255 - 0.5) / C0)[:, None].contiguous(),
    )
    width, height = SIZE
    tilt = math.radians(-10)
    right_down_forward = np.array(
        [[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]]
    )
    right_down_forward = right_down_forward @ np.diag([1, -1, -1])
    matrix = torch.eye(4)
    matrix[:3, :3] = torch.from_numpy(right_down_forward.T)
    matrix[:3, 3] = torch.from_numpy(-right_down_forward.T @ [0, 1.8, 1.0])
    focal = height / 2 / math.tan(math.radians(25))
    camera = Camera(matrix, focal, focal, width / 2, height / 2, width, height)
    rasterize = choose_rasterizer("auto", torch.device("cpu"))[1]
    with torch.no_grad():
        image = rasterize(gaussians, camera, torch.ones(3), sh_degree=0).image
    return 255 * image.clamp(0, 1).permute(1, 2, 0).double().numpy()


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(((first - second) ** 2).mean(), 1e-9)))


@pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.skipif(not RENDERER.is_file(), reason="no renderer of LAM: see the head of this file for SPLAT_PROGRAMS")
def test_the_renderer_draws_the_head_and_moves_it(folder: Path, tmp_path: Path, served: str) -> None:
    found = read_lam(export(parse_export(["-m", str(folder), *f"--format lam --quiet -o {tmp_path}/ball.zip".split()])))
    (tmp_path / "index.html").write_text(PAGE)
    shutil.copy(RENDERER, tmp_path / "renderer.js")
    poses: list[dict[str, float]] = [{}, {"jawOpen": 1.2}, {"eyeBlinkLeft": 1.0, "eyeLookDownRight": 1.0}]
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = browser.new_page(viewport=dict(zip(("width", "height"), SIZE)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{served}/index.html")
        page.wait_for_function("window.loaded === 1", timeout=60_000)
        for number, pose in enumerate(poses):
            wanted = drawn(found, pose)
            others = [drawn(found, other) for other in poses if other is not pose]
            factors = {"jawOpen": 1.2}  # of its own
            page.evaluate(
                "weights => { window.weights = weights }",
                {name: 0.0 for other in poses for name in other}
                | {name: weight / factors.get(name, 1.0) for name, weight in pose.items()},
            )
            best = 0.0
            for _ in range(20):  # it fades in, and draws when it can
                page.wait_for_timeout(500)
                shown = page.screenshot()
                seen = np.asarray(Image.open(io.BytesIO(shown)).convert("RGB")).astype(float)
                best = max(best, psnr(seen, wanted))
                if best > 30:
                    break
            (tmp_path / f"{number}.png").write_bytes(shown)
            print(f"{pose or 'rest'}: {best:.1f} dB")
            assert best > 25 and all(psnr(seen, other) < best - 1 for other in others), pose
        browser.close()
    assert errors == []


@pytest.mark.skipif(
    not (MODULES / "gltf-validator").is_dir() or shutil.which("node") is None,
    reason="no gltf-validator: see the head of this file for SPLAT_PROGRAMS",
)
def test_the_validator_finds_no_fault(folder: Path, tmp_path: Path) -> None:
    path = export(parse_export(["-m", str(folder), *f"--format lam --quiet -o {tmp_path}/ball.zip".split()]))
    script = (
        "require(process.argv[1]).validateBytes(new Uint8Array(require('fs').readFileSync(process.argv[2])),"
        "{maxIssues: 0}).then(report => console.log(JSON.stringify(report.issues)))"
    )
    for name in ("skin.glb", "animation.glb"):
        with zipfile.ZipFile(path) as archive:
            (tmp_path / name).write_bytes(archive.read(f"ball/{name}"))
        command = ["node", "-e", script, str(MODULES / "gltf-validator"), str(tmp_path / name)]
        issues = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
        assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]
