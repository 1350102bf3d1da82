"""The frozen functions that this worker has at hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from nbtaskq.abc import Code
from nbtaskq.message import Buffer, Parcel

#: bytes of functions that are kept; the newest is kept in any case
LIMIT = 256 << 20


class Codes:
    """Functions with their buffers by digest, the least recently used forgotten first."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._whole: OrderedDict[bytes, Code] = OrderedDict()
        self._size = 0
        #: objects that have arrived while others of their function are missing
        self._parts: dict[bytes, tuple[Sequence[bytes], Buffer]] = {}
        #: digests that nobody has
        self._unknown: set[bytes] = set()

    def get(self, digest: bytes) -> Code | None:
        """Return a function, or None while something of it is missing."""
        code = self._whole.get(digest)
        if code is None:
            code = self._assemble(digest)
        else:
            self._whole.move_to_end(digest)
        return code

    def missing(self, digest: bytes) -> list[bytes]:
        """Return the digests that must be fetched for a function that `get` does not give."""
        if digest not in self._parts:
            return [digest]
        return [ref for ref in self._parts[digest][0] if self._buffer(ref) is None]

    def add(self, digest: bytes, refs: Sequence[bytes], body: Buffer) -> None:
        """Keep an object."""
        self._parts[digest] = tuple(refs), body

    def mark_unknown(self, digest: bytes) -> None:
        """Remember that nobody has an object."""
        self._unknown.add(digest)

    def is_lost(self, digest: bytes) -> bool:
        """Whether a function cannot be completed."""
        return any(key in self._unknown for key in (digest, *self.missing(digest)))

    def forget_unknown(self) -> None:
        """Ask again from now on."""
        self._unknown.clear()

    def _buffer(self, ref: bytes) -> Buffer | None:
        part = self._parts.get(ref)
        if part is not None:
            return part[1]
        return next((b for r, b in self._buffers() if r == ref), None)

    def _buffers(self) -> Iterator[tuple[bytes, Buffer]]:
        for code in self._whole.values():
            yield from zip(code.parcel.refs, code.parcel.buffers, strict=True)

    def _assemble(self, digest: bytes) -> Code | None:
        if digest not in self._parts:
            return None
        refs, body = self._parts[digest]
        buffers = [buffer for ref in refs if (buffer := self._buffer(ref)) is not None]
        if len(buffers) < len(refs):
            return None
        for key in (digest, *refs):
            self._parts.pop(key, None)
        code = Code(digest, Parcel(bytes(body), buffers, refs=tuple(refs)))
        self._whole[digest] = code
        self._size += code.parcel.nbytes
        while self._size > self._limit and len(self._whole) > 1:
            self._size -= self._whole.popitem(last=False)[1].parcel.nbytes
        return code
