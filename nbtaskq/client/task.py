"""A decorated function: `f(x)` runs here, `f.kiq(x)` runs there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from nbtaskq.client.batch import Batch
from nbtaskq.client.current import current_broker
from nbtaskq.client.definition import Definition
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.kicker import Kicker

if TYPE_CHECKING:
    from nbtaskq.abc import Broker

P = ParamSpec("P")
R = TypeVar("R")

_WRONG_VERBS = frozenset({"submit", "delay", "remote", "apply_async", "send"})


class Task(Definition[P, R]):
    """A function that can be sent.

    Parameters
    ----------
    function : callable
        Plain or `async`; calling the task calls it here.
    broker : Broker or None
        Where it is sent; `None` means the process's default broker at that moment.
    task_name : str or None
        Name in tables and messages; by default the function's.
    labels : mapping
        Options such as `priority=1`, and labels of your own.
    """

    def __init__(
        self,
        function: Callable[P, R],
        broker: Broker | None = None,
        task_name: str | None = None,
        labels: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(function, task_name, labels or {})
        self._broker = broker
        functools.update_wrapper(self, function)

    @property
    def broker(self) -> Broker:
        """The broker that a plain `kiq` uses now."""
        return self._broker if self._broker is not None else current_broker()

    @property
    def original_func(self) -> Callable[P, R]:
        """The function, under taskiq's name."""
        return self.function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here."""
        return self.function(*args, **kwargs)

    def kicker(self) -> Kicker[P, R]:
        """Return the builder of one send: labels, id, broker, delay, priority."""
        return Kicker(self, broker=self._broker)

    def kiq(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Send one call; see `Kicker.kiq`. Said "kick"."""
        return self.kicker().kiq(*args, **kwargs)

    def map(self, *iterables: Iterable[Any]) -> Batch[R]:
        """Send one call for each row of the equally long iterables."""
        return self.kicker().map(*iterables)

    def starmap(self, rows: Iterable[Iterable[Any]]) -> Batch[R]:
        """Send one call for each row, its items being the positional arguments."""
        return self.kicker().starmap(rows)

    def sweep(self, **grid: Iterable[Any]) -> Batch[R]:
        """Send one call for each combination: `fit.sweep(depth=[4, 8], trees=[50, 200])`."""
        return self.kicker().sweep(**grid)

    def __getattr__(self, name: str) -> Any:
        if name in _WRONG_VERBS:
            raise AttributeError(f"a task has no {name!r}; use `{self.__name__}.kiq(…)`")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """Act as a method inside a class; a bound one runs here."""
        return self if instance is None else functools.partial(self.function, instance)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"<task {self.task_name}{self.signature or '(…)'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        # the broker stays: where the task arrives, it is bound to the default one
        return Task, (self.function, None, self.task_name, self.labels)
