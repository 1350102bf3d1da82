"""What is wrong is named, at once or in bounded time, and the rest goes on."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import nbtaskq as nq
from nbtaskq.client.current import set_current_broker
from nbtaskq.errors import (
    AmbiguousTask,
    BrokerUnreachable,
    CellSyntaxError,
    DeserializationError,
    NbTaskQError,
    ProtocolMismatch,
    SerializationError,
    StoreError,
    TaskArgumentError,
    TaskCrashed,
    TaskDefinitionError,
    UnknownTask,
    WorkerStartError,
    WorkspaceError,
)
from nbtaskq.hub import protocol as p
from nbtaskq.notebook.html import batch_html, handle_html
from nbtaskq.process import Lock, spawn
from nbtaskq.workspace import Workspace
from tests.waiting import until

MARKUP = "<script>alert('1')</script>"
#: a name that turns the direction of writing, and ends early in C
TRICKY = "\u202etricky\0<b>"


# tasks are sent as code, so they must not belong to an importable module
def cell(source: str, **names: object) -> dict[str, Any]:
    namespace: dict[str, object] = {"__name__": "__main__", "nq": nq, **names}
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace


@pytest.fixture
def add(hub: Workspace) -> Any:
    """A task that works, with which a test shows that everything goes on."""
    task = nq.task("add")(cell("def add(a, b=1): return a + b")["add"])
    assert task.kiq(1).result(10) == 2
    yield task
    assert task.kiq(1).result(10) == 2


def failing(source: str) -> Any:
    """Return a task of a cell's function `f`."""
    return nq.task("failing")(cell(source)["f"])


# -- calls ---------------------------------------------------------------------------------


def test_wrong_arguments_are_named_and_nothing_is_sent(add: Any) -> None:
    before = len(nq.history())
    for call in (lambda: add.kiq(), lambda: add.kiq(1, 2, 3), lambda: add.kiq(1, c=2)):
        with pytest.raises(TaskArgumentError, match=r"add\(a, b=1\).*nothing was sent"):
            call()
    with pytest.raises(TaskArgumentError, match="equally long"):
        add.map([1, 2], [3])
    with pytest.raises(TaskArgumentError, match=r"write a=\[…\]"):
        add.sweep(a="abc")
    with pytest.raises(ZeroDivisionError):
        add.map(1 / (2 - i) for i in range(4))
    assert len(nq.history()) == before


def test_an_argument_that_cannot_be_pickled_is_named_with_its_path(add: Any) -> None:
    with pytest.raises(SerializationError, match=r"args\[0\]\['rows'\]\[1\]") as caught:
        add.kiq({"rows": [1, (row for row in ())]})
    assert caught.value.path == "args[0]['rows'][1]"
    with pytest.raises(SerializationError, match="kwargs"):
        add.kiq(1, b=(row for row in ()))


def test_a_result_that_cannot_be_pickled_is_named_with_its_path(add: Any) -> None:
    lazy = failing("def f(): return {'rows': [1, (row for row in ())]}")
    with pytest.raises(SerializationError, match=r"result\['rows'\]\[1\]") as caught:
        lazy.kiq().result(10)
    assert caught.value.path == "result['rows'][1]"


def test_an_exception_that_cannot_be_pickled_is_caught_by_its_type(add: Any) -> None:
    source = """
class Odd(ValueError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")
        self.rows = (row for row in ())
def f(): raise Odd(1, 2)
"""
    handle = failing(source).kiq()
    with pytest.raises(ValueError, match="1 and 2") as caught:
        handle.result(10)
    assert type(caught.value).__name__ == "Odd"
    assert "in f" in str(caught.value.__cause__)
    assert handle.status is nq.TaskStatus.FAILED


def test_a_result_that_does_not_load_here_is_an_error_of_its_name(add: Any) -> None:
    source = """
class Sealed:
    def __reduce__(self): return int, ("not a number",)
def f(): return Sealed()
"""
    with pytest.raises(DeserializationError, match="not a number"):
        failing(source).kiq().result(10)


