"""Writes a trained avatar in a format that others open.

    python export.py -m OUT --format html                  a page that moves, OUT/avatar.html
    python export.py -m OUT --format ply --timestep 12     ordinary splats of a moment; also spz and glb
    python export.py -m OUT --format spz --motion sweep    a numbered file for each moment of a motion
    python export.py --list                                what each format keeps and loses

Files are written whole or not at all. What a format cannot hold is said when it is written.
"""

from __future__ import annotations

import utils.threads  # noqa: F401  (before PyTorch: sets how its threads wait)

# isort: split
import sys
from pathlib import Path

from arguments import ExportOptions, parse_export
from exporters import FORMATS
from scene.avatar import open_avatar
from utils.errors import run_script
from utils.files import refuse_escaping_links


def export(options: ExportOptions) -> Path:
    """Writes what was asked for; returns where."""
    chosen = FORMATS[options.format or ""]
    refuse_escaping_links(options.model_path)
    avatar = open_avatar(options)
    if avatar.note:
        print(f"note: {avatar.note}", file=sys.stderr)
    path = Path(options.output or Path(options.model_path, chosen.path(options)))
    for line in chosen.write(avatar, path, options):
        if not options.quiet:
            print(line)
    return path


def table() -> str:
    """What each format keeps and loses, and what opens it."""
    return "\n".join(
        f"{name}\n    keeps: {one.keeps}\n    loses: {one.loses}\n    opens with: {one.opens}"
        for name, one in FORMATS.items()
    )


def main() -> None:
    options = parse_export(sys.argv[1:])
    if options.list:
        print(table())
    else:
        export(options)


if __name__ == "__main__":
    run_script(main)
