"""Checkpoints: one named dict in one file, written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
import sys
import warnings
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments import Options
from evaluation.results import measured_iterations
from scene.gaussian_model import PLY_NAME
from utils.errors import UserError, one_line, short_of_memory
from utils.files import remove
from utils.tensor_files import save_tensors
from utils.tensor_reader import load_tensors

FORMAT = "efficient-gaussian-avatars checkpoint"
VERSION = 1
State = dict[str, Any]
_SCALARS = (bool, int, float, str, type(None))
# Parts that a saved run may lack: an innovation that it did not have begins here, as the identity.
_OPTIONAL = ("region", "color", "amp", "bad_steps")
# Options that the saved state contradicts when they change.
_FIXED = ("bind_to_mesh", "sh_degree", "white_background", "disable_flame_static_offset")


def save(path: str | Path, state: State) -> None:
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
    save_tensors(path, {"format": FORMAT, "version": VERSION, **_plain(state, "state")})


def load(path: str | Path) -> State:
    """The state that `save` wrote, with its tensors on the CPU.

    Raises:
        UserError: missing, truncated or damaged file, a pickle of anything but
            plain data, or a checkpoint of another program or a newer version.
    """
    path = Path(path)
    try:
        content = load_tensors(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    # A damaged or hostile file can fail in any way; whichever it is, it is not a checkpoint of ours.
    except Exception as error:
        if short_of_memory(error):
            raise
        reason = one_line(error)[:200] or type(error).__name__
        raise UserError(
            f"{path} is cut short, damaged or not a checkpoint ({reason}); name another checkpoint"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), str) or content["format"] != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this program")
    version = content.get("version")
    if type(version) is not int or version != VERSION:
        shown = version if isinstance(version, int) else f"of type {type(version).__name__}"
        raise UserError(f"{path} has checkpoint version {shown}; this program reads {VERSION}")
    return {name: value for name, value in content.items() if name not in ("format", "version")}


@contextlib.contextmanager
def fitting(part: str) -> Iterator[None]:
    """Around taking over the state of a `part`: a file that was read can still hold anything.

    Raises:
        UserError: in place of what a state of other types, names or shapes ends in.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about what is used in an odd way
            yield
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError) as error:
        raise UserError(f"the checkpoint does not fit this run ({part}: {one_line(error)[:200]})") from error


def to_resume(output: Path, options: Options) -> State | None:
    """The checkpoint that the run is to go on from, or None for a run from the start.

    Raises:
        UserError: it cannot be read or contradicts the options, nothing is left to do, or a run from the start would
            replace what `output` holds already and --overwrite was not given.
    """
    wanted, present = options.run.start_checkpoint, saved_in(output)
    if options.run.overwrite:
        if wanted is not None:
            raise UserError("--overwrite starts over and --start_checkpoint goes on: give one of them")
        return None
    if wanted is None:
        if not present:
            return None
        raise UserError(
            f"{output} already holds a run ({present[0].relative_to(output)}); continue it with --start_checkpoint "
            "auto, start over with --overwrite, which removes it, or choose another --model_path"
        )
    path = newest(output) if wanted == "auto" else Path(wanted)
    if path is None:
        # An avatar alone can be of a run that was killed before its first checkpoint; with results it is a whole one.
        if present and measured_iterations(output / "results.json"):
            raise UserError(
                f"{output} holds a finished avatar ({present[0].relative_to(output)}) but no checkpoint to go on from: "
                "start over with --overwrite, which removes it, or choose another --model_path"
            )
        return None
    state = load(path)
    check_resumable(state, options)
    if min(state["step"], measured_iterations(output / "results.json")) >= options.optimization.iterations:
        raise UserError(
            f"the checkpoint is at iteration {state['step']} of {options.optimization.iterations}: this run is "
            "complete; raise --iterations to go on"
        )
    return state


def check_resumable(state: State, options: Options) -> None:
    """Refuses to continue a run under options that its saved state contradicts."""
    missing = [name for name in ("step", "avatar", "options") if name not in state]
    if missing:
        raise UserError(f"the checkpoint has no '{missing[0]}': it was not written by this trainer")
    if type(state["step"]) is not int or not 0 <= state["step"] <= 10**9:
        raise UserError("the checkpoint's 'step' is no number of iterations")
    fixed, group = {name: getattr(options.model, name) for name in _FIXED}, options.innovations
    with fitting("options"):
        trained = dict(state["options"]["model"])
        if group.use_expression_appearance and "modes" in state["avatar"]:
            trained |= state["options"]["innovations"]
            fixed["expression_appearance_modes"] = group.expression_appearance_modes
    for name, now in fixed.items():
        before = trained.get(name)
        if not isinstance(before, bool | int | None):
            raise UserError(
                f"the checkpoint does not fit this run (options: {name} is of type {type(before).__name__})"
            )
        if before != now:
            raise UserError(
                f"the checkpoint was trained with {name} = {before}, this run has {now}: "
                "continue with the same value, or start a new run in another --model_path"
            )


