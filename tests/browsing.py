"""Our pages in a real browser, Debian's Chromium without a screen, driven by Playwright."""

from __future__ import annotations

import io
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from places import ROOT

from benchmarks.viewer import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BROWSER = ["--no-sandbox", "--enable-unsafe-swiftshader", "--use-angle=swiftshader"]  # draws on the CPU
PATIENCE = 60_000  # milliseconds


class Run:
    """A script of ours that serves the viewer."""

    def __init__(self, *words: object) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, *map(str, words), "--port", str(port), "--device", "cpu"]
        # A suite started in the background ignores SIGINT, and so would the script.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        signal.signal(signal.SIGINT, before)

    def open(self, page: Any) -> None:
        """The page, once a picture is there."""
        wait(lambda: self.process.poll() is not None or answers(self.url))
        assert self.process.poll() is None, self.process.communicate()[0]
        page.goto(self.url)
        page.get_by_text("Gaussians").first.wait_for()
        page.get_by_role("button", name="Close").or_(page.locator(".mantine-Notification-closeButton")).first.click()
        wait(lambda: picture(page).std() > 10)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def answers(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rpartition(":")[2]))) == 0


def wait(until: Callable[[], Any], seconds: float = PATIENCE / 1e3) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def picture(page: Any) -> np.ndarray:
    """[H, W, 3] float, what the page shows of the avatar; where the browser's own notice would be, white."""
    data = page.screenshot(clip=page.locator("canvas").first.bounding_box())
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)


def still(page: Any) -> np.ndarray:
    """The picture, once it does not change any more."""
    pictures = [picture(page)]

    def same() -> bool:
        time.sleep(0.4)
        pictures.append(picture(page))
        return np.abs(pictures[-1] - pictures[-2]).max() == 0

    wait(same)
    return pictures[-1]


def press_slider(page: Any, label: str, key: str) -> None:
    owner = page.get_by_text(label, exact=True).get_attribute("for")
    page.locator(f'[id="{owner}"] [role=slider]').press(key)


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=option, exact=True).click()
