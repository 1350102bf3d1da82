"""The frozen builder of one send: every `with_*` returns another one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from nbtaskq.client.batch import Batch
from nbtaskq.client.current import current_broker
from nbtaskq.client.options import is_text, read_options
from nbtaskq.client.sending import Call, Plan, calls_of_map, calls_of_starmap, calls_of_sweep, send
from nbtaskq.errors import TaskArgumentError, TaskDefinitionError

if TYPE_CHECKING:
    from nbtaskq.abc import Broker
    from nbtaskq.client.definition import Definition
    from nbtaskq.client.handle import TaskHandle

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Kicker(Generic[P, R]):
    """How a task will be sent. It never changes the task, nor itself."""

    task: Definition[P, R]
    labels: tuple[tuple[str, Any], ...] = ()
    task_id: str | None = None
    broker: Broker | None = None

    def with_labels(self, **labels: Any) -> Kicker[P, R]:
        """Return a kicker with more labels; of equal names the later one counts."""
        read_options(labels)
        return replace(self, labels=tuple({**dict(self.labels), **labels}.items()))

    def with_task_id(self, task_id: str) -> Kicker[P, R]:
        """Return a kicker that sends under this id; sending it twice stores it once."""
        known = isinstance(task_id, str) and is_text(task_id)
        if not known or not 0 < len(task_id.encode()) <= 200:
            raise TaskDefinitionError(
                f"a task id is a string of 1 to 200 bytes, not {task_id!r:.80}"
            )
        return replace(self, task_id=task_id)

    def with_broker(self, broker: Broker) -> Kicker[P, R]:
        """Return a kicker that sends through another broker."""
        return replace(self, broker=broker)

    def with_delay(self, seconds: float) -> Kicker[P, R]:
        """Return a kicker whose message waits before it may run."""
        return self.with_labels(delay=seconds)

    def with_priority(self, priority: int) -> Kicker[P, R]:
        """Return a kicker with a priority; higher runs first, 0 is the default."""
        return self.with_labels(priority=priority)

    def kiq(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Send one call and return its handle at once.

        Raises
        ------
        TaskArgumentError
            The call does not fit the signature.
        SerializationError
            An argument, or what the function captures, cannot travel.
        QueueFull
            The outbox stayed full.
        """
        return send(self._plan(self.task_id), ((args, kwargs),))[0]

    def map(self, *iterables: Iterable[Any]) -> Batch[R]:
        """Send one call for each row of the equally long iterables."""
        if not iterables:
            raise TaskArgumentError("map() takes at least one iterable")
        for given in iterables:
            if not isinstance(given, Iterable):
                raise TaskArgumentError(
                    f"map({given!r:.60}) takes a list of values, one call for each; for one call "
                    f"write kiq({given!r:.60})"
                )
        return self._batch(calls_of_map(iterables))

    def starmap(self, rows: Iterable[Iterable[Any]]) -> Batch[R]:
        """Send one call for each row, its items being the positional arguments."""
        return self._batch(calls_of_starmap(rows))

    def sweep(self, **grid: Iterable[Any]) -> Batch[R]:
        """Send one call for each combination of the keywords' values."""
        return self._batch(calls_of_sweep(grid))

    def _plan(self, task_id: str | None, batch: bytes = b"") -> Plan:
        labels = {**self.task.labels, **dict(self.labels)}
        return Plan(self.task, self.broker or current_broker(), labels, task_id, batch)

    def _batch(self, calls: Iterable[Call]) -> Batch[R]:
        if self.task_id is not None:
            raise TaskDefinitionError("one task id cannot stand for a whole batch")
        batch_id = os.urandom(8)
        handles = send(self._plan(None, batch_id), calls)
        return Batch(self.task.task_name, handles, batch_id.hex())
