"""What the pure state asks its host to do: to send, to store, to look up.

The host performs the actions of one call in order. Store operations are numbered by the host;
when an operation is durable the host reports it with `HubState.committed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union

from nbtaskq.hub.protocol import Note, Outcome, Submission, Submit, Wire
from nbtaskq.message import Buffer


class Send(NamedTuple):
    """Send a message, with its buffers, to the peer of this routing id."""

    peer: bytes
    message: Wire
    buffers: Sequence[Buffer] = ()


class Lease(NamedTuple):
    """One attempt at a stored task, and the stored tasks whose results it needs."""

    seq: int
    token: int
    attempt: int
    needs: tuple[int, ...] = ()


class Deliver(NamedTuple):
    """Send these tasks to a worker as one `Assign`; their payloads are in the host's keeping."""

    peer: bytes
    leases: list[Lease]


class Lookup(NamedTuple):
    """Send a client what the store knows of ended tasks: `Finished`, else `Missing`."""

    peer: bytes
    task_ids: list[bytes]
    values: bool


class Check(NamedTuple):
    """Look these ids up in the store, then call `HubState.submit` with what was found."""

    peer: bytes
    submit: Submit
    buffers: Sequence[Buffer]
    task_ids: list[bytes]


class Found(NamedTuple):
    """What the store says of an id: its row, how it ended, and the checksum of its payload."""

    seq: int
    status: int
    checksum: int


class InsertTask(NamedTuple):
    """Store a new task. `due` is seconds from now; times of day are the store's affair."""

    seq: int
    owner: bytes
    notebook: str
    environment: str
    submission: Submission
    buffers: Sequence[Buffer]
    checksum: int


class LeaseTask(NamedTuple):
    """Store that an at-most-once task is about to be handed out; dispatch waits for it."""

    seq: int
    token: int


class ChangeTask(NamedTuple):
    """Store that a task will run again; no lease of it is out any more.

    `due` is seconds from now, `labels` replaces the stored ones unless `None`, `reasons` are
    the deaths it was charged with.
    """

    seq: int
    attempts: int
    due: float = 0.0
    labels: bytes | None = None
    reasons: tuple[str, ...] = ()


class FinishTask(NamedTuple):
    """Store how a task ended; its own payload may be dropped by retention later."""

    seq: int
    outcome: Outcome
    buffers: Sequence[Buffer] = ()


class AppendOutput(NamedTuple):
    """Store a piece of a task's output; the same number twice is stored once."""

    seq: int
    note: Note


class PutObject(NamedTuple):
    """Store an object unless one of this digest is there."""

    digest: bytes
    body: Buffer
    refs: tuple[bytes, ...]


class StoredTask(NamedTuple):
    """An unended task as the store gives it back after a restart.

    `due` and `expires` are seconds from now; 0 is none, and an `expires` that has passed is
    negative. `needs` are the ids of the tasks it still waits for, `met` what the store says of
    those that have ended.
    """

    seq: int
    task_id: bytes
    name: str
    owner: bytes
    notebook: str
    environment: str
    checksum: int
    flavor: int
    priority: int
    due: float
    expires: float
    at_most_once: bool
    leased: bool
    attempts: int
    needs: tuple[bytes, ...]
    reasons: tuple[str, ...]
    met: tuple[Found, ...] = ()
    #: of the last `LeaseTask`, when `leased`; 0 when it is not known
    token: int = 0


StoreOp = Union[InsertTask, LeaseTask, ChangeTask, FinishTask, AppendOutput, PutObject]
Action = Union[Send, Deliver, Lookup, Check, StoreOp]
