"""What peers ask of the store: ends of tasks, and objects. Nothing in here waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.actions import Lookup
from nbtaskq.hub.history import Reader
from nbtaskq.hub.protocol import Finished, Given, Missing, Outcome, Wire
from nbtaskq.hub.state import HubState
from nbtaskq.hub.telling import WITHHOLD
from nbtaskq.hub.vault import Vault, weigh
from nbtaskq.message import Buffer

#: ids in one query, and in one of its statements; bytes after which a query goes no further
PAGE, STEP, PAGE_BYTES = 500, 64, 8 << 20
#: objects in one query
OBJECTS = 8

Query = Callable[[Reader], Any]

_log = logging.getLogger(__name__)


class Send(Protocol):
    """How peers are reached."""

    def __call__(self, peer: bytes, message: Wire, buffers: Sequence[Buffer] = ()) -> None:
        """Send a message to a peer."""


class Read(Protocol):
    """How the store is reached."""

    def __call__(self, query: Query, then: Callable[[Any], None], *, fresh: bool = False) -> None:
        """Ask the store something; `then` is called with the answer, in a later turn."""


class Page(NamedTuple):
    """What one query found, which ids nobody stored, and what it did not get to."""

    outcomes: list[Outcome]
    frames: list[Buffer]
    unknown: list[bytes]
    rest: list[bytes]


def ends(task_ids: list[bytes], values: bool, reader: Reader) -> Page:
    """Return how tasks ended, as many as fit in one message."""
    outcomes: list[Outcome] = []
    frames: list[Buffer] = []
    size = done = 0
    while done < min(len(task_ids), PAGE) and size < PAGE_BYTES:
        step = task_ids[done : done + STEP]
        done += len(step)
        for outcome, buffers in reader.outcomes(step, values, WITHHOLD):
            outcomes.append(outcome)
            frames += buffers
            size += weigh(outcome.body, buffers)
    asked = task_ids[:done]
    known = reader.found(asked)
    return Page(outcomes, frames, [i for i in asked if i not in known], task_ids[done:])


class Lookups:
    """Answers `Lookup` and `Fetch`."""

    def __init__(self, state: HubState, vault: Vault, send: Send, read: Read) -> None:
        self._state = state
        self._vault = vault
        self._send = send
        self._read = read

    def look_up(self, asked: Lookup) -> None:
        """Send a client what the store knows of ended tasks, page by page."""
        query = partial(ends, asked.task_ids, asked.values)
        self._read(query, partial(self._looked_up, asked))

    def _looked_up(self, asked: Lookup, page: Page) -> None:
        if page.outcomes:
            self._send(asked.peer, Finished(page.outcomes), page.frames)
        # one may have been submitted since the question was asked
        state = self._state
        unknown = [i for i in page.unknown if i not in state.tasks and i not in state.ending]
        if unknown:
            self._send(asked.peer, Missing(unknown))
        if page.rest:
            self.look_up(asked._replace(task_ids=page.rest))

    def fetch(self, peer: bytes, digests: list[bytes]) -> None:
        """Send objects: those at hand at once, the others when they are read."""
        cold = []
        for digest in digests:
            found = self._vault.objects.get(digest)
            if found is None:
                cold.append(digest)
            else:
                self._send(peer, Given(digest, list(found[1])), (found[0],))
        if cold:
            self._fetch_cold(peer, cold)

    def _fetch_cold(self, peer: bytes, digests: list[bytes]) -> None:
        page, rest = digests[:OBJECTS], digests[OBJECTS:]
        self._read(lambda reader: reader.objects(page), partial(self._fetched, peer, page, rest))

    def _fetched(
        self, peer: bytes, page: list[bytes], rest: list[bytes], found: dict[bytes, Any]
    ) -> None:
        missing = []
        for digest in page:
            item = found.get(digest)
            if item is None or isinstance(item, TaskCorrupt):
                if item is not None:
                    _log.error("%s", item)
                missing.append(digest)
                continue
            body, refs = item
            self._vault.objects.put(digest, item, weigh(body))
            self._send(peer, Given(digest, list(refs)), (body,))
        if missing:
            self._send(peer, Missing(missing))
        if rest:
            self._fetch_cold(peer, rest)
