"""What is checked of a cell before it is sent: that it compiles, what it is asked to give."""

from __future__ import annotations

import ast
import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

from nbtaskq.client.batch import Batch
from nbtaskq.client.handle import TaskHandle
from nbtaskq.errors import CellSyntaxError, TaskDefinitionError
from nbtaskq.message import Captured
from nbtaskq.notebook.capture import Reading, read_cell

#: names that a shell keeps for itself
SHELL_NAMES = frozenset({"In", "Out", "get_ipython", "exit", "quit"})
#: what assigns names in ways that cannot be seen: magics, and code in strings
_ASSIGN_UNSEEN = frozenset({"get_ipython", "exec", "eval", "globals", "locals", "vars"})


class Spec(NamedTuple):
    """What the magic's line says about a cell.

    `heading` is that line; it takes the cell's first line, so that line numbers are the same.
    """

    task_name: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    heading: str = ""


def parse_cell(shell: Any, source: str, spec: Spec) -> ast.Module:
    """Return the cell's statements; what does not compile is shown with the notebook's lines.

    Raises
    ------
    CellSyntaxError
        Nothing was sent.
    """
    filename = f"Cell {spec.task_name}"
    text = with_heading(source, spec.heading)
    try:
        tree: ast.Module = ast.parse(shell.transform_cell(text), filename)
        read_cell(tree, filename)
    except SyntaxError as error:
        found = CellSyntaxError(error.msg)
        found.msg = f"{error.msg}; nothing was sent"
        found.filename, found.lineno, found.offset = filename, error.lineno, error.offset
        found.end_lineno, found.end_offset = error.end_lineno, error.end_offset
        lines = text.splitlines()
        line = error.lineno or 0
        found.text = error.text or (lines[line - 1] if 0 < line <= len(lines) else None)
        raise found from None
    return tree


def with_heading(source: str, heading: str) -> str:
    """Return the cell with its magic's line as a comment, unless it begins with a magic itself."""
    if not heading or source.lstrip().startswith("%%"):
        return source
    return f"# {heading.strip()}\n{source}"


def check_outputs(spec: Spec, reading: Reading) -> None:
    """Raise `NameError` for an output that the cell is not seen to assign, if that can be seen."""
    if reading.imports_all or reading.needs & _ASSIGN_UNSEEN:
        return
    known = reading.assigns | reading.needs | reading.may_need | set(spec.inputs)
    for name in spec.outputs:
        if name not in known:
            raise NameError(
                f"the cell does not assign {name!r}, which -o asks for; it assigns "
                f"{', '.join(sorted(reading.assigns)) or 'nothing'}{_close(name, reading.assigns)}"
            )


def unknown_input(name: str, names: Mapping[str, Any]) -> str:
    """Return what to say of a name that `-i` asks for and that there is not."""
    own = [n for n in names if not n.startswith("_") and n not in SHELL_NAMES]
    return f"-i asks for {name!r}, and the notebook has no such name{_close(name, own)}"


def _close(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), 3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def checked(name: str, value: Any) -> Any:
    """Return a captured value; raise `TaskDefinitionError` for what cannot be used there yet."""
    if isinstance(value, TaskHandle | Batch):
        kind, get = ("batch", "results") if isinstance(value, Batch) else ("handle", "result")
        raise TaskDefinitionError(
            f"the cell reads `{name}`, the {kind} of tasks of this notebook, which a task cannot "
            f"wait for yet; give the values a name, x = {name}.{get}(), and use that"
        )
    return value


def warn_of_split_names(captured: Captured, assigns: Collection[str]) -> None:
    """Warn of names that the cell assigns and a captured function reads: there they are two."""
    from nbtaskq.serializers.captures import Reach, global_names
    from nbtaskq.serializers.private import is_dynamic

    for name, value in captured.items():
        if not callable(value):
            continue
        functions = Reach(value, is_dynamic).functions.values()
        read = {n for function in functions for n in global_names(function.__code__)}
        for shared in sorted(read & set(assigns)):
            warnings.warn(
                f"the cell assigns `{shared}`, and `{name}`, which it uses, reads `{shared}` of "
                f"the notebook: there `{name}` keeps the value from before the cell. "
                f"Make `{shared}` an argument of it, or define `{name}` in the cell",
                stacklevel=2,
            )


def defined_functions(tree: ast.Module) -> list[str]:
    """Return the names of the functions that a cell's own statements define."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node.name for node in tree.body if isinstance(node, functions)]


def name_of_call(expression: str) -> str:
    """Return the name of what an expression calls, for use as a task's name."""
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError:
        return "cell"
    while isinstance(node, ast.Call | ast.Attribute | ast.Await):
        if isinstance(node, ast.Attribute):
            return node.attr
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else "cell"
