"""Large buffers as files beside the database, and the packing of small ones into a row.

    blobs/<digest>     content of 1 MB or more, mode 0600, written once, never changed

Content is checked on reading. Rows carry a CRC-32: it finds every flip of a few bits and misses
one damage in four billion, at a tenth of a microsecond a row, which a cryptographic digest
cannot match; whoever could forge it may write the file anyway. Files are named by their BLAKE2b
digest, so that one frame sent with a thousand tasks is stored once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.protocol import Outcome, Submission
from nbtaskq.message import Buffer, digest_of

#: Buffers from this size on are files.
INLINE = 1 << 20
#: Small buffers of one task that are kept in its row; those beyond are files as well.
INLINE_TOTAL = 8 << 20

Packed = TypeVar("Packed", Submission, Outcome)

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_encode = msgspec.msgpack.Encoder().encode


class BlobRef(msgspec.Struct, array_like=True, frozen=True):
    """Stands in a row for content that is in a file."""

    digest: bytes
    size: int


class Parts(msgspec.Struct, array_like=True, frozen=True):
    """What of a payload is not in its struct: a large body, and the buffers."""

    body: BlobRef | None
    buffers: list[bytes | BlobRef]


_parts = msgspec.msgpack.Decoder(Parts)


def sync(descriptor: int) -> None:
    """Return when what was written through a descriptor survives a power cut."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


class Blobs:
    """The files of a store's large buffers. What `put` wrote is durable after `flush`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._unsynced = False
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.glob("*.tmp"):
            left.unlink()

    def put(self, name: str, content: Buffer) -> None:
        """Store content under a name; what is there with the right size is not written again."""
        view = memoryview(content).cast("B")
        path = self.folder / name
        self._unsynced = True
        try:
            if path.lstat().st_size == view.nbytes:
                return
        except FileNotFoundError:
            pass
        fresh = path.with_suffix(".tmp")
        try:
            _write_new(fresh, view)
            fresh.rename(path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def flush(self) -> None:
        """Make durable that the files are there; what is in them is so already."""
        if self._unsynced:
            sync_folder(self.folder)
            self._unsynced = False

    def get(self, name: str, size: int) -> bytes:
        """Return stored content; raise `TaskCorrupt` when it is not whole."""
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EIO):
                raise
            raise TaskCorrupt(f"the file blobs/{name} cannot be read: {error.strerror}") from error
        if len(content) != size:
            raise TaskCorrupt(f"the file blobs/{name} has {len(content)} bytes, not {size}")
        return content

    def refer(self, content: Buffer) -> BlobRef:
        """Store content under its digest and return what stands for it."""
        digest = digest_of(content)
        self.put(digest.hex(), content)
        return BlobRef(digest, memoryview(content).nbytes)

    def resolve(self, part: bytes | BlobRef) -> bytes:
        """Return what stands in a row, or in the file that it refers to."""
        if isinstance(part, bytes):
            return part
        content = self.get(part.digest.hex(), part.size)
        if digest_of(content) != part.digest:
            raise TaskCorrupt(f"the file blobs/{part.digest.hex()} is damaged")
        return content

    def pack(self, payload: Packed, buffers: Sequence[Buffer]) -> tuple[bytes, bytes | None]:
        """Return a payload as its two columns: the struct, and what is not in it."""
        if not buffers and len(payload.body) < INLINE:
            return _encode(payload), None
        body = None
        if len(payload.body) >= INLINE:
            body = self.refer(payload.body)
            payload = msgspec.structs.replace(payload, body=b"")
        room = INLINE_TOTAL
        kept: list[Buffer | BlobRef] = []
        for buffer in buffers:
            size = memoryview(buffer).nbytes
            inline = size < INLINE and size <= room
            room -= size if inline else 0
            kept.append(buffer if inline else self.refer(buffer))
        return _encode(payload), _encode((body, kept))

    def unpack(self, payload: Packed, parts: bytes | None) -> tuple[Packed, Sequence[Buffer]]:
        """Return a payload and its buffers from the decoded struct and the column beside it."""
        if parts is None:
            return payload, ()
        rest = _parts.decode(parts)
        if rest.body is not None:
            payload = msgspec.structs.replace(payload, body=self.resolve(rest.body))
        return payload, tuple(self.resolve(part) for part in rest.buffers)

    def size(self) -> tuple[int, int]:
        """Return the number of files and their bytes."""
        with os.scandir(self.folder) as entries:
            sizes = [entry.stat(follow_symlinks=False).st_size for entry in entries]
        return len(sizes), sum(sizes)


def _write_new(path: Path, view: memoryview) -> None:
    descriptor = os.open(path, _NEW, 0o600)
    try:
        while view.nbytes:
            view = view[os.write(descriptor, view) :]
        sync(descriptor)
    finally:
        os.close(descriptor)
