"""What travels: messages, their bytes, and how they end."""

from __future__ import annotations

import enum
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

#: Anything whose bytes can be read without a copy.
Buffer = bytes | bytearray | memoryview


class Parcel(NamedTuple):
    """A serialized value: a body, and large buffers beside it that are never copied into it."""

    body: bytes
    buffers: Sequence[Buffer] = ()
    #: ids of the tasks whose results stand in this value (its dependencies)
    needs: tuple[str, ...] = ()
    #: digests of the objects that must be at hand to load it
    refs: tuple[bytes, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size in bytes, buffers included."""
        return len(self.body) + sum(memoryview(b).nbytes for b in self.buffers)


class Object(NamedTuple):
    """Content-addressed bytes that travel once: a frozen function, or a large buffer of one."""

    digest: bytes
    body: Buffer
    refs: tuple[bytes, ...] = ()


def digest_of(*parts: Buffer) -> bytes:
    """Return the 16-byte BLAKE2b digest under which bytes are stored."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(part)
    return state.digest()


def new_task_id() -> str:
    """Return a fresh random id: 20 hexadecimal digits."""
    return os.urandom(10).hex()


class TaskStatus(enum.IntEnum):
    """Where a task is. Values from `SUCCEEDED` on are ends."""

    WAITING = 0
    QUEUED = 1
    RUNNING = 2
    SUCCEEDED = 10
    FAILED = 11
    CANCELLED = 12
    REJECTED = 13
    CRASHED = 14
    EXPIRED = 15
    UNCERTAIN = 16
    CORRUPT = 17

    @property
    def ended(self) -> bool:
        """Whether this is an end: nothing will change any more."""
        return self >= TaskStatus.SUCCEEDED

    def __str__(self) -> str:
        return self.name.lower()


class Event(enum.Enum):
    """The four moments in a broker's life that handlers can be attached to."""

    CLIENT_STARTUP = "client_startup"
    CLIENT_SHUTDOWN = "client_shutdown"
    WORKER_STARTUP = "worker_startup"
    WORKER_SHUTDOWN = "worker_shutdown"


class AckType(enum.StrEnum):
    """When a task counts as done with its worker.

    `when_received` runs it at most once, `when_saved` (the default) at least once.
    """

    WHEN_RECEIVED = "when_received"
    WHEN_SAVED = "when_saved"


#: Labels that nbtaskq acts on, with the types they take; all others are the user's.
OPTION_LABELS: dict[str, tuple[type, ...]] = {
    "priority": (int,),
    "delay": (int, float),
    "expires": (int, float),
    "ack_type": (str,),
    "max_retries": (int,),
}

#: Options of the task language that this version does not act on; they are refused, not ignored.
UNSUPPORTED_LABELS = frozenset(
    {"timeout", "schedule", "reuse", "seed", "fresh", "max_memory", "retry_on_error"}
)


class Message:
    """One call on its way: who is called, with what, and under which labels.

    Hooks may change `labels` in place. Assigning `args` or `kwargs` marks the message so that
    its payload is serialized again.
    """

    __slots__ = ("_args", "_kwargs", "changed", "labels", "task_id", "task_name")

    def __init__(
        self,
        task_id: str,
        task_name: str,
        labels: dict[str, Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.task_id = task_id
        self.task_name = task_name
        self.labels = labels
        self._args = args
        self._kwargs = kwargs if kwargs is not None else {}
        self.changed = False

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments of the call."""
        return self._args

    @args.setter
    def args(self, value: Iterable[Any]) -> None:
        self._args = tuple(value)
        self.changed = True

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the call."""
        return self._kwargs

    @kwargs.setter
    def kwargs(self, value: dict[str, Any]) -> None:
        self._kwargs = value
        self.changed = True

    def __repr__(self) -> str:
        return f"Message({self.task_name!r}, task_id={self.task_id!r}, labels={self.labels!r})"


class Result(Generic[T]):
    """How a task ended, in taskiq's words.

    Attributes
    ----------
    is_err : bool
        Whether it ended otherwise than with a value.
    return_value : object
        The value, `None` when `is_err`.
    error : BaseException or None
        The task's exception, or the `TaskError` that names its end.
    execution_time : float
        Seconds in user code.
    labels : dict
        The message's labels as they were when it ended.
    log : str or None
        What the task printed, when it was asked for.
    """

    __slots__ = ("error", "execution_time", "is_err", "labels", "log", "return_value")

    def __init__(
        self,
        *,
        is_err: bool,
        return_value: T,
        execution_time: float,
        error: BaseException | None = None,
        labels: dict[str, Any] | None = None,
        log: str | None = None,
    ) -> None:
        self.is_err = is_err
        self.return_value = return_value
        self.execution_time = execution_time
        self.error = error
        self.labels = labels if labels is not None else {}
        self.log = log

    def raise_for_error(self) -> Result[T]:
        """Return this result, or raise its error."""
        if self.error is not None:
            raise self.error
        return self

    def __repr__(self) -> str:
        what = f"error={self.error!r}" if self.is_err else f"return_value={self.return_value!r}"
        return f"Result({what}, execution_time={self.execution_time:.3g})"


class Captured(dict[str, Any]):
    """What a cell finds of its sender's names; it travels beside the arguments, and is none."""


class CellResult(NamedTuple):
    """What a cell task gives back: the value of its last expression, and its outputs by name."""

    value: Any
    outputs: dict[str, Any]
