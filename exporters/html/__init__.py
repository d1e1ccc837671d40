"""The avatar as a web page: one file that opens by double click, or parts for a page of somebody's own.

`pack.py` makes the data and says how exact it is; `page.py` puts it and the modules (`*.js`) into a file. The modules
compute in the browser what `ops/flame.py`, `ops/rig.py` and `gaussian_renderer/backends/reference.py` compute here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from arguments import ExportOptions
from exporters.html import page
from exporters.html.pack import QUALITIES, pack
from exporters.html.view import first_view, poster_camera
from innovations.color_calibration import ColorCalibration
from scene import Avatar
from scene.dataset.common import read_json
from utils.errors import UserError
from utils.files import atomic_path
from utils.images import to_bytes

FPS = 25.0
POSTER_HEIGHT = 720  # pixels
POSTER_QUALITY = 82  # of JPEG
NAMES = "expr_names.json"  # beside the capture
EMBEDDED = ("avatar.js", "avatar.bin", "avatar.html")


def export(avatar: Avatar, path: Path, options: ExportOptions) -> Iterator[str]:
    """Writes the page `path`, or with `--embed` the three files of `EMBEDDED` into the folder `path`.

    Yields:
        Lines to say: what was left out, and how large it is.

    Raises:
        UserError: more Gaussians than a browser shows, or a file cannot be read or written.
    """
    steps = QUALITIES[options.quality]
    title = options.title or Path(options.model_path).name
    background = avatar.background.cpu().tolist()
    view = first_view(avatar)
    header: dict[str, Any] = {"title": title, "background": background, "view": view, "fps": FPS}
    data, kept = pack(avatar, steps, header, _names(avatar, options))
    yield from _left_out(avatar, kept, steps.visible)
    poster = _poster(avatar, view)
    color = "#" + "".join(f"{round(255 * part):02x}" for part in background)
    if not options.embed:
        _write(path, page.page(title, color, poster, data).encode())
        yield f"{path}: {path.stat().st_size / 1e6:.1f} MB; open it in a browser"
        return
    module, binary, shown = EMBEDDED
    _write(path / module, page.program().encode())
    _write(path / binary, data)
    _write(path / shown, page.embedding_page(title, color, poster, module, binary).encode())
    sizes = ", ".join(f"{name} {(path / name).stat().st_size / 1e6:.1f} MB" for name in EMBEDDED)
    yield f"{path}: {sizes}; browsers load them from a web server only (python -m http.server, in that folder)"


def _names(avatar: Avatar, options: ExportOptions) -> list[str]:
    """The names of the expression coefficients, `{"expression": ["eyeBlink_L", ...]}`; empty where nobody gives any.

    They label the sliders, and by them the eyelids are found. The first coefficients may be named alone.

    Raises:
        UserError: unreadable, another content, or more than the head model has.
    """
    if avatar.head is None:
        if options.expr_names:
            raise UserError(f"--expr_names: {avatar.path} is not bound to a head mesh, so it has no expressions")
        return []
    path = Path(options.expr_names or Path(options.source_path or avatar.options.model.source_path, NAMES))
    if not options.expr_names and not path.is_file():
        return []
    names = read_json(path).get("expression")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} must hold an object with a list of names under 'expression'")
    if len(names) > avatar.head.n_expr:
        raise UserError(f"{path} names {len(names)} expressions, more than the {avatar.head.n_expr} of the head model")
    return names


def _left_out(avatar: Avatar, kept: dict[str, int], visible: float) -> Iterator[str]:
    """What the page does not carry, in sentences."""
    dropped = len(avatar.model) - kept["gaussians"]
    if dropped:
        yield f"{dropped:,} of {len(avatar.model):,} Gaussians are too faint to be seen, and left out"
    if avatar.head is not None:
        if kept["expressions"] < avatar.head.n_expr:
            yield (
                f"{kept['expressions']} of {avatar.head.n_expr} expressions are kept: the others move nothing by more "
                f"than {1000 * visible:g} mm"
            )
        if avatar.motion().dynamic_offset is not None:
            yield "the offsets of single timesteps (dynamic_offset) are left out"
    if isinstance(avatar.color, ColorCalibration) and avatar.color.cameras is not None:
        yield "the colors are those of the average camera, as of any camera that was not trained on"


def _poster(avatar: Avatar, view: dict[str, Any]) -> bytes:
    """A JPEG of the first timestep from the page's first view."""
    pose = None if avatar.head is None else avatar.motion().values[0]
    picture = to_bytes(avatar.render(poster_camera(view, POSTER_HEIGHT).to(avatar.model.device), pose))
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=POSTER_QUALITY)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
