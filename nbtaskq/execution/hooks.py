"""Calling hooks: plain or async, in their order, and what becomes of one that raises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator, Sequence
from inspect import isawaitable
from typing import Any

from nbtaskq.abc import Middleware
from nbtaskq.abc.middleware import overrides


class Hooks:
    """The overridden hooks of some middlewares, in the order in which they run."""

    def __init__(self, middlewares: Sequence[Middleware]) -> None:
        def forward(name: str) -> list[Callable[..., Any]]:
            return [getattr(m, name) for m in middlewares if overrides(m, name)]

        self.pre_execute = forward("pre_execute")
        self.on_error = forward("on_error")[::-1]
        self.post_execute = forward("post_execute")[::-1]
        self.post_save = forward("post_save")[::-1]


def step(value: Any) -> Generator[Awaitable[Any], Any, Any]:
    """Return what a hook or a function gave; yield it first if it must be awaited."""
    if isawaitable(value):
        return (yield value)
    return value


@contextlib.contextmanager
def isolated(hook: Callable[..., Any]) -> Generator[None]:
    """Report what a hook raises when the task's end is recorded already."""
    try:
        yield
    except Exception as caught:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"nbtaskq: the hook {name_of(hook)} raised", "exception": caught}
        )


def name_of(hook: Callable[..., Any]) -> str:
    """Return the name under which a message speaks of a hook."""
    return getattr(hook, "__qualname__", repr(hook))
