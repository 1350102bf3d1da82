"""The frames between hub and peers: MessagePack structs, then raw buffers.

    frame 0   one struct of `Inbound` or `Outbound`
    frame 1…  the buffers that the struct counts, in its order

Structs are strict: an unknown tag, a missing field or a wrong type is a malformed frame.
Ids travel as bytes; a token fences a lease: it is never handed out twice.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence
from typing import Any, Union

import msgspec

from nbtaskq.message import Buffer

#: Peers of another version are refused at hello.
VERSION = 1


class Role(enum.StrEnum):
    """What a peer of the hub is."""

    CLIENT = "client"
    WORKER = "worker"
    POOL = "pool"


class Flavor(enum.IntEnum):
    """Where a task's function runs in its worker."""

    SYNC = 0
    ASYNC = 1


class VerdictKind(enum.IntEnum):
    """What a receiver decided about a delivery."""

    RESULT = 0
    RETRY = 1
    REQUEUE = 2
    REJECT = 3


class Wire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """Base of what travels: positional, immutable."""


class Environment(Wire, frozen=True):
    """The Python that a task needs: tasks go to workers of their sender's environment."""

    prefix: str
    minor: str
    executable: str = ""

    @classmethod
    def here(cls, executable: str = sys.executable) -> Environment:
        """Return this process's; `executable` when another Python starts its workers."""
        return cls(sys.prefix, f"{sys.version_info.major}.{sys.version_info.minor}", executable)

    @property
    def key(self) -> str:
        """What two peers compare."""
        return f"{self.prefix}|{self.minor}"


# -- parts ---------------------------------------------------------------------------------


class Submission(Wire, frozen=True, gc=False):
    """One task on its way to the hub. `labels` and `body` are opaque to it."""

    task_id: bytes
    name: str
    labels: bytes
    body: bytes
    buffers: int = 0
    code: bytes = b""
    flavor: int = Flavor.SYNC
    priority: int = 0
    delay: float = 0.0
    expires: float = 0.0
    at_most_once: bool = False
    needs: list[bytes] = []
    batch: bytes = b""
    index: int = 0


class Assignment(Wire, frozen=True, gc=False):
    """One task on its way to a worker, fenced by its token."""

    task_id: bytes
    token: int
    name: str
    labels: bytes
    body: bytes
    buffers: int
    code: bytes
    flavor: int
    attempt: int
    results: list[Outcome] = []


class Outcome(Wire, frozen=True, gc=False):
    """How a task ended: what the client, a dependent and the history see.

    `body` holds the serialized value, or the serialized exception of a failed task; for ends
    that the hub decides it is empty and `error` says why.
    """

    task_id: bytes
    status: int
    body: bytes = b""
    buffers: int = 0
    started: float = 0.0
    seconds: float = 0.0
    worker: str = ""
    attempts: int = 0
    error: str = ""
    #: the value is stored but too large to be sent unasked
    withheld: bool = False


class Verdict(Wire, frozen=True, gc=False):
    """What became of one delivery; `outcome` counts only for results and rejections."""

    token: int
    kind: int
    outcome: Outcome
    delay: float = 0.0
    labels: bytes = b""


class Slot(Wire, frozen=True, gc=False):
    """A task that a worker had begun when it died, read from its flight recorder."""

    task_id: bytes
    token: int
    started: float
    executed: bool = False


class Note(Wire, frozen=True, gc=False):
    """One numbered piece of a task's output: a Jupyter output message as JSON bytes."""

    task_id: bytes
    token: int
    number: int
    content: bytes


# -- towards the hub -----------------------------------------------------------------------


class Hello(Wire, frozen=True, tag="hello"):
    """First word of every connection. `session` stays the same over reconnects.

    A worker lists the deliveries it holds, so that a restarted hub does not run them again.
    """

    version: int
    role: str
    session: bytes
    environment: Environment
    pid: int
    name: str = ""
    notebook: str = ""
    holding: list[tuple[bytes, int]] = []
    concurrency: int = 100


class Put(Wire, frozen=True, tag="put"):
    """An object; its body is the next frame."""

    digest: bytes
    refs: list[bytes] = []


class Submit(Wire, frozen=True, tag="submit"):
    """Tasks of one client; `again` marks what may have been stored before.

    A thread blocks on those in `awaited`: their values are sent even before the commit.
    """

    batch: int
    tasks: list[Submission]
    again: bool = False
    awaited: list[bytes] = []


class Wait(Wire, frozen=True, tag="wait"):
    """A thread blocks on this task: send its value even before the commit."""

    task_id: bytes


class Get(Wire, frozen=True, tag="get"):
    """Ask for what is known of tasks; unended ones are watched from now on.

    `values` asks for withheld values too.
    """

    task_ids: list[bytes]
    values: bool = False


class Cancel(Wire, frozen=True, tag="cancel"):
    """End tasks that have not begun; answered by `Answer` with a word for each."""

    request: int
    task_ids: list[bytes]


class Control(Wire, frozen=True, tag="control"):
    """A question or an order; `body` is plain data, answered by `Answer`."""

    request: int
    verb: str
    body: Any = None


class Ping(Wire, frozen=True, tag="ping"):
    """Ask whether the hub is there and still knows this peer."""


class Settle(Wire, frozen=True, tag="settle"):
    """A worker's verdicts; `number` grows by one with each message."""

    number: int
    verdicts: list[Verdict]


class Started(Wire, frozen=True, tag="started"):
    """Deliveries that are running now, with the time they began."""

    running: list[tuple[bytes, int, float]]


