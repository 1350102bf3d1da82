"""What a notebook, a script or a shell command says to its workspace: up, down, status, attach.

The default broker of a process is made with its first use, for the workspace of the current
folder. Tasks of `nq.task` are bound to it at each send.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Set
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from nbtaskq.brokers.base import Registry
from nbtaskq.brokers.zeromq import ZeroMQBroker
from nbtaskq.client import asking
from nbtaskq.client.attach import attached_batch, attached_handle
from nbtaskq.client.batch import Batch
from nbtaskq.client.current import current_broker, known_broker, set_current_broker, set_factory
from nbtaskq.client.definition import check_name
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.status import Status
from nbtaskq.client.task import Task
from nbtaskq.errors import (
    AmbiguousTask,
    BrokerUnreachable,
    NbTaskQError,
    StoreError,
    UnknownTask,
    WorkerStartError,
)
from nbtaskq.launcher import ensure_running, running, stop_running
from nbtaskq.serializers.special import current_shell
from nbtaskq.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from nbtaskq.abc import Broker

P = ParamSpec("P")
R = TypeVar("R")

#: rows of the history in one answer of the hub
PAGE = 5_000
#: seconds that workers get to come up
READY_TIMEOUT = 20.0

_shared = Registry()


def notebook_identity() -> str:
    """Return what this notebook's tasks are stored under and found again by."""
    # the name of a folder may hold bytes that are no text, which cannot be sent
    return _identity().encode(errors="backslashreplace").decode()


def _identity() -> str:
    named = os.environ.get("JPY_SESSION_NAME")
    if named:
        return named
    shell = current_shell()
    if shell is None:
        return os.path.join(os.getcwd(), os.path.basename(sys.argv[0]) if sys.argv else "")
    file = shell.user_ns.get("__vsc_ipynb_file__")
    return str(file) if file else os.getcwd()


# -- brokers and tasks ---------------------------------------------------------------------


def default_broker() -> Broker:
    """Return the broker that late-bound tasks use."""
    return current_broker()


def set_default_broker(broker: Broker | None) -> Broker | None:
    """Make another broker the default; `None` goes back to the workspace's hub."""
    return set_current_broker(broker)


def _make_broker() -> ZeroMQBroker:
    return ZeroMQBroker(Workspace.find(), notebook=notebook_identity())


set_factory(_make_broker)


@overload
def task(function: Callable[P, R], /) -> Task[P, R]: ...
@overload
def task(
    task_name: str | None = None, /, **labels: Any
) -> Callable[[Callable[P, R]], Task[P, R]]: ...
def task(function: Any = None, /, **labels: Any) -> Any:
    """Make a function a task: `@nq.task`, or `@nq.task("name", priority=1, max_retries=3)`.

    `f(x)` still runs here; `f.kiq(x)` runs in a worker kernel, `f.map`, `f.starmap` and
    `f.sweep` send many.
    """
    if callable(function):
        return _shared.add(Task(function, None, None, labels))
    if function is not None:
        check_name(function)
    return lambda f: _shared.add(Task(f, None, function, labels))


# -- the workspace's processes -------------------------------------------------------------


def _hub() -> ZeroMQBroker:
    """Return the default broker if it talks to a hub."""
    broker = current_broker()
    if not isinstance(broker, ZeroMQBroker):
        raise NbTaskQError(
            f"the default broker is {type(broker).__name__}, which has no hub; "
            "nq.set_default_broker(None) goes back to the workspace's"
        )
    return broker


def _workspace() -> Workspace:
    """Return the workspace that this process talks about; makes no broker."""
    return Workspace.find() if known_broker() is None else _hub().workspace


def ask(verb: str, body: Any = None, timeout: float = asking.ANSWER_TIMEOUT) -> Any:
    """Ask or order something of the hub, and start it if there is none."""
    return asking.ask(_hub(), verb, body, timeout)


def up(workers: int | None = None) -> Status:
    """Start hub and workers unless they run, and wait until the workers are ready.

    Parameters
    ----------
    workers : int or None
        Start at least this many; an `up` never scales down. By default two, or fewer where the
        machine has less.

    Raises
    ------
    WorkerStartError
        Worker kernels end before they are ready; their last words are in the message.
    """
    broker = _hub()
    ensure_running(broker.workspace, workers)
    broker.connection.wait_welcome(READY_TIMEOUT)
    if workers is not None:
        ask("scale", {"n": workers, "exact": False})
    return _wait_ready()


def scale(workers: int) -> Status:
    """Have exactly this many workers; those that go give their tasks back, uncharged."""
    ask("scale", {"n": workers, "exact": True})
    return _wait_ready()


def restart() -> Status:
    """Replace all workers; what they were running runs again."""
    before = {worker["name"] for worker in status().workers}
    ask("restart")
    return _wait_ready(before)


