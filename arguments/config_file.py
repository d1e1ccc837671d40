"""`cfg_args`: the options of a run, stored beside its results as `Namespace(name=value, ...)`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import warnings
from pathlib import Path
from typing import Any

from arguments.fields import LARGEST_INTEGER, FieldType, comma_list, field_types, validate
from arguments.options import Options, flatten, groups
from utils.errors import UserError, one_line
from utils.files import atomic_path
from utils.untrusted import names_file, read_regular

# Real files have a few kilobytes; far below what could hurt the parser.
_LARGEST_FILE = 1 << 20  # bytes


def _file(path: str | Path) -> Path:
    """The file itself, for a caller that names either it or its folder."""
    path = Path(path)
    return path if path.name == "cfg_args" else path / "cfg_args"


def write_cfg_args(path: str | Path, options: Options) -> None:
    """Writes all options, flat, into `<path>/cfg_args`.

    Args:
        path: the model folder, or the file `cfg_args` in it.

    Raises:
        UserError: the file cannot be written.
    """
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in flatten(options).items()}
    with atomic_path(_file(path)) as temporary:
        temporary.write_text(str(argparse.Namespace(**values)), encoding="utf-8")


def read_cfg_args(path: str | Path) -> Options:
    """Reads a `cfg_args` file, ours or one of another trainer.

    Nothing in it is executed: it is parsed as one call of `Namespace` with
    literal keyword arguments. Names that we do not know are ignored, missing
    ones take their defaults. The paths in it are those of the training machine.

    Args:
        path: the model folder, or the file `cfg_args` in it.

    Raises:
        UserError: missing, malformed or oversized file; a value of the wrong type or out of its limits.
    """
    file = _file(path)
    values = _parse(file)
    filled = {}
    for name, group in groups(Options()):
        types = field_types(group.__class__)
        known = {
            field.name: _convert(
                file, field.name, values[field.name], types[field.name], commas=field.metadata["commas"]
            )
            for field in dataclasses.fields(group)
            if field.name in values
        }
        filled[name] = dataclasses.replace(group, **known)
        validate(filled[name], where=f"{file}: ")
    return Options(**filled)


def _parse(file: Path) -> dict[str, Any]:
    """The keyword arguments of the one `Namespace(...)` call in `file`."""
    try:
        data = read_regular(file, _LARGEST_FILE)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}; it belongs to every trained avatar") from error
    if data is None:
        raise UserError(f"{file} is larger than {_LARGEST_FILE} bytes and therefore no options file")
    # Deeply nested text ends in RecursionError or MemoryError, broken text in the others.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on odd text
            tree = ast.parse(data.decode("utf-8").strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{file} is not of the form Namespace(name=value, ...): {one_line(error)[:200]}") from error
    if not (
        isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "Namespace" and not tree.args
    ):
        raise UserError(f"{file} is not of the form Namespace(name=value, ...)")
    values: dict[str, Any] = {}
    for keyword in tree.keywords:
        if keyword.arg is None or keyword.arg in values:
            raise UserError(f"{file} names an option twice or uses **: {(keyword.arg or '**')[:80]}")
        try:
            values[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
            raise UserError(
                f"{file}: the value of {keyword.arg[:80]} is not a plain literal, so it is not read"
            ) from error
    return values


def _convert(file: Path, name: str, value: Any, expected: FieldType, commas: bool = False) -> Any:
    """`value` in the type of its field; exact types only, except that a whole number may stand for a float."""
    if isinstance(value, str) and not names_file(value):
        raise UserError(f"{file}: the value of {name} is too long, or holds characters that no file name has")
    if commas and isinstance(value, str):  # as other trainers store such a list: the way it is typed
        try:
            return comma_list(expected.kind, value)
        except ValueError as error:
            raise UserError(f"{file}: the value of {name} {error}") from error
    if expected.many and isinstance(value, (list, tuple)):
        return tuple(_convert(file, name, item, FieldType(expected.kind, False, False)) for item in value)
    # Other trainers write '' for a path that was not given.
    if expected.optional and (value is None or value == ""):
        return None
    if not expected.many:
        if expected.kind is float and type(value) is int and abs(value) <= LARGEST_INTEGER:
            return float(value)
        # Longer integers (written in hexadecimal) could not even be printed.
        if type(value) is expected.kind and not (isinstance(value, int) and abs(value) > LARGEST_INTEGER):
            return value
    wanted = ("a list of " if expected.many else "") + expected.kind.__name__
    raise UserError(f"{file}: the value of {name} must be of type {wanted}, not {type(value).__name__}")
