"""The short way in.

  ./train_efficient.sh
      on a terminal: asks for the preset and for the data set
  ./train_efficient.sh balanced|ultra|quality|baseline|fast|full -s DATA [-m OUT] [any train.py flag]
      trains a head avatar with that preset, without questions
  ./train_efficient.sh demo [any train.py flag]
      everything on a procedural head: makes the environment, the data set,
      an avatar (Balanced), pictures and a table of metrics; run again, it
      continues where it was stopped

DATA_DIR names the data set where no -s does, SUBJECT the results where no -m
does: output/<preset>_$SUBJECT, else output/<preset>_<name of the data folder>.
DEMO_DIR (default: output/demo in the repository) is where the demo puts its
data and results. Flags that are typed win over those of the preset; --no_amp,
--no_warm_start and the like switch a part of it off.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from scripts.demo import demo, run
from utils import environment
from utils.errors import fail, run_script

# Names and what they do; PSNR of novel views and time per iteration against the baseline, as in the README.
PRESETS = {
    "balanced": ("Balanced", "ultra, progressive resolution and colour calibration: +2.4 dB, ×1.25 the time"),
    "ultra": ("Ultra-Efficient", "region loss, smart densification, warm start ...: +2.0 dB, ×1.08 the time"),
    "quality": ("Quality-First", "more Gaussians and a larger colour network: +2.7 dB, ×1.54 the time"),
    "baseline": ("Baseline", "nothing of that: the time of all others is relative to this"),
    "fast": ("Fast", "ultra for runs of seconds to minutes: a dense start and larger learning rates"),
    "full": ("Full", "what these replace (VGG loss ...), to compare: very slow on a CPU; needs the LPIPS weights"),
}
MODES = (*PRESETS, "demo")
LENGTH = """600,000 iterations unless --iterations is typed: 10 hours where 16 are done in a second, as on two CPU cores
with 256x352 pixels. A run tells after its first iterations. A short one: --iterations 6000 --scale_schedule"""


class _Value(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if not values:
            fail(f"{option_string} needs a value after it" if values is None else f"{option_string} is empty")
        setattr(namespace, self.dest, values)


def read_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that must be known here, in all spellings of train.py, the last where typed twice; and the others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (("-s", "--source_path"), ("-m", "--model_path"), ("--iterations",)):
        parser.add_argument(*names, nargs="?", action=_Value)
    return parser.parse_known_args(words)


def train(caller: str, preset: str, words: list[str]) -> None:
    """A preset on one's own data; paths are relative to the caller's folder, as they are for train.py."""
    typed, rest = read_flags(words)
    subject = os.environ.get("SUBJECT")
    but = f"SUBJECT is {subject}, but " if subject else ""
    data = typed.source_path or os.environ.get("DATA_DIR")
    if not data:
        fail(f"{but}nothing says which data set to train on: set DATA_DIR, or give -s DATA")
    folder = os.path.abspath(os.path.join(caller, data))
    if problem := no_capture(folder, data):
        fail(f"{but}{problem} ({'-s' if typed.source_path else 'DATA_DIR'})")
    model = typed.model_path or f"output/{preset}_{subject or os.path.basename(folder)}"
    flags = ["-s", data, "-m", model, "--eval", "--bind_to_mesh", "--white_background"]
    # A shortened run shortens its interval, too, unless one is typed.
    flags += [] if "--scale_schedule" in rest else ["--interval", "60000"]
    flags += ["--preset", preset, *(["--iterations", typed.iterations] if typed.iterations else []), *rest]
    python = environment.ensure("requirements.txt")
    folder = "" if os.path.samefile(caller, environment.ROOT) else f"{environment.ROOT}/"
    run(python, f"{folder}train.py", *flags)
    print("Pictures and metrics:", shlex.join((python, f"{folder}render.py", "-m", model)))


def menu() -> list[str]:
    """Asks for what else would be typed."""
    try:
        import readline  # names of folders complete with the tabulator

        readline.set_completer_delims("\n")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    except ImportError:
        pass
    print("Which preset? (no data yet: ./train_efficient.sh demo)")
    modes = {"": "balanced"}
    for number, (preset, (name, does)) in enumerate(PRESETS.items(), 1):
        print(f"  {number}  {name:<15}  {does}")
        modes |= {str(number): preset, preset: preset, name.lower(): preset}
    print(LENGTH)
    while (answer := _ask(f"1 to {len(PRESETS)}, or a name [1]: ").lower()) not in modes:
        print(f"There is no '{answer}' in the list{did_you_mean(answer, modes) or '.'}")
    default = os.environ.get("DATA_DIR", "")
    question = f"Folder of the data set{default and f' [{default}]'}: "
    while True:
        # The shell expands ~ in commands, but not in answers.
        data = os.path.expanduser(_ask(question) or default)
        if not data:
            print("Type the folder of a capture (doc/data_formats.md says what is in it); Ctrl-C ends this.")
        elif problem := no_capture(data, data):
            print(f"{problem[0].upper()}{problem[1:]}{'' if problem.endswith('?') else '.'}")
        else:
            return [modes[answer], "-s", data]


def no_capture(folder: str, name: str) -> str:
    """Why `folder`, called `name`, holds no capture of a head, with a hint; empty if it does."""
    parent, last = os.path.split(os.path.abspath(folder))
    if not os.path.isdir(folder):
        beside = os.listdir(parent) if os.path.isdir(parent) else []
        return f"there is no folder {name}{did_you_mean(last, beside)}"
    if is_capture(folder):
        return ""
    inside = [one for one in sorted(os.listdir(folder)) if is_capture(os.path.join(folder, one))]
    hint = f"; did you mean {os.path.join(name, inside[0])}?" if inside else ""
    return f"there is {'no transforms_train.json' if os.listdir(folder) else 'nothing'} in the folder {name}{hint}"


def is_capture(folder: str) -> bool:
    """Whether a head can be trained on it, by its looks."""
    return any(os.path.isfile(os.path.join(folder, f"transforms{split}.json")) for split in ("_train", ""))


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """A hint at what is most alike, or nothing."""
    close = difflib.get_close_matches(word.lower(), list(words), 1)
    return f"; did you mean {close[0]}?" if close else ""


def _ask(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        fail("no answer, so nothing is done")


def main() -> None:
    caller, *words = sys.argv[1:]
    os.chdir(caller)
    asks = not words and os.isatty(0)
    if words[:1] == ["help"] or {"-h", "--help"}.intersection(words) or not words and not asks:
        print(__doc__, end="", file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    mode, *words = menu() if asks else words
    mode = mode.lower()
    if mode == "demo":
        typed, rest = read_flags(words)
        if typed.source_path:
            fail(f"the demo makes its own data; for yours: ./train_efficient.sh balanced -s {typed.source_path}")
        root = os.path.join(caller, os.environ.get("DEMO_DIR") or f"{environment.ROOT}/output/demo")
        model = os.path.join(caller, typed.model_path or f"{root}/model")
        # Python reads 4_000 as 4000; folders are named by the number.
        iterations = (typed.iterations or "4000").replace("_", "")
        demo(f"{root}/data", model, iterations, rest, f" with {' '.join(words)}" if words else "")
    elif mode in PRESETS:
        train(caller, mode, words)
    else:
        fail(f"unknown mode '{mode}'{did_you_mean(mode, MODES)}; the modes are: {', '.join(MODES)}")


if __name__ == "__main__":
    run_script(main)
