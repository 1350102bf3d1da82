"""Answers to `Control`: what is asked about the hub and its store, as plain data."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import msgspec

from nbtaskq.hub import orders, rows
from nbtaskq.hub.history import Reader
from nbtaskq.hub.lookups import Query, Read, Send
from nbtaskq.hub.protocol import VERSION, Answer, Control
from nbtaskq.hub.queries import PAGE
from nbtaskq.hub.state import HubState
from nbtaskq.message import TaskStatus

#: seconds for which the sizes of the store are believed: to count its rows takes a while
SIZES_HOLD = 5.0
#: most rows in one answer
ROWS = 20_000

Number = Annotated[int, msgspec.Meta(ge=-(2**63) + 1, le=2**63 - 1)]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """Base of the bodies of controls."""


class Status(Body):
    """How the hub is: nothing is to be said."""


class History(Body):
    """Which tasks, newest first; `before_seq` asks for those behind a page."""

    name: str | None = None
    notebook: str | None = None
    status: str | list[str] = []
    batch: str | None = None
    prefix: str | None = None
    before_seq: Number | None = None
    limit: Annotated[int, msgspec.Meta(ge=0)] = ROWS


class Find(Body):
    """An id, a name, or the beginning of an id; names of `notebook` come before others."""

    key: str
    notebook: str | None = None


class Batch(Body):
    """The tasks of a batch in input order; with `payloads`, what they were called with."""

    batch: str
    payloads: bool = False


class Output(Body):
    """Pieces of a task's output behind number `after`."""

    task_id: str
    after: Number = -1


class Down(Body):
    """Stop the pool; `force` although other notebooks have tasks that have not ended."""

    force: bool = False
    notebook: str | None = None


class Refusal(Exception):
    """Why a control cannot be answered, in a sentence; never leaves this module."""


