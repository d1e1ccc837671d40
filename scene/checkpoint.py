"""Checkpoints: one named dict in one file, written whole or not at all, read without running code."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError, one_line
from utils.files import atomic_path

FORMAT = "efficient-gaussian-avatars checkpoint"
VERSION = 1
_SCALARS = (bool, int, float, str, type(None))


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` atomically.

    Args:
        path: `<model>/chkpnt<N>.pth`.
        state: made of tensors, numbers, strings, None, lists, tuples and dicts only,
            so that it can be loaded without unpickling anything else. The names
            "format" and "version" are taken.

    Raises:
        UserError: the file cannot be written.
        TypeError: the state holds something else; a defect of the caller.
    """
    content = {"format": FORMAT, "version": VERSION, **_plain(state, "state")}
    with atomic_path(path) as temporary:
        # A stream of our own, and not the path: PyTorch's writer would report a
        # full disk as an internal error of its own.
        with _Stream(temporary) as stream:
            try:
                torch.save(content, stream)
            except RuntimeError as error:
                raise (stream.problem or error) from error


def load(path: str | Path) -> dict[str, Any]:
    """The state that `save` wrote, with its tensors on the CPU.

    Raises:
        UserError: missing, truncated or damaged file, a pickle of anything but
            plain data, or a checkpoint of another program or a newer version.
    """
    path = Path(path)
    try:
        problem = _archive_problem(path)
        if problem:
            raise UserError(f"{path} {problem}; name another checkpoint")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    # A damaged or hostile pickle can fail anywhere in the unpickler, with any
    # exception; whichever it is, the file is not a checkpoint of ours.
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint that can be loaded safely: "
                        f"{one_line(error).split('. ')[0][:200]}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program")
    if content.get("version") != VERSION:
        raise UserError(f"{path} has checkpoint version {content.get('version')!r}; this program reads {VERSION}")
    try:
        state = _plain(content, "state", limit=path.stat().st_size)
    except (TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)[:200]}") from error
    del state["format"], state["version"]
    return state


def newest(folder: str | Path) -> Path | None:
    """The complete checkpoint `chkpnt<N>.pth` with the highest N in `folder`, or None.

    Complete means that it loads; one that does not is passed over with a line on stderr.
    """
    for path in _newest_first(folder):
        try:
            load(path)
            return path
        except UserError as error:
            print(f"warning: checkpoint passed over: {one_line(error)}", file=sys.stderr)
    return None


def remove_old(folder: str | Path, keep: int) -> None:
    """Removes all but the `keep` checkpoints with the highest N; keeps all if that is 0."""
    for path in _newest_first(folder)[keep:] if keep else []:
        path.unlink(missing_ok=True)


def _newest_first(folder: str | Path) -> list[Path]:
    found = []
    for path in Path(folder).glob("chkpnt*.pth"):
        match = re.fullmatch(r"chkpnt([0-9]+)\.pth", path.name)
        if match:
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


class _Stream:
    """A file for torch.save that remembers the operating system's own reason for a failed write."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self.problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.problem = error
            raise

    def flush(self) -> None:
        self._file.flush()

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _archive_problem(path: Path) -> str | None:
    """What is wrong with the container, as the end of a sentence; None when it is whole.

    PyTorch checks neither the checksums nor, against the file, the sizes, so a
    flipped bit would load and a small file could ask for any amount of memory.
    """
    if not zipfile.is_zipfile(path):
        return "is cut short or not a checkpoint"
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "is not a checkpoint: PyTorch does not compress its files"
            if archive.testzip() is not None:
                return "is damaged: a checksum does not match"
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return f"is damaged: {one_line(error)}"
    return None


def _plain(value: Any, name: str, limit: int | None = None, done: dict[int, Any] | None = None) -> Any:
    """`value` rebuilt from the allowed types only.

    Args:
        name: where in the state it stands, for messages.
        limit: bytes that one tensor may have at most.
        done: what is already rebuilt, by the identity of the original. A pickle
            of a few bytes can nest references to one list so that walking it
            without this would never end.

    Raises:
        TypeError: something that is not allowed, naming the place.
    """
    done = {} if done is None else done
    if type(value) in _SCALARS:
        return value
    if id(value) not in done:
        if isinstance(value, Tensor):
            done[id(value)] = _plain_tensor(value.detach(), name, limit)
        elif isinstance(value, dict):
            for key in value:
                if type(key) not in _SCALARS:
                    raise TypeError(f"{name} has a key of type {type(key).__name__}")
            done[id(value)] = {key: _plain(item, f"{name}[{key!r}]", limit, done) for key, item in value.items()}
        elif type(value) in (list, tuple):
            done[id(value)] = type(value)(_plain(item, f"{name}[{index}]", limit, done)
                                          for index, item in enumerate(value))
        else:
            raise TypeError(f"{name} is of type {type(value).__name__}; allowed are tensors, numbers, strings, None, "
                            "lists, tuples and dicts")
    return done[id(value)]


def _plain_tensor(value: Tensor, name: str, limit: int | None) -> Tensor:
    """A tensor that owns exactly the memory it shows."""
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"{name} is a tensor of an unusual layout")
    stored, shown = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    if limit is not None and max(stored, shown) > limit:
        raise TypeError(f"{name} claims more bytes than the file has")
    # A saved view would carry the whole storage behind it.
    return value if stored == shown else value.clone()
