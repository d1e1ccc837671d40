"""Makes the pictures of doc/viewer.md: `PYTHONPATH=.:tests python tests/viewer/screenshots.py DATA OUT FOLDER`.

DATA is a capture and OUT an avatar of it; both get shown, the first while it trains in a folder that is thrown away.
Look at what comes out.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from browsing import BROWSER, CHROMIUM, Run, still, wait
from PIL import Image
from playwright.sync_api import sync_playwright

COLORS = 256  # of a picture: a third of the size
SHOWN_AT = 600  # iterations


def save(page: Any, path: Path) -> None:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(COLORS, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


def iteration(page: Any) -> int:
    found = re.search(r"iteration ([0-9,]+)", page.locator("body").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def type_number(page: Any, label: str, value: str) -> None:
    """Into the field beside a slider."""
    owner = page.get_by_text(label, exact=True).get_attribute("for")
    field = page.locator(f'[id="{owner}"]').locator("xpath=..").locator("input").last
    field.fill(value)
    field.press("Enter")


def main(data: str, avatar: str, folder: Path) -> None:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER)
        page = chromium.new_page(viewport={"width": 1280, "height": 720})
        with Run("view.py", "-m", avatar, "-s", data) as run:
            run.open(page)
            page.get_by_role("tab", name="Pose").click()
            for label, value in (("Jaw: open", "16"), ("Eyes: around", "-12"), ("Head: tilted", "6")):
                type_number(page, label, value)
            page.mouse.move(400, 350)
            page.mouse.down()
            page.mouse.move(470, 345, steps=8)
            page.mouse.up()
            page.mouse.move(400, 700)
            still(page)
            save(page, folder / "viewer.png")
        flags = (
            "--preset ultra --iterations 6000 --scale_schedule --densify_grad_threshold 0.001 --eval --bind_to_mesh -w"
        )
        with tempfile.TemporaryDirectory() as temporary:
            with Run("train.py", "-s", data, "-m", f"{temporary}/live", *flags.split(), "-w") as run:
                run.open(page)
                page.get_by_role("tab", name="Training").click()
                wait(lambda: iteration(page) >= SHOWN_AT, 300)
                save(page, folder / "viewer_training.png")
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
