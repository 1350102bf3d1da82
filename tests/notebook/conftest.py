"""A shell in this process, and a broker that keeps what it is given."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbtaskq.abc import Delivery, Envelope, Settlement, Watcher
from nbtaskq.brokers import BaseBroker
from nbtaskq.client.current import set_current_broker
from nbtaskq.hub.protocol import Outcome
from nbtaskq.message import CellResult, Parcel, TaskStatus
from nbtaskq.notebook import load_ipython_extension, unload_ipython_extension
from nbtaskq.serializers.exceptions import dump_exception


class Mailbox(BaseBroker):
    """Accepts every message and delivers none; ends come from the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Envelope] = []
        self.watchers: dict[str, Watcher] = {}

    def submit(self, envelopes: Sequence[Envelope], watchers: Sequence[Watcher]) -> None:
        self.sent += envelopes
        for envelope, watcher in zip(envelopes, watchers, strict=True):
            self.watchers[envelope.message.task_id] = watcher
            watcher.on_accepted()

    def arguments(self, place: int = -1) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a cell captured and what it was given, as its worker would get it."""
        (captured,), given = self.serializer.loads(self.sent[place].parcel)
        return captured, given

    def end(self, place: int = -1, value: Any = None, **outputs: Any) -> None:
        """End a sent cell with a value and outputs."""
        parcel = self.serializer.dumps(CellResult(value, outputs), root="result")
        self._end(place, TaskStatus.SUCCEEDED, parcel)

    def fail(self, error: BaseException, place: int = -1) -> None:
        """End a sent cell with an exception."""
        parcel = dump_exception(self.serializer, error)
        self._end(place, TaskStatus.FAILED, parcel, f"{type(error).__name__}: {error}")

    def _end(self, place: int, status: TaskStatus, parcel: Parcel, error: str = "") -> None:
        task_id = self.sent[place].message.task_id
        outcome = Outcome(task_id.encode(), status, parcel.body, len(parcel.buffers), 1.0, 2.0,
                          "w1", 1, error)  # fmt: skip
        self.watchers[task_id].on_outcome(outcome, parcel.buffers)

    def watch(self, task_id: str, watcher: Watcher, *, value: bool = False) -> None:
        """Nothing: the sender hears of the end anyway."""

    async def control(self, verb: str, body: Any = None) -> Any:
        return []

    async def startup(self) -> None:
        """Nothing to start."""

    async def shutdown(self) -> None:
        """Nothing to stop."""

    def listen(self) -> AsyncIterator[Delivery]:
        raise NotImplementedError

    async def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        raise NotImplementedError


class Notebook:
    """A shell with the extension; `run` is a cell."""

    def __init__(self, shell: InteractiveShell, broker: Mailbox) -> None:
        self.shell = shell
        self.broker = broker
        self.names = shell.user_ns

    def run(self, *lines: str) -> Any:
        """Run a cell and return its value; raise what it raised."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ran = self.shell.run_cell("\n".join(lines), store_history=True)
        ran.raise_error()
        return ran.result

    def shown(self, *lines: str) -> str:
        """Run a cell and return what it showed, without colours."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            self.shell.run_cell("\n".join(lines), store_history=True)
        return re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())


@pytest.fixture
def shell() -> Iterator[InteractiveShell]:
    main, hook, path = sys.modules["__main__"], sys.displayhook, list(sys.path)
    made = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    yield made
    made.restore_sys_module_state()
    sys.modules["__main__"], sys.displayhook, sys.path[:] = main, hook, path


@pytest.fixture
def notebook(shell: InteractiveShell) -> Iterator[Notebook]:
    broker = Mailbox()
    before = set_current_broker(broker)
    load_ipython_extension(shell)
    yield Notebook(shell, broker)
    unload_ipython_extension(shell)
    set_current_broker(before)


@pytest.fixture
def run(notebook: Notebook) -> Callable[..., Any]:
    return notebook.run
