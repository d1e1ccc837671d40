"""Who is let in at the port, and what can be had there."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import viser
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from benchmarks.scripted_browser import ScriptedBrowser
from utils.errors import UserError
from viewer import server

PROTOCOL: list[Any] = [f"viser-v{viser.__version__}"]


@pytest.fixture
def door() -> Iterator[server.Doorkeeper]:
    door = server.Doorkeeper(server.listen(None, 0), None)
    host = server.serve(door)
    door.open = True
    yield door
    host.stop()


@pytest.fixture
def locked() -> Iterator[server.Doorkeeper]:
    door = server.Doorkeeper(server.listen(None, 0), "Sesame")
    host = server.serve(door)
    door.open = True
    yield door
    host.stop()


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes


def get(door: server.Doorkeeper, path: str, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", door.port)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    connection.close()
    return answer


def opens(door: server.Doorkeeper, path: str = "/", **headers: str) -> bool:
    """Whether a web socket can be opened."""
    try:
        with connect(f"ws://127.0.0.1:{door.port}{path}", subprotocols=PROTOCOL, additional_headers=headers):
            return True
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        return False


def test_this_machine_alone_is_listened_to(door: server.Doorkeeper) -> None:
    assert door.host == "127.0.0.1" and door.private and door.warning is None
    assert door.url == f"http://127.0.0.1:{door.port}/"
    assert get(door, "/").status == 200 and opens(door)
    assert get(door, "/", Host=f"localhost:{door.port}").status == 200


def test_pages_of_others_are_not_let_in(door: server.Doorkeeper) -> None:
    own = f"http://127.0.0.1:{door.port}"
    assert opens(door, Origin=own)
    for origin in ("http://example.com", "null", "http://127.0.0.1:1", own.replace("127.0.0.1", "localhost")):
        assert not opens(door, Origin=origin)
    # A name of an attacker's that leads here; then page and socket have the same origin.
    assert get(door, "/", Host=f"example.com:{door.port}").status == 403
    assert get(door, "/", Host=f"127.0.0.1.example.com:{door.port}").status == 403


def test_the_token_is_asked_for_and_kept_in_a_cookie(locked: server.Doorkeeper) -> None:
    assert "?token=Sesame" in locked.url
    for path in ("/", "/?token=", "/?token=sesame", "/?token=Sesame2"):
        assert get(locked, path).status == 403 and not opens(locked, path)
    page = get(locked, "/?token=Sesame")
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    assert page.status == 200 and "HttpOnly" in page.headers["Set-Cookie"]
    assert get(locked, "/", Cookie=cookie).status == 200 and opens(locked, Cookie=cookie)
    assert not opens(locked, Cookie=cookie, Origin="http://example.com")
    assert not opens(locked, Cookie='viewer=x; ;;=;"')


@pytest.mark.parametrize("token", ["", "a b", "a;b", "a&b", "ä", "a\n"])
def test_a_token_that_an_address_cannot_hold(token: str) -> None:
    with server.listen(None, 0) as listening, pytest.raises(UserError, match="--viewer_token"):
        server.Doorkeeper(listening, token)


def test_no_file_of_the_machine_is_served(door: server.Doorkeeper, tmp_path: Path) -> None:
    up = "/".join([".."] * 20)
    for path in (f"/{up}/etc/passwd", f"/{up.replace('.', '%2e')}/etc/passwd", "//etc/passwd", "/etc/passwd"):
        answer = get(door, path)
        assert answer.status == 404 and b"root:" not in answer.body


def test_a_browser_cannot_open_a_tunnel_or_send_files(door: server.Doorkeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(viser.ViserServer, "request_share_url", lambda self: asked.append(self))
    with ScriptedBrowser(door.port) as browser:
        browser.say_where()
        browser.send({"type": "ShareUrlRequest"})
        with pytest.raises(ConnectionClosed):  # whoever sends more than a megabyte is shown the door
            for _ in range(50):
                browser.send({"type": "GuiUpdateMessage", "uuid": "x", "updates": {"value": "x" * (2 << 20)}})
                browser.listen(0.1)
    assert not asked


def test_a_port_in_use_and_an_address_of_others() -> None:
    with server.listen(None, 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} of 127.0.0.1 cannot be had"):
            server.listen(None, port)
    with pytest.raises(UserError, match="--ip no.such.host.invalid is no address"):
        server.listen("no.such.host.invalid", 0)


def test_a_warning_where_others_can_come() -> None:
    with server.listen("0.0.0.0", 0) as listening:
        for token, word in ((None, "--viewer_token"), ("Sesame", "has the token")):
            warning = server.Doorkeeper(listening, token).warning
            assert warning and word in warning and "\n" not in warning
        assert server.Doorkeeper(listening, None).url.startswith("http://localhost:")
    if socket.has_ipv6:
        with server.listen("::1", 0) as listening:
            assert server.Doorkeeper(listening, None).url.startswith("http://[::1]:")


def test_who_comes_too_early_waits() -> None:
    door = server.Doorkeeper(server.listen(None, 0), None)
    host = server.serve(door)
    early = http.client.HTTPConnection("127.0.0.1", door.port, timeout=0.3)
    early.request("GET", "/")
    with pytest.raises(TimeoutError):
        early.getresponse()
    door.open = True
    assert get(door, "/").status == 200
    host.stop()