@pytest.mark.parametrize("error", ["GeneratorExit", "KeyboardInterrupt", "SystemExit"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_is_no_exception_ends_the_task_and_not_its_worker(
    add: Any, kind: str, error: str
) -> None:
    before = {worker["name"] for worker in nq.status().workers}
    handle = failing(f"{kind} f(): raise {error}").kiq()
    assert type(handle.exception(10)).__name__ == error
    assert {worker["name"] for worker in nq.status().workers} == before


def test_an_exception_whose_words_are_no_text_ends_the_task_and_not_its_worker(add: Any) -> None:
    handle = failing("def f(): raise ValueError('\\udcff')").kiq()
    with pytest.raises(ValueError, match="\udcff"):
        handle.result(10)
    assert handle.facts.error == r"ValueError: \udcff"
    assert handle.facts.attempts == 1


def test_an_exception_whose_str_raises_arrives(add: Any) -> None:
    source = """
class Mute(ValueError):
    def __str__(self): raise RuntimeError("no words")
def f(): raise Mute
"""
    handle = failing(source).kiq()
    with pytest.raises(ValueError):
        handle.result(10)
    assert "Mute" in repr(handle)
    assert "Mute" in handle_html(handle)


def test_the_last_words_of_a_worker_are_those_of_the_task_that_it_ran(fresh: Workspace) -> None:
    nq.up(1)
    failing("def f(): print('a secret of another notebook')").kiq().result(10)
    with pytest.raises(TaskCrashed) as caught:
        failing("import os\ndef f(): os._exit(3)").kiq().result(20)
    assert "exited with status 3" in str(caught.value)
    assert "secret" not in str(caught.value)


# -- cells ---------------------------------------------------------------------------------


@pytest.fixture
def shell(hub: Workspace) -> Iterator[InteractiveShell]:
    main, hook, path = sys.modules["__main__"], sys.displayhook, list(sys.path)
    made = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    nq.load_ipython_extension(made)
    yield made
    nq.unload_ipython_extension(made)
    made.restore_sys_module_state()
    sys.modules["__main__"], sys.displayhook, sys.path[:] = main, hook, path


def test_a_syntax_error_in_a_cell_is_told_at_once_with_its_line(shell: InteractiveShell) -> None:
    before = len(nq.history())
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        ran = shell.run_cell("%%kiq train\nx = 1\ny = = 2", store_history=True)
    assert isinstance(ran.error_in_exec, CellSyntaxError)
    assert ran.error_in_exec.lineno == 3
    assert (ran.error_in_exec.text or "").strip() == "y = = 2"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "Cell train:3" in shown or "line 3" in shown  # as this version of Python writes it
    assert len(nq.history()) == before


def test_markup_of_a_task_stays_text_in_every_view(shell: InteractiveShell, add: Any) -> None:
    source = f"def f(x):\n    print({MARKUP!r})\n    raise ValueError({MARKUP!r})"
    task = nq.task(MARKUP, note=MARKUP)(cell(source)["f"])
    handle = task.kicker().with_task_id(MARKUP).kiq(MARKUP)
    batch = task.map([MARKUP])
    waiting = task.kicker().with_delay(60).kiq(MARKUP)
    assert isinstance(handle.exception(10), ValueError)
    assert batch.wait(10)
    html = shell.display_formatter.formatters["text/html"]
    views = [html(x) for x in (handle, batch, waiting, batch.to_frame(), nq.history(limit=5))]
    views += [handle_html(waiting), batch_html(batch), handle.output._repr_html_()]
    views += [nq.status()._repr_html_()]
    waiting.cancel()
    for view in views:
        assert view
        assert "<script" not in view
    assert "&lt;script&gt;" in views[0]


# -- finding tasks again -------------------------------------------------------------------


def test_a_name_that_nobody_sent_is_unknown(add: Any) -> None:
    for key in ("nothing", "", "%", "_", TRICKY):
        with pytest.raises(UnknownTask, match="no task named"):
            nq.attach(key)
    with pytest.raises(NbTaskQError, match="find"):
        nq.attach("\udcff")
    with pytest.raises(NbTaskQError, match="find"):
        nq.attach(3)  # type: ignore[arg-type]


def test_the_result_of_an_id_that_the_hub_does_not_know_is_an_error(add: Any) -> None:
    broker = nq.default_broker()
    handle: nq.TaskHandle[Any] = nq.TaskHandle(broker, "0" * 20, "ghost")
    with pytest.raises(UnknownTask, match="knows no task '0000"):
        handle.result(10)


def test_a_name_of_several_notebooks_is_ambiguous(
    hub: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = nq.task("shared")(cell("def shared(): pass")["shared"])
    for notebook in ("one.ipynb", "two.ipynb"):
        broker = nq.ZeroMQBroker(hub, notebook=notebook)
        shared.kicker().with_broker(broker).kiq().result(10)
        asyncio.run(broker.shutdown())
    monkeypatch.setenv("JPY_SESSION_NAME", "three.ipynb")
    with pytest.raises(AmbiguousTask, match=r"(?s)one\.ipynb.*two\.ipynb|two\.ipynb.*one\.ipynb"):
        nq.attach("shared")


def test_the_beginning_of_two_ids_is_ambiguous(add: Any) -> None:
    ids = ["prefix-of-two-a", "prefix-of-two-b"]
    for task_id in ids:
        add.kicker().with_task_id(task_id).kiq(1).result(10)
    with pytest.raises(AmbiguousTask) as caught:
        nq.attach("prefix-of-two")
    assert all(task_id in str(caught.value) for task_id in ids)
    found = nq.attach(ids[0])
    assert isinstance(found, nq.TaskHandle)
    assert found.result(10) == 2


# -- misuse --------------------------------------------------------------------------------


def test_an_option_that_is_not_there_raises_instead_of_being_ignored(add: Any) -> None:
    function = add.function
    with pytest.raises(TaskDefinitionError, match="timeout=3 is not supported"):
        nq.task("x", timeout=3)(function)
    with pytest.raises(TaskDefinitionError, match="did you mean 'priority'"):
        nq.task("x", priorty=3)(function)
    with pytest.raises(TaskDefinitionError, match="did you mean 'max_retries'"):
        add.kicker().with_labels(max_retry=3)
    with pytest.raises(TaskDefinitionError, match="takes int"):
        add.kicker().with_priority("high")
    with pytest.raises(TaskDefinitionError, match="lies between"):
        add.kicker().with_priority(1 << 63)
    with pytest.raises(TaskDefinitionError, match="cannot be negative"):
        add.kicker().with_delay(-1)
    for seconds in (float("nan"), float("inf")):
        with pytest.raises(TaskDefinitionError, match="takes seconds"):
            add.kicker().with_delay(seconds)


def test_the_verbs_of_other_libraries_lead_to_kiq(add: Any) -> None:
    for verb in ("submit", "delay", "apply_async"):
        with pytest.raises(AttributeError, match=r"use `add\.kiq"):
            getattr(add, verb)


def test_what_is_no_function_or_name_makes_no_task(add: Any) -> None:
    for wrong in (3, b"name", "", "x" * 1001, "\udcff"):
        with pytest.raises(TaskDefinitionError, match="a task's name is a text"):
            nq.task(wrong)  # type: ignore[call-overload]
    with pytest.raises(TaskDefinitionError, match="made of a function"):
        nq.task("name")(3)  # type: ignore[arg-type]


def test_what_is_no_id_names_no_task(add: Any) -> None:
    for wrong in ("", "x" * 10_000, 3, "\udcff"):
        with pytest.raises(TaskDefinitionError, match="1 to 200 bytes"):
            add.kicker().with_task_id(wrong)
    with pytest.raises(TaskDefinitionError, match="whole batch"):
        add.kicker().with_task_id("one").map([1, 2])


def test_labels_that_cannot_be_sent_are_refused_before_the_sending(add: Any) -> None:
    before = len(nq.history())
    for wrong in ("\udcff", object(), 1 << 100):
        with pytest.raises(TaskDefinitionError, match="labels of add cannot be sent"):
            add.kicker().with_labels(mine=wrong).kiq(1)
    assert len(nq.history()) == before


def test_names_labels_and_ids_of_any_characters_come_back(add: Any) -> None:
    task = nq.task(TRICKY)(add.function)
    task_id = f"{TRICKY}\n"
    handle = task.kicker().with_task_id(task_id).with_labels(**{TRICKY: TRICKY}).kiq(1)
    assert handle.result(10) == 2
    found = nq.attach(task_id)
    assert isinstance(found, nq.TaskHandle)
    assert (found.task_name, found.result(10)) == (TRICKY, 2)
    assert list(nq.history(TRICKY).task_id) == [task_id]


def test_a_callback_that_raises_harms_nobody_else(
    add: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handle = add.kicker().with_delay(0.2).kiq(1)
    handle.add_done_callback(lambda _: 1 / 0)
    assert handle.result(10) == 2
    assert add.map(range(10)).results(10) == list(range(1, 11))
    assert "ZeroDivisionError" in caplog.text


def test_a_connection_that_failed_is_made_anew(add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    connection = nq.default_broker().connection  # type: ignore[attr-defined]
    connection._call(lambda: 1 / 0)
    until(lambda: raised, "the thread has ended")
    assert add.kiq(1).result(10) == 2


# -- workspaces ----------------------------------------------------------------------------


@pytest.fixture
def fresh(fresh_workspace: Workspace) -> Iterator[Workspace]:
    """Give a workspace to one test, and its default broker."""
    yield fresh_workspace


def occupied(folder: Path) -> None:
    folder.write_text("a file")


def without_parent(folder: Path) -> None:
    folder.parent.rmdir()
    folder.parent.write_text("a file")


def open_to_others(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o755)


def linked(folder: Path) -> None:
    target = folder.with_name("elsewhere")
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (occupied, "is not a folder"),
        (without_parent, "cannot be made"),
        (open_to_others, "chmod 700"),
        (linked, "is a symbolic link"),
    ],
)
def test_a_workspace_that_cannot_be_used_is_named(
    fresh: Workspace, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(fresh.folder)
    for call in (lambda: nq.up(1), nq.history):
        with pytest.raises(WorkspaceError, match=words) as caught:
            call()
        assert str(fresh.folder) in str(caught.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_workspace_of_somebody_else_is_not_used(fresh: Workspace) -> None:
    fresh.folder.mkdir(mode=0o700)
    os.chown(fresh.folder, 65534, 65534)
    with pytest.raises(WorkspaceError, match="belongs to user 65534"):
        nq.up(1)
    os.chown(fresh.folder, 0, 0)


CALLS: dict[str, Callable[[Any], object]] = {
    "result": lambda f: f.kiq(1).result(4),
    "result without a timeout": lambda f: f.kiq(1).result(),
    "await": lambda f: asyncio.run(accepted(f.kiq(1))),
    "value": lambda f: asyncio.run(f.kiq(1).value(4)),
    "map": lambda f: f.map([1, 2]).results(4),
    "to_frame": lambda f: f.map([1, 2]).to_frame(timeout=4),
    "gather": lambda f: asyncio.run(nq.gather(f.kiq(1))),
    "as_completed": lambda f: list(nq.as_completed([f.kiq(1)])),
    "cancel": lambda f: f.kiq(1).cancel(),
    "cancel of a batch": lambda f: f.map([1]).cancel(),
    "attach": lambda f: nq.attach("f"),
    "history": lambda f: nq.history(),
    "scale": lambda f: nq.scale(1),
    "restart": lambda f: nq.restart(),
    "up": lambda f: nq.up(1),
}


async def accepted(handle: Any) -> None:
    await handle


def test_every_call_ends_with_a_named_error_where_no_hub_can_be_started(
    fresh: Workspace,
) -> None:
    occupied(fresh.folder)
    task = nq.task("f")(cell("def f(a): return a")["f"])
    errors: dict[str, BaseException] = {}

    def attempt(name: str) -> None:
        try:
            CALLS[name](task)
        except BaseException as error:
            errors[name] = error

    # side by side, because those that wait do so for a second
    threads = [threading.Thread(target=attempt, args=(name,), daemon=True) for name in CALLS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    assert {name for name in CALLS if name not in errors} == set()
    for name, error in errors.items():
        assert isinstance(error, (BrokerUnreachable, WorkspaceError)), (name, error)
        assert "is not a folder" in str(error), (name, error)
    assert not nq.status().running
    assert not nq.down().running


def test_up_and_new_work_start_the_hub_again_long_after_down(fresh: Workspace) -> None:
    task = nq.task("f")(cell("def f(a): return a")["f"])
    nq.up(1)
    for start in (lambda: task.kiq(1).result(20) == 1, lambda: nq.up(1).ready):
        nq.down()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("nbtaskq.brokers.connection.UNREACHABLE_AFTER", 0.5)
            with pytest.raises(BrokerUnreachable, match="stopped by `down`"):
                nq.history()
        assert start()


# -- hubs ----------------------------------------------------------------------------------


@pytest.fixture
def other_version(fresh: Workspace) -> Iterator[None]:
    """Run a stand-in for a hub that speaks another version."""
    fresh.create()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(fresh.hub_address)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            if router.poll(20):
                peer, *_ = router.recv_multipart()
                router.send_multipart([peer, p.encode(p.Refused("version", "I speak 999."))])

    thread = threading.Thread(target=serve)
    with Lock(fresh.supervisor_lock):  # as if its supervisor were there
        thread.start()
        yield
        over.set()
        thread.join()
        router.close(0)
        context.term()


def test_a_hub_of_another_version_is_named_at_once(other_version: None, fresh: Workspace) -> None:
    with pytest.raises(ProtocolMismatch, match=r"I speak 999\. Stop it with `nbtaskq down`"):
        nq.history()
    task = nq.task("f")(cell("def f(a): return a")["f"])
    with pytest.raises(BrokerUnreachable, match="I speak 999"):
        task.kiq(1).result(10)


def test_a_second_hub_ends_and_names_the_first(hub: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "second.log"
    second = spawn("nbtaskq.hub", {"workspace": str(hub.folder)}, log=log)
    assert second.wait(20) == 2
    assert f"Process {int(hub.hub_lock.read_text())} already serves" in log.read_text()
    assert nq.status().running


def test_a_damaged_store_is_named_left_alone_and_can_be_shut_down(fresh: Workspace) -> None:
    fresh.create()
    store = fresh.store_folder / "hub.sqlite"
    store.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="not an SQLite database") as caught:
        nq.up(1)
    assert str(store) in str(caught.value)
    assert store.read_bytes() == b"no database" * 1000
    assert not nq.down().running


# -- processes that do not start -----------------------------------------------------------


@pytest.fixture
def broken_python(tmp_path: Path) -> Path:
    """An executable that ends at once."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho 'this Python is broken' >&2\nexit 7\n")
    path.chmod(0o700)
    return path


def broker_of(workspace: Workspace, executable: Path, prefix: str) -> nq.ZeroMQBroker:
    """Return a broker of a process that another Python runs."""
    broker = nq.ZeroMQBroker(workspace)
    broker.connection._environment = p.Environment(prefix, "3.11", str(executable))
    return broker


def test_workers_that_do_not_start_are_told_and_their_tasks_wait(
    fresh: Workspace, broken_python: Path
) -> None:
    nq.up(1)
    other = broker_of(fresh, broken_python, "/another/environment")
    task = nq.task("f")(cell("def f(a): return a")["f"])
    handle = task.kicker().with_broker(other).kiq(1)
    cause = until(lambda: nq.status().start_error, "the status tells why")
    assert "exited with status 7" in cause
    assert "this Python is broken" in cause
    with pytest.raises(WorkerStartError, match="this Python is broken"):
        nq.up(1)
    with pytest.raises(WorkerStartError, match="stay queued"):
        handle.result()  # for ever, if nobody told
    assert not handle.done()
    assert task.kiq(2).result(10) == 2  # this environment's go on
    assert handle.cancel() == "cancelled"
    asyncio.run(other.shutdown())


def test_a_supervisor_that_does_not_start_is_told(
    fresh: Workspace, broken_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbtaskq.brokers.connection.UNREACHABLE_AFTER", 1.0)
    set_current_broker(broker_of(fresh, broken_python, sys.prefix))
    task = nq.task("f")(cell("def f(a): return a")["f"])
    with pytest.raises(BrokerUnreachable, match="this Python is broken"):
        task.kiq(1).result(20)
    with pytest.raises(BrokerUnreachable, match="this Python is broken"):
        nq.history()


def test_a_python_that_is_not_there_is_told_at_once(fresh: Workspace, tmp_path: Path) -> None:
    set_current_broker(broker_of(fresh, tmp_path / "nowhere", sys.prefix))
    with pytest.raises(BrokerUnreachable, match=r"No hub can be started for .*nowhere"):
        nq.history()


# -- secrets -------------------------------------------------------------------------------


def test_nothing_listens_beyond_this_user(hub: Workspace) -> None:
    pids = [worker["pid"] for worker in nq.status().to_dict()["facts"]["workers"].values()]
    pids.append(int(hub.hub_lock.read_text()))
    for pid in pids:
        assert not listening(pid)
    for folder in (hub.folder, hub.runtime):
        for path in (folder, *folder.rglob("*")):
            assert path.lstat().st_mode & 0o077 == 0, path


def listening(pid: int) -> set[str]:
    """Return the local addresses at which a process accepts TCP connections."""
    links = (Path(f"/proc/{pid}/fd") / fd for fd in os.listdir(f"/proc/{pid}/fd"))
    sockets = set()
    for link in links:
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(link))
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def test_arguments_and_results_are_in_no_log_and_no_command_line(add: Any, hub: Workspace) -> None:
    secret = "opensesame"
    assert add.kiq(secret, secret).result(10) == 2 * secret
    assert secret not in nq.logs()
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            assert secret.encode() not in process.read_bytes(), process


# -- interrupts ----------------------------------------------------------------------------


def test_an_interrupt_ends_the_waiting_and_not_the_task(add: Any) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    handle = add.kicker().with_delay(1).kiq(1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            handle.result(30)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert handle.result(10) == 2
