"""Runs cells in real kernels: straight through, as nbclient does, and as somebody at a screen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

TIMEOUT = 60


class Shown(list[dict[str, Any]]):
    """The outputs of a cell."""

    @property
    def text(self) -> str:
        """What was printed."""
        return "".join(o["text"] for o in self if o["output_type"] == "stream")

    @property
    def value(self) -> str:
        """The cell's value as text."""
        values = [o for o in self if o["output_type"] == "execute_result"]
        return str(values[-1]["data"]["text/plain"]) if values else ""

    @property
    def error(self) -> str:
        """The traceback."""
        return "".join("\n".join(o["traceback"]) for o in self if o["output_type"] == "error")


def run_through(folder: Path, *cells: str) -> list[Shown]:
    """Run cells without anybody who could answer."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        book, timeout=TIMEOUT, kernel_name="python3", allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute()
    return [Shown(cell.outputs) for cell in book.cells]


class Screen:
    """A kernel with a front end that takes input."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(
        self, cell: str, *, stdin: bool = True, seen: Callable[[str], None] | None = None
    ) -> Shown:
        """Run a cell; `seen` hears of text when it arrives."""
        shown = Shown()

        def keep(message: dict[str, Any]) -> None:
            kind, content = message["msg_type"], message["content"]
            if kind in ("stream", "display_data", "execute_result", "error"):
                shown.append({"output_type": kind, **content})
                if seen is not None and kind == "stream":
                    seen(content["text"])

        self._client.execute_interactive(
            cell, allow_stdin=stdin, stdin_hook=lambda _: None, output_hook=keep, timeout=TIMEOUT
        )
        return shown


@contextlib.contextmanager
def screen(folder: Path) -> Iterator[Screen]:
    """Start a kernel; it is gone afterwards."""
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(folder))
    try:
        yield Screen(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