def restore(parts: Mapping[str, Any], state: State | None) -> int:
    """Loads the state of every part, if there is one; returns the iterations done.

    Raises:
        UserError: the state of a part does not fit or is missing.
    """
    if state is None:
        return 0
    for name, part in parts.items():
        with fitting(name):
            if state.get(name) or name not in _OPTIONAL:
                part.load_state_dict(state[name])
    return state["step"]


def newest(folder: str | Path) -> Path | None:
    """The complete checkpoint `chkpnt<N>.pth` with the highest N in `folder`, or None where there is none at all.

    Complete means that it loads; one that does not is passed over with a line on stderr.

    Raises:
        UserError: there are some, but none that loads.
    """
    problems = []
    for path in newest_first(folder):
        try:
            load(path)
        except UserError as error:
            problems.append(one_line(error))
            continue
        for problem in problems:
            print(f"warning: checkpoint passed over: {problem}", file=sys.stderr)
        return path
    if problems:
        raise UserError(
            f"no checkpoint in {folder} can be read, of the newest: {problems[0]}, or start over with --overwrite, "
            "which removes what was saved there"
        )
    return None


def latest(folder: str | Path, at_most: float = math.inf) -> Path | None:
    """The checkpoint with the highest N of at most `at_most`, unread, or None: for messages."""
    return next((path for path in newest_first(folder) if int(path.stem.removeprefix("chkpnt")) <= at_most), None)


def remove_old(folder: str | Path, keep: int, step: int, spared: Container[int] = ()) -> None:
    """Of the checkpoints up to iteration `step`, removes all but the newest `keep`; keeps all if that is 0.

    Those of the iterations `spared` are kept and do not count.

    Later ones are of a run that was taken up again further back. They are not this run's to remove,
    and must not count either, or they would push out what it has just saved.
    """
    numbered = [(int(path.stem.removeprefix("chkpnt")), path) for path in newest_first(folder)]
    own = [path for number, path in numbered if number <= step and number not in spared]
    for path in own[keep:] if keep else []:
        path.unlink(missing_ok=True)


def newest_first(folder: str | Path) -> list[Path]:
    """Whatever is named `chkpnt<N>.pth` in `folder`, highest N first."""
    found = []
    for path in Path(folder).glob("chkpnt*.pth"):
        match = re.fullmatch(r"chkpnt([0-9]+)\.pth", path.name)
        if match:
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found, reverse=True)]


def saved_in(output: Path) -> list[Path]:
    """What of a run in `output` a new one must not replace unasked: checkpoints, newest first, and saved avatars."""
    numbered = newest_first(output)
    named = sorted(path for path in output.glob("chkpnt*.pth") if path not in numbered)
    return numbered + named + sorted(output.glob(f"point_cloud/iteration_*/{PLY_NAME}"))


def remove_run(output: Path) -> None:
    """Removes what a run left in `output`: numbered checkpoints, saved avatars, curves and results; not what was
    rendered there, nor checkpoints under names that somebody gave them.

    Raises:
        UserError: something cannot be removed.
    """
    for path in [*output.glob("results.json"), *newest_first(output), *output.glob("events.out.tfevents.*")]:
        remove(path)
    for folder in {path.parent for path in output.glob(f"point_cloud/iteration_*/{PLY_NAME}")}:
        try:
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)
        except OSError as error:
            raise UserError(f"cannot remove {folder}: {error.strerror or error}") from error


def _plain(value: Any, name: str, done: dict[int, Any] | None = None) -> Any:
    """`value` rebuilt from the allowed types only.

    Args:
        name: where in the state it stands, for messages.
        done: what is already rebuilt, by the identity of the original, which keeps shared values shared.

    Raises:
        TypeError: something that is not allowed, naming the place.
    """
    done = {} if done is None else done
    if type(value) in _SCALARS:
        return value
    if id(value) not in done:
        if isinstance(value, Tensor):
            done[id(value)] = _plain_tensor(value.detach(), name)
        elif isinstance(value, dict):
            for key in value:
                if type(key) not in _SCALARS:
                    raise TypeError(f"{name} has a key of type {type(key).__name__}")
            done[id(value)] = {key: _plain(item, f"{name}[{key!r}]", done) for key, item in value.items()}
        elif type(value) in (list, tuple):
            done[id(value)] = type(value)(_plain(item, f"{name}[{index}]", done) for index, item in enumerate(value))
        else:
            raise TypeError(
                f"{name} is of type {type(value).__name__}; allowed are tensors, numbers, strings, None, "
                "lists, tuples and dicts"
            )
    return done[id(value)]


def _plain_tensor(value: Tensor, name: str) -> Tensor:
    """A tensor that owns exactly the memory it shows."""
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f"{name} is a tensor of an unusual layout")
    stored, shown = value.untyped_storage().nbytes(), value.numel() * value.element_size()
    # A saved view would carry the whole storage behind it.
    return value if stored == shown else value.clone()
