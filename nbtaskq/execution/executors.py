"""Where a task's function runs, and what surrounds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbtaskq.abc import Delivery

_get_running_loop = asyncio._get_running_loop
_set_running_loop = asyncio._set_running_loop


class Executor:
    """Runs functions right where the receiver runs; override to surround them.

    `begin` … `end` enclose unpacking and user code; `end` is called for each `begin`.
    """

    def begin(self, delivery: Delivery, index: int) -> None:
        """Get ready for a delivery; `index` is its slot, 0 for a synchronous task."""

    def executed(self, index: int) -> None:
        """Note that the function has returned and its result is not recorded yet."""

    def end(self, delivery: Delivery, index: int) -> None:
        """Clean up after user code."""

    def run(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a synchronous function; the running loop is hidden, so `asyncio.run` works in it."""
        loop = _get_running_loop()
        if loop is None:
            return function(*args, **kwargs)
        _set_running_loop(None)
        try:
            return function(*args, **kwargs)
        finally:
            _set_running_loop(loop)
