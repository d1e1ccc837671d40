"""The port: who may come in, and viser behind it.

viser serves whoever connects, moves on to the next port when one is taken, and lets any browser open a tunnel that
shows the page to the world. None of that here: the socket is ours, and every request passes `Doorkeeper.admit`.
"""

from __future__ import annotations

import asyncio
import hmac
import http
import ipaddress
import logging
import os
import re
import socket
import traceback
import warnings
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import rich
import viser
import websockets.asyncio.server
from viser import _messages
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from utils.errors import UserError

LOOPBACK = "127.0.0.1"
_UPLOADS: tuple[Any, ...] = (_messages.FileTransferStartUpload, _messages.FileTransferPart)
LARGEST_MESSAGE = 1 << 20  # bytes that a browser may send at once; a camera takes 300
MOST_BROWSERS = 32


def listen(ip: str | None, port: int) -> socket.socket:
    """A socket that listens, so that nobody else can: a browser that comes now waits until `serve` answers.

    Args:
        ip: address or name of this machine to listen on; None: only this machine can reach it.
        port: 1 to 65535, or 0 for any that is free.

    Raises:
        UserError: the port is in use or not allowed, or the address is not one of this machine.
    """
    where = ip or LOOPBACK
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(where, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--ip {where} is no address to listen on: {error.strerror or error}") from error
    try:
        if os.name == "posix":  # elsewhere it would let two programs have one port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        raise UserError(
            f"--port {port} of {where} cannot be had ({error.strerror or error}): choose another one"
        ) from error
    return found


class Doorkeeper:
    """Decides which requests viser gets to see."""

    def __init__(self, listening: socket.socket, token: str | None) -> None:
        """
        Args:
            listening: what `listen` gave.
            token: what a browser has to know; None: nothing.

        Raises:
            UserError: the token would not stand in an address as it is.
        """
        if token is not None and not re.fullmatch("[A-Za-z0-9_-]+", token):
            raise UserError("--viewer_token must be of letters, digits, - and _, and not empty")
        self.listening, self.token = listening, token
        self.host, self.port = listening.getsockname()[:2]
        self.private = ipaddress.ip_address(self.host).is_loopback
        self.connected: Callable[[], int] = lambda: 0  # how many browsers there are
        self.open = False  # until the page stands, whoever comes waits

    @property
    def url(self) -> str:
        """What to type into a browser on this machine."""
        address = ipaddress.ip_address(self.host)
        host = "localhost" if address.is_unspecified else f"[{address}]" if address.version == 6 else str(address)
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def warning(self) -> str | None:
        """What to tell the user of a port that others can reach; None where they cannot."""
        if self.private:
            return None
        if self.token:
            return f"the viewer listens on {self.host}: anyone who reaches it and has the token can watch and stop it"
        return (
            f"the viewer listens on {self.host}: anyone who reaches it can watch and stop it; --viewer_token keeps "
            "others out"
        )

    def admit(
        self, viser_answers: Callable[..., Response | None], connection: ServerConnection, request: Request
    ) -> Response | None:
        """The answer to an HTTP request; None lets a web socket be opened."""
        problem = self._problem(request)
        if problem:
            return connection.respond(http.HTTPStatus.FORBIDDEN, f"{problem}\n")
        opens_socket = request.headers.get("Upgrade", "").lower() == "websocket"
        if opens_socket and self.connected() >= MOST_BROWSERS:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many browsers are connected\n")
        response = viser_answers(connection, request)
        if response is not None:
            response.headers["X-Frame-Options"] = "DENY"  # no page of others may put a button of ours under a mouse
            response.headers["Referrer-Policy"] = "no-referrer"
            if self.token:  # the page's own web socket and a reload come without the query
                response.headers["Set-Cookie"] = f"{self._cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        return response

    @property
    def _cookie(self) -> str:
        return f"viewer_{self.port}"  # cookies do not know ports

    def _problem(self, request: Request) -> str | None:
        """Why a request is refused, as a sentence for whoever sees it; None when it is welcome."""
        host, origin = request.headers.get("Host", ""), request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            # Browsers let any page open a socket to any port of this machine.
            return "A page of another site may not use the viewer."
        if self.token:
            return (
                None if self._knows_token(request) else "The viewer asks for its token: open the address with ?token="
            )
        if self.private and not _is_this_machine(host):
            # Any site can give its name the address 127.0.0.1.
            return f"Without --viewer_token the viewer is at {self.url} only."
        return None

    def _knows_token(self, request: Request) -> bool:
        assert self.token is not None
        given = parse_qs(urlsplit(request.path).query).get("token", [])
        cookies = SimpleCookie()
        try:
            cookies.load(request.headers.get("Cookie", ""))
        except (CookieError, ValueError):
            pass
        if self._cookie in cookies:
            given.append(cookies[self._cookie].value)
        return any(hmac.compare_digest(value.encode(), self.token.encode()) for value in given)


def _is_this_machine(host: str) -> bool:
    """Whether a `Host` header names the machine itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def serve(door: Doorkeeper) -> viser.ViserServer:
    """Starts viser behind the door, which is to be opened; it runs in threads of its own until `stop`."""
    # It tells of every browser, and garbage on the socket ends in tracebacks: not on the terminal of a training.
    rich.get_console().quiet = True
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    for text in ("Queued a .* on a closed connection", r"\[viser\]"):
        warnings.filterwarnings("ignore", text)
    # viser has no hook for the socket and for requests; it looks this function up when it starts, in a thread.
    original = websockets.asyncio.server.serve

    def behind_door(handler: Any, host: Any, port: Any, *, process_request: Any, **settings: Any) -> Any:
        async def admit(connection: ServerConnection, request: Request) -> Response | None:
            while not door.open:
                await asyncio.sleep(0.02)
            return door.admit(process_request, connection, request)

        settings["max_size"] = LARGEST_MESSAGE
        return original(handler, sock=door.listening, process_request=admit, **settings)

    websockets.asyncio.server.serve = behind_door  # type: ignore[assignment, misc]
    try:
        server = viser.ViserServer(door.host, door.port, verbose=False)
    finally:
        websockets.asyncio.server.serve = original  # type: ignore[misc]
    door.connected = lambda: len(server.get_clients())
    # What whoever connects could ask for: files to be kept in memory, and a public tunnel to this page.
    for message in (*_UPLOADS, _messages.ShareUrlRequest, _messages.ShareUrlDisconnect):
        server._websock_server.unregister_handler(message)
    server.get_event_loop().call_soon_threadsafe(server.get_event_loop().set_exception_handler, _unexpected)
    return server


def limit(client: viser.ClientHandle) -> None:
    """Leaves a browser that has just come nothing but its camera, and the values of its widgets."""
    connection = client._websock_connection
    for message in _UPLOADS:
        connection.unregister_handler(message)
    # viser would set any attribute of a widget that a browser names.
    connection.unregister_handler(_messages.GuiUpdateMessage)

    async def values_only(number: Any, message: _messages.GuiUpdateMessage) -> None:
        if set(message.updates) == {"value"}:
            await client.gui._handle_gui_updates(number, message)

    connection.register_handler(_messages.GuiUpdateMessage, values_only)


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Shows an error of ours; those that garbage on the socket causes inside of viser are nobody's business."""
    error = context.get("exception")
    frames = traceback.extract_tb(error.__traceback__) if error else []
    if any(os.path.dirname(frame.filename) == os.path.dirname(__file__) for frame in frames):
        loop.default_exception_handler(context)