def _wait_ready(gone: Set[str] = frozenset()) -> Status:
    """Wait until every worker that shall be there has said hello, and none of `gone` is left."""
    end = time.monotonic() + READY_TIMEOUT
    while True:
        found = Status(_hub().workspace, ask("status"))
        if found.start_error:
            raise WorkerStartError(
                f"worker kernels do not come up: {found.start_error}\nSee `nbtaskq logs`"
            )
        if found.ready and not gone & {worker["name"] for worker in found.workers}:
            return found
        if time.monotonic() > end:
            raise WorkerStartError(
                f"the workers are not ready after {READY_TIMEOUT:g} s: {found}\nSee `nbtaskq logs`"
            )
        time.sleep(0.05)


def down(force: bool = False) -> Status:
    """Stop workers and hub of this workspace; the data stays, and unfinished tasks with it.

    Running tasks are interrupted and run again, uncharged, after the next `up`.

    Parameters
    ----------
    force : bool
        Also when other notebooks have unfinished tasks here.
    """
    workspace = _workspace()
    if running(workspace) is None:
        return Status(workspace, None)
    workspace.mark_down()
    try:
        ask("down", {"force": force})
    except (BrokerUnreachable, StoreError):  # there is no hub that could be asked
        stop_running(workspace)
    except NbTaskQError:
        workspace.clear_down()
        raise
    end = time.monotonic() + READY_TIMEOUT
    while running(workspace) is not None and time.monotonic() < end:
        time.sleep(0.02)
    if running(workspace) is not None:
        stop_running(workspace)
    return Status(workspace, None, stopped=True)


def status() -> Status:
    """Return what runs in this workspace; starts nothing."""
    workspace = _workspace()
    if running(workspace) is None:
        return Status(workspace, None)
    return Status(workspace, ask("status"))


class Text(str):
    """Text of several lines that a cell shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def logs(lines: int = 50) -> str:
    """Return the last lines of what hub, supervisor and workers logged."""
    parts = []
    for path in sorted(_workspace().logs.glob("*.log")):
        text = path.read_text(errors="replace").splitlines()[-lines:]
        if text:
            parts.append("\n".join([f"== {path.name}", *text]))
    return Text("\n".join(parts))


# -- finding tasks again -------------------------------------------------------------------


def attach(key: str) -> TaskHandle[Any] | Batch[Any]:
    """Return the handle, or the batch, of a task that was sent earlier, from wherever.

    Parameters
    ----------
    key : str
        A task's name (the newest of this notebook), its id, or the beginning of its id.

    Raises
    ------
    UnknownTask
        There is none.
    AmbiguousTask
        Several other notebooks have one, or several ids begin so; they are listed.
    """
    rows = ask("find", {"key": key, "notebook": notebook_identity()})
    if not rows:
        raise UnknownTask(
            f"no task named {key!r} and none whose id begins so is known in "
            f"{_hub().workspace.folder}; nq.history() lists what is"
        )
    row = _pick(key, rows)
    if row["batch"] and row["name"] == key:
        members = ask("batch", {"batch": row["batch"], "payloads": True})
        return attached_batch(_hub(), row["name"], row["batch"], members)
    return attached_handle(_hub(), row)


def _pick(key: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the row that is meant; rows are newest first."""
    here = notebook_identity()
    exact = [row for row in rows if row["task_id"] == key]
    own = [row for row in rows if row["name"] == key and row["notebook"] == here]
    if exact or own:
        return (exact or own)[0]
    # one run of a batch stands for all of it
    runs = {row["batch"] or row["task_id"]: row for row in reversed(rows)}
    if len(runs) > 1:
        listed = "\n".join(
            f"  {row['task_id']}  {row['name']}  {row['notebook']}" for row in rows[:10]
        )
        raise AmbiguousTask(f"{key!r} may be any of these; attach by id:\n{listed}")
    return rows[0]


def history(
    name: str | None = None,
    *,
    status: str | None = None,
    notebook: str | None = None,
    limit: int = 1000,
) -> pd.DataFrame:
    """Return the workspace's tasks, newest first, one row each.

    Parameters
    ----------
    name, status, notebook : str or None
        Only tasks of this name, state, or notebook.
    limit : int
        Rows at most.
    """
    from nbtaskq.frames import history_frame

    filters = {"name": name, "status": status, "notebook": notebook}
    body = {key: value for key, value in filters.items() if value is not None}
    rows: list[dict[str, Any]] = []
    while len(rows) < limit:
        wanted = min(PAGE, limit - len(rows))
        before = {"before_seq": rows[-1]["seq"]} if rows else {}
        page = ask("history", {**body, **before, "limit": wanted}, timeout=30.0)
        rows += page
        if len(page) < wanted:
            break
    return history_frame(rows)