class Output(Wire, frozen=True, tag="output"):
    """Pieces of output, in order."""

    notes: list[Note]


class Recalled(Wire, frozen=True, tag="recalled"):
    """Deliveries that the worker gave back unstarted."""

    tokens: list[int]
    kept: list[int] = []


class Fetch(Wire, frozen=True, tag="fetch"):
    """Objects that a worker or client lacks."""

    digests: list[bytes]


class Renew(Wire, frozen=True, tag="renew"):
    """A pool's word that these workers' processes live; `facts` feed the status display."""

    workers: list[str]
    facts: dict[str, Any] = {}


class Died(Wire, frozen=True, tag="died"):
    """A pool's word that a worker's process is gone.

    `settled` is the number of the last `Settle` it sent; results up to it are still to be read.
    """

    worker: str
    reason: str
    slots: list[Slot]
    settled: int
    tail: str = ""


class Reply(Wire, frozen=True, tag="reply"):
    """A pool's answer to an `Order`."""

    request: int
    ok: bool
    body: Any = None


# -- from the hub --------------------------------------------------------------------------


class Welcome(Wire, frozen=True, tag="welcome"):
    """The hub knows you; `epoch` changes with each of its starts."""

    version: int
    epoch: int
    pid: int


class Refused(Wire, frozen=True, tag="refused"):
    """The hub will not talk to you.

    Codes: `version`, `role`, `dead` and `duplicate` (a worker's name), `unknown_peer` (hello was
    not said, or is forgotten).
    """

    code: str
    text: str


class Accepted(Wire, frozen=True, tag="accepted"):
    """A batch is stored durably, but for the tasks named with a code and a sentence.

    Codes: `conflict`, `full`, `unknown_dependency`.
    """

    batch: int
    problems: list[tuple[bytes, str, str]] = []


class Finished(Wire, frozen=True, tag="finished"):
    """Ends of tasks that this client sent or watches.

    `accepted` are batches without a problem: their receipts, that travel along.
    """

    outcomes: list[Outcome]
    accepted: list[int] = []


class Progressed(Wire, frozen=True, tag="progressed"):
    """Tasks that changed without ending: id, status, and the worker's name."""

    changes: list[tuple[bytes, int, str]]


class Missing(Wire, frozen=True, tag="missing"):
    """Ids or digests that were asked for and that nobody knows."""

    keys: list[bytes]


class Answer(Wire, frozen=True, tag="answer"):
    """The answer to a `Control` or `Cancel`."""

    request: int
    ok: bool
    body: Any = None


class Pong(Wire, frozen=True, tag="pong"):
    """Here.

    `idle` tells a pool for how many seconds nothing was to be done (0 while there is work);
    `trouble` tells a client why no worker of its environment comes up.
    """

    idle: float = 0.0
    trouble: str = ""


class Assign(Wire, frozen=True, tag="assign"):
    """Tasks for a worker, in the order in which to run them.

    `recorded`, unless 0, is a `Recorded` that travels along.
    """

    tasks: list[Assignment]
    recorded: int = 0


class Recall(Wire, frozen=True, tag="recall"):
    """Give these deliveries back if they have not begun."""

    tokens: list[int]


class Recorded(Wire, frozen=True, tag="recorded"):
    """All verdicts up to this `Settle` number are stored."""

    number: int


class Given(Wire, frozen=True, tag="given"):
    """An object; its body is the next frame."""

    digest: bytes
    refs: list[bytes] = []


class Order(Wire, frozen=True, tag="order"):
    """What a pool shall do: `scale`, `restart`, `environment`, `workers`, `stop`.

    Number 0 wants no `Reply`.
    """

    request: int
    verb: str
    body: Any = None


Inbound = Union[
    Hello, Put, Submit, Wait, Get, Cancel, Control, Ping, Settle, Started, Output, Recalled,
    Fetch, Renew, Died, Reply,
]  # fmt: skip
Outbound = Union[
    Welcome, Refused, Accepted, Finished, Progressed, Missing, Answer, Pong, Assign, Recall,
    Recorded, Given, Order, Output,
]  # fmt: skip

_encode = msgspec.msgpack.Encoder().encode
_inbound = msgspec.msgpack.Decoder(Inbound)
_outbound = msgspec.msgpack.Decoder(Outbound)


def encode(message: Wire) -> bytes:
    """Return the first frame of a message."""
    return _encode(message)


def decode_inbound(frame: Buffer) -> Inbound:
    """Read what a peer sent to the hub; raise `msgspec.DecodeError` for anything else."""
    return _inbound.decode(frame)  # type: ignore[no-any-return]


def decode_outbound(frame: Buffer) -> Outbound:
    """Read what the hub sent; raise `msgspec.DecodeError` for anything else."""
    return _outbound.decode(frame)  # type: ignore[no-any-return]


_labels = msgspec.msgpack.Decoder(dict[str, Any])


def encode_labels(labels: dict[str, Any]) -> bytes:
    """Labels as bytes; numbers, texts, bytes, None, lists, dicts, datetimes keep their type."""
    return _encode(labels) if labels else b""


def decode_labels(data: Buffer) -> dict[str, Any]:
    """Labels from bytes."""
    return _labels.decode(data) if data else {}


def take(frames: Sequence[Buffer], start: int, count: int) -> tuple[Buffer, ...]:
    """Return `count` buffers from `start` on; raise `ValueError` when frames are missing."""
    if count < 0 or start + count > len(frames):
        raise ValueError(f"{count} buffers announced, {len(frames) - start} frames left")
    return tuple(frames[start : start + count])
