"""From a command line to options."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import Any, NoReturn, Sequence

from arguments.options import Options, RenderOptions, field_types, groups, validate
from arguments.schedule import scale_schedule
from utils.errors import UserError


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _new_parser(program: str, description: str) -> _Parser:
    # Abbreviations would turn a mistyped or not yet existing flag into another one.
    return _Parser(prog=program, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)


def _add_flags(parser: argparse.ArgumentParser, group: Any) -> None:
    """One flag per field of `group`. Nothing has a default here: only typed values come out."""
    section = parser.add_argument_group(type(group).__name__.removesuffix("Options").lower(), type(group).__doc__)
    types = field_types(type(group))
    for field in dataclasses.fields(group):
        kind, _, many = types[field.name]
        notes = [field.metadata["unit"]]
        settings: dict[str, Any] = {}
        if kind is bool:
            settings["action"] = "store_true"
        else:
            settings["type"] = kind
            settings["metavar"] = "|".join(field.metadata["choices"]) or ("PATH" if field.metadata["path"]
                                                                          else kind.__name__.upper())
            if many:
                settings["nargs"] = "+"
            if field.default not in ("", None, ()):
                notes.append(f"default {field.default}")
        note = "; ".join(filter(None, notes))
        text = field.metadata["help"] + (f" [{note}]" if note else "")
        flags = [flag for flag in (field.metadata["short"], f"--{field.name}") if flag]
        section.add_argument(*flags, dest=field.name, help=text.replace("%", "%%"), **settings)


def _fill(group: Any, typed: dict[str, Any]) -> Any:
    """`group` with the typed values in place of the defaults, paths absolute, limits checked."""
    changes = {}
    for field in dataclasses.fields(group):
        if field.name not in typed:
            continue
        value = typed[field.name]
        if field.metadata["path"]:
            if not value:
                raise UserError(f"--{field.name} is empty")
            if not (field.name == "start_checkpoint" and value == "auto"):
                value = os.path.abspath(value)
        changes[field.name] = tuple(value) if isinstance(value, list) else value
    filled = dataclasses.replace(group, **changes)
    validate(filled)
    return filled


def _require(group: Any, *names: str) -> None:
    for field in dataclasses.fields(group):
        if field.name in names and not getattr(group, field.name):
            raise UserError(f"{field.metadata['short']}/--{field.name} is missing: {field.metadata['help']}")


def parse_train(argv: Sequence[str]) -> Options:
    """The options of `train.py`, checked, with the schedule already scaled if that was asked for.

    Raises:
        UserError: an unknown flag, a missing one, or a value out of its limits.
    """
    parser = _new_parser("train.py", "Train a Gaussian head avatar, or a static scene.")
    defaults = Options()
    for _, group in groups(defaults):
        _add_flags(parser, group)
    typed = vars(parser.parse_args(list(argv)))
    options = Options(**{name: _fill(group, typed) for name, group in groups(defaults)})
    _require(options.model, "source_path", "model_path")
    if options.run.scale_schedule:
        options = scale_schedule(options, typed=frozenset(typed))
    return options


def parse_render(argv: Sequence[str]) -> RenderOptions:
    """The options of `render.py`; everything else about the avatar is in its `cfg_args`.

    Raises:
        UserError: an unknown flag, a missing one, or a value out of its limits.
    """
    parser = _new_parser("render.py", "Render a trained avatar and measure the pictures.")
    _add_flags(parser, RenderOptions())
    options = _fill(RenderOptions(), vars(parser.parse_args(list(argv))))
    _require(options, "model_path")
    return options


def notes(options: Options) -> list[str]:
    """One line for each typed flag that people's commands carry and that has no effect here."""
    lines = []
    if options.run.ip is not None or options.run.port is not None:
        lines.append("note: there is no live viewer yet; --ip and --port are ignored")
    if options.pipeline.compute_cov3D_python:
        lines.append("note: --compute_cov3D_python has no effect; the kernels compute the same covariances themselves")
    return lines
