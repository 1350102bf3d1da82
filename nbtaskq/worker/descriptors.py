"""What is written to file descriptors 1 and 2, by C code and subprocesses, becomes output."""

from __future__ import annotations

import codecs
import os
import select
import threading
from collections.abc import Callable

NAMES = {1: "stdout", 2: "stderr"}
#: bytes read at once; as much as a pipe holds
PIPE = 65_536


class Descriptors:
    """Pipes in the place of descriptors 1 and 2, and a thread that reads them.

    Parameters
    ----------
    write : callable
        Gets ``stdout`` or ``stderr`` and text; returns whether a task took it. What no task
        took also goes where the descriptor led before.
    """

    def __init__(self, write: Callable[[str, str], bool]) -> None:
        self._write = write
        self._originals: dict[int, int] = {}
        self._streams: dict[int, tuple[int, codecs.IncrementalDecoder]] = {}
        self._pending = select.poll()  # for `drain`
        self._waiting = select.poll()  # for the thread
        self._busy = False
        self._delivered = 0
        self._changed = threading.Condition()

    def capture(self) -> None:
        """Take the descriptors over."""
        decoder = codecs.getincrementaldecoder("utf-8")
        for number in NAMES:
            self._originals[number] = os.dup(number)
            read, write = os.pipe()
            os.dup2(write, number)
            os.close(write)
            self._streams[read] = number, decoder("replace")
            self._pending.register(read, select.POLLIN)
            self._waiting.register(read, select.POLLIN)
        threading.Thread(target=self._run, name="descriptors", daemon=True).start()

    def drain(self, timeout: float = 0.5) -> None:
        """Return once everything written so far has been delivered; cheap when nothing was."""
        # In this order: bytes leave a pipe only while the thread is busy.
        if not self._pending.poll(0) and not self._busy:
            return
        enough = self._delivered + 2 * PIPE * len(NAMES)  # a background process may never pause
        with self._changed:
            self._changed.wait_for(lambda: self._idle() or self._delivered >= enough, timeout)

    def _idle(self) -> bool:
        return not self._pending.poll(0) and not self._busy

    def _run(self) -> None:
        while True:
            ready = self._waiting.poll()
            self._busy = True
            for read, _ in ready:
                self._forward(read)
            self._busy = False
            with self._changed:
                self._changed.notify_all()

    def _forward(self, read: int) -> None:
        number, decoder = self._streams[read]
        data = os.read(read, PIPE)
        text = decoder.decode(data)
        if not self._write(NAMES[number], text):
            os.write(self._originals[number], data)
        self._delivered += len(data)
