"""The client's view of one sent message.

    queued ──► running ──► ended        pushed by the broker, from any thread

`result()` blocks, `await value()` does not, and both raise the task's own exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import reprlib
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nbtaskq.client.asking import ask
from nbtaskq.client.output import TaskOutput
from nbtaskq.errors import (
    BrokerUnreachable,
    DependencyFailed,
    ResultTimeout,
    TaskCancelled,
    TaskCorrupt,
    TaskCrashed,
    TaskError,
    TaskExpired,
    TaskRejected,
    TaskUncertain,
)
from nbtaskq.hub.protocol import Outcome
from nbtaskq.message import Buffer, Captured, CellResult, Parcel, Result, TaskStatus
from nbtaskq.serializers.exceptions import load_exception

if TYPE_CHECKING:
    from nbtaskq.abc import Broker
    from nbtaskq.client.definition import Definition

R = TypeVar("R")

#: seconds between looks at whether waiting is in vain, and nudges for what was not pushed
NUDGE = 1.0

_ENDS: dict[TaskStatus, type[TaskError]] = {
    TaskStatus.FAILED: DependencyFailed,
    TaskStatus.CANCELLED: TaskCancelled,
    TaskStatus.REJECTED: TaskRejected,
    TaskStatus.CRASHED: TaskCrashed,
    TaskStatus.EXPIRED: TaskExpired,
    TaskStatus.UNCERTAIN: TaskUncertain,
    TaskStatus.CORRUPT: TaskCorrupt,
}

_lock = threading.Lock()
_log = logging.getLogger("nbtaskq.client")


class TaskHandle(Generic[R]):
    """One sent message: its status, its output, its end.

    Awaiting a handle waits until the broker has accepted the message durably and gives the
    handle back.
    """

    def __init__(
        self,
        broker: Broker,
        task_id: str,
        task_name: str,
        task: Definition[..., Any] | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.task_id = task_id
        self.task_name = task_name
        self._broker = broker
        self._task = task
        self._args = args
        self._kwargs = kwargs or {}
        #: whether a thread or a coroutine blocks on this one task
        self.awaited = False
        #: False while hooks still hold the message back
        self._handed_over = True
        self._accepted = False
        self._refused: BaseException | None = None
        self._status = TaskStatus.QUEUED
        self._worker = ""
        self._outcome: Outcome | None = None
        self._buffers: Sequence[Buffer] = ()
        self._loaded: tuple[Any, BaseException | None] | None = None
        self._notes: dict[int, bytes] = {}
        self._outputs: dict[str, Any] = {}
        self._deliver: Callable[[dict[str, Any], BaseException | None], None] | None = None
        self._callbacks: list[tuple[str, Callable[[], None]]] = []

    # -- what the broker tells -------------------------------------------------------------

    def on_accepted(self) -> None:
        """Take in that the message is stored."""
        self._accepted = True
        self._notify("accepted")

    def on_refused(self, error: BaseException) -> None:
        """Take in that the message was not stored."""
        if self._outcome is None and not self._accepted:
            self._refused = error
            self._notify("accepted", "done", "value")

    def on_progress(self, status: int, worker: str) -> None:
        """Take in a change that is not an end."""
        self._accepted = True
        if self._outcome is None:
            self._status = TaskStatus(status)
            self._worker = worker
        self._notify("accepted", "changed")

    def on_output(self, number: int, content: bytes) -> None:
        """Take in a piece of output."""
        self._notes[number] = content
        self._notify("changed")

    def on_outcome(self, outcome: Outcome, buffers: Sequence[Buffer]) -> None:
        """Take in the end; the first one counts, a withheld value may follow."""
        with _lock:
            known = self._outcome
            if known is not None and not (known.withheld and not outcome.withheld):
                return
            self._buffers = buffers
            self._outcome = outcome
        self._accepted = True
        self._status = TaskStatus(outcome.status)
        self._worker = outcome.worker
        self._notify("accepted", "changed", "done", *(() if outcome.withheld else ("value",)))

    def _notify(self, *moments: str) -> None:
        if not self._callbacks:
            return
        with _lock:
            now = [call for moment, call in self._callbacks if moment in moments]
            self._callbacks = [
                (m, c) for m, c in self._callbacks if m == "changed" or m not in moments
            ]
        for call in now:
            call()

    def _when(self, moment: str, call: Callable[[], None]) -> None:
        """Call back once at a moment (for "changed": each time), at once if it has passed."""
        with _lock:
            passed = self._passed(moment)
            if not passed:
                self._callbacks.append((moment, call))
        if passed:
            call()

    def _passed(self, moment: str) -> bool:
        if self._refused is not None:
            return moment != "changed"
        if moment == "accepted":
            return self._accepted
        if moment == "value":
            return self._outcome is not None and not self._outcome.withheld
        return moment == "done" and self._outcome is not None

    def _forget(self, call: Callable[[], None]) -> None:
        with _lock:
            self._callbacks = [(m, c) for m, c in self._callbacks if c is not call]

    def hold_back(self) -> None:
        """Note that hooks still work on the message: the broker does not know it yet."""
        self._handed_over = False

    def hand_over(self) -> None:
        """Note that the broker gets the message now."""
        self._handed_over = True

    # -- waiting ---------------------------------------------------------------------------

    def _wait_for(self, moment: str, timeout: float | None, *, alone: bool = True) -> bool:
        """Block until a moment has come; return whether it has.

        Who waits for one task alone gets its value before that is durable.
        """
        if self._passed(moment) or (timeout is not None and timeout <= 0):
            return self._passed(moment)
        turn = threading.Lock()
        turn.acquire()
        release = _once(turn.release)
        self._when(moment, release)
        end = None if timeout is None else time.monotonic() + timeout
        try:
            if alone:
                self._nudge(moment)
            while not self._passed(moment):
                left = NUDGE if end is None else min(NUDGE, end - time.monotonic())
                if left <= 0:
                    return False
                if not turn.acquire(timeout=left) and not self._passed(moment):
                    self._check_trouble()
                    self._nudge(moment)
            return True
        finally:
            self._forget(release)

    def _nudge(self, moment: str) -> None:
        """Say that somebody blocks on this task; the broker answers with what it knows."""
        if moment in ("done", "value") and self._refused is None and self._handed_over:
            self.awaited = moment == "value"
            self._broker.watch(self.task_id, self, value=self.awaited)

    def _check_trouble(self) -> None:
        trouble = self._broker.trouble()
        if trouble is not None:
            raise BrokerUnreachable(
                f"{self.task_name} ({self.task_id[:8]}) cannot be waited for: {trouble}"
            ) from trouble

    async def _await(self, moment: str, timeout: float | None = None) -> None:
        """Wait for a moment without blocking the loop."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not future.done():
                future.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits
                loop.call_soon_threadsafe(resolve)

        self._when(moment, wake)
        end = None if timeout is None else loop.time() + timeout
        try:
            self._nudge(moment)
            while not future.done():
                left = NUDGE if end is None else min(NUDGE, end - loop.time())
                if left <= 0:
                    raise self._timeout(timeout)
                done, _ = await asyncio.wait({future}, timeout=left)
                if not done:
                    self._check_trouble()
                    self._nudge(moment)
        finally:
            self._forget(wake)

    def _timeout(self, timeout: float | None) -> ResultTimeout:
        return ResultTimeout(
            f"{self.task_name} ({self.task_id[:8]}) is {self.status} after {timeout:g} s; "
            "it goes on, and result() may be called again"
        )

    def __await__(self) -> Generator[Any, None, TaskHandle[R]]:
        yield from self._await("accepted").__await__()
        if self._refused is not None:
            raise self._refused
        return self

    # -- the end ---------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> R:
        """Block until the task has ended and return its value.

        Parameters
        ----------
        timeout : float or None
            Seconds; `None` waits for ever, 0 returns at once.

        Raises
        ------
        BaseException
            What the task raised, with the frames on its worker as the cause.
        TaskError
            How it ended, if neither with a value nor with an exception of its own.
        ResultTimeout
            It has not ended in time; it goes on.
        BrokerUnreachable
            No hub answers, and none can be started.
        """
        if not self._wait_for("value", timeout):
            raise self._timeout(timeout)
        value, error = self._load()
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    async def value(self, timeout: float | None = None) -> R:
        """Wait as `result` does, without blocking the event loop."""
        await self._await("value", timeout)
        value, error = self._load()
        if error is not None:
            raise error
        return value  # type: ignore[no-any-return]

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Block until the task has ended and return its exception, or `None`."""
        if not self._wait_for("value", timeout):
            raise self._timeout(timeout)
        return self._load()[1]

    async def wait_result(
        self, check_interval: float = 0.0, timeout: float = -1.0, with_logs: bool = False
    ) -> Result[R]:
        """Wait for the end and return taskiq's `Result`; `check_interval` is not needed."""
        await self._await("value", None if timeout < 0 else timeout)
        return self._as_result(with_logs)

    async def get_result(self, with_logs: bool = False) -> Result[R]:
        """Return taskiq's `Result`; raise `ResultTimeout` if there is none yet."""
        await self._await("value", 0.0 if not self._passed("done") else None)
        return self._as_result(with_logs)

    async def is_ready(self) -> bool:
        """Return whether the task has ended."""
        return self.done()

    def done(self) -> bool:
        """Whether the task has ended, in whatever way."""
        return self._passed("done")

    def add_done_callback(self, call: Callable[[TaskHandle[R]], Any]) -> None:
        """Call `call(handle)` once the task has ended, from another thread; at once if it has.

        What it raises is logged.
        """

        def ended() -> None:
            try:
                call(self)
            except Exception:  # not ours: the thread that calls it serves others too
                _log.exception("The callback %r of %s raised.", call, self.task_name)

        self._when("done", ended)

    def cancel(self, timeout: float = 5.0) -> str:
        """End the task if it has not begun.

        Returns
        -------
        str
            "cancelled", or "too_late" when it runs or has ended.
        """
        if self._passed("done"):
            return "too_late"
        words = ask(self._broker, "cancel", [self.task_id], timeout)
        return str(words[self.task_id])

    # -- facts -----------------------------------------------------------------------------

    @property
    def status(self) -> TaskStatus:
        """Where the task is, as far as is known here."""
        return self._status

    @property
    def worker(self) -> str:
        """Name of the worker that runs or ran it."""
        return self._worker

    @property
    def arguments(self) -> dict[str, Any]:
        """The call's arguments by name, as far as they are known here."""
        signature = self._task.signature if self._task is not None else None
        if signature is None:
            given = [a for a in self._args if not isinstance(a, Captured)]
            return {**{f"arg{i}": a for i, a in enumerate(given)}, **self._kwargs}
        bound = signature.bind(*self._args, **self._kwargs)
        named: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_KEYWORD:
                named.update(value)
            else:
                named[name] = value
        return named

    @property
    def captured(self) -> dict[str, Any]:
        """What a cell was given of its notebook's names, as far as it is known here."""
        return next((dict(a) for a in self._args if isinstance(a, Captured)), {})

    @property
    def vars(self) -> dict[str, Any]:
        """Wait as `result` does, and return what a cell gave back, by name."""
        self.result()
        return dict(self._outputs)

    @property
    def output(self) -> TaskOutput:
        """What the task has printed and displayed so far."""
        if self._outcome is not None or self._accepted:
            self._fill_output()
        return TaskOutput([self._notes[n] for n in sorted(self._notes)])

    def _fill_output(self) -> None:
        """Fetch pieces, numbered from 0, that were not pushed to this handle."""
        after = -1
        while after + 1 in self._notes:
            after += 1
        if self._outcome is None and after >= 0 and after == max(self._notes):
            return
        while True:
            body = {"task_id": self.task_id, "after": after}
            pieces = ask(self._broker, "output", body)
            if not pieces:
                return
            self._notes.update(pieces)
            after = pieces[-1][0]

    @property
    def facts(self) -> Outcome | None:
        """When, where and how often it ran, once it has ended."""
        return self._outcome

    def _load(self) -> tuple[Any, BaseException | None]:
        """Return value and error; loaded once."""
        if self._refused is not None:
            return None, self._refused.with_traceback(None)
        if self._loaded is None:
            assert self._outcome is not None
            self._loaded = self._decode(self._outcome)
            self._buffers = ()
            if self._deliver is not None:
                self._deliver(self._outputs, self._loaded[1])
        value, error = self._loaded
        # a traceback grows with each raise: what is raised again shows only this time
        return value, None if error is None else error.with_traceback(None)

    def _decode(self, outcome: Outcome) -> tuple[Any, BaseException | None]:
        parcel = Parcel(outcome.body, self._buffers)
        status = TaskStatus(outcome.status)
        if status is TaskStatus.SUCCEEDED:
            value = self._broker.serializer.loads(parcel)
            if isinstance(value, CellResult):
                value, self._outputs = value
            return value, None
        if outcome.body:
            return None, load_exception(self._broker.serializer, parcel)
        text = f"{self.task_name} ({self.task_id[:8]}) {status}: {outcome.error}"
        if status is TaskStatus.CRASHED:
            return None, TaskCrashed(text, outcome.error.split("\n"))
        return None, _ENDS[status](text)

    def _as_result(self, with_logs: bool) -> Result[R]:
        value, error = self._load()
        seconds = self._outcome.seconds if self._outcome is not None else 0.0
        return Result(
            is_err=error is not None,
            return_value=value,
            error=error,
            execution_time=seconds,
            log=self.output.text if with_logs else None,
        )

    # -- travelling and looks --------------------------------------------------------------

    def __nbtaskq_task__(self) -> str:
        """Id under which this handle stands for its result in another task's arguments."""
        return self.task_id

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (self.task_id, self.task_name)

    def __dir__(self) -> list[str]:
        hidden = {"wait_result", "get_result", "is_ready"}
        hidden |= {n for n in super().__dir__() if n.startswith(("on_", "hold_", "hand_"))}
        return [name for name in super().__dir__() if name not in hidden]

    def __repr__(self) -> str:
        call = f"{self.task_name}({arguments_text(self.arguments)})"
        where = f" on {self._worker}" if self._worker else ""
        tail = ""
        if self._outcome is not None:
            tail = f", {self._outcome.seconds:.3g} s"
            if self._outcome.error:
                tail += f": {self._outcome.error}"
        elif self._refused is not None:
            return f"<{call} not sent: {self._refused}>"
        return f"<{call} {self.status}{where}{tail} [{self.task_id[:8]}]>"


def arguments_text(arguments: dict[str, Any]) -> str:
    """Return arguments as short text, whatever their `__repr__` does."""
    parts = []
    for name, value in arguments.items():
        try:
            text = reprlib.repr(value)
        except Exception as error:
            text = f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
        parts.append(f"{name}={text}")
    return ", ".join(parts)


def _once(call: Callable[[], Any]) -> Callable[[], None]:
    """Return a callable that calls `call` the first time only."""
    left = [call]

    def first() -> None:
        with contextlib.suppress(IndexError):
            left.pop()()

    return first


def _attach(task_id: str, task_name: str) -> TaskHandle[Any]:
    """Rebuild a handle that travelled inside a function's globals."""
    from nbtaskq.client.current import current_broker

    handle: TaskHandle[Any] = TaskHandle(current_broker(), task_id, task_name)
    handle._broker.watch(task_id, handle)
    return handle
