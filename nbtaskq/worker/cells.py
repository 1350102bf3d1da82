"""A whole cell as a task: it runs in the worker's shell, in names of its own.

The sender refers to `run_cell`, or to `run_cell_async` for a cell with a top-level ``await``; the
arguments are the cell's source, what it captures and what it shall give back. Importing this
module imports no IPython.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import CodeType
from typing import TYPE_CHECKING, Any

from nbtaskq.errors import TaskDefinitionError
from nbtaskq.message import CellResult

if TYPE_CHECKING:
    from nbtaskq.worker.run import Run


def run_cell(
    source: str,
    captured: Mapping[str, Any],
    outputs: Sequence[str] = (),
    *,
    name: str = "cell",
    seed: int | None = None,
) -> CellResult:
    """Run a cell without top-level ``await``.

    Parameters
    ----------
    source : str
        The cell as the user wrote it; magics and ``!commands`` work.
    captured : mapping
        Names that the cell finds, besides builtins and IPython's own.
    outputs : sequence of str
        Names whose values are given back.
    name : str
        What tracebacks call it: ``Cell train``.
    seed : int, optional
        Seeds `random` and numpy's legacy generator.

    Returns
    -------
    CellResult
        The value of the last expression, and the outputs.

    Raises
    ------
    NameError
        The cell assigned no such output; the names that it assigned are listed.
    BaseException
        Whatever the cell raises.
    """
    cell = Cell(source, outputs, name)
    cell.begin(captured, seed)
    try:
        for code in cell.codes:
            if code.co_flags & inspect.CO_COROUTINE:
                raise TaskDefinitionError(
                    f"Cell {name} has an `await` outside of functions; send it as a coroutine, "
                    "with run_cell_async."
                )
            cell.value = eval(code, cell.names)
        return cell.result()
    finally:
        cell.end()


async def run_cell_async(
    source: str,
    captured: Mapping[str, Any],
    outputs: Sequence[str] = (),
    *,
    name: str = "cell",
    seed: int | None = None,
) -> CellResult:
    """Run a cell that may have a top-level ``await``; as `run_cell` otherwise.

    One such cell runs at a time in a process: they share the names of `__main__`.
    """
    cell = Cell(source, outputs, name)
    turn = getattr(getattr(cell.shell, "kernel", None), "cells", None)
    if turn is not None:
        await turn.acquire()
        cell.at_end.append(turn.release)
    cell.begin(captured, seed)
    try:
        for code in cell.codes:
            value = eval(code, cell.names)
            cell.value = await value if code.co_flags & inspect.CO_COROUTINE else value
        return cell.result()
    finally:
        cell.end()


class Cell:
    """One run of a cell.

    Attributes
    ----------
    shell : InteractiveShell
        Of this process's kernel.
    names : dict
        The namespace of `__main__`.
    codes : list of code
        The statements, then the last expression; compiled by `begin`.
    value : object
        What the last code gave.
    at_end : list of callable
        Run, last one first, once the result is serialized.
    """

    def __init__(self, source: str, outputs: Sequence[str], name: str) -> None:
        self.shell = _shell()
        self.names: dict[str, Any] = self.shell.user_ns
        self.codes: list[CodeType] = []
        self.value: Any = None
        self.at_end: list[Callable[[], object]] = []
        self._source = source
        self._outputs = outputs
        self._name = name
        self._captured: Mapping[str, Any] = {}
        self._gives_value = False

    def begin(self, captured: Mapping[str, Any], seed: int | None) -> None:
        """Compile the cell and make its names fresh."""
        self._captured = captured
        try:
            self._compile()
            self._freshen()
            self.names.update(captured)
            if seed is not None:
                _seed(seed)
        except BaseException:
            self.end()
            raise

    def result(self) -> CellResult:
        """Show the last value and collect the outputs."""
        if not self._gives_value:
            self.value = None
        elif self.value is not None and not self._is_quiet():
            _show(self.shell, self.value)
        missing = [name for name in self._outputs if name not in self.names]
        if missing:
            raise NameError(self._explain(missing))
        return CellResult(self.value, {name: self.names[name] for name in self._outputs})

    def end(self) -> None:
        """Remove the names; those of a task once its result is serialized, which needs them."""
        run = _current_run(self.shell)
        if run is None:
            self._clean()
        else:
            run.leftovers = self._clean

    def _clean(self) -> None:
        while self.at_end:
            self.at_end.pop()()

    def _compile(self) -> None:
        filename = f"Cell {self._name}"
        text = self.shell.transform_cell(self._source)
        # without a modification time `linecache.checkcache` leaves the entry alone
        lines = text.splitlines(keepends=True)
        linecache.cache[filename] = (len(text), None, lines, filename)
        tree = self.shell.transform_ast(ast.parse(text, filename))
        last: ast.Expression | None = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body.pop().value)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        if tree.body:
            self.codes.append(compile(tree, filename, "exec", flags, dont_inherit=True))
        if last is not None:
            self.codes.append(compile(last, filename, "eval", flags, dont_inherit=True))
            self._gives_value = True

    def _freshen(self) -> None:
        before = dict(self.names)
        self.at_end.append(lambda: _reset(self.names, before))
        hidden = self.shell.user_ns_hidden
        for name in before:
            if name not in hidden and not name.startswith("__"):
                del self.names[name]

    def _is_quiet(self) -> bool:
        quiet: bool = self.shell.displayhook.semicolon_at_end_of_expression(self._source)
        return quiet

    def _explain(self, missing: Sequence[str]) -> str:
        hidden = self.shell.user_ns_hidden
        assigned = sorted(
            name
            for name in self.names
            if name not in hidden and name not in self._captured and not name.startswith("_")
        )
        return (
            f"Cell {self._name} was to give back {', '.join(map(repr, missing))} but did not "
            f"assign it. It assigned: {', '.join(assigned) or 'nothing'}."
        )


def _reset(names: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in names.keys() - before.keys():
        del names[name]
    names.update(before)


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        raise TaskDefinitionError("A cell runs in a kernel; this process has none.")
    return shell


def _current_run(shell: Any) -> Run | None:
    session = getattr(shell.display_pub, "session", None)
    outputs = getattr(session, "outputs", None)
    run: Run | None = outputs.current() if outputs is not None else None
    return run


def _show(shell: Any, value: object) -> None:
    """Display a value as the result of its cell."""
    data, metadata = shell.display_formatter.format(value)
    if data:
        content = {"execution_count": None, "data": data, "metadata": metadata}
        publisher = shell.display_pub
        publisher.session.send(publisher.pub_socket, "execute_result", content)


def _seed(seed: int) -> None:
    import random

    random.seed(seed)
    if "numpy" in sys.modules or find_spec("numpy") is not None:
        import numpy as np

        np.random.seed(seed % 2**32)
