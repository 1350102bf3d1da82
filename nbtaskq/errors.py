"""Every exception of nbtaskq. Each says what was tried, what was found and what to do next.

NbTaskQError
├── TaskDefinitionError (TypeError)      a task was declared wrongly
│   ├── TaskArgumentError                a call does not fit the task's signature
│   └── CellSyntaxError (SyntaxError)    a cell does not compile; nothing was sent
├── SerializationError (TypeError)       a value cannot travel; names the path to it
│   └── DeserializationError             bytes cannot be loaded here; they are kept
├── SendError (ConnectionError)          a message did not reach the broker
│   ├── QueueFull                        the outbox or the queue is at its bound
│   ├── PayloadTooLarge (ValueError)     a message is over the limit
│   └── TaskIdConflict (ValueError)      this id is taken by another message
├── BrokerUnreachable (ConnectionError)  no hub, and none can be started
│   ├── ProtocolMismatch                 the hub or the store is of another version
│   ├── HubAlreadyRunning                another hub serves this workspace
│   └── WorkerStartError                 worker kernels do not come up
├── WorkspaceError (OSError)             the workspace cannot be used
├── StoreError (OSError)                 the store's file cannot be used
├── UnknownTask (LookupError)            no task of this id or name
│   └── AmbiguousTask                    several tasks match
├── ResultTimeout (TimeoutError)         waiting ended; the task goes on
├── ValuePending (RuntimeError)          a name was used whose value a task still computes
└── TaskError                            how a task ended, when not with its own exception
    ├── TaskCancelled                    somebody cancelled it
    ├── TaskRejected                     its worker refused it
    ├── TaskCrashed                      its workers died, twice
    ├── TaskExpired                      it was too old to start
    ├── TaskUncertain                    it ran at most once; whether to its end is unknown
    ├── TaskCorrupt                      its stored bytes are damaged
    ├── TaskTimeout (TimeoutError)       it ran longer than its `timeout`
    ├── DependencyFailed                 a task it depends on failed
    └── RemoteTraceback                  the cause of a task's exception: its frames there
"""

from __future__ import annotations

from collections.abc import Sequence


class NbTaskQError(Exception):
    """Base of all errors that nbtaskq raises."""


class TaskDefinitionError(NbTaskQError, TypeError):
    """A task was declared with something that nbtaskq cannot use."""


class TaskArgumentError(TaskDefinitionError):
    """A call does not fit the task's signature; nothing was sent."""


class CellSyntaxError(TaskDefinitionError, SyntaxError):
    """A cell does not compile; nothing was sent."""


class SerializationError(NbTaskQError, TypeError):
    """A value cannot be serialized.

    Attributes
    ----------
    path : str
        Where the offending value sits, e.g. ``args[2].conn``; empty when unknown.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.args[0], self.path))


class DeserializationError(SerializationError):
    """Bytes cannot be loaded in this process; the bytes themselves are kept."""


class SendError(NbTaskQError, ConnectionError):
    """A message did not reach the broker; the cause is attached."""


class QueueFull(SendError):
    """The outbox or the queue is at its bound; the message says what of the call was taken."""


class PayloadTooLarge(SendError, ValueError):
    """A message is larger than the limit; nothing was sent."""


class TaskIdConflict(SendError, ValueError):
    """A task of this id exists with another payload."""


class BrokerUnreachable(NbTaskQError, ConnectionError):
    """No hub answers, and none could be started."""


class ProtocolMismatch(BrokerUnreachable):
    """The hub, the worker or the store speaks another version."""


class HubAlreadyRunning(BrokerUnreachable):
    """Another hub serves this workspace; its pid is named."""


class WorkerStartError(BrokerUnreachable):
    """Worker kernels end before they are ready; their last words are attached."""


class WorkspaceError(NbTaskQError, OSError):
    """The workspace folder cannot be created, trusted or written."""


class StoreError(NbTaskQError, OSError):
    """The store's file cannot be used; it was left untouched."""


class UnknownTask(NbTaskQError, LookupError):
    """No task of this id or name is known."""


class AmbiguousTask(UnknownTask):
    """Several tasks match; the message lists them."""


class ResultTimeout(NbTaskQError, TimeoutError):
    """The waiting ended before the task did; the task goes on."""


class ValuePending(NbTaskQError, RuntimeError):
    """A name was used whose value is still computed by a task."""


class TaskError(NbTaskQError):
    """A task ended otherwise than with a value or its own exception."""


class TaskCancelled(TaskError):
    """The task was cancelled before it ended."""


class TaskRejected(TaskError):
    """The worker refused the task, or did not know it."""


class TaskCrashed(TaskError):
    """The task's workers died while it ran.

    Attributes
    ----------
    reasons : tuple of str
        One sentence for each death, oldest first.
    """

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.args[0], self.reasons))


class TaskExpired(TaskError):
    """The task was older than its `expires` when its turn came."""


class TaskUncertain(TaskError):
    """An at-most-once task whose worker died: it may or may not have run to its end."""


class TaskCorrupt(TaskError):
    """The stored bytes of the task or of its result are damaged."""


class TaskTimeout(TaskError, TimeoutError):
    """The task ran longer than its `timeout`."""


class DependencyFailed(TaskError):
    """A task whose result is an argument of this one did not succeed."""


class RemoteTraceback(TaskError):
    """The frames of a task's exception as its worker saw them; set as the exception's cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}" if self.args else ""
