"""What a delivery brings, unpacked: its function and its arguments."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from nbtaskq.abc import Delivery, Serializer
from nbtaskq.errors import DependencyFailed, TaskRejected
from nbtaskq.message import Parcel, TaskStatus

#: loaded functions that are kept
FUNCTIONS_KEPT = 128


class Loader:
    """Unpacks deliveries; functions used lately are loaded once.

    Parameters
    ----------
    serializer : Serializer
        Reads functions, arguments and the results of other tasks.
    find_function : callable
        Gives the function of a delivery that brings no code, or `None`.
    """

    def __init__(
        self, serializer: Serializer, find_function: Callable[[str], Callable[..., Any] | None]
    ) -> None:
        self._serializer = serializer
        self._find_function = find_function
        self._functions: OrderedDict[bytes, Callable[..., Any]] = OrderedDict()

    def function(self, delivery: Delivery) -> Callable[..., Any]:
        """Return the function to call; raises `TaskRejected` when it is not known here."""
        if delivery.code is None:
            function = self._find_function(delivery.task_name)
            if function is None:
                raise TaskRejected(
                    f"this worker knows no task named {delivery.task_name!r}; "
                    "import the module that defines it"
                )
            return function
        digest = delivery.code.digest
        known = self._functions.get(digest)
        if known is None:
            known = self._functions[digest] = self._serializer.thaw(delivery.code.parcel)
            if len(self._functions) > FUNCTIONS_KEPT:
                self._functions.popitem(last=False)
        else:
            self._functions.move_to_end(digest)
        return known

    def arguments(self, delivery: Delivery) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return what to call it with, the results that it needs put in."""
        results = {}
        for task_id, (outcome, buffers) in delivery.results.items():
            if outcome.status != TaskStatus.SUCCEEDED:
                raise DependencyFailed(f"the result of {task_id} is not there: {outcome.error}")
            results[task_id] = self._serializer.loads(Parcel(outcome.body, buffers))
        args, kwargs = self._serializer.loads(delivery.parcel, results)
        return args, kwargs
