"""The page in a real browser: its pictures against the native rasterizer's, its controls, what it says if it cannot."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from moving_ball import TIMESTEPS, write_avatar
from places import ROOT

from arguments import parse_export
from benchmarks.html_page import OpenPage, browser, cameras, chromium, compare, move_sliders, opened
from export import export
from exporters.html import page
from scene import Avatar, load_avatar
from utils.errors import UserError

SIZE = (96, 128)
WINDOW = (120, 160)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    try:
        chromium()
    except UserError as error:
        pytest.skip(str(error))
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_avatar(tmp_path_factory.mktemp("page") / "model", network=True, expressive=True)


def write(folder: Path, *words: str) -> Path:
    return export(parse_export(["-m", str(folder), "--format", "html", "--quiet", *words]))


@pytest.fixture(scope="module")
def avatar(folder: Path) -> Avatar:
    return load_avatar(folder, device="cpu")


@pytest.fixture(scope="module")
def shown(started: Any, folder: Path) -> Iterator[OpenPage]:
    with opened(started, write(folder), WINDOW) as shown:
        shown.run("await avatar.ready;")
        yield shown


def test_its_pictures_are_the_rasterizers(
    started: Any, shown: OpenPage, avatar: Avatar, folder: Path, tmp_path: Path
) -> None:
    high = compare(avatar, shown, SIZE)
    assert len(high) == 15 and min(high) >= 38, high
    with opened(started, write(folder, "--quality", "small", "-o", str(tmp_path / "small.html")), WINDOW) as small:
        small.run("await avatar.ready;")
        assert min(compare(avatar, small, SIZE)) >= 33
        assert small.faults == []
    # The measure sees what it should: another pose, and no color network.
    camera, row = cameras(avatar, *SIZE)[0], avatar.motion().values[0]
    truth, other = avatar.render(camera, row), avatar.render(camera, avatar.motion().values[5])
    assert -10 * (truth - other).square().mean().log10() < 30
    plain = load_avatar(folder, device="cpu", calibrated=False).render(camera, row)
    assert -10 * (truth - plain).square().mean().log10() < 33
    unmoved = load_avatar(folder, device="cpu")
    unmoved.model.modes = None
    assert -10 * (truth - unmoved.render(camera, row)).square().mean().log10() < 33


def test_a_thousand_moves_leave_no_fault_and_no_memory(shown: OpenPage) -> None:
    move_sliders(shown, 100, every=10)
    before = shown.heap()
    assert move_sliders(shown, 1000, every=10) == 6 + 7
    assert shown.heap() - before < 1_000_000  # a mesh or a picture kept from each would be a hundred times that
    assert shown.faults == []


def test_it_can_be_driven_by_scripts(shown: OpenPage) -> None:
    shown.run("avatar.release(); avatar.pause(); avatar.setFollowing(false);")
    found = shown.run(
        """
        const told = [];
        for (const name of ["play", "pause", "change", "frame"]) avatar.addEventListener(name, () => told.push(name));
        avatar.setExpression([0.25, 0, -0.5]);
        avatar.setPose({jaw: [0.3, 0, 0], eyes: [0, 0.2, 0]});
        avatar.play({from: 2, loop: false, fps: 100});
        while (avatar.playing) await new Promise(requestAnimationFrame);
        const row = Array.from(avatar.row);
        const wrong = [];
        for (const act of [() => avatar.setPose({chin: [0, 0, 0]}), () => avatar.setPose({jaw: [0]}),
                           () => avatar.setExpression([NaN])]) {
          try { act(); } catch (error) { wrong.push(error.message); }
        }
        avatar.release();
        avatar.setExpression({jawOpen: 0.75});
        avatar.seek(3);
        avatar.draw();
        const named = avatar.row[2];
        avatar.release();
        avatar.draw();
        return {named, told: [...new Set(told)], row, wrong, time: avatar.time, third: Array.from(avatar.row),
                global: window.avatar === avatar};
        """
    )
    assert sorted(found["told"]) == ["change", "frame", "pause", "play"] and found["global"] and found["time"] == 3
    assert found["named"] == 0.75
    row, columns = found["row"], shown.run("return avatar.columns;")
    assert row[:3] == pytest.approx([0.25, 0, -0.5])
    assert row[columns["jaw"][0] :][:3] == pytest.approx([0.3, 0, 0])
    assert row[columns["eyes"][0] :][:6] == pytest.approx([0, 0.2, 0] * 2)
    assert [bool(re.match(text, said)) for text, said in zip(("There is no chin", "jaw has 3", "NaN"), found["wrong"])]
    last = shown.run("return Array.from(avatar.motion[avatar.motion.length - 1]);")
    assert shown.run("return avatar.motion.length;") == TIMESTEPS
    assert row[columns["neck"][0]] == pytest.approx(last[columns["neck"][0]])  # it stayed at the end
    assert found["third"] == pytest.approx(shown.run("return Array.from(avatar.motion[3]);"))


def test_hands_turn_it_and_eyes_follow(shown: OpenPage) -> None:
    rest = "while (avatar.asked) await new Promise(requestAnimationFrame);"  # with all its pixels
    shown.run("avatar.release(); avatar.pause(); avatar.seek(0); avatar.setCamera(null); avatar.resetView();" + rest)
    before = shown.picture()
    mouse = shown.page.mouse
    mouse.move(60, 60)
    mouse.down()
    mouse.move(90, 68)
    mouse.up()
    mouse.wheel(0, -300)
    turned = shown.run("return [avatar.orbit.yaw, avatar.orbit.pitch, avatar.orbit.zoom];")
    assert turned[0] < -0.1 and turned[1] > 0.02 and turned[2] > 1.2
    shown.run(rest)
    assert not torch.allclose(shown.picture(), before, atol=0.1)
    shown.run("avatar.resetView(); avatar.setFollowing(true);")
    # A turn about +y takes the gaze towards +x, which is the picture's right.
    gaze: list[float] = []
    for x in (10, 110):
        mouse.move(x, 50)
        gaze.append(
            shown.run(
                """
                const end = performance.now() + 2000;
                while (performance.now() < end) await new Promise(requestAnimationFrame);
                return avatar.row[avatar.columns.eyes[0] + 1];
                """
            )
        )
    assert gaze[1] - gaze[0] > 0.25, gaze
    assert shown.faults == []


def test_it_blinks_and_rests(shown: OpenPage) -> None:
    shown.run("avatar.release(); avatar.pause(); avatar.setFollowing(false); avatar.seek(0);")
    assert shown.run("return [...element.shadowRoot.querySelectorAll('.switch')].length;") == 2
    seen = shown.run(
        """
        const seen = [], own = avatar.motion[0][0];
        avatar.addEventListener("frame", () => seen.push(avatar.row[0]));
        avatar.blinks.pause = () => 0.3;
        avatar.setBlinking(true);
        while (!seen.some((value) => value > own + 0.3)) await new Promise(requestAnimationFrame);
        avatar.setBlinking(false);
        while (avatar.asked) await new Promise(requestAnimationFrame);
        const count = seen.length;
        await new Promise((go) => setTimeout(go, 300));
        return {last: seen.at(-1), own, later: seen.length - count};
        """
    )
    assert seen["last"] == pytest.approx(seen["own"])
    assert seen["later"] == 0  # nothing is drawn while nothing moves


def test_a_static_scene_opens_too(started: Any, tmp_path: Path) -> None:
    folder = write_avatar(tmp_path / "scene", bound=False)
    still = load_avatar(folder, device="cpu")
    camera = cameras(still, *SIZE)[1]
    with opened(started, write(folder), WINDOW) as shown:
        shown.run("await avatar.ready;")
        shown.look_through(camera)
        error = (shown.picture() - still.render(camera)).square().mean()
        assert -10 * error.log10() >= 38
        assert shown.run("return element.shadowRoot.querySelectorAll('.slider').length;") == 0
        assert shown.faults == []


def test_without_webgl2_it_says_so(started: Any, folder: Path) -> None:
    blind = "HTMLCanvasElement.prototype.getContext = () => null;"
    with opened(started, write(folder), WINDOW, script=blind) as shown:
        said = shown.run(
            "await avatar.ready.catch(() => 0); return element.shadowRoot.querySelector('.message').innerText;"
        )
        assert "no WebGL2" in said
        visible = shown.run("return getComputedStyle(element.querySelector('img')).visibility;")
        assert visible == "visible"  # the poster stays
        assert shown.faults == []


def test_parts_for_a_page_of_ones_own(started: Any, folder: Path, tmp_path: Path) -> None:
    place = write(folder, "--embed", "-o", str(tmp_path / "parts"))
    assert sorted(path.name for path in place.iterdir()) == ["avatar.bin", "avatar.html", "avatar.js"]
    handler = functools.partial(_Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with opened(started, f"http://127.0.0.1:{server.server_port}/avatar.html", WINDOW) as shown:
                shown.run("await avatar.ready;")
                assert shown.picture().std() > 0.02
                # Its own two files, and nothing else.
                assert [fault.rpartition("/")[2] for fault in shown.faults] == ["avatar.js", "avatar.bin"]
        finally:
            server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_the_modules_can_be_put_into_one() -> None:
    names = page.modules()
    assert sorted(names) == sorted(path.name for path in (ROOT / "exporters" / "html").glob("*.js"))
    top: dict[str, str] = {}
    for name in names:
        text = (ROOT / "exporters" / "html" / name).read_text(encoding="utf-8")
        for own in re.findall(r"^(?:export )?(?:async )?(?:const|let|class|function) (\w+)", text, re.MULTILINE):
            assert own not in top, f"{own} is in {top.get(own)} and in {name}"
            top[own] = name
    program = page.program()
    assert not re.search(r"^(import|export)\b", program, re.MULTILINE)
    assert "</script" not in program  # it would end the page's
