"""Questions to the store that are under way: each is answered once, or asked again."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nbtaskq.hub.lookups import Query
from nbtaskq.hub.store import Completed, Store

#: seconds after which a question that failed is asked again
AGAIN = 1.0

_log = logging.getLogger(__name__)


class _Question(NamedTuple):
    query: Query
    then: Callable[[Any], None]
    fresh: bool


class Reading:
    """Asks the store, and goes on with its answers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: dict[int, _Question] = {}
        self._failed: deque[tuple[float, _Question]] = deque()

    def read(self, query: Query, then: Callable[[Any], None], *, fresh: bool = False) -> None:
        """Ask something; `then` is called with the answer, in a later turn.

        A `fresh` answer has seen all that was written before, unless nothing can be written now.
        """
        ticket = self._store.read(query, fresh=fresh and self._store.failed is None)
        self._asked[ticket] = _Question(query, then, fresh)

    def answered(self, completed: Sequence[Completed], now: float) -> None:
        """Go on with answers, in the order of the questions."""
        for ticket, value in completed:
            question = self._asked.pop(ticket)
            if isinstance(value, BaseException):
                if not self._failed:
                    _log.warning("the store cannot be read: %r", value)
                self._failed.append((now + AGAIN, question))
            else:
                question.then(value)

    def tick(self, now: float) -> None:
        """Ask again what failed."""
        while self._failed and self._failed[0][0] <= now:
            self.read(*self._failed.popleft()[1][:2])

    def deadline(self) -> float:
        """Return the time of the next `tick` that has something to do."""
        return self._failed[0][0] if self._failed else math.inf
