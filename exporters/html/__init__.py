"""The avatar as a web page: one file that opens by double click, or parts for a page of somebody's own.

`pack.py` makes the data and says how exact it is; `page.py` puts it and the modules (`*.js`) into a file. The modules
compute in the browser what `ops/flame.py`, `ops/rig.py` and `gaussian_renderer/backends/reference.py` compute here.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arguments import ExportOptions
from exporters.colors import average_camera
from exporters.html import page
from exporters.html.pack import QUALITIES, Life, pack
from exporters.view import first_view, poster_camera
from scene import Avatar
from scene.motion import Motion, chosen_motion
from scene.motion.blendshapes import known_mapping, mode_names
from scene.motion.rows import FPS
from utils.blendshapes import NAMES
from utils.errors import UserError
from utils.files import atomic_path
from utils.images import to_bytes

POSTER_HEIGHT = 720  # pixels
POSTER_QUALITY = 82  # of JPEG
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
    life, fps = None, FPS
    if avatar.head is not None:
        motion, life = _life(avatar, options)
        yield from motion.notes
        fps = motion.fps or FPS
    elif options.motion or options.mapping:
        raise UserError(f"--motion and --mapping: {avatar.path} is not bound to a head mesh, so it does not move")
    view = first_view(avatar, np.empty((1, 0)) if life is None else life.rows)
    header: dict[str, Any] = {"title": title, "background": background, "view": view, "fps": fps}
    data, kept = pack(avatar, steps, header, life)
    yield from _left_out(avatar, kept, steps.visible)
    poster = _poster(avatar, view, life)
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


def _life(avatar: Avatar, options: ExportOptions) -> tuple[Motion, Life]:
    """The motion, its own or that of `--motion`, and what is known of its head's expressions."""
    assert avatar.head is not None and avatar.head_file is not None
    motion = Motion("own", avatar.motion().values.detach().double().cpu().numpy())
    if options.motion:
        motion = chosen_motion(options, avatar, options.motion, fps=FPS)
    names = mode_names(avatar.head_file, avatar.head.n_expr)
    blink = None
    mapping = known_mapping(options.mapping, avatar.head_file, avatar.head)
    if mapping is not None:
        blink = sum(mapping[NAMES.index(name)] for name in ("eyeBlinkLeft", "eyeBlinkRight"))
    return motion, Life(motion.rows, names, blink if np.any(blink) else None)


def _left_out(avatar: Avatar, kept: dict[str, int], visible: float) -> Iterator[str]:
    """What the page does not carry, in sentences."""
    dropped = len(avatar.model) - kept["gaussians"]
    if dropped:
        yield f"{dropped:,} of {len(avatar.model):,} Gaussians are too faint to be drawn, and left out"
    if avatar.head is not None:
        if kept["expressions"] < avatar.head.n_expr:
            yield (
                f"{kept['expressions']} of {avatar.head.n_expr} expressions are kept: the others move nothing by more "
                f"than {1000 * visible:g} mm"
            )
        if avatar.motion().dynamic_offset is not None:
            yield "the offsets of single timesteps (dynamic_offset) are left out"
    yield from average_camera(avatar)


def _poster(avatar: Avatar, view: dict[str, Any], life: Life | None) -> bytes:
    """A JPEG of the first row from the page's first view."""
    device = avatar.model.device
    pose = None if life is None else torch.from_numpy(life.rows[0]).to(device, torch.float32)
    picture = to_bytes(avatar.render(poster_camera(view, POSTER_HEIGHT).to(device), pose))
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=POSTER_QUALITY)
    return stream.getvalue()


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
