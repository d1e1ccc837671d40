"""Opening files that come from strangers: real files only, and archives that say the truth about themselves."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# The directory of an archive takes about 100 bytes per entry; a checkpoint has a few hundred.
_LARGEST_READ = 16 << 20  # bytes
_PIECE = 1 << 20  # bytes
_LONGEST_NAME = 4096  # characters; of a path
# Windows has O_BINARY, and none of the others.
_FLAGS = ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY")
_REGULAR = os.O_RDONLY | sum(getattr(os, name, 0) for name in _FLAGS)


def names_file(text: str) -> bool:
    """Whether `text` can name a file and be printed: no zero character, no half of a surrogate pair, not endless."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text and len(text) <= _LONGEST_NAME


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a file for reading, through symbolic links too.

    Opening a pipe would wait for ever, and a device such as /dev/zero never ends: both are refused.

    Raises:
        OSError: missing, unreadable, or a pipe, a device, a socket or a folder.
    """
    try:
        number = os.open(path, _REGULAR)
    except ValueError as error:  # a zero character, or one that no file name can have
        raise OSError(errno.EINVAL, "not the name of a file") from error
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "it is a folder, a pipe or a device, not a file")
        return _WholeFile(io.FileIO(number))
    except BaseException:
        os.close(number)
        raise


def read_regular(path: str | Path, limit: int) -> bytes | None:
    """The content of a file, or None if it has more than `limit` bytes.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            return None
        # Not up to the limit: `read` takes the memory for all that it is asked for first.
        return file.read(size)


@contextlib.contextmanager
def open_archive(path: str | Path) -> Iterator[zipfile.ZipFile]:
    """A zip archive whose entries, as stored, are no larger together than the file.

    `zipfile` believes an archive's directory: entries may overlap, and claim more than there is.

    Raises:
        OSError: as `open_regular`.
        zipfile.BadZipFile: not an archive, or a directory that lies.
        Exception: a broken directory can fail in any way in `zipfile`.
    """
    with open_regular(path) as file, _InPieces(io.FileIO(file.fileno(), closefd=False)) as stream:
        size = os.fstat(file.fileno()).st_size
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                # bzip2 and LZMA are unpacked without a bound, and nobody we know writes them.
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise zipfile.BadZipFile(f"an entry is compressed in the unusual way {entry.compress_type}")
                if entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size:
                    raise zipfile.BadZipFile("an entry gives two different sizes")
            if sum(entry.compress_size for entry in archive.infolist()) > size:
                raise zipfile.BadZipFile("its directory announces more than the file holds")
            yield archive


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytearray:
    """The content of an entry, its checksum verified; memory is taken as it is unpacked, not as announced.

    Raises:
        Exception: a damaged entry can fail in any way in `zipfile`.
    """
    content = bytearray()
    try:
        with archive.open(entry) as stream:
            while piece := stream.read(_PIECE):
                content += piece
    except zipfile.BadZipFile as error:
        raise zipfile.BadZipFile(str(error).replace("Bad CRC-32", "the checksum does not match")) from error
    if len(content) != entry.file_size:
        raise zipfile.BadZipFile(f"{entry.filename!r} is cut short")
    return content


class _WholeFile(io.BufferedReader):
    """Allocates no more for a read than the file has left, whatever it is asked for."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self._size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


class _InPieces(_WholeFile):
    """Keeps `zipfile` from reading a directory of any size at once."""

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(_LARGEST_READ + 1 if size is None or size < 0 else min(size, _LARGEST_READ + 1))
        if len(content) > _LARGEST_READ:
            raise zipfile.BadZipFile("its directory is too large")
        return content
