"""A cell as the function of a task: what travels and is called in a worker kernel."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbtaskq.message import CellResult

#: packages whose values can travel and may be too large to try it
_PLAIN = frozenset({"numpy", "pandas"})


@dataclass(frozen=True)
class CellCode:
    """A cell without top-level `await`; calling it runs it in this process's shell.

    Attributes
    ----------
    source : str
        The cell; its first line stands for the magic, so that line numbers are the notebook's.
    outputs : tuple of str
        Names whose values are given back.
    title : str
        What tracebacks call it.
    """

    source: str
    outputs: tuple[str, ...]
    title: str

    def __call__(self, captured: Mapping[str, Any], /, **given: Any) -> CellResult:
        """Run the cell with the captured names; those that are given override them."""
        from nbtaskq.worker.cells import run_cell

        names = {**captured, **given}
        return _sendable(run_cell(self.source, names, self.outputs, name=self.title))


@dataclass(frozen=True)
class AsyncCellCode(CellCode):
    """A cell with top-level `await`."""

    async def __call__(  # type: ignore[override]
        self, captured: Mapping[str, Any], /, **given: Any
    ) -> CellResult:
        """Run the cell with the captured names; those that are given override them."""
        from nbtaskq.worker.cells import run_cell_async

        names = {**captured, **given}
        return _sendable(await run_cell_async(self.source, names, self.outputs, name=self.title))


class Unsendable:
    """What stands for the last value of a cell that could not travel: its text."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text

    def __repr__(self) -> str:
        return f"<{self.kind} that could not be sent: {self.text}>"


def _sendable(result: CellResult) -> CellResult:
    """Return the result; a value that cannot travel must not cost the outputs beside it."""
    value = result.value
    kind = type(value)
    if kind.__module__.partition(".")[0] in _PLAIN:
        return result
    from nbtaskq.errors import SerializationError
    from nbtaskq.serializers import DillSerializer

    try:
        DillSerializer().dumps(value, root="result")
    except SerializationError:
        return CellResult(Unsendable(kind.__qualname__, reprlib.repr(value)), result.outputs)
    return result
