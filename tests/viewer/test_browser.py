"""The viewer in a real browser, Debian's Chromium without a screen: a training, and the avatar that it saved."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
from browsing import BROWSER, CHROMIUM, PATIENCE, Run, choose, picture, press_slider, still, wait
from PIL import Image

from scene import load_avatar
from scene.dataset import load_dataset
from synthetic import make_capture
from utils.images import to_bytes

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -r tests/requirements.txt")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
SAVED = 30  # iteration


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny capture of the procedural head."""
    folder = tmp_path_factory.mktemp("head") / "capture"
    return make_capture(folder, size=(96, 128), cameras=2, timesteps=2, samples=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first test trains, and what the second looks at."""
    return tmp_path_factory.mktemp("trained") / "model"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser, drawing on the CPU."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that must not have any error on its console at the end."""
    page = chromium.new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(PATIENCE)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert errors == []


def psnr(image: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((image.astype(float) - other.astype(float)) ** 2)))


def test_a_training_watched_paused_moved_and_stopped(head: Path, trained: Path, page: Any) -> None:
    flags = f"--preset ultra --iterations 3000 --scale_schedule --save_iterations {SAVED} --bind_to_mesh -w --eval"
    with Run("train.py", "-s", head, "-m", trained, *flags.split(), "--no_warm_colors") as run:
        run.open(page)
        first = picture(page)
        wait(lambda: np.abs(picture(page) - first).mean() > 1)  # steps pass: it takes on color
        wait((trained / f"point_cloud/iteration_{SAVED}/point_cloud.ply").exists)
        page.keyboard.press("t")
        page.get_by_role("tab", name="Training").click()
        page.get_by_role("button", name="Go on").wait_for()
        before = still(page)
        page.get_by_role("tab", name="Pose").click()
        press_slider(page, "Jaw: open", "End")
        wait(lambda: np.abs(picture(page) - before).max() > 50)
        change = np.abs(still(page) - before).max(axis=2) > 30
        # The head fills two thirds of the height around the middle; the mouth and what is below move, the rest stays.
        height = len(change)
        assert change.mean() > 0.005 and change[height // 2 :].sum() > 0.97 * change.sum()
        subject = np.abs(before - 255).max(axis=2) > 40
        assert (
            0.12 < np.flatnonzero(subject.mean(axis=1) > 0.05)[0] / height < 0.22
        )  # the crown is a sixth from the top
        page.get_by_role("tab", name="Training").click()
        page.get_by_role("button", name="Stop and save").click()
        page.get_by_role("button", name="Stop it now").click()
        assert run.process.wait(60) == 128 + signal.SIGINT
    assert list(trained.glob("chkpnt*.pth"))


def test_looking_through_a_camera_a_clip_and_a_phone(head: Path, trained: Path, page: Any) -> None:
    if not (trained / "point_cloud").is_dir():
        pytest.skip("needs the avatar of the test before")
    capture = load_dataset(head, bind_to_mesh=True, eval_split=True, white_background=True)
    camera = capture.train[0].camera
    with Run("view.py", "-m", trained) as run:
        run.open(page)
        # The picture in the page is that of the rasterizer, enlarged by the browser, which it fills from top to bottom.
        choose(page, "Look", camera.camera_id)
        wait(lambda: page.get_by_text(re.compile(rf"× {camera.height} in")).count())
        shown = still(page)
        avatar = load_avatar(trained, iteration=SAVED, device="cpu")
        expected = Image.fromarray(to_bytes(avatar.render(camera, avatar.pose(capture.train[0].timestep_index))))
        scale = shown.shape[0] / camera.height
        width = round(camera.width * scale)
        left = (shown.shape[1] - width) // 2
        large = np.asarray(expected.resize((width, shown.shape[0]), Image.Resampling.BILINEAR))
        found = max(psnr(shown[:, left + shift : left + shift + width], large) for shift in (-2, -1, 0, 1, 2))
        assert found > 30

        page.get_by_role("tab", name="Clip").click()
        page.get_by_role("button", name="Add key frame").click()
        page.mouse.move(300, 300)
        page.mouse.down()
        page.mouse.move(400, 320, steps=5)
        page.mouse.up()
        page.keyboard.press("k")
        page.get_by_text("2 key frames").wait_for()
        page.get_by_role("button", name="Make mp4").click()
        page.get_by_text("Saved as clips/clip.mp4").wait_for()
        reader = imageio_ffmpeg.read_frames(str(trained / "clips" / "clip.mp4"))
        size = next(reader)["size"]
        frames = [np.frombuffer(frame, np.uint8) for frame in reader]
        assert size == (512, 512) and len(frames) == 38  # 1.5 seconds at 25 a second
        assert psnr(frames[0], frames[1]) > psnr(frames[0], frames[-1])  # it goes from one to the other

        page.set_viewport_size({"width": 390, "height": 844})
        page.get_by_role("tab", name="View").click()
        page.get_by_role("button", name="Face the avatar").click()
        subject = np.abs(still(page) - 255).max(axis=2) > 40
        assert subject[: 844 // 2, :].any(axis=1).mean() > 0.5  # the face is above the panel
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(30) == 0
    files = {path.name for path in (trained / "clips").iterdir()}
    assert files == {"clip.mp4"}  # and nothing else was written
