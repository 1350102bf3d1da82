"""A digest of a captured value's content, to see that it changed in place.

It holds within one process only: functions and classes from cells stand in it by identity, and
are watched on their own.
"""

from __future__ import annotations

import hashlib
import pickle
import types
from typing import Any, NamedTuple

from nbtaskq.serializers.private import is_dynamic
from nbtaskq.serializers.special import SPECIAL


class TooLarge(Exception):
    """The value has more bytes than may be read for each send."""


class Fingerprint(NamedTuple):
    """The digest of a value, and the code from cells that was met inside."""

    digest: bytes
    code: tuple[types.FunctionType | type, ...]


def fingerprint(value: object, limit: int) -> Fingerprint:
    """Digest a value's content.

    Raises
    ------
    TooLarge
        After about `limit` bytes; the rest is not read.
    Exception
        Whatever pickle raises for a value that it refuses.
    """
    state = _Digest(limit)
    pickler = _Pickler(state)
    pickler.dump(value)
    return Fingerprint(state.digest(), tuple(pickler.code))


class _Digest:
    """A file that keeps only the digest of what is written to it."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._state = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> None:
        self._left -= memoryview(data).nbytes
        if self._left < 0:
            raise TooLarge
        self._state.update(data)

    def digest(self) -> bytes:
        return self._state.digest()


class _Pickler(pickle.Pickler):
    def __init__(self, state: _Digest) -> None:
        super().__init__(state, 5, buffer_callback=lambda buffer: state.write(buffer.raw()))
        self.code: list[types.FunctionType | type] = []

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType | type):
            if not is_dynamic(obj):
                return NotImplemented
            self.code.append(obj)
            return int, (id(obj),)
        for test, reduce in SPECIAL:
            if isinstance(obj, test):
                return reduce(obj)
        return NotImplemented
