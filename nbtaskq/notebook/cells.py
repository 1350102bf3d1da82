"""Builds a task of a cell: what it reads is captured at each send, and checked before it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from nbtaskq.client.batch import Batch
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.kicker import Kicker
from nbtaskq.client.sending import calls_of_sweep
from nbtaskq.client.task import Task
from nbtaskq.errors import SerializationError, TaskArgumentError, TaskDefinitionError
from nbtaskq.message import Captured
from nbtaskq.notebook.capture import read_cell
from nbtaskq.notebook.checks import (
    SHELL_NAMES,
    Spec,
    check_outputs,
    checked,
    parse_cell,
    unknown_input,
    warn_of_split_names,
    with_heading,
)
from nbtaskq.notebook.code import AsyncCellCode, CellCode
from nbtaskq.notebook.pending import Pending

T = TypeVar("T")


class CellTask(Task[..., Any]):
    """A cell that can be sent; keyword arguments stand for names that it reads.

    What it reads of the notebook is looked up at each send.
    """

    def __init__(
        self, shell: Any, source: str, spec: Spec, labels: Mapping[str, Any] | None = None
    ) -> None:
        self._names: dict[str, Any] = shell.user_ns
        self._hidden: dict[str, Any] = shell.user_ns_hidden
        self._spec = spec
        self._tree = parse_cell(shell, source, spec)
        self.reading = read_cell(self._tree)
        check_outputs(spec, self.reading)
        code = AsyncCellCode if self.reading.is_async else CellCode
        text = with_heading(source, spec.heading)
        super().__init__(code(text, spec.outputs, spec.task_name), None, spec.task_name, labels)
        self.signature = None
        self.__name__ = spec.task_name

    @property
    def parameters(self) -> frozenset[str]:
        """Names that the cell reads and does not make itself."""
        return self.reading.needs | self.reading.may_need | set(self._spec.inputs)

    def capture(self, given: Collection[str] = ()) -> Captured:
        """Return what the cell reads of the notebook, but for names that are `given`.

        Raises
        ------
        NameError
            The notebook has no name that `-i` asks for.
        """
        found = Captured()
        for name in sorted(self.parameters - set(given)):
            if name not in self._names:
                if name in self._spec.inputs:
                    raise NameError(unknown_input(name, self._names))
            elif self._travels(name):
                found[name] = checked(name, self._names[name])
        warn_of_split_names(found, self.reading.assigns)
        return found

    def _travels(self, name: str) -> bool:
        value = self._names[name]
        if name in self._spec.inputs:
            return True
        if name in SHELL_NAMES or name.startswith("__") or self._hidden.get(name, self) is value:
            return False
        # what an earlier run still computes is no input of the cell that makes it itself
        return name in self.reading.needs or not isinstance(value, Pending)

    def check_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `TaskArgumentError` unless the keywords are names that the cell reads."""
        if not all(isinstance(arg, Captured) for arg in args):
            raise TaskArgumentError(
                f"{self.task_name} is a cell: it takes the names that it reads as keyword "
                f"arguments, {self._listed()}; nothing was sent"
            )
        for name in kwargs:
            if name not in self.parameters:
                raise TaskArgumentError(
                    f"{self.task_name} does not read {name!r}; it reads {self._listed()}; "
                    "nothing was sent"
                )

    def _listed(self) -> str:
        names = sorted(n for n in self.parameters if not hasattr(builtins, n))
        return ", ".join(names) or "no names"

    def kicker(self) -> Kicker[..., Any]:
        """Return the builder of one send: labels, id, broker, delay, priority."""
        return CellKicker(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the cell here, in a copy of the notebook's names; return its last value."""
        self.check_call(args, kwargs)
        if self.reading.is_async:
            raise TaskDefinitionError(
                f"{self.task_name} has a top-level await; {self.task_name}.kiq(…) runs it"
            )
        return _run_here(self._tree, {**self._names, **kwargs}, self.task_name)

    def __repr__(self) -> str:
        return f"<cell {self.task_name}, reads {self._listed()}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"the cell {self.task_name} cannot be sent inside of another task")


@dataclass(frozen=True)
class CellKicker(Kicker[..., Any]):
    """The builder of one send of a cell: what the cell reads is captured by it."""

    task: CellTask

    def kiq(self, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Send the cell; keyword arguments override names that it reads."""
        self.task.check_call(args, kwargs)
        captured = self.task.capture(kwargs)
        send = super().kiq
        return self._explained(captured, lambda: send(captured, **kwargs))

    def map(self, *iterables: Iterable[Any]) -> Batch[Any]:
        """See `sweep`: a cell has no positional arguments."""
        return self._refuse()

    def starmap(self, rows: Iterable[Iterable[Any]]) -> Batch[Any]:
        """See `sweep`: a cell has no positional arguments."""
        return self._refuse()

    def _refuse(self) -> NoReturn:
        raise TaskArgumentError(
            f"{self.task.task_name} is a cell and has no positional arguments; "
            f"use {self.task.task_name}.sweep(name=[…])"
        )

    def sweep(self, **grid: Iterable[Any]) -> Batch[Any]:
        """Send the cell once for each combination of the keywords' values."""
        captured = self.task.capture(grid)
        calls = [((captured,), kwargs) for _, kwargs in calls_of_sweep(grid)]
        return self._explained(captured, lambda: self._batch(calls))

    def _explained(self, captured: Captured, send: Callable[[], T]) -> T:
        """Send; say which name it is that cannot travel."""
        try:
            return send()
        except SerializationError as error:
            broker = self.broker or self.task.broker
            for name, value in captured.items():
                try:
                    broker.serializer.dumps(value, root=name)
                except SerializationError as culprit:
                    raise SerializationError(
                        f"the cell reads `{name}`, and {culprit}; nothing was sent", culprit.path
                    ) from error
            raise


def _run_here(tree: ast.Module, names: dict[str, Any], title: str) -> Any:
    """Run statements in `names` and return the value of the last one, if it is an expression."""
    body, filename = list(tree.body), f"Cell {title}"
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), filename, "exec", dont_inherit=True), names)
    if not isinstance(last, ast.Expr):
        return None
    return eval(compile(ast.Expression(last.value), filename, "eval", dont_inherit=True), names)
