"""What is looked at before SQLite may open the store's file, so that a bad one stays untouched.

SQLite passes in silence over the end of a write-ahead log that it cannot read, and does not
miss pages that are cut off. Both are found here from the headers alone:

    hub.sqlite       100 bytes: magic, page size, pages, schema version, application
    hub.sqlite-wal   32 bytes, then for each page 24 bytes: its number, database size, salts
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from nbtaskq.errors import HubAlreadyRunning, StoreError
from nbtaskq.process import Lock

#: Marks an SQLite file as a store of nbtaskq: "nbtq".
APPLICATION = 0x6E627471

_MAGIC = b"SQLite format 3\0"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOG_HEADER = struct.Struct(">8I")
_FRAME_HEADER = struct.Struct(">4I8x")


def refuse(path: Path, cause: str, remedy: str) -> StoreError:
    """Return the one line that says what is wrong with a file and what to do."""
    return StoreError(f"cannot use {path}: {cause}; {remedy}")


MOVE = "move it away, or put a good copy in its place, and start again"


class Header(NamedTuple):
    """The numbers at the start of a database file."""

    page_size: int
    pages: int
    version: int
    application: int
    file_pages: int


class Log(NamedTuple):
    """What a write-ahead log claims to hold up to its last commit."""

    frames: int = 0
    #: size of the database after that commit, in pages; 0 when there is none
    pages: int = 0
    numbers: frozenset[int] = frozenset()
    #: whether its own header is sound
    sound: bool = True


def check_folder(folder: Path) -> None:
    """Raise `StoreError` unless this is a folder in which files can be written."""
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        raise refuse(
            folder, f"the folder cannot be found ({error.strerror})", "create it or choose another"
        ) from None
    if not stat.S_ISDIR(mode):
        raise refuse(folder, "it is not a folder", "choose another one")
    if not mode & stat.S_IWUSR or not os.access(folder, os.W_OK | os.X_OK):
        raise refuse(folder, "the folder is read-only", "allow writing, or choose another one")


def lock(path: Path) -> Lock:
    """Take the lock of the store's file, for as long as this process lives.

    It is a file of its own, because closing any descriptor of the database would give up the
    locks that SQLite holds on it.
    """
    held = Lock(path.with_name("store.lock"))
    try:
        held.acquire()
    except HubAlreadyRunning as error:
        holder = Lock.holder(held.path)
        raise refuse(
            path, f"process {holder} has it open", "use its hub, or end it and start again"
        ) from error
    except OSError as error:
        raise refuse(held.path, f"it cannot be locked ({error})", "remove it") from error
    return held


def check_file(path: Path, newest: int) -> Log:
    """Raise `StoreError` when the store's file is not one that this version can use.

    Returns
    -------
    Log
        What its write-ahead log should give back when SQLite reads it.
    """
    header = _read_header(path)
    if header.application != APPLICATION:
        raise refuse(path, "it is an SQLite file of another program", MOVE)
    if header.version > newest:
        raise newer(path, header.version, newest)
    log = read_log(path.with_name(path.name + "-wal"))
    pages = log.pages or header.pages
    missing = pages - header.file_pages
    missing -= sum(header.file_pages < number <= pages for number in log.numbers)
    if missing > 0 and log.sound:
        raise refuse(path, f"it is truncated: {missing} of {pages} pages are missing", MOVE)
    return log


def newer(path: Path, version: int, newest: int) -> StoreError:
    """Return the error for a file that a later version of nbtaskq wrote."""
    return refuse(
        path,
        f"its schema is version {version} and this nbtaskq knows versions up to {newest}",
        "install the newer nbtaskq, or choose another workspace",
    )


def _read_header(path: Path) -> Header:
    try:
        descriptor = os.open(path, _OPEN)
    except OSError as error:
        raise refuse(path, f"it cannot be read ({error.strerror})", MOVE) from error
    try:
        status = os.fstat(descriptor)
        head = os.pread(descriptor, 100, 0)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise refuse(path, "it is not a regular file", MOVE)
    if not status.st_mode & stat.S_IWUSR or not os.access(path, os.W_OK):
        raise refuse(path, "the file is read-only", "allow writing to it and start again")
    if not head:
        raise refuse(path, "it is empty (0 bytes)", MOVE)
    if head[:16] != _MAGIC[: len(head)]:
        raise refuse(path, "it is not an SQLite database", MOVE)
    if len(head) < 100:
        raise refuse(path, f"it is truncated to {len(head)} bytes", MOVE)
    page_size = int.from_bytes(head[16:18], "big")
    page_size = 65536 if page_size == 1 else page_size
    if page_size < 512 or page_size & (page_size - 1):
        raise refuse(path, "its header is damaged", MOVE)
    pages, version, application = (int.from_bytes(head[i : i + 4], "big") for i in (28, 60, 68))
    return Header(page_size, pages, version, application, status.st_size // page_size)


def read_log(path: Path) -> Log:
    """Return what a write-ahead log claims to hold; an empty one when there is none."""
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        return Log()
    except OSError as error:
        raise refuse(path, f"it cannot be read ({error.strerror})", MOVE) from error
    try:
        head = os.pread(descriptor, _LOG_HEADER.size, 0)
        if len(head) < _LOG_HEADER.size:
            return Log()
        return _read_frames(descriptor, head, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


def _read_frames(descriptor: int, head: bytes, size: int) -> Log:
    magic, _, page_size, _, *salts = _LOG_HEADER.unpack(head)[:6]
    if not _log_header_is_sound(head) or magic >> 1 != 0x377F0682 >> 1:
        return Log(sound=size == _LOG_HEADER.size)
    numbers: list[int] = []
    frames = pages = 0
    step = _FRAME_HEADER.size + page_size
    for index, offset in enumerate(range(_LOG_HEADER.size, size - step + 1, step), 1):
        frame = os.pread(descriptor, _FRAME_HEADER.size, offset)
        number, commit, *own = _FRAME_HEADER.unpack(frame)
        # frames of an earlier round have two other salts; one that differs is a damaged frame
        if own[0] != salts[0] and own[1] != salts[1]:
            continue
        numbers.append(number)
        if commit:
            frames, pages, committed = index, commit, len(numbers)
    return Log(frames, pages, frozenset(numbers[:committed]) if frames else frozenset())


def _log_header_is_sound(head: bytes) -> bool:
    order = ">" if head[3] & 1 else "<"
    words = struct.unpack(order + "6I", head[:24])
    first = second = 0
    for a, b in zip(words[::2], words[1::2], strict=True):
        first = (first + a + second) & 0xFFFFFFFF
        second = (second + b + first) & 0xFFFFFFFF
    return (first, second) == struct.unpack(">2I", head[24:32])
