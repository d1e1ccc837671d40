"""Which subjects there are: folders, a glob of folders, or a table with flags for each."""

from __future__ import annotations

import csv
import glob
import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import UserError
from utils.untrusted import read_regular

LARGEST_TABLE = 64 << 20  # bytes
_NAME = re.compile(r"[\w.+=@-]+( [\w.+=@-]+)*")


class Subject(NamedTuple):
    """One avatar to train."""

    name: str  # of its folder in OUT
    source: str  # absolute path of its capture
    flags: tuple[str, ...] = ()  # of train.py, its own


def read_subjects(words: Sequence[str]) -> list[Subject]:
    """The subjects that `words` stand for: folders, globs of folders, and tables (.csv or .json), in this order.

    A folder's subject has its name. A table has the columns (or keys) `source`, and if wanted `name` and `flags`;
    relative sources start at the table.

    Raises:
        UserError: nothing is there, a table cannot be read, or two subjects have one name.
    """
    subjects: list[Subject] = []
    for word in words:
        if Path(word).suffix in (".csv", ".json") and not Path(word).is_dir():
            subjects += _of_table(Path(word))
            continue
        folders = [word] if Path(word).is_dir() else sorted(filter(lambda path: Path(path).is_dir(), glob.glob(word)))
        if not folders:
            raise UserError(f"{word} is neither a folder, nor a pattern that matches some, nor a table (.csv, .json)")
        subjects += [_subject({"source": folder}, Path.cwd(), word) for folder in folders]
    seen: dict[str, Subject] = {}
    for subject in subjects:
        other = seen.setdefault(subject.name.casefold(), subject)
        if other is not subject:
            raise UserError(
                f"two subjects have the name {subject.name} ({other.source} and {subject.source}), and so would have "
                "one folder: name them apart in a table with the columns source and name"
            )
    return subjects


def _of_table(path: Path) -> list[Subject]:
    try:
        text = (read_regular(path, LARGEST_TABLE) or b"").decode("utf-8-sig")
        rows: Any = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text)))
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a table: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} holds no rows: it needs a header with source (name, flags), or a JSON list of objects")
    return [_subject(row, path.resolve().parent, f"{path}, row {number}") for number, row in enumerate(rows, 1)]


def _subject(row: dict[Any, Any], base: Path, where: str) -> Subject:
    unknown = [repr(key) for key in row if key not in ("source", "name", "flags")]
    if unknown:
        raise UserError(f"{where}: {unknown[0]} is no column; there are source, name and flags")
    source, name, flags = row.get("source"), row.get("name") or "", row.get("flags") or ()
    if not isinstance(source, str) or not source.strip() or "\0" in source:
        raise UserError(f"{where}: the source, a folder, is missing")
    place = (base / source).absolute()
    name = name or place.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("."):
        raise UserError(f"{where}: {name!r} is no name for a folder: give letters, digits, and some of .+=@-_")
    try:
        words = shlex.split(flags) if isinstance(flags, str) else [str(word) for word in flags]
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: the flags {flags!r} cannot be read ({error})") from error
    return Subject(name, str(place), tuple(words))
