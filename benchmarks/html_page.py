"""Opens the page of `export.py --format html` in headless Chromium and compares it with the native rasterizer.

    python -m benchmarks.html_page -m OUT [--size 512 704] [--moves 1000] [--picture FILE.jpg]

For each --quality: the size of the page, the PSNR of its canvas against the picture of the avatar itself at five poses
seen by three cameras, the time of a picture in the software renderer SwiftShader, and after so many random moves of the
sliders how much memory the page took. Anything that the page fetches, logs or throws is an error. Needs Chromium, and
Playwright (tests/requirements.txt).
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arguments import ExportOptions
from benchmarks.common import Row, Table, new_parser, publish
from exporters import FORMATS
from exporters.html.pack import QUALITIES
from exporters.view import first_view, poster_camera
from ops.rotations import axis_angle_to_matrix
from ops.types import Camera
from scene import Avatar, load_avatar
from utils.errors import UserError, run_script
from utils.files import atomic_path
from utils.images import to_bytes

SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox")
TURNS = ((0.0, 0.0), (0.6, 0.15), (-0.5, -0.2))  # radians around the head and up: the three cameras
_PICTURE = "avatar.draw(); return avatar.canvas.toDataURL('image/png');"
_MOVES = """
const sliders = [...element.shadowRoot.querySelectorAll('.slider input')];
for (let i = 0; i < count; i++) {
  const slider = sliders[Math.floor(Math.random() * sliders.length)];
  slider.value = +slider.min + Math.random() * (slider.max - slider.min);
  slider.dispatchEvent(new Event('input'));
  if (i % every === 0) await new Promise(requestAnimationFrame);
}
return sliders.length;
"""
_TIMES = """
avatar.pause();
const gl = avatar.renderer.gl, pixel = new Uint8Array(4), times = [];
for (let i = 0; i < count; i++) {
  const start = performance.now();
  avatar.time = (avatar.motion.length - 1) * i / count;
  avatar.draw();
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  times.push(performance.now() - start);
}
return times;
"""


@dataclass
class OpenPage:
    """A page in a browser, its avatar ready, and what was noticed since."""

    page: Any  # playwright's
    address: str
    faults: list[str] = field(default_factory=list)  # errors, console lines, requests

    def run(self, script: str, **values: Any) -> Any:
        """The result of an async function's body, which sees `avatar`, `element` and `values`."""
        names = ", ".join(values)
        head = "const element = document.querySelector('gaussian-avatar'), avatar = element.avatar;"
        return self.page.evaluate(f"async ({{{names}}}) => {{ {head} {script} }}", values)

    def picture(self) -> Tensor:
        """[3, H, W] 0..1: the canvas, drawn anew."""
        data = base64.b64decode(self.run(_PICTURE).partition(",")[2])
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def look_through(self, camera: Camera) -> None:
        """Draws what this camera sees, in its size, from now on."""
        numbers = {name: getattr(camera, name) for name in ("fx", "fy", "cx", "cy", "width", "height")}
        turn = camera.world_to_camera[:3, :3].T.tolist()
        self.run("avatar.setCamera(camera);", camera={"position": camera.center.tolist(), "rotation": turn, **numbers})

    def heap(self) -> int:
        """Bytes that JavaScript holds after a collection."""
        session = self.page.context.new_cdp_session(self.page)
        for _ in range(2):  # what finalizers let go of is collected by the next
            session.send("HeapProfiler.collectGarbage")
        used = session.send("Runtime.getHeapUsage")["usedSize"]
        session.detach()
        return int(used)


def chromium() -> str:
    """The browser's program.

    Raises:
        UserError: there is none, or no Playwright to steer it.
    """
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError as error:
        raise UserError("to steer a browser: pip install -r tests/requirements.txt") from error
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        raise UserError("there is no chromium, chromium-browser or google-chrome on the PATH")
    return found


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Headless Chromium, drawing with SwiftShader."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=list(SOFTWARE))
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def opened(
    browser: Any, place: Path | str, size: tuple[int, int] = (1280, 800), script: str = ""
) -> Iterator[OpenPage]:
    """A page in a window of this size.

    Args:
        browser: as `browser` gives it.
        place: a file, or an address.
        script: runs before the page's own.
    """
    address = place if isinstance(place, str) else place.absolute().as_uri()
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    try:
        shown = OpenPage(page, address)
        page.on("console", lambda message: shown.faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: shown.faults.append(f"exception: {error}"))
        page.on("request", lambda request: shown.faults.extend([f"fetched {request.url}"] * (request.url != address)))
        page.add_init_script(script)
        page.goto(address)
        yield shown
    finally:
        page.close()


def cameras(avatar: Avatar, width: int, height: int) -> list[Camera]:
    """From the page's first view, and turned around the head, at so many pixels."""
    view = first_view(avatar, avatar.motion().values[:1].double().numpy() if avatar.head else np.empty((1, 0)))
    back, up = torch.tensor(view["back"]), torch.tensor(view["up"])
    seen = []
    for around, above in TURNS:
        sideways = axis_angle_to_matrix(around * up)
        away = sideways @ axis_angle_to_matrix(-above * torch.linalg.cross(up, back))
        turned = {**view, "back": (away @ back).tolist(), "up": (away @ up).tolist()}
        focal = min(height, width / view["aspect"]) / height
        camera = poster_camera(turned, height)
        seen.append(
            Camera(camera.world_to_camera, camera.fx * focal, camera.fy * focal, width / 2, height / 2, width, height)
        )
    return seen


