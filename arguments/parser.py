"""From a command line to options."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import errno
import os
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from arguments.export_options import ExportOptions
from arguments.fields import comma_list, field_types, off_flag, validate
from arguments.innovation_options import SHORT_RUN, InnovationOptions
from arguments.options import Options, RunOptions, groups
from arguments.presets import PRESETS
from arguments.render_options import RenderOptions
from arguments.schedule import scale_schedule
from arguments.view_options import ViewOptions
from utils.errors import UserError

OF_VIEWER = ("ip", "viewer_token", "viewer_share")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours: one line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        flags = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        unknown = flags if message.startswith("unrecognized") else []
        meant = [name for flag in unknown for name in difflib.get_close_matches(flag, self._option_string_actions, 1)]
        hint = f"; did you mean {', '.join(meant)}?" if meant else ""
        raise UserError(f"{message}{hint} (see {self.prog} --help)")


def _new_parser(program: str, description: str) -> _Parser:
    # Abbreviations would turn a mistyped or not yet existing flag into another one.
    return _Parser(prog=program, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)


def _add_flags(parser: argparse.ArgumentParser, group: Any) -> None:
    """One flag per field of `group`. Nothing has a default here: only typed values come out."""
    section = parser.add_argument_group(type(group).__name__.removesuffix("Options").lower(), type(group).__doc__)
    types = field_types(group.__class__)
    for field in dataclasses.fields(group):
        kind, _, many = types[field.name]
        notes = [field.metadata["unit"]]
        settings: dict[str, Any] = {}
        if kind is bool:
            settings["action"] = "store_true"
        else:
            settings["type"] = _comma_reader(kind) if field.metadata["commas"] else kind
            settings["metavar"] = "|".join(field.metadata["choices"]) or (
                "PATH" if field.metadata["path"] else kind.__name__.upper()
            )
            if field.metadata["commas"]:
                settings["metavar"] += ",..."
            elif many:
                settings["nargs"] = "+"
            value: Any = field.default
            if value not in ("", None, ()):
                default = " ".join(map(str, value)) if many and kind is str else _as_typed(value)
                notes.append(f"default {default}")
        note = "; ".join(filter(None, notes))
        text = field.metadata["help"] + (f" [{note}]" if note else "")
        flags = [flag for flag in (field.metadata["short"], f"--{field.name}") if flag]
        section.add_argument(*flags, dest=field.name, help=text.replace("%", "%%"), **settings)
        if field.metadata["switch"]:
            section.add_argument(
                off_flag(field.name),
                dest=field.name,
                action="store_false",
                help=f"switches --{field.name} off; of the two, the last one typed wins",
            )


def _comma_reader(kind: type) -> Callable[[str], tuple[Any, ...]]:
    def read(text: str) -> tuple[Any, ...]:
        try:
            return comma_list(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def _as_typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


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
                _check_length(field.name, value)
        changes[field.name] = tuple(value) if isinstance(value, list) else value
    filled = dataclasses.replace(group, **changes)
    validate(filled)
    return filled


def _check_length(name: str, path: str) -> None:
    """Raises UserError for a path longer than the file system has; other faults are told by who opens it."""
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"--{name} {reprlib.repr(path)} is too long for a name of a file or a folder") from error
    except ValueError:  # a zero character
        pass


def _require(group: Any, *names: str) -> None:
    for field in dataclasses.fields(group):
        if field.name in names and not getattr(group, field.name):
            flags = "/".join(filter(None, (field.metadata["short"], f"--{field.name}")))
            raise UserError(f"{flags} is missing: {field.metadata['help']}")


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
    chosen = {**PRESETS.get(typed.get("preset", ""), {}), **typed}
    options = Options(**{name: _fill(group, chosen) for name, group in groups(defaults)})
    _require(options.model, "source_path", "model_path")
    if options.run.scale_schedule:
        options = scale_schedule(options, typed=frozenset(typed))
    return options


def parse_render(argv: Sequence[str]) -> RenderOptions:
    """The options of `render.py`; everything else about the avatar is in its `cfg_args`.

    Raises:
        UserError: an unknown flag, a missing one, or a value out of its limits.
    """
    return _parse_one("render.py", "Render a trained avatar and measure the pictures.", RenderOptions(), argv)


def parse_view(argv: Sequence[str]) -> ViewOptions:
    """The options of `view.py`; errors as `parse_render`'s."""
    return _parse_one("view.py", "Look at an avatar in a browser.", ViewOptions(), argv)


