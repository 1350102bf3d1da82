"""A decorated function: `f(x)` runs here, `f.kiq(x)` runs there."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from nbtaskq.client.batch import Batch
from nbtaskq.client.current import current_broker
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.kicker import Kicker
from nbtaskq.client.options import read_options
from nbtaskq.errors import TaskArgumentError, TaskDefinitionError
from nbtaskq.hub.protocol import Flavor

if TYPE_CHECKING:
    from nbtaskq.abc import Broker

P = ParamSpec("P")
R = TypeVar("R")

_WRONG_VERBS = frozenset({"submit", "delay", "remote", "apply_async", "send"})


def name_of(function: Callable[..., Any]) -> str:
    """Return the task name of a function: short for one from a cell, `module:name` otherwise."""
    qualname = getattr(function, "__qualname__", None) or type(function).__name__
    name = qualname.replace("<locals>.", "").replace("<lambda>", "lambda")
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__") else f"{module}:{name}"


class Task(Generic[P, R]):
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
        if not callable(function):
            raise TaskDefinitionError(
                f"a task is made of a function, not of {function!r:.80}; "
                "write @nq.task or @nq.task(option=value)"
            )
        read_options(labels or {})
        self.function = function
        self.task_name = task_name or name_of(function)
        self.labels = dict(labels or {})
        self._broker = broker
        self.flavor = Flavor.ASYNC if _is_async(function) else Flavor.SYNC
        try:
            self.signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            self.signature = None
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

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `TaskArgumentError` unless the call fits the signature."""
        if self.signature is None:
            return
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TaskArgumentError(
                f"{self.task_name}{self.signature} was called wrongly: {error}; nothing was sent"
            ) from None

    def kicker(self) -> Kicker[P, R]:
        """Return the builder of one send: labels, id, broker, delay, priority."""
        return Kicker(self)

    def kiq(self, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Send one call; see `Kicker.kiq`. Said "kick"."""
        return Kicker(self).kiq(*args, **kwargs)

    def map(self, *iterables: Iterable[Any]) -> Batch[R]:
        """Send one call for each row of the equally long iterables."""
        return Kicker(self).map(*iterables)

    def starmap(self, rows: Iterable[Iterable[Any]]) -> Batch[R]:
        """Send one call for each row, its items being the positional arguments."""
        return Kicker(self).starmap(rows)

    def sweep(self, **grid: Iterable[Any]) -> Batch[R]:
        """Send one call for each combination: `fit.sweep(depth=[4, 8], trees=[50, 200])`."""
        return Kicker(self).sweep(**grid)

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


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - objects with an async __call__
    )
