"""Hands every reader thousands of spoilt files: each must be read or refused with one line, and nothing else happen.

    python tests/torture/fuzz_readers.py [--count 10000] [--format NAME ...] [--seed 0] [--keep FOLDER]
    python tests/torture/fuzz_readers.py --structured [...]
    python tests/torture/fuzz_readers.py --replay FILE

--structured takes inputs that are valid byte by byte and hostile as a whole (`fuzz_structured.py`).

Another exception, a crash, more than ten seconds, more than a gigabyte of memory, a file that is written
or a program that is started: each is a finding, and its input is kept for --replay. Deterministic by --seed.
The readers run in a process of their own, under an address-space limit, watched through its audit events.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SECONDS = 10  # for one input
MEMORY = 1 << 30  # bytes of address space beyond what the process has before the first input
LONGEST_MESSAGE = 6000
RECORD = struct.Struct("<qqqqq")  # format, input, read, refused, findings


def spoilt(kind, name: str, seed: int, index: int) -> bytes:
    """Input number `index` of a format; the first are the valid files themselves."""
    if index < len(kind.seeds):
        return kind.seeds[index]
    random = Random(f"{seed}/{name}/{index}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what is odd on purpose
        return kind.spoil(random, random.choice(kind.seeds), random.choice(kind.seeds))


def formats_of(arguments: argparse.Namespace, folder: str) -> dict:
    """The formats that the command line asks for, with their files below `folder`."""
    from torture.fuzz_formats import formats
    from torture.fuzz_structured import structured

    return (structured if getattr(arguments, "structured", False) else formats)(Path(folder))


# ---- the process that reads -------------------------------------------------------


class Watch:
    """What Python's audit events tell of the readers: who writes, starts or imports something."""

    EVENTS = (
        "os.system os.exec os.fork os.posix_spawn os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate "
        "os.chmod subprocess.Popen socket.connect socket.bind shutil.rmtree pickle.find_class ctypes.dlopen "
        "tempfile.mkstemp"
    ).split()

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in self.EVENTS:
            self.seen.append(f"{event}{arguments!r:.200}")
        elif event == "open" and (
            isinstance(arguments[1], str)
            and set(arguments[1]) & set("wax+")
            or isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            self.seen.append(f"open{arguments!r:.200}")
        elif event == "exec" and not os.path.isfile(getattr(arguments[0], "co_filename", "")):
            self.seen.append(f"exec{arguments!r:.200}")  # an import runs a file; a reader has no reason to run anything


def outcome(kind, watch: Watch, content: bytes) -> str:
    """ "read", "refused", or what happened instead."""
    from utils.errors import UserError, one_line

    kind.place.write_bytes(content)
    watch.seen.clear()
    watch.on = True
    try:
        kind.read(kind.place)
        result = "read"
    except UserError as error:
        text = one_line(error)
        result = "refused" if 0 < len(text) < LONGEST_MESSAGE else f"a message of {len(text)} characters"
        cause: BaseException | None = error
        while cause is not None:
            # Python's parser says so of what is nested too deeply, too.
            frames = traceback.extract_tb(cause.__traceback__)
            parser = bool(frames) and frames[-1].filename.endswith("/ast.py")
            if isinstance(cause, MemoryError) and not parser or "allocate memory" in str(cause):
                result = "more than a gigabyte of memory\n" + "".join(traceback.format_exception(error)[-9:])
            cause = cause.__cause__ or cause.__context__
    except BaseException as error:
        result = "".join(traceback.format_exception(error)[-9:])
    finally:
        watch.on = False
    return f"{watch.seen}" if watch.seen else result


def child(names: list[str], arguments: argparse.Namespace, record: Path, begin: tuple[int, int]) -> None:
    """Reads all inputs from `begin` on; the file `record` says how far it came, findings go to stdout."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a warning is a second line on the user's screen
    memory = mmap.mmap(os.open(record, os.O_RDWR), RECORD.size * len(names))
    with tempfile.TemporaryDirectory() as folder:
        known = formats_of(arguments, folder)
        for kind in known.values():  # what is imported at the first use is not the inputs' doing
            for content in kind.seeds:
                kind.place.write_bytes(content)
                kind.read(kind.place)
            kind.place.write_bytes(kind.seeds[0])
        watch = Watch()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number in range(begin[0], len(names)):
            kind = known[names[number]]
            counts = list(RECORD.unpack_from(memory, RECORD.size * number))
            for index in range(begin[1] if number == begin[0] else 0, arguments.count):
                counts[0], counts[1] = number, index
                RECORD.pack_into(memory, RECORD.size * number, *counts)
                content = spoilt(kind, names[number], arguments.seed, index)
                result = outcome(kind, watch, content)
                counts[{"read": 2, "refused": 3}.get(result, 4)] += 1
                if result not in ("read", "refused"):
                    print(f"FINDING {names[number]} {index}\n{result}", flush=True)
                    keep(arguments, names[number], index, content)
            counts[1] = arguments.count
            RECORD.pack_into(memory, RECORD.size * number, *counts)
            kind.place.write_bytes(kind.seeds[0])
        print(f"PEAK {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}", flush=True)


def keep(arguments: argparse.Namespace, name: str, index: int, content: bytes) -> None:
    folder = Path(arguments.keep)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}-{arguments.seed}-{index}.input").write_bytes(content)


def replay(path: Path, arguments: argparse.Namespace) -> int:
    """Reads one kept input in this process, without limits; prints what happens."""
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        result = outcome(formats_of(arguments, folder)[path.name.split("-")[0]], Watch(), path.read_bytes())
    print(result)
    return 0 if result in ("read", "refused") else 1


# ---- the process that watches -----------------------------------------------------


def run(names: list[str], arguments: argparse.Namespace) -> dict[str, Counter]:
    """All inputs of the formats `names`; a reader that dies or hangs is started again after the input it died of."""
    begin, results = (0, 0), {name: Counter() for name in names}
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record"
        record.write_bytes(bytes(RECORD.size * len(names)))
        while begin[0] < len(names):
            settings = ("--count", arguments.count, "--seed", arguments.seed, "--keep", arguments.keep)
            words = [sys.executable, __file__, "--child", record, *begin, *settings, "--format", *names]
            words += ["--structured"] if getattr(arguments, "structured", False) else []
            process = subprocess.Popen(
                [str(word) for word in words], env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": folder}
            )
            status = watch_over(process, record, begin)
            if status == 0:
                break
            number, index = at(record, len(names))
            if status is not None and (number, index) == begin and index == 0:
                raise SystemExit(f"the process that reads ended with status {status} before it began")
            name = names[number]
            print(
                f"FINDING {name} {index}\n{'hangs' if status is None else f'ends the process with status {status}'}",
                flush=True,
            )
            with tempfile.TemporaryDirectory() as spare:
                keep(arguments, name, index, spoilt(formats_of(arguments, spare)[name], name, arguments.seed, index))
            results[name]["findings"] += 1
            begin = (number, index + 1)
        for number, name in enumerate(names):
            _, _, read, refused, findings = RECORD.unpack_from(record.read_bytes(), RECORD.size * number)
            results[name].update(read=read, refused=refused, findings=findings)
    return results


def at(record: Path, count: int) -> tuple[int, int]:
    """(format, input) at which the reading process is."""
    content = record.read_bytes()
    rows = [RECORD.unpack_from(content, RECORD.size * number) for number in range(count)]
    number = max((row[0] for row in rows), default=0)
    return number, rows[number][1]


def watch_over(process: subprocess.Popen, record: Path, begin: tuple[int, int]) -> int | None:
    """The exit status of the reading process, or None when one input took too long."""
    last, since, patience = record.read_bytes(), time.monotonic(), 120.0  # it begins with its imports
    while process.poll() is None:
        time.sleep(0.05)
        now = record.read_bytes()
        if now != last:
            last, since, patience = now, time.monotonic(), SECONDS
        elif time.monotonic() - since > patience:
            process.kill()
            process.wait()
            return None
    return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Hands every reader spoilt files.")
    parser.add_argument("--count", type=int, default=10_000, help="inputs per format")
    parser.add_argument("--format", nargs="*", help="only these")
    parser.add_argument("--structured", action="store_true", help="inputs that are valid byte by byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="fuzz_findings", help="where the inputs of findings go")
    parser.add_argument("--replay", type=Path, help="read one of those again")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        return replay(arguments.replay, arguments)
    if arguments.child:
        record, *begin = arguments.child
        child(arguments.format, arguments, Path(record), (int(begin[0]), int(begin[1])))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        known = list(formats_of(arguments, folder))
    unknown = sorted({*(arguments.format or ())} - {*known})
    if unknown:
        parser.error(f"--format: no {', '.join(unknown)}; there are {', '.join(known)}")
    start = time.monotonic()
    results = run(arguments.format or known, arguments)
    print(f"{'format':24} {'inputs':>8} {'read':>8} {'refused':>8} {'findings':>8}")
    for name, counts in results.items():
        print(f"{name:24} {sum(counts.values()):8,} {counts['read']:8,} {counts['refused']:8,} {counts['findings']:8,}")
    findings = sum(counts["findings"] for counts in results.values())
    total = sum(sum(counts.values()) for counts in results.values())
    print(
        f"{total:,} inputs in {time.monotonic() - start:.0f} s: "
        + (f"{findings} findings, their inputs are in {arguments.keep}" if findings else "no findings")
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