class Controls:
    """Answers questions, and hands orders over.

    Parameters
    ----------
    state : HubState
        Asked, never changed.
    notebooks : mapping
        Notebook of each owner of a task that an earlier hub stored.
    send, read : callable
        How peers and the store are reached.
    facts : callable
        What the host adds to the answer to `status`.
    """

    def __init__(
        self,
        state: HubState,
        notebooks: Mapping[bytes, str],
        *,
        send: Send,
        read: Read,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        self.orders = orders.Orders(state, send)
        self._state = state
        self._notebooks = notebooks
        self._send = send
        self._read = read
        self._facts = facts
        self._begun = time.monotonic()
        self._sizes: dict[str, Any] = {}
        self._sizes_until = 0.0
        self._verbs: dict[str, tuple[type[Body], Callable[[bytes, int, Any], None]]] = {
            "status": (Status, self._status),
            "history": (History, self._history),
            "find": (Find, self._find),
            "batch": (Batch, self._batch),
            "output": (Output, self._output),
            "down": (Down, self._down),
        }

    def control(self, peer: bytes, message: Control) -> None:
        """Answer a question, now or later; whatever is wrong with it is in the answer."""
        request, verb = message.request, message.verb
        try:
            if verb in orders.VERBS:
                self._order(peer, request, verb, message.body)
            elif verb in self._verbs:
                kind, answer = self._verbs[verb]
                answer(peer, request, _converted(message, kind))
            else:
                known = ", ".join([*self._verbs, *orders.VERBS])
                raise Refusal(f"the hub knows no {verb[:100]!r}; it knows {known}")
        except Refusal as refusal:
            self._send(peer, Answer(request, False, str(refusal)))

    # -- orders ----------------------------------------------------------------------------

    def _order(self, peer: bytes, request: int, verb: str, body: Any) -> None:
        now = time.monotonic()
        if body is not None and not isinstance(body, dict):
            raise Refusal(f"{verb}: its body must be a mapping, not {type(body).__name__}")
        asked = orders.Asked(peer, request, verb, body or {}, now + orders.POOL_COMES)
        self.orders.order(asked, now)

    def _down(self, peer: bytes, request: int, body: Down) -> None:
        others = self._others(body.notebook or self._state.notebook_of(peer))
        if others and not body.force:
            listed = ", ".join(f"{count} of {name or 'a script'}" for name, count in others.items())
            raise Refusal(
                f"tasks of others have not ended here ({listed}); `down --force` stops them, "
                "and they run again after the next `up`"
            )
        self._order(peer, request, "stop", None)

    def _others(self, own: str) -> Counter[str]:
        """Return how many tasks of other notebooks have not ended."""
        clients, before = self._state.clients, self._notebooks
        owners = Counter(task.owner for task in self._state.tasks.values())
        counts: Counter[str] = Counter()
        for owner, count in owners.items():
            known = clients.get(owner)
            counts[known.notebook if known is not None else before.get(owner, "")] += count
        del counts[own]
        return counts

    # -- questions -------------------------------------------------------------------------

    def _status(self, peer: bytes, request: int, _: Status) -> None:
        body = {
            **self._state.statistics(),
            "pid": os.getpid(),
            "version": VERSION,
            "uptime": time.monotonic() - self._begun,
            **self._facts(),
        }

        def answer(sizes: dict[str, Any]) -> None:
            self._sizes = sizes
            self._send(peer, Answer(request, True, {**body, "store": sizes}))

        if time.monotonic() < self._sizes_until:
            answer(self._sizes)
        else:
            self._sizes_until = time.monotonic() + SIZES_HOLD
            self._ask(peer, request, Reader.sizes, answer, fresh=False)

    def _history(self, peer: bytes, request: int, body: History) -> None:
        wanted = {
            "name": body.name,
            "notebook": body.notebook,
            "status": _statuses(body.status),
            "batch": None if body.batch is None else _batch_id(body.batch),
            "prefix": body.prefix,
        }
        limit = min(body.limit, ROWS)
        self._pages(peer, request, wanted, limit, [], body.before_seq)

    def _pages(
        self,
        peer: bytes,
        request: int,
        wanted: dict[str, Any],
        limit: int,
        found: list[dict[str, Any]],
        before: int | None,
    ) -> None:
        """Read page after page, so that the writer is held up by one at a time."""

        def then(page: list[dict[str, Any]]) -> None:
            found.extend(page)
            if len(page) < PAGE or len(found) >= limit:
                self._send(peer, Answer(request, True, self._current(found)))
            else:
                self._pages(peer, request, wanted, limit, found, page[-1]["seq"])

        query = partial(rows.history, wanted, before, limit - len(found))
        self._ask(peer, request, query, then)

    def _find(self, peer: bytes, request: int, body: Find) -> None:
        def then(found: list[dict[str, Any]]) -> None:
            self._send(peer, Answer(request, True, self._current(found)))

        self._ask(peer, request, partial(rows.find, body.key, body.notebook), then)

    def _batch(self, peer: bytes, request: int, body: Batch) -> None:
        collected = rows.BatchRows(_batch_id(body.batch), body.payloads)

        def then(more: bool) -> None:
            if more:
                self._ask(peer, request, collected.read, then)
            else:
                self._send(peer, Answer(request, True, self._current(collected.in_order())))

        self._ask(peer, request, collected.read, then)

    def _output(self, peer: bytes, request: int, body: Output) -> None:
        def then(found: list[tuple[int, bytes]]) -> None:
            self._send(peer, Answer(request, True, found))

        self._ask(peer, request, partial(rows.pieces, body.task_id.encode(), body.after), then)

    def _current(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add what the store does not know of tasks that have not ended."""
        tasks = self._state.tasks
        for row in found:
            task = tasks.get(row["task_id"].encode())
            if task is not None:
                row["status"] = int(task.status)
                row["worker"] = task.worker
        return found

    def _ask(
        self,
        peer: bytes,
        request: int,
        query: Query,
        then: Callable[[Any], None],
        *,
        fresh: bool = True,
    ) -> None:
        """Go on with what a query gives; answer with why when it fails."""

        def ask(reader: Reader) -> tuple[Any, str]:
            try:
                return query(reader), ""
            except (OSError, ValueError, sqlite3.Error) as error:
                return None, f"the store cannot answer: {error}"

        def answer(found: tuple[Any, str]) -> None:
            if found[1]:
                self._send(peer, Answer(request, False, found[1]))
            else:
                then(found[0])

        self._read(ask, answer, fresh=fresh)


def _converted(message: Control, kind: type[Body]) -> Body:
    try:
        return msgspec.convert({} if message.body is None else message.body, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise Refusal(f"{message.verb}: {error}") from None


def _statuses(names: str | list[str]) -> list[int]:
    try:
        return [TaskStatus[name.upper()] for name in ([names] if isinstance(names, str) else names)]
    except KeyError as error:
        known = ", ".join(map(str, TaskStatus))
        raise Refusal(f"history: there is no status {error}; there are {known}") from None


def _batch_id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise Refusal(f"{text[:100]!r} is no batch's id") from None
