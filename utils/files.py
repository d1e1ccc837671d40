"""Writing files so that a crash never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from utils.errors import UserError

_PREFIX = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp-[a-z0-9_]{8}(\.\w+)?")  # the names that mkstemp gives with this prefix
_WINDOWS = os.name == "nt"
# Neither a link nor a pipe of that name, in a folder from a stranger, is followed or waited for.
_NO_TRAPS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
# What the file system says when it cannot flush a folder at all; such ones are trusted.
_NO_FOLDER_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF, errno.EISDIR)
# Asked once: asking means setting it for a moment, for all threads.
_MASK = os.umask(0)
os.umask(_MASK)


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; renames it into place on success.

    The file is flushed to the disk before the rename and its folder after it: whenever the process or
    the machine dies, `path` holds either its old content or the complete new one, and what was written
    before it is there too. As long as the writer lives, the temporary file is locked, which tells it
    from one that a killed process left behind.

    Raises:
        UserError: the folder cannot be written, the disk is full, or a lock that this process held on a folder around
            it is gone.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        _check_locks(path)
        _make_folder(path.parent)
        # Same suffix as the target: savers (Pillow, NumPy) choose by it.
        handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=path.suffix, dir=path.parent)
        temporary = Path(name)
        with open(handle, "rb") as living:
            if _WINDOWS:  # renames no open file, and a lock there would stop the writer itself
                living.close()
            else:
                with contextlib.suppress(OSError):  # no locks on this file system, so nobody clears it up either
                    lock_descriptor(handle, blocking=False)
                # mkstemp makes private files; give ours the permissions a plain open() would.
                os.fchmod(handle, 0o666 & ~_MASK)
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            temporary = None
            flush_folder(path.parent)
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # the reason why we are here is worth more
                temporary.unlink(missing_ok=True)


def cannot_write(path: str | Path, error: OSError) -> str:
    """The sentence for a write that failed, with what to do when the disk is full."""
    text = f"cannot write {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text += "; make room there and repeat the command, a training with --start_checkpoint auto"
    return text


def flush_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut, where the file system can.

    Raises:
        OSError: the disk failed.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise


def _make_folder(folder: Path) -> None:
    """Makes `folder` and those above it that are missing, each flushed into the one that holds it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


@contextlib.contextmanager
def locked(folder: str | Path, *, wait: bool) -> Iterator[bool]:
    """Holds the lock of `folder`, which is made when missing, as long as the context lasts.

    The lock belongs to the open file `.lock`, not to its existence: a process that dies, however it dies,
    lets go of it. Yields False where the file system has no locks (some network ones).

    Args:
        wait: for the end of the process that holds it.

    Raises:
        BlockingIOError: another process holds it, and `wait` is False.
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        _make_folder(folder)
        file = open(folder / ".lock", "ab", opener=lambda name, flags: os.open(name, flags | _NO_TRAPS, 0o666))
    except OSError as error:
        raise UserError(cannot_write(f"to {folder}", error)) from error
    with file:
        supported = True
        try:
            free = lock_descriptor(file.fileno(), blocking=wait)
        except OSError:
            free, supported = True, False
        if not free:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(folder))
        yield supported


# The folders of which this process is the only writer, and the file that its lock belongs to.
_only_ours: dict[Path, os.stat_result] = {}


def _check_locks(path: Path) -> None:
    """Raises UserError if a folder around `path` was this process's alone and no longer is.

    Whoever removes `.lock`, or the folder, lets another run in, whose files would be replaced.
    """
    for folder in _only_ours.keys() & {*map(Path, map(os.path.abspath, path.parents))}:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(os.stat(folder / ".lock"), _only_ours[folder]):
                continue
        raise UserError(
            f"{folder / '.lock'}, which kept other runs out, was removed or replaced, so {path} is left alone: what "
            "was saved before is as it was; look for another run there before you go on"
        )


@contextlib.contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Keeps other processes out of a folder of results, and clears up what dead ones left half written in it.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, wait=False))
        except BlockingIOError as error:
            raise UserError(
                f"another run is writing into {folder}: wait for its end, or give each its own output folder"
            ) from error
        remove_leftovers(folder)
        place = Path(os.path.abspath(folder))
        _only_ours[place] = os.stat(place / ".lock")
        stack.callback(_only_ours.pop, place, None)
        yield


def refuse_escaping_links(root: str | Path) -> None:
    """Refuses a folder of results in which a symbolic link to a folder leads out of it.

    What is written below such a link lands where it points. In a folder that a stranger made that can be
    anywhere; links to files do no harm, since files are replaced and not written through.

    Raises:
        UserError: names the link.
    """
    root = Path(root)
    top = root.resolve()
    for place, folders, _ in os.walk(root):
        for link in (Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))):
            if not link.resolve().is_relative_to(top):
                raise UserError(
                    f"{link} is a symbolic link that leads out of {root}, and what is written there would "
                    "follow it: put a folder in its place"
                )


def remove_leftovers(folder: str | Path) -> None:
    """Removes the temporary files in `folder` and below whose writers are dead, whoever they were.

    Not on Windows, where nothing tells them from those of the living.
    """
    for place, _, names in os.walk(folder) if not _WINDOWS else ():
        for name in filter(_TEMPORARY.fullmatch, names):
            with contextlib.suppress(OSError):
                handle = os.open(os.path.join(place, name), os.O_RDONLY | _NO_TRAPS)
                try:
                    # Locked: somebody is writing it.
                    if stat.S_ISREG(os.fstat(handle).st_mode) and lock_descriptor(handle, blocking=False):
                        os.unlink(os.path.join(place, name))
                finally:
                    os.close(handle)


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        UserError: it cannot be removed, or a lock that this process held on a folder around it is gone.
    """
    _check_locks(path)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {path}: {error.strerror or error}") from error


def append_line(path: Path, text: str) -> None:
    """Appends a line to a log, which may get lost. Where a link or a pipe stands nothing is written."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_TRAPS, 0o666)
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{text}\n")


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=True) + "\n", encoding="utf-8")
