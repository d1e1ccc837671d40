"""The one kind of error a user can cause, and how a script ends on it.

Everything a user can get wrong (a missing file, a broken image, an impossible
option) raises `UserError` with one sentence that names the file, the field and
what to do. The scripts print that sentence and exit with status 2; any other
exception is a defect of ours and keeps its traceback. Running out of memory ends like a mistake.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake in the input, said in one sentence; never shown as a traceback."""


def one_line(text: object) -> str:
    """`text` with line breaks folded, so that an error stays one line, and other control characters shown.

    File names and fields come from strangers; a terminal obeys what it is sent.
    """
    folded = " ".join(str(text).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in folded)


def fail(message: str) -> NoReturn:
    """Raises `UserError(message)`; for use inside expressions."""
    raise UserError(message)


@functools.cache
def warn_once(text: str) -> None:
    """One line on stderr, the first time."""
    print(f"warning: {one_line(text)}", file=sys.stderr)


def short_of_memory(error: BaseException) -> str | None:
    """Whose memory ran out, "GPU" or "computer", if that is what `error` says; else None."""
    # By name and text: this module imports no PyTorch, whose allocator for the CPU has no exception of its own.
    text = str(error)
    if (
        type(error).__name__ == "OutOfMemoryError"
        or isinstance(error, RuntimeError)
        and ("CUDA error: out of memory" in text or "ALLOC_FAILED" in text)
    ):
        return "GPU"
    if (
        isinstance(error, MemoryError)
        or isinstance(error, (RuntimeError, OSError))
        and ("DefaultCPUAllocator: " in text or getattr(error, "errno", None) == errno.ENOMEM)
    ):
        return "computer"
    return None


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and exits: 0, 2 for a `UserError`, too little memory or a full disk, 130 for Ctrl-C.

    Other exceptions pass through with their traceback (exit status 1).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does: names of files can be any bytes
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        _end(2, f"error: {one_line(error)}")
    except KeyboardInterrupt:
        _end(130, "interrupted")
    except (MemoryError, RuntimeError, OSError) as error:
        place = short_of_memory(error)
        if place is not None:
            _end(
                2,
                f"error: the memory of the {place} ran out ({one_line(error)[:200] or 'no details'}): free some "
                "of it, or work at a smaller --resolution",
            )
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            _end(2, f"error: {one_line(error)[:400]}: choose a shorter name")
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            _end(
                2,
                f"error: {one_line(error)}: make room on the disk of the output, of its log and of temporary "
                "files, and repeat the command",
            )
        raise
    sys.exit(0)


def _end(status: int, text: str) -> NoReturn:
    """Exits with the sentence `text`, even where it cannot be printed any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is sys.stderr:
                print(text, file=stream)
            stream.flush()
        except OSError:
            # What the stream still holds would fail again at exit and change the status.
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
