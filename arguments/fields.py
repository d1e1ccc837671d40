"""How an option is described (a dataclass field with default, help line, unit and limits), its type and its checks."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import typing
from typing import Any

from utils.errors import UserError

# Whole numbers end up in 64-bit counters and seeds.
LARGEST_INTEGER = 2**63 - 1


def option(
    default: Any,
    help: str,  # one line
    *,
    unit: str = "",
    short: str = "",  # one-letter flag, with its dash
    choices: tuple[str, ...] = (),  # "word:N" stands for a word with any number
    at_least: float | None = None,
    above: float | None = None,  # exclusive lower limit
    at_most: float | None = None,
    path: bool = False,  # made absolute by the parser
    commas: bool = False,  # a list typed as one word: 1,2,3
    switch: bool = False,  # has a second flag that turns it off, see `off_flag`
    part_of: str = "",  # the option without which this one does nothing
    secret: bool = False,  # of the user's, see `options.public`
) -> Any:
    """A dataclass field that carries everything the parser and the checks need."""
    about = dict(locals())
    return dataclasses.field(default=about.pop("default"), metadata=about)


def off_flag(name: str) -> str:
    """The flag that turns the switch `name` off: `use_amp` by `--no_amp`, `warm_colors` by `--no_warm_colors`."""
    return f"--no_{name.removeprefix('use_')}"


class FieldType(typing.NamedTuple):
    """The type of an option, taken apart."""

    kind: type  # bool, int, float or str
    optional: bool  # None is allowed
    many: bool  # a tuple of `kind`


@functools.cache  # every reading of annotations evaluates code
def field_types(group: Any) -> dict[str, FieldType]:
    """The types of the fields of one option group (the class), by name."""
    types = {}
    for name, hint in typing.get_type_hints(group).items():
        arguments = typing.get_args(hint)
        kind = next((part for part in arguments if part in (int, float, str)), hint)
        types[name] = FieldType(kind, type(None) in arguments, typing.get_origin(hint) is tuple)
    return types


def comma_list(kind: type, text: str) -> tuple[Any, ...]:
    """The numbers in `text`, such as "0.5, 0.75, 1.0"; ValueError, as the end of a sentence, when it holds others."""
    try:
        return tuple(kind(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"must be {wanted} with commas between them, not {text!r}") from error


def validate(group: Any, where: str = "") -> None:
    """Checks every value of one option group against the limits of its field, and the values against each other.

    Args:
        group: an instance of one of the dataclasses above.
        where: put before the flag in messages, such as the file the values are from.

    Raises:
        UserError: naming the flag and the value.
    """
    types = field_types(group.__class__)
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        for item in value if types[field.name].many else (value,):
            problem = None if item is None else _problem(item, field.metadata)
            if problem:
                close = difflib.get_close_matches(item, field.metadata["choices"], 1) if isinstance(item, str) else []
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"{where}--{field.name} {problem}, not {item!r}{hint}")
    conflict = group.conflict() if hasattr(group, "conflict") else None
    if conflict:
        raise UserError(f"{where}{conflict}")


def _problem(value: Any, limits: typing.Mapping[str, Any]) -> str | None:
    """What is wrong with one value, as the middle of a sentence; None when nothing is."""
    if isinstance(value, str):
        numbered = re.sub(r":[0-9]{1,3}$", ":N", value)
        if limits["choices"] and (numbered not in limits["choices"] or value.endswith(":N")):
            return f"must be one of {', '.join(limits['choices'])}"
        return "must not contain a NUL character" if "\0" in value else None
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "must fit into 64 bits"
    if not math.isfinite(value):
        return "must be a finite number"
    if limits["at_least"] is not None and value < limits["at_least"]:
        return f"must be at least {limits['at_least']}"
    if limits["above"] is not None and value <= limits["above"]:
        return f"must be more than {limits['above']}"
    if limits["at_most"] is not None and value > limits["at_most"]:
        return f"must be at most {limits['at_most']}"
    return None