def _parse_one(program: str, description: str, group: Any, argv: Sequence[str]) -> Any:
    """The options of a program that has a single group of them, and needs an avatar."""
    parser = _new_parser(program, description)
    _add_flags(parser, group)
    options = _fill(group, vars(parser.parse_args(list(argv))))
    _require(options, "model_path")
    return options


def parse_export(argv: Sequence[str]) -> ExportOptions:
    """The options of `export.py`; everything else about the avatar is in its `cfg_args`.

    Raises:
        UserError: an unknown flag, a missing one, or a value out of its limits.
    """
    parser = _new_parser("export.py", "Write a trained avatar in a format that others open.")
    _add_flags(parser, ExportOptions())
    options = _fill(ExportOptions(), vars(parser.parse_args(list(argv))))
    if not options.list:
        _require(options, "model_path", "format")
    return options


def notes(options: Options) -> list[str]:
    """One line for each thing that a user may not expect: flags without effect, and what the preset stands for."""
    lines = []
    if options.run.port is None:
        plain = RunOptions()
        names = [name for name in OF_VIEWER if getattr(options.run, name) != getattr(plain, name)]
        lines += [f"note: --{name} has no effect without --port" for name in names]
    if options.pipeline.compute_cov3D_python:
        lines.append("note: --compute_cov3D_python has no effect; the kernels compute the same covariances themselves")
    lines += [f"note: --{name} has no effect without --{needed}" for name, needed in _without_effect(options)]
    innovations = options.innovations
    chosen = PRESETS.get(innovations.preset or "", {})
    if options.optimization.iterations >= SHORT_RUN and innovations.use_short_run_rates > chosen.get(
        "use_short_run_rates", False
    ):
        lines.append(f"note: --use_short_run_rates has no effect on a run of {SHORT_RUN:,} iterations or more")
    milestones = innovations.resolution_milestones
    if innovations.use_progressive_resolution and milestones and milestones[-1] > options.optimization.iterations:
        lines.append(
            f"note: --resolution_milestones {_as_typed(milestones)} are beyond --iterations "
            f"{options.optimization.iterations}: the run ends at a smaller scale (--scale_schedule shortens "
            "untyped ones)"
        )
    if innovations.preset:
        lines.append(f"preset {innovations.preset}: {' '.join(preset_flags(innovations)) or 'no flags'}")
    return lines


def preset_flags(innovations: InnovationOptions) -> list[str]:
    """The words to type instead of `--preset`; of parts that were switched off, only that they are off."""
    words, preset = [], PRESETS.get(innovations.preset or "", {})
    for field in dataclasses.fields(innovations):
        part_of = field.metadata["part_of"]
        if field.name not in preset or part_of and not getattr(innovations, part_of):
            continue
        value = getattr(innovations, field.name)
        if isinstance(value, bool):
            words.append(f"--{field.name}" if value else off_flag(field.name))
        else:
            words += [f"--{field.name}", _as_typed(value)]
    return words


def _without_effect(options: Options) -> Iterator[tuple[str, str]]:
    """(option that was typed, the option that it needs and that is off)."""
    # What the values would be if only the preset had been typed.
    plain = InnovationOptions(**PRESETS.get(options.innovations.preset or "", {}))
    if options.run.scale_schedule:
        plain = scale_schedule(dataclasses.replace(options, innovations=plain)).innovations
    for field in dataclasses.fields(plain):
        needed = field.metadata["part_of"]
        if (
            needed
            and not getattr(options.innovations, needed)
            and getattr(options.innovations, field.name) != getattr(plain, field.name)
        ):
            yield field.name, needed
