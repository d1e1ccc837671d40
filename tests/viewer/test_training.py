"""A training that is watched: the same bits, whatever browsers do; and pause and stop."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from runs import SCHEDULE, assert_same_run, ending, flags, train_on
from websockets.exceptions import ConnectionClosed

from benchmarks.scripted_browser import ScriptedBrowser
from benchmarks.viewer import free_port
from training import checkpoint, live

ITERATIONS = 60
SHORT = f"--iterations {ITERATIONS} --densify_until_iter 50 --interval 30"
HELD_AT = 25  # between two densifications


@pytest.fixture
def port() -> int:
    return free_port()


@contextlib.contextmanager
def audience(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> Iterator[None]:
    """While something trains, `act` runs in a thread, for whose end the training waits at one step, always drawing."""
    done, errors = threading.Event(), []  # type: ignore[var-annotated]

    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    original = live.Live.end_of_step

    def held(self: live.Live, step: int) -> None:
        original(self, step)
        if step == HELD_AT:
            while not done.is_set():
                if not self.viewer.turn():
                    self.viewer.wait(0.01)
                self._wait_for_browsers()
                if self.stop.signal:
                    return

    monkeypatch.setattr(live.Live, "end_of_step", held)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        if errors:
            raise errors[0]


def garbage(port: int) -> None:
    """What no browser would send."""
    for noise in (os.urandom(4096), b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\x00" * 100):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(noise)
    for message in (os.urandom(1000), "text", b"\xc1", msgspec.msgpack.encode({"type": "NoSuchMessage"})):
        with contextlib.suppress(Exception), ScriptedBrowser(port) as browser:
            browser.socket.send(message)
            browser.listen(0.1)
    browser = ScriptedBrowser(port)
    browser.say_where()
    browser.wait_for_widget("Jaw: open")
    jaw = browser.widgets["Jaw: open"][0]
    for value in (float("nan"), float("inf"), -1e308, "wide", None, [1, 2], {"a": 1}):
        for label in ("Jaw: open", "Show", "Look", "Color"):
            browser.set(label, value)
    for change in (
        {"wxyz": [0.0] * 4},
        {"fov": 1e9},
        {"position": [1e300, 0.0, 0.0]},
        {"position": [float("nan")] * 3},
    ):
        browser.send({**browser.camera, **change})
    browser.send({"type": "GuiUpdateMessage", "uuid": jaw, "updates": {"gui_api": 1, "removed": True}})
    browser.send({"type": "ShareUrlRequest"})
    browser.say_where(image_width=10**9, image_height=3)
    browser.say_where(image_width=-5, image_height=2**40)
    browser.listen(0.3)
    upload = {"type": "FileTransferStartUpload", "source_component_uuid": jaw, "transfer_uuid": "1", "filename": "f"}
    upload |= {"mime_type": "", "part_count": 0, "size_bytes": 0}
    with contextlib.suppress(ConnectionClosed):  # whoever sends what is no message is shown the door
        for position in ([], ["a", "b", "c"], {"x": 1}):
            browser.send({**browser.camera, "position": position})
            browser.listen(0.1)
        browser.send(upload)
        browser.send({"type": "GuiUpdateMessage", "uuid": 3})
        browser.listen(0.1)


def test_the_result_does_not_depend_on_who_watches(
    capture: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    train_on(capture, tmp_path / "alone", SCHEDULE, SHORT)
    drawn: list[int] = []

    def crowd() -> None:
        with contextlib.ExitStack() as stack:
            browsers = [ScriptedBrowser(port, (60 + index, 80)) for index in range(10)]
            for browser in browsers[1:]:
                stack.callback(browser.socket.close)
            for browser in browsers:
                browser.say_where()
            for browser in browsers:
                browser.wait_for_pictures(1)
            browsers[0].socket.socket.shutdown(socket.SHUT_RDWR)  # gone without a word
            garbage(port)
            for turn in range(5):
                for browser in browsers[1:]:
                    browser.orbit(0.1 * turn)
                browsers[1].set("Jaw: open", 5.0 * turn)
                browsers[2].set("Expression 1", 0.5)
                browsers[3].set("Show", "Depth")
                browsers[4].set("Timestep", 2)
                for browser in browsers[1:]:
                    browser.listen(0.03)
            drawn.extend(browser.pictures for browser in browsers[1:])

    with audience(monkeypatch, crowd):
        train_on(capture, tmp_path / "watched", SCHEDULE, SHORT, f"--port {port}")
    assert min(drawn) >= 2  # every one of them saw its camera move
    assert_same_run(tmp_path / "alone", tmp_path / "watched", ITERATIONS)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said and "gave a browser up" not in said


def test_pause_and_stop(capture: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def visitor() -> None:
        with ScriptedBrowser(port) as browser:
            browser.say_where()
            browser.wait_for_widget("Stop and save")

            browser.wait_for_pictures(1)
            browser.set("Pause training", True)
            browser.listen(0.5)
            before = browser.pictures
            browser.orbit(0.3)
            browser.wait_for_pictures(before + 1)  # it draws while the training waits
            seen["drawn"] = browser.pictures - before
            browser.set("Stop and save", True)
            browser.wait_for_widget("Stop it now")
            browser.set("Stop it now", True)
            with contextlib.suppress(Exception):
                browser.listen(5)

    with audience(monkeypatch, visitor), pytest.raises(SystemExit) as ended:
        train_on(capture, tmp_path / "model", SCHEDULE, SHORT, f"--port {port}")
    assert seen["drawn"] >= 1
    assert ended.value.code == 130  # as after Ctrl-C
    assert len(checkpoint.saved_in(tmp_path / "model")) == 1
    train_on(capture, tmp_path / "model", SCHEDULE, SHORT, "--start_checkpoint auto")
    train_on(capture, tmp_path / "alone", SCHEDULE, SHORT)
    assert_same_run(tmp_path / "alone", tmp_path / "model", ITERATIONS)


def test_a_pause_ends_when_everybody_has_gone(
    capture: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def visitor() -> None:
        with ScriptedBrowser(port) as browser:
            browser.say_where()
            browser.wait_for_widget("Pause training")
            browser.wait_for_pictures(1)
            browser.set("Pause training", True)
            browser.listen(0.5)

    with audience(monkeypatch, visitor):
        results = train_on(capture, tmp_path / "model", SCHEDULE, SHORT, f"--port {port}")
    assert results["iterations"] == ITERATIONS


def test_a_port_in_use_is_told_before_anything_is_written(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        status, _, stderr = ending(monkeypatch, capfd, flags(capture, tmp_path / "model", f"--port {taken}"))
    assert status == 2 and stderr.count("\n") == 1 and f"--port {taken}" in stderr
    assert not (tmp_path / "model").exists()


def test_the_token_stands_in_no_file(capture: Path, tmp_path: Path, port: int) -> None:
    model = tmp_path / "model"
    train_on(capture, model, f"--iterations 3 --port {port} --viewer_token Sesame", quiet=False)
    for path in model.rglob("*"):
        if path.is_file():
            assert b"Sesame" not in path.read_bytes(), path