def poses(avatar: Avatar) -> list[Tensor]:
    """[5][D] rows: two of the motion, an open jaw, a turned neck with the eyes aside, and strong expressions."""
    motion = avatar.motion()
    first, middle = motion.timesteps[0], motion.timesteps[len(motion) // 2]
    expr = motion.values[:, motion.columns["expr"]]
    strong = torch.where(torch.arange(expr.shape[1]) % 2 == 0, expr.amax(0), expr.amin(0))
    return [
        avatar.pose(first),
        avatar.pose(middle),
        avatar.pose(first, jaw_pose=(0.3, 0.05, 0.0)),
        avatar.pose(middle, neck_pose=(0.15, -0.3, 0.1), eyes_pose=(0.1, 0.3, 0.0, 0.1, 0.3, 0.0)),
        avatar.pose(first, expr=strong, rotation=(0.1, 0.2, -0.1)),
    ]


def compare(avatar: Avatar, shown: OpenPage, size: tuple[int, int]) -> list[float]:
    """PSNR in decibels of the page's canvas against the avatar's own picture, at each pose seen by each camera."""
    shown.run("avatar.pause(); avatar.setFollowing(false); avatar.setBlinking(false);")
    values = []
    for camera in cameras(avatar, *size):
        shown.look_through(camera)
        for pose in poses(avatar):
            parts = {name: part.tolist() for name, part in avatar.motion().split(pose).items()}
            shown.run(
                "avatar.setExpression(expr); avatar.setPose({rotation, neck, jaw, eyes, translation});",
                expr=parts["expr"],
                rotation=parts["rotation"],
                neck=parts["neck_pose"],
                jaw=parts["jaw_pose"],
                eyes=parts["eyes_pose"],
                translation=parts["translation"],
            )
            # What the page shows is in whole levels; so is what it is compared with.
            truth = torch.from_numpy(to_bytes(avatar.render(camera, pose))).permute(2, 0, 1) / 255
            error = (shown.picture() - truth).square().mean().clamp_min(1e-12)
            values.append(float(-10 * error.log10()))
    shown.run("avatar.setCamera(null); avatar.release();")
    return values


def move_sliders(shown: OpenPage, count: int, every: int = 1) -> int:
    """So many random moves of random sliders, a picture after `every` so many of them; the number of sliders."""
    return int(shown.run(_MOVES, count=count, every=every))


def measure(started: Any, avatar: Avatar, path: Path, size: tuple[int, int], moves: int) -> Row:
    """One row of the table, about the page at `path` in a started browser."""
    with opened(started, path, size) as shown:
        shown.run("await avatar.ready;")
        values = compare(avatar, shown, size)
        times = shown.run(_TIMES, count=20)
        move_sliders(shown, min(moves, 100))
        before = shown.heap()
        sliders = move_sliders(shown, moves)
        growth = shown.heap() - before
        if shown.faults:
            raise UserError(f"{path}: {'; '.join(shown.faults)}")
    return {
        "MB": round(path.stat().st_size / 1e6, 2),
        "PSNR, lowest": round(min(values), 1),
        "PSNR, mean": round(statistics.mean(values), 1),
        "ms a picture": round(statistics.median(times), 1),
        "pictures/s": round(1000 / statistics.median(times), 1),
        f"memory after {moves} moves of {sliders} sliders": f"{growth / 1e3:+.0f} kB",
    }


def take_picture(started: Any, path: Path, target: Path) -> None:
    """A photograph of the page in a window of 1280x800, as JPEG."""
    with opened(started, path) as shown:
        shown.run("await avatar.ready; avatar.pause(); avatar.seek(0);")
        shown.page.wait_for_timeout(1500)
        content = shown.page.screenshot(type="jpeg", quality=85)
    with atomic_path(target) as temporary:
        temporary.write_bytes(content)


def main() -> None:
    parser = new_parser(__doc__, "model_path", "json")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 704), metavar=("W", "H"), help="of the canvas")
    parser.add_argument("--moves", type=int, default=1000, help="random moves of the sliders")
    parser.add_argument("--picture", type=Path, metavar="FILE.jpg", help="also photograph the page")
    options = parser.parse_args()
    avatar = load_avatar(options.model_path, device="cpu")
    rows = []
    with tempfile.TemporaryDirectory(prefix="page-") as folder, browser() as started:
        for quality in QUALITIES:
            path = Path(folder, f"{quality}.html")
            chosen = ExportOptions(model_path=str(options.model_path), format="html", quality=quality)
            list(FORMATS["html"].write(avatar, path, chosen))
            rows.append({"quality": quality, **measure(started, avatar, path, tuple(options.size), options.moves)})
            if options.picture and quality == "high":
                take_picture(started, path, options.picture)
    width, height = options.size
    about = f"{len(avatar.model):,} Gaussians; a canvas of {width}×{height} pixels in SwiftShader:"
    publish(options, [Table(about, rows)])


if __name__ == "__main__":
    run_script(main)
