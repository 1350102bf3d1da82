"""A cell as the function of a task: what travels and is called in a worker kernel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbtaskq.message import CellResult


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

        return run_cell(self.source, {**captured, **given}, self.outputs, name=self.title)


@dataclass(frozen=True)
class AsyncCellCode(CellCode):
    """A cell with top-level `await`."""

    async def __call__(  # type: ignore[override]
        self, captured: Mapping[str, Any], /, **given: Any
    ) -> CellResult:
        """Run the cell with the captured names; those that are given override them."""
        from nbtaskq.worker.cells import run_cell_async

        names = {**captured, **given}
        return await run_cell_async(self.source, names, self.outputs, name=self.title)
