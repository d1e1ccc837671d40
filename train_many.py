"""Trains many avatars, on the cores of one machine or on a Ray cluster.

    python train_many.py SUBJECTS... -o OUT [--preset balanced] [any train.py flag]
    python train_many.py table.csv -o OUT --address HOST:6379 --gpus 0.5 --then render "export html"

SUBJECTS, which come first, are folders of captures, patterns of them, or tables (CSV, JSON) with source, name, flags.
Each becomes an ordinary training in OUT/<name>. The same command again skips what is finished, goes on with what was
stopped and tries again what failed. OUT/index.html is the gallery, OUT/summary.csv the table, and status.json beside
them is for scripts.
"""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from arguments import ManyOptions, parse_export, parse_many, parse_render, parse_train
from fleet.run import run_all
from fleet.subjects import Subject, read_subjects
from fleet.work import NOTE, STATE, State, Work, is_trained, read_json, state_of
from utils.errors import UserError, run_script
from utils.files import only_writer, refuse_escaping_links, write_json

OURS = ("-s", "--source_path", "-m", "--model_path", "--start_checkpoint", "--overwrite", "--port")
THEN = {"render": ("render.py", parse_render), "export": ("export.py", parse_export)}


def train_command(subject: Subject, folder: Path, flags: Sequence[str], options: ManyOptions) -> tuple[list[str], int]:
    """The words behind `train.py` for a subject, without how it resumes; and its iterations.

    Raises:
        UserError: train.py does not accept them.
    """
    given = [*flags, *subject.flags]
    for word in given:
        if word.partition("=")[0] in OURS:
            raise UserError(f"{word} is for train.py alone: here SUBJECTS, -o and the same command again do that")
    threads = [] if "--threads" in given else ["--threads", str(max(1, round(options.cpus)))]
    words = ["-s", subject.source, "-m", str(folder), *threads, *given]
    try:
        return words, parse_train(words).optimization.iterations
    except UserError as error:
        raise UserError(f"{subject.name}: {error}") from error


def follow_ups(options: ManyOptions, folder: Path) -> list[tuple[str, ...]]:
    """The programs of `--then`, with `-m`; UserError for one that there is not, or flags that it does not accept."""
    found = []
    for text in options.then or (("render",) if options.evaluate_only else ()):
        name, *words = shlex.split(text) or [""]
        if name not in THEN:
            raise UserError(f"--then {text!r}: begins with neither {' nor '.join(THEN)}")
        if name == "export" and words and not words[0].startswith("-"):
            words = ["--format", *words]
        program, parse = THEN[name]
        words = ["-m", str(folder), "--quiet", *words]
        parse(words)
        found.append((program, *words))
    return found


def plan(subjects: Sequence[Subject], flags: Sequence[str], options: ManyOptions) -> list[Work]:
    """What is left to do; nothing is written if anything of it is refused.

    Raises:
        UserError: flags that are not accepted, or not those that a subject was trained with.
    """
    out, works, notes = Path(options.output), [], {}
    for subject in subjects:
        folder = out / subject.name
        command, iterations = train_command(subject, folder, flags, options)
        thens = follow_ups(options, folder)
        before = read_json(folder / NOTE)
        note = {"train": ["-s", subject.source, *flags, *subject.flags]}  # threads change no bit
        if before is not None and before != note and not options.evaluate_only:
            raise UserError(
                f"{folder} was trained with other flags ({shlex.join(before.get('train', ()))}): give those, remove "
                "it, or choose another -o"
            )
        if before is None and any(folder.glob("chkpnt*.pth")):
            raise UserError(f"{folder} holds a run that train_many.py did not make: choose another -o")
        notes[folder] = note
        trained = is_trained(folder, iterations)
        if options.evaluate_only and not trained:
            continue
        train = () if trained else ("train.py", *command, "--start_checkpoint", "auto")
        done = state_of(folder).get("done", [])
        if train or any(list(words) not in done for words in thens):
            works.append(Work(subject.name, str(folder), iterations, train, tuple(thens), options.retries))
        elif state_of(folder).get("state") != "done":
            write_json(folder / STATE, {**state_of(folder), "name": subject.name, "state": "done"})
    if not options.evaluate_only:
        for folder, note in notes.items():
            write_json(folder / NOTE, note)
    return works


def train_many(options: ManyOptions, subjects: Sequence[Subject], flags: Sequence[str]) -> list[State]:
    """Trains all that is not finished; the states that all subjects ended in.

    Raises:
        UserError: nothing was started, because something is wrong with the command.
        KeyboardInterrupt: everything was stopped, and is saved.
    """
    out = Path(options.output)
    with only_writer(out):
        refuse_escaping_links(out)
        works = plan(subjects, flags, options)
        if not options.quiet:
            why = "measured before, or not trained" if options.evaluate_only else "finished before"
            print(f"{len(subjects)} subjects, {len(subjects) - len(works)} of them {why}", flush=True)
        return run_all(out, [subject.name for subject in subjects], works, options)


def main() -> None:
    options, words, flags = parse_many(sys.argv[1:])
    subjects = read_subjects(words)
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C; there is no SIGHUP on Windows
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    states = train_many(options, subjects, flags)
    failed, done = ([state["name"] for state in states if state["state"] == end] for end in ("failed", "done"))
    if not options.quiet:
        print(f"{len(done)} of {len(states)} subjects are done: {Path(options.output) / 'index.html'}")
    if failed:
        more = ", ..." if len(failed) > 10 else ""
        raise UserError(
            f"{len(failed)} of {len(states)} subjects failed ({', '.join(failed[:10])}{more}): why, says "
            f"{Path(options.output) / 'summary.md'}; the same command tries them again"
        )


if __name__ == "__main__":
    run_script(main)
