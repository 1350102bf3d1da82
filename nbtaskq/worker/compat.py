"""Everything that nbtaskq uses of ipykernel beyond its documented surface, for 6.31 and 7.x."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from ipykernel.iostream import BackgroundSocket, IOPubThread


def is_iopub(stream: Any) -> bool:
    """Whether messages sent to `stream` go out on iopub."""
    return isinstance(stream, (BackgroundSocket, IOPubThread))


def service_threads(app: Any) -> set[int]:
    """Return the idents of the kernel's own threads, which never run user code."""
    threads: list[threading.Thread | None] = [
        app.iopub_thread.thread,
        app.control_thread,
        app.heartbeat,
        getattr(app, "shell_channel_thread", None),  # from 7.0 on
    ]
    return {t.ident for t in threads if t is not None and t.ident is not None}


def shell_guard(kernel: Any) -> AbstractAsyncContextManager[Any]:
    """Return what is held while a console cell, or a batch of tasks, runs on the main thread.

    ipykernel 7 has a lock of its own for its cells, 6.31 has none; `WorkerKernel.turn` works
    the same in both.
    """
    turn: AbstractAsyncContextManager[Any] = kernel.turn
    return turn


@contextlib.contextmanager
def without_debugger() -> Iterator[None]:
    """Build a kernel without its debugger, whose import takes as long as a third of the start.

    `import debugpy` works as ever afterwards.
    """
    if "debugpy" in sys.modules:
        yield
        return
    sys.modules["debugpy"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["debugpy"]


@contextlib.contextmanager
def without_fork_pipe() -> Iterator[None]:
    """Build a kernel that listens on no TCP port.

    Its iopub thread would, for what forks of the process display; here they display nothing.
    """
    before = IOPubThread._setup_pipe_in
    IOPubThread._setup_pipe_in = lambda _: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        IOPubThread._setup_pipe_in = before  # type: ignore[method-assign]


def plain_progress_bars(shell: Any) -> None:
    """Let `tqdm.auto` choose text bars: nobody answers widgets in a worker.

    It looks for this section of the configuration, which ipykernel 7 makes for its sake.
    """
    shell.config.pop("IPKernelApp", None)
