"""A browser without a screen: speaks the viewer's protocol, to measure and to test it.

python -m benchmarks.scripted_browser PORT SECONDS    drags the camera to and fro; prints what came back
"""

from __future__ import annotations

import io
import json
import math
import struct
import sys
import time
from typing import Any

import msgspec
import numpy as np
import viser
import zstandard
from PIL import Image
from scipy.spatial.transform import Rotation
from websockets.sync.client import connect

PATIENCE = 60.0  # seconds
# Messages that send a browser somewhere -> what of the camera they change, and what that is called there.
SENT = {
    "SetCameraPositionMessage": ("position", "position"),
    "SetCameraLookAtMessage": ("look_at", "look_at"),
    "SetCameraUpDirectionMessage": ("up_direction", "position"),
    "SetCameraFovMessage": ("fov", "fov"),
}


class ScriptedBrowser:
    """Connects, says where its camera is, and takes the pictures that come.

    Use as a context manager.
    """

    def __init__(self, port: int, size: tuple[int, int] = (400, 550), path: str = "/", **settings: Any) -> None:
        """
        Args:
            size: (width, height) of its window, pixels.
            path: behind the address, such as "/?token=WORD".
            settings: of `websockets.sync.client.connect`.
        """
        self.size = size
        protocol: Any = [f"viser-v{viser.__version__}"]
        address = f"ws://127.0.0.1:{port}{path}"
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket = connect(
                    address, subprotocols=protocol, max_size=None, compression=None, open_timeout=PATIENCE, **settings
                )
                break
            except ConnectionRefusedError:  # the port is not open yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)
        self.camera: dict[str, Any] = {
            "type": "ViewerCameraMessage",
            "wxyz": [0.0, 1.0, 0.0, 0.0],
            "position": [0.0, 0.0, 1.0],
            "fov": 0.35,
            "near": 0.01,
            "far": 1000.0,
            "image_width": size[0],
            "image_height": size[1],
            "look_at": [0.0, 0.0, 0.0],
            "up_direction": [0.0, 1.0, 0.0],
        }
        self.widgets: dict[str, tuple[str, dict[str, Any]]] = {}  # label -> its id and properties
        self.pictures = 0  # so many came
        self.picture = b""  # the last, as it came

    def __enter__(self) -> ScriptedBrowser:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # ---- to the viewer ------------------------------------------------------------

    def send(self, message: dict[str, Any]) -> None:
        """Any message."""
        self.socket.send(msgspec.msgpack.encode(message))

    def say_where(self, **changes: Any) -> None:
        """Sends the camera, with some of it changed."""
        self.camera.update(changes)
        self.send(self.camera)

    def orbit(self, angle: float) -> None:
        """Turns the camera around the point it looks at, by radians around what is up."""
        target, up = np.array(self.camera["look_at"]), np.array(self.camera["up_direction"])
        turn = Rotation.from_rotvec(angle * up / np.linalg.norm(up))
        position = target + turn.apply(np.array(self.camera["position"]) - target)
        orientation = turn * Rotation.from_quat(self.camera["wxyz"], scalar_first=True)
        self.say_where(position=position.tolist(), wxyz=orientation.as_quat(scalar_first=True).tolist())

    def set(self, label: str, value: Any) -> None:
        """Gives a widget a value."""
        self.send({"type": "GuiUpdateMessage", "uuid": self.widgets[label][0], "updates": {"value": value}})

    # ---- from the viewer ----------------------------------------------------------

    def listen(self, seconds: float) -> None:
        """Takes what comes in so many seconds."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                self._take(self.socket.recv(timeout=left))
            except TimeoutError:
                return

    def wait_for_pictures(self, count: int, seconds: float = 30.0) -> np.ndarray:
        """[H, W, 3] uint8, the last picture, once `count` have come in all; TimeoutError if they do not."""
        end = time.monotonic() + seconds
        while self.pictures < count:
            self._take(self.socket.recv(timeout=max(0.0, end - time.monotonic())))
        return self.pixels()

    def wait_for_widget(self, label: str, seconds: float = 30.0) -> None:
        """Until the panel is there."""
        end = time.monotonic() + seconds
        while label not in self.widgets:
            self._take(self.socket.recv(timeout=max(0.0, end - time.monotonic())))

    def pixels(self) -> np.ndarray:
        """[H, W, 3] uint8, the last picture."""
        return np.asarray(Image.open(io.BytesIO(self.picture)))

    def _take(self, data: Any) -> None:
        size, packed = struct.unpack("<QQ", data[:16])
        content = msgspec.msgpack.decode(zstandard.decompress(data[16 : 16 + packed], max_output_size=size))
        sent = False
        for message in content["messages"]:
            kind = message["type"]
            if kind == "BackgroundImageMessage" and message["rgb_data"]:
                self.picture = message["rgb_data"]
                self.pictures += 1
            elif kind in SENT and not message.get("initial"):
                ours, theirs = SENT[kind]
                self.camera[ours] = message[theirs]
                sent = True
            elif "label" in message.get("props", {}) and message.get("uuid"):
                self.widgets[str(message["props"]["label"])] = (message["uuid"], message)

        if sent:  # as browsers do, it says so when it has gone where it was sent
            self._look()
            self.say_where()

    def _look(self) -> None:
        """The orientation follows from where the camera is and what it looks at."""
        forward = np.subtract(self.camera["look_at"], self.camera["position"])
        right = np.cross(forward, self.camera["up_direction"])
        if min(np.linalg.norm(forward), np.linalg.norm(right)) > 1e-9:
            forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
            axes = np.stack([right, np.cross(forward, right), forward], axis=1)
            self.camera["wxyz"] = Rotation.from_matrix(axes).as_quat(scalar_first=True).tolist()


SENDS = 0.02  # seconds between two cameras of a browser that is dragged


def swing(port: int, seconds: float, size: tuple[int, int] = (400, 550)) -> dict[str, float]:
    """Drags the camera to and fro for so long; what came back, without the first second."""
    with ScriptedBrowser(port, size) as browser:
        browser.say_where()
        browser.wait_for_pictures(1)
        start, since, first = time.monotonic(), 0.0, 0
        areas: list[int] = []
        while (now := time.monotonic() - start) < seconds:
            if now > 1.0 and not first:
                first, since = browser.pictures, now
            browser.orbit(0.02 * math.cos(1.5 * now))
            before = browser.pictures
            browser.listen(SENDS)
            if first and browser.pictures > before:
                image = Image.open(io.BytesIO(browser.picture))
                areas.append(image.width * image.height)
        elapsed = time.monotonic() - start - since
        return {
            "pictures_per_second": (browser.pictures - first) / elapsed,
            "share_of_pixels": float(np.mean(areas)) / (size[0] * size[1]) if areas else 0.0,
        }


if __name__ == "__main__":
    print(json.dumps(swing(int(sys.argv[1]), float(sys.argv[2]))))
