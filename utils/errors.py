"""The one kind of error a user can cause, and how a script ends on it.

Everything a user can get wrong (a missing file, a broken image, an impossible
option) raises `UserError` with one sentence that names the file, the field and
what to do. The scripts print that sentence and exit with status 2; any other
exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import sys
from typing import Callable, NoReturn


class UserError(Exception):
    """A mistake in the input, told in one sentence; never shown as a traceback."""


def one_line(text: object) -> str:
    """`text` with line breaks folded, so that an error stays one line."""
    return " ".join(str(text).split())


def fail(message: str) -> NoReturn:
    """Raises `UserError(message)`; for use inside expressions."""
    raise UserError(message)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and exits: 0, 2 for a `UserError`, 130 for Ctrl-C.

    Other exceptions pass through with their traceback (exit status 1).
    """
    try:
        main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
