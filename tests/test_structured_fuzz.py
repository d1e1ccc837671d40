"""Inputs that are valid byte by byte and hostile as a whole; the long version is tests/torture/fuzz_readers.py."""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

import pytest
from torture import fuzz_readers, fuzz_structured
from torture.fuzz_mutations import Format

from utils.errors import UserError


def test_structured_inputs_of_every_format(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    names = list(fuzz_structured.structured(tmp_path / "files"))
    arguments = argparse.Namespace(count=25, seed=2, keep=tmp_path / "findings", format=None, structured=True)
    results = fuzz_readers.run(names, arguments)
    kept = sorted(path.name for path in (tmp_path / "findings").glob("*"))
    assert not kept and all(counts["findings"] == 0 for counts in results.values()), kept
    assert all(counts["read"] > 0 and counts["refused"] > 0 for counts in results.values()), results


def test_opcodes_stay_opcodes() -> None:
    data = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00bK\x02u."
    spoilt = {fuzz_structured.spoil_opcodes(Random(seed), data) for seed in range(50)}
    assert len(spoilt) > 40 and all(one.startswith(b"\x80\x02") for one in spoilt)


def test_a_reader_that_forgets_how_to_read_is_noticed(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(b"good")
    seen: list[bytes] = []

    def read(path: Path) -> bytes:
        seen.append(path.read_bytes())
        if b"poison" in seen:
            raise UserError("never again")
        return seen[-1]

    kind = Format(tmp_path / "file", [], None, fuzz_structured._then_good(read, good))
    watch = fuzz_readers.Watch()
    assert fuzz_readers.outcome(kind, watch, b"x") == "read"
    assert "a good file is no longer read" in fuzz_readers.outcome(kind, watch, b"poison")
    with pytest.raises(AssertionError):
        kind.read(kind.place)
