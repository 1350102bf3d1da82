"""The output of tasks becomes numbered notes; it does not travel over iopub.

    print ────► TaskStream.write ──┐
    display ──► TaskSession.send ──┼──► Outputs ──► TaskOutput ──► net thread ──► hub
    fd 1, 2 ──► Descriptors ───────┘

A task that prints nothing pays nothing: its `TaskOutput` is made at the first write.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from nbtaskq.hub.protocol import Note

if TYPE_CHECKING:
    from nbtaskq.worker.run import Run

#: characters of output that one task may produce
MAX_OUTPUT = 10_000_000
#: notes that one task may produce
MAX_NOTES = 20_000
#: numbers between the first notes of two attempts
ATTEMPT = 1 << 20
#: characters of text in one note
CHUNK = 65_536

_encode = msgspec.json.Encoder().encode


class Ring(Protocol):
    """The little that outputs need of the flight recorder."""

    def write_output(self, text: bytes) -> None:
        """Append to what is read after a sudden death."""


class Outputs:
    """Whose output it is that a thread produces, and where it goes.

    A coroutine and what it starts carry their task in a context variable. Everything else, the
    threads that a task starts and what its subprocesses print included, counts as output of the
    synchronous task that is running, if there is one.

    Parameters
    ----------
    ring : Ring
        Gets all text at once.
    notify : callable
        Told, from any thread, that a task's output has something to send.

    Attributes
    ----------
    lock : threading.Lock
        Held while notes are changed.
    sync : Run or None
        The synchronous task that is running.
    exempt : set of int
        Idents of threads that never print for a task: the kernel's own.
    child : bool
        Whether this process is a fork of the worker; its output goes to the descriptors.
    """

    def __init__(self, ring: Ring, notify: Callable[[TaskOutput], None]) -> None:
        self.ring = ring
        self.notify = notify
        self.lock = threading.Lock()
        self.sync: Run | None = None
        self.exempt: set[int] = set()
        self.child = False
        self._own: ContextVar[Run | None] = ContextVar("run", default=None)
        self._coroutines: dict[int, Run] = {}
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.child = True

    def enter(self, run: Run) -> None:
        """Count what the calling coroutine prints as this task's."""
        self._own.set(run)
        self._coroutines[run.token] = run

    def leave(self, run: Run) -> None:
        """End what `enter`, or setting `sync`, began."""
        run.ended = True
        if self.sync is run:
            self.sync = None
        self._coroutines.pop(run.token, None)
        if run.output is not None:
            run.output.close()

    def current(self) -> Run | None:
        """Return the task that the calling thread or coroutine belongs to."""
        run = self._own.get()
        if run is None:
            run = self.sync or self._only_coroutine()
            if run is None or threading.get_ident() in self.exempt:
                return None
        return None if run.ended else run

    def _only_coroutine(self) -> Run | None:
        """Return the task that a thread without context must belong to."""
        if len(self._coroutines) != 1 or threading.current_thread() is threading.main_thread():
            return None
        return next(iter(list(self._coroutines.values())), None)

    def write(self, name: str, text: str) -> bool:
        """Take text printed to ``stdout`` or ``stderr``; False when it is not a task's."""
        run = self.current()
        if run is None:
            return False
        output = run.output
        if output is None:
            output = self._open(run)
        output.write(name, text)
        return True

    def display(self, kind: str, content: dict[str, Any]) -> bool:
        """Take a Jupyter output message; False when it is not a task's."""
        run = self.current()
        if run is None or self.child:
            return False
        (run.output or self._open(run)).display(kind, content)
        return True

    def _open(self, run: Run) -> TaskOutput:
        with self.lock:
            if run.output is None:
                run.output = TaskOutput(run, self)
            opened: TaskOutput = run.output
            return opened


class TaskOutput:
    """The notes of one attempt, numbered. Adjacent pieces of text become one note.

    What goes beyond the bounds is dropped and counted; the last note tells.
    """

    __slots__ = (
        "_dropped",
        "_last",
        "_lines",
        "_name",
        "_notes",
        "_number",
        "_offered",
        "_outputs",
        "_room",
        "_run",
        "_size",
        "_texts",
        "_update",
    )

    def __init__(self, run: Run, outputs: Outputs) -> None:
        self._run = run
        self._outputs = outputs
        self._notes: list[Note] = []
        self._number = (run.attempt - 1) * ATTEMPT
        self._last = self._number + MAX_NOTES
        self._name = ""
        self._texts: list[str] = []
        self._size = 0
        self._room = MAX_OUTPUT
        self._dropped = False
        self._lines = 0
        self._update: Any = None
        self._offered = False

    def write(self, name: str, text: str) -> None:
        """Add text of a stream."""
        with self._outputs.lock:
            self._outputs.ring.write_output(text[-CHUNK:].encode(errors="replace"))
            kept = self._admit(text)
            if not kept:
                return
            if name != self._name:
                self._seal()
                self._name = name
            self._texts.append(kept)
            self._size += len(kept)
            if self._size >= CHUNK:
                self._seal()
            self._offer()

    def display(self, kind: str, content: dict[str, Any]) -> None:
        """Add an output message; updates of one display that follow each other become one."""
        data = _as_json({"output_type": kind, **content})
        with self._outputs.lock:
            if len(data) > self._room or self._number >= self._last:
                self._drop(1)
                return
            self._room -= len(data)
            self._seal()
            display_id = _updated(kind, content)
            if display_id is not None and display_id == self._update and self._notes:
                last = self._notes.pop()
                self._number = last.number
                self._room += len(last.content)
            self._add(data)
            self._update = display_id
            self._offer()

    def take(self) -> list[Note]:
        """Return the notes that were not taken before."""
        with self._outputs.lock:
            self._seal()
            self._offered = False
            notes, self._notes = self._notes, []
            return notes

    def close(self) -> None:
        """Say what was dropped."""
        with self._outputs.lock:
            if self._dropped:
                lines = max(1, self._lines)
                text = f"\n… {lines} more line{'s' * (lines > 1)} dropped\n"
                self._seal()
                self._add(_as_json({"output_type": "stream", "name": "stderr", "text": text}))
                self._dropped = False
                self._offer()

    def _admit(self, text: str) -> str:
        if len(text) <= self._room and self._number < self._last:
            self._room -= len(text)
            return text
        kept = text[: self._room] if self._number < self._last else ""
        self._room = 0
        self._drop(text.count("\n", len(kept)))
        return kept

    def _drop(self, lines: int) -> None:
        self._dropped = True
        self._lines += lines

    def _seal(self) -> None:
        """Make notes of the text that was collected."""
        if self._texts:
            text = "".join(self._texts)
            for start in range(0, len(text), CHUNK):
                piece = text[start : start + CHUNK]
                self._add(_as_json({"output_type": "stream", "name": self._name, "text": piece}))
            self._texts = []
            self._size = 0
            self._update = None

    def _add(self, content: bytes) -> None:
        run = self._run
        self._notes.append(Note(run.task_id, run.token, self._number, content))
        self._number += 1

    def _offer(self) -> None:
        if not self._offered:
            self._offered = True
            self._outputs.notify(self)


def _updated(kind: str, content: dict[str, Any]) -> Any:
    if kind != "update_display_data":
        return None
    return (content.get("transient") or {}).get("display_id")


def _as_json(content: dict[str, Any]) -> bytes:
    try:
        return _encode(content)
    except (TypeError, ValueError):
        return _encode(_plain(content))


def _plain(value: Any) -> Any:
    """Return what JSON can say of a value: lone surrogates and foreign types are replaced."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, bytes)):
        return value
    return _plain(repr(value))
