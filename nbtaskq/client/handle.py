"""The client's view of one sent message: its value or its error, its output, its facts.

`result()` blocks, `await value()` does not, and both raise the task's own exception.
"""

from __future__ import annotations

import inspect
import logging
import reprlib
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from nbtaskq.client.asking import ask
from nbtaskq.client.output import TaskOutput
from nbtaskq.client.waiting import Waiting
from nbtaskq.errors import (
    DependencyFailed,
    TaskCancelled,
    TaskCorrupt,
    TaskCrashed,
    TaskError,
    TaskExpired,
    TaskRejected,
    TaskUncertain,
)
from nbtaskq.hub.protocol import Outcome
from nbtaskq.message import Captured, CellResult, Parcel, Result, TaskStatus
from nbtaskq.serializers.exceptions import load_exception

if TYPE_CHECKING:
    from nbtaskq.abc import Broker
    from nbtaskq.client.definition import Definition

R = TypeVar("R")

_ENDS: dict[TaskStatus, type[TaskError]] = {
    TaskStatus.FAILED: DependencyFailed,
    TaskStatus.CANCELLED: TaskCancelled,
    TaskStatus.REJECTED: TaskRejected,
    TaskStatus.CRASHED: TaskCrashed,
    TaskStatus.EXPIRED: TaskExpired,
    TaskStatus.UNCERTAIN: TaskUncertain,
    TaskStatus.CORRUPT: TaskCorrupt,
}

_log = logging.getLogger("nbtaskq.client")


class TaskHandle(Waiting, Generic[R]):
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
        super().__init__(broker, task_id, task_name)
        self._task = task
        self._args = args
        self._kwargs = kwargs or {}
        self._loaded: tuple[Any, BaseException | None] | None = None
        self._outputs: dict[str, Any] = {}
        self._deliver: Callable[[dict[str, Any], BaseException | None], None] | None = None

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


def _attach(task_id: str, task_name: str) -> TaskHandle[Any]:
    """Rebuild a handle that travelled inside a function's globals."""
    from nbtaskq.client.current import current_broker

    handle: TaskHandle[Any] = TaskHandle(current_broker(), task_id, task_name)
    handle._broker.watch(task_id, handle)
    return handle
