"""How errors look in a cell: the user's frames and lines, not ours."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

from nbtaskq.errors import CellSyntaxError, NbTaskQError, RemoteTraceback


class CellFailed(NbTaskQError):
    """A cell that was run here failed, and its error is shown already."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@contextlib.contextmanager
def brief() -> Iterator[None]:
    """Show what is raised within by its words alone: nothing of the user's has run."""
    try:
        yield
    except (NbTaskQError, NameError) as error:
        _render(error, [f"{type(error).__name__}: {error}"])
        raise


@contextlib.contextmanager
def remote_frames() -> Iterator[None]:
    """Show a task's exception with the frames that it had there."""
    try:
        yield
    except Exception as error:
        if isinstance(error.__cause__, RemoteTraceback):
            lines = str(error.__cause__).strip().splitlines()
            _render(error, [*lines, *getattr(error, "__notes__", ())])
        elif isinstance(error, NbTaskQError):
            _render(error, [f"{type(error).__name__}: {error}"])
        raise


def _render(error: BaseException, lines: list[str]) -> None:
    """Let IPython show these lines for the error."""
    with contextlib.suppress(AttributeError, TypeError):  # some classes take no attributes
        error._render_traceback_ = _Lines(lines)  # type: ignore[attr-defined]


class _Lines:
    """A rendering that can be pickled with its exception."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def __call__(self) -> list[str]:
        return self.lines


def show_cells_syntax(shell: Any) -> None:
    """Let the shell show `CellSyntaxError` as it shows the syntax errors of its own cells.

    It would add the frames that led to it, which are all ours.
    """
    show = shell.showsyntaxerror

    def showsyntaxerror(
        self: Any, filename: str | None = None, running_compiled_code: bool = False
    ) -> None:
        compiled = running_compiled_code and not isinstance(sys.exc_info()[1], CellSyntaxError)
        show(filename, compiled)

    shell.showsyntaxerror = types.MethodType(showsyntaxerror, shell)


def forget_cells_syntax(shell: Any) -> None:
    """Undo `show_cells_syntax`."""
    shell.__dict__.pop("showsyntaxerror", None)
