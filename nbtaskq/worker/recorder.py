"""The flight recorder: what a worker was doing, in a file that outlives its sudden death.

The pool owns the file, the worker writes into the mapped memory, and neither asks the kernel
for anything: what was written before a kill -9 is there after it.

    0       magic · settled · cancel target · written · ready
    64      256 slots of 96 bytes: state, token, started, task id
    24640   the ring: the latest 64 kB of output
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from pathlib import Path

from nbtaskq.errors import WorkspaceError
from nbtaskq.hub.protocol import Slot

#: Tasks that one worker can run at the same time.
SLOTS = 256
#: Bytes of output that are kept.
RING = 65_536
#: A longer id is cut; the token tells which delivery it was.
LONGEST_ID = 64

_MAGIC = b"nbtqrec1"
_SETTLED, _CANCEL, _WRITTEN, _READY = 1, 2, 3, 4  # header words of eight bytes
_HEADER = 64
_STRIDE = 96
_RING_AT = _HEADER + SLOTS * _STRIDE
_SIZE = _RING_AT + RING
_FREE, _RUNNING, _EXECUTED = 0, 1, 2

_BODY = struct.Struct(f"=Qd{LONGEST_ID + 1}p")  # token, started, id after its length
_BODY_AT = 8


class Recorder:
    """One worker's record, mapped into this process; `create` or `open` it.

    A slot counts as taken by its state byte alone, which is cleared first and written last, so
    that a reader never meets a half-written slot. One thread writes output.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._map = mmap.mmap(handle, _SIZE)
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, path: Path) -> Recorder:
        """Make the file, which must not exist, readable by this user alone."""
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.ftruncate(handle, _SIZE)
            recorder = cls(path, handle)
        finally:
            os.close(handle)
        recorder._map[: len(_MAGIC)] = _MAGIC
        return recorder

    @classmethod
    def open(cls, path: Path) -> Recorder:
        """Map the file that the pool made.

        Raises
        ------
        WorkspaceError
            The file is not a flight recorder of this version.
        """
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        try:
            known = os.fstat(handle).st_size == _SIZE and os.pread(handle, 8, 0) == _MAGIC
            if not known:
                raise WorkspaceError(f"{path} is no flight recorder of this version of nbtaskq.")
            return cls(path, handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._words.release()
        self._map.close()

    def unlink(self) -> None:
        """Unmap and remove the file."""
        self.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    # -- slots -----------------------------------------------------------------------------

    def begin(self, index: int, task_id: bytes, token: int, started: float) -> None:
        """Record that a delivery runs in this slot from now on; before user code is called."""
        at = _HEADER + index * _STRIDE
        self._map[at] = _FREE
        _BODY.pack_into(self._map, at + _BODY_AT, token, started, task_id)
        self._map[at] = _RUNNING

    def executed(self, index: int) -> None:
        """Record that user code has ended and its result is not yet settled."""
        self._map[_HEADER + index * _STRIDE] = _EXECUTED

    def end(self, index: int) -> None:
        """Free the slot."""
        self._map[_HEADER + index * _STRIDE] = _FREE

    def slots(self) -> list[Slot]:
        """Return the deliveries that have begun and not ended."""
        states = self._map[_HEADER:_RING_AT:_STRIDE]
        return [self._slot(index) for index, state in enumerate(states) if state != _FREE]

    def _slot(self, index: int) -> Slot:
        at = _HEADER + index * _STRIDE
        token, started, task_id = _BODY.unpack_from(self._map, at + _BODY_AT)
        return Slot(task_id, token, started, self._map[at] == _EXECUTED)

    # -- words -----------------------------------------------------------------------------

    @property
    def settled(self) -> int:
        """Number of the last `Settle` that the worker has sent."""
        return self._words[_SETTLED]

    @settled.setter
    def settled(self, number: int) -> None:
        self._words[_SETTLED] = number

    @property
    def cancel_target(self) -> int:
        """Token of the delivery that the next SIGINT is meant for; 0 for none."""
        return self._words[_CANCEL]

    @cancel_target.setter
    def cancel_target(self, token: int) -> None:
        self._words[_CANCEL] = token

    @property
    def ready(self) -> bool:
        """Whether the worker came up: from then on its death is not a failed start."""
        return bool(self._words[_READY])

    @ready.setter
    def ready(self, value: bool) -> None:
        self._words[_READY] = value

    # -- output ----------------------------------------------------------------------------

    def write_output(self, text: bytes) -> None:
        """Append to the ring; the oldest is overwritten."""
        kept = text[-RING:]
        written = self._words[_WRITTEN] + len(text) - len(kept)
        at = written % RING
        head = kept[: RING - at]
        self._map[_RING_AT + at : _RING_AT + at + len(head)] = head
        rest = kept[len(head) :]
        self._map[_RING_AT : _RING_AT + len(rest)] = rest
        self._words[_WRITTEN] = written + len(kept)

    def forget_output(self) -> None:
        """Empty the ring: what was written is not of the task that begins now."""
        self._words[_WRITTEN] = 0

    def tail(self, lines: int = 50) -> str:
        """Return the last lines of output."""
        written = self._words[_WRITTEN]
        at = written % RING
        ring = self._map[_RING_AT:]
        data = ring[:at] if written < RING else ring[at:] + ring[:at]
        return "\n".join(data.decode(errors="replace").splitlines()[-lines:])
