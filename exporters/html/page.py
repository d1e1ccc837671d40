"""One file of the modules beside this one, and the page around it.

The modules are ordinary ES modules, which a browser that is given the folder runs as they are. A page opened by double
click may not load modules from files, so they are put one behind the other, the needed ones first, and their import
and export statements are taken out. That is why each import stands on a line of its own and names what it takes, and
why no two modules use one name at their top level; tests/exporters/test_html_modules.py holds them to it.
"""

from __future__ import annotations

import base64
import html
import re
import string
from pathlib import Path

FOLDER = Path(__file__).parent
ENTRY = "element.js"
_IMPORT = re.compile(r'^import \{ [\w, ]+ \} from "\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:const|class|function) )", re.MULTILINE)


def modules(entry: str = ENTRY) -> list[str]:
    """The file names of a module and of all that it needs, each behind those it needs."""
    order: list[str] = []

    def visit(name: str) -> None:
        for needed in _IMPORT.findall((FOLDER / name).read_text(encoding="utf-8")):
            visit(needed)
        if name not in order:
            order.append(name)

    visit(entry)
    return order


def program() -> str:
    """All modules as one."""
    texts = ((FOLDER / name).read_text(encoding="utf-8") for name in modules())
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", text)) for text in texts)


def page(title: str, background: str, poster: bytes, data: bytes) -> str:
    """The page that needs nothing else.

    Args:
        background: a CSS color.
        poster: JPEG, shown until the first picture is drawn.
        data: of `pack`.
    """
    inside = f'<script type="text/plain" id="avatar-data">{base64.b64encode(data).decode()}</script>'
    script = f'{inside}\n<script type="module">\n{program()}\n{_PUBLISH}</script>'
    return _fill(title, background, poster, 'data="avatar-data"', script)


def embedding_page(title: str, background: str, poster: bytes, module: str, data: str) -> str:
    """The page that shows how to embed: `module` and `data` are the names of the files beside it."""
    script = f'<script type="module">\nimport "./{module}";\n{_PUBLISH}</script>'
    return _fill(title, background, poster, f'src="{data}"', script)


_PUBLISH = 'window.avatar = document.querySelector("gaussian-avatar").avatar;\n'


def _fill(title: str, background: str, poster: bytes, source: str, script: str) -> str:
    template = string.Template((FOLDER / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=html.escape(title),
        background=background,
        poster=base64.b64encode(poster).decode(),
        source=source,
        program=script,
    )
