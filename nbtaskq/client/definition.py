"""What a task is: a function, its name, its labels, its signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

from nbtaskq.client.options import is_text, read_options
from nbtaskq.errors import TaskArgumentError, TaskDefinitionError
from nbtaskq.hub.protocol import Flavor

#: characters of a task's name
LONGEST_NAME = 1000

P = ParamSpec("P")
R = TypeVar("R")


class Definition(Generic[P, R]):
    """A function under a name, with labels; knows nothing of sending.

    Attributes
    ----------
    function : callable
        Plain or `async`.
    task_name : str
        Name in tables and messages.
    labels : dict
        Options such as `priority=1`, and labels of the user's own.
    flavor : Flavor
        Whether it runs on the worker's main thread or on its loop.
    signature : inspect.Signature or None
        `None` for builtins that have none.
    """

    def __init__(
        self, function: Callable[P, R], task_name: str | None, labels: Mapping[str, Any]
    ) -> None:
        if not callable(function):
            raise TaskDefinitionError(
                f"a task is made of a function, not of {function!r:.80}; "
                "write @nq.task or @nq.task(option=value)"
            )
        read_options(labels)
        self.function = function
        self.task_name = name_of(function) if task_name is None else task_name
        check_name(self.task_name)
        self.labels = dict(labels)
        self.flavor = Flavor.ASYNC if is_async(function) else Flavor.SYNC
        try:
            self.signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):
            self.signature = None

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


def check_name(name: object) -> None:
    """Raise `TaskDefinitionError` for what is no name of a task."""
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not is_text(name):
        raise TaskDefinitionError(
            f"a task's name is a text of 1 to {LONGEST_NAME} characters, not {name!r:.80}; "
            "write @nq.task or @nq.task('name', option=value)"
        )


def name_of(function: Callable[..., Any]) -> str:
    """Return the task name of a function: short for one from a cell, `module:name` otherwise."""
    qualname = getattr(function, "__qualname__", None) or type(function).__name__
    name = qualname.replace("<locals>.", "").replace("<lambda>", "lambda")
    module = getattr(function, "__module__", None)
    return name if module in (None, "__main__") else f"{module}:{name}"


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling a function gives a coroutine."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - objects with an async __call__
    )
