"""One delivery that is running in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


class Run:
    """A delivery from the call of its function until its verdict is handed over.

    Attributes
    ----------
    attempt : int
        Which one it is; the notes of a later attempt have higher numbers.
    coroutine : asyncio.Task or None
        What runs it, for a coroutine function.
    output : TaskOutput or None
        What it has printed; None until it prints.
    leftovers : callable or None
        Removes what it leaves behind, once its value is serialized.
    announced : bool
        Whether the hub was told that it runs.
    ended : bool
        Whether it is over: what still prints in its name is not its output.
    """

    __slots__ = (
        "announced",
        "attempt",
        "coroutine",
        "ended",
        "index",
        "leftovers",
        "output",
        "started",
        "task_id",
        "token",
    )

    def __init__(
        self, task_id: bytes, token: int, index: int, started: float, attempt: int = 1
    ) -> None:
        self.task_id = task_id
        self.token = token
        self.attempt = attempt
        self.index = index
        self.started = started
        self.coroutine: asyncio.Task[Any] | None = None
        self.output: Any = None  # a TaskOutput; that module builds on this one
        self.leftovers: Callable[[], None] | None = None
        self.announced = False
        self.ended = False
