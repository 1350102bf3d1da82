"""Brings the outputs of cells to their names, between the notebook's own cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nbtaskq.notebook.pending import Pending

if TYPE_CHECKING:
    from nbtaskq.client.handle import TaskHandle

#: seconds that a large value may take to arrive between two cells; it is tried again later
PATIENCE = 5.0


class Delivery:
    """One sent cell: whose names it will bind."""

    def __init__(
        self, handle: TaskHandle[Any], outputs: Sequence[str], names: dict[str, Any]
    ) -> None:
        self.handle = handle
        self._names = names
        self._pending = {name: Pending(name, handle) for name in outputs}
        names.update(self._pending)
        handle._deliver = self.deliver

    def deliver(self, values: Mapping[str, Any], error: BaseException | None) -> None:
        """Bind the names that still wait for these values; the user's own are left alone."""
        if error is not None:
            self._advise(error)
            return
        for name, pending in self._pending.items():
            if self._names.get(name) is pending:
                self._names[name] = values[name]

    def _advise(self, error: BaseException) -> None:
        """Say it when the cell missed a name that the notebook has."""
        if not isinstance(error, NameError):
            return
        # libraries raise it without the attribute, for names in their own strings
        missed = [error.name] if error.name else re.findall(r"'(\w+)'", str(error))
        for name in missed:
            if name in self._names and name not in self.handle.captured:
                error.add_note(f"The notebook has a name {name!r}: add -i {name} to the cell")

    @property
    def kept(self) -> list[str]:
        """Names that the user has bound since, and that were therefore not bound."""
        return [
            name
            for name, pending in self._pending.items()
            if self._names.get(name) is not pending
            and not isinstance(self._names.get(name), Pending)
        ]


class Deliveries:
    """The cells of this notebook that are on their way.

    Parameters
    ----------
    names : dict
        The notebook's namespace.
    """

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._open: list[Delivery] = []

    def expect(self, handle: TaskHandle[Any], outputs: Sequence[str] = ()) -> None:
        """Bind placeholders to the outputs' names, and values once the task has ended."""
        self._open.append(Delivery(handle, outputs, self._names))

    def between_cells(self, *_: Any) -> None:
        """Deliver what has ended; say what failed and was not waited for."""
        for delivery in [d for d in self._open if d.handle.done()]:
            line = self._settle(delivery)
            if line:
                print(line)

    def _settle(self, delivery: Delivery) -> str:
        from nbtaskq.errors import BrokerUnreachable, ResultTimeout

        handle = delivery.handle
        seen = handle._loaded is not None
        kept = [] if seen else delivery.kept
        try:
            error = handle.exception(PATIENCE)
        except (ResultTimeout, BrokerUnreachable):
            return ""
        except Exception as problem:  # loading a value runs code of its own
            error = problem
        self._open.remove(delivery)
        if error is not None:
            return "" if seen else f"✗ {_failure(handle, error)}"
        if kept:
            listed = ", ".join(f"`{name}`" for name in kept)
            return (
                f"{listed} of `{handle.task_name}` not bound: you have bound it since; "
                f"nq.attach({handle.task_id[:8]!r}).vars has the value"
            )
        return ""


def _failure(handle: TaskHandle[Any], error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return (
        f"{handle.task_name} {handle.status}: {text}; "
        f"nq.attach({handle.task_id[:8]!r}).result() raises it"
    )
