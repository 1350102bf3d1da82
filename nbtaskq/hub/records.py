"""What the hub remembers of tasks, workers, clients and pools while they live."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from nbtaskq.hub.protocol import Died, Environment, Inbound, Outcome
from nbtaskq.message import Buffer, TaskStatus

#: nanoseconds that a task is taken to need while nothing is known of it
UNKNOWN = 10**15


class TaskRecord(msgspec.Struct, gc=False):
    """An unended task; its payload is in the host's keeping, under `seq`.

    A million of them wait in memory: ids are bytes, names are shared strings.
    """

    seq: int
    task_id: bytes
    name: str
    owner: bytes
    environment: str
    checksum: int
    flavor: int = 0
    priority: int = 0
    at_most_once: bool = False
    due: float = 0.0
    expires_at: float = 0.0
    attempts: int = 0
    #: one sentence for each death it is charged with
    reasons: tuple[str, ...] = ()
    #: rows of all tasks whose results it needs, and how many of them have not ended
    needs: tuple[int, ...] = ()
    missing: int = 0
    status: int = TaskStatus.WAITING
    #: fences the current lease; 0 when there is none
    token: int = 0
    worker: str = ""
    #: estimated nanoseconds that it was leased with
    estimate: int = UNKNOWN
    #: several ran when their worker died: run again with nothing beside it
    alone: bool = False
    #: loaded after a restart and perhaps still held by a worker; `token` is then the stored one
    recovering: bool = False


class Ending(msgspec.Struct, gc=False):
    """A task that has ended but whose end is not yet durable."""

    task: TaskRecord
    outcome: Outcome
    buffers: Sequence[Buffer]
    #: sessions that have the value already
    told: tuple[bytes, ...] = ()


class Client(msgspec.Struct, eq=False):
    """A session of a client; it outlives its connections."""

    session: bytes
    environment: Environment
    #: what its tasks' workers are compared by
    environment_key: str
    #: where it is heard from, and where it can be reached
    address: bytes = b""
    peer: bytes | None = None
    notebook: str = ""
    seen: float = 0.0
    #: number of the submission that is being looked up, and what came behind it
    checking: int | None = None
    behind: deque[tuple[Inbound, Sequence[Buffer]]] = msgspec.field(default_factory=deque)


class Worker(msgspec.Struct, eq=False):
    """A worker kernel and what it holds."""

    name: str
    session: bytes
    environment: str
    concurrency: int
    address: bytes = b""
    peer: bytes | None = None
    #: token → task, in the order in which they were sent
    held: dict[int, TaskRecord] = {}
    #: estimated nanoseconds of work that it holds
    load: int = 0
    #: all `Settle` up to this number have arrived; those beyond a gap are in `ahead`
    settled: int = 0
    ahead: set[int] = set()
    lease_until: float = 0.0
    #: when it last settled something, or was given work while it had none
    moved: float = 0.0
    #: its task takes longer than was thought: it gets no others behind it
    stuck: bool = False
    #: its death notice waits for results that are still in the socket
    died: Died | None = None
    died_at: float = 0.0

    def count(self, number: int) -> None:
        """Take in that the `Settle` of this number has arrived."""
        if self.settled and number > self.settled + 1:
            self.ahead.add(number)
            return
        self.settled = max(self.settled, number)
        while self.ahead and self.settled + 1 in self.ahead:
            self.settled += 1
            self.ahead.discard(self.settled)


class Pool(msgspec.Struct, eq=False):
    """A supervisor: the parent of workers, and who takes orders."""

    session: bytes
    address: bytes = b""
    peer: bytes | None = None
    seen: float = 0.0
    #: worker ids of its last `Renew`; `None` before the first
    workers: list[str] | None = None
    facts: dict[str, object] = {}
