"""For the tests that read files from strangers: bounds of time and memory, the one line that such a file ends in, and a
file of torch.save with another pickle inside."""

from __future__ import annotations

import contextlib
import io
import resource
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError, one_line

SECONDS = 20
ROOM = 512 << 20  # bytes of address space


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Half a gigabyte more than now and 20 seconds are enough for what happens inside, or the test fails."""

    def late(*_: Any) -> None:
        raise TimeoutError

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def refusal(read: Callable[[], object]) -> str:
    """The one line that `read` ends with; too much time or memory fails the test, also where a reader caught it."""
    with bounded(), pytest.raises(UserError) as caught:
        read()
    cause: BaseException | None = caught.value
    while cause is not None:
        assert not isinstance(cause, (MemoryError, TimeoutError)) and "allocate memory" not in str(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(caught.value)
    assert 0 < len(one_line(text)) < 3000
    return text


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """A file of torch.save with another data.pkl, its checksum right."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(written, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            target.writestr(entry.filename, change(content) if entry.filename.endswith("data.pkl") else content)
    return written.getvalue()
