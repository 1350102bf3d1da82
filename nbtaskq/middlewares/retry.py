"""Failed tasks run again."""

from __future__ import annotations

from typing import Any

from nbtaskq.abc import Middleware
from nbtaskq.abc.middleware import Verdict
from nbtaskq.message import Message, Result

#: the label under which a message counts its retries
COUNT = "_retries"


class SimpleRetryMiddleware(Middleware):
    """Runs a failed task again, at once, up to its label `max_retries` times.

    The task keeps its id; only the last attempt's end is published.
    """

    def on_error(
        self, message: Message, result: Result[Any], exception: BaseException
    ) -> Verdict | None:
        """Ask for another attempt while the label allows one."""
        done = int(message.labels.get(COUNT, 0))
        if done >= int(message.labels.get("max_retries", 0)):
            return None
        message.labels[COUNT] = done + 1
        return Verdict.retry()
