"""A worker kernel runs what the hub assigns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from stand_in import SERIALIZER, Hub, Task, Worker

from nbtaskq.hub import protocol as p
from nbtaskq.message import TaskStatus
from tests.waiting import alive, until


def null(x: Any = None) -> Any:
    return x


def local(function: Any) -> Any:
    """Return a copy that travels by value, as functions from cells do."""
    function.__module__ = "__main__"
    return function


null = local(null)


class Handle:
    """Stands for the result of a task, as a client's handle does."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id

    def __nbtaskq_task__(self) -> str:
        return self._task_id


def test_it_says_hello_with_its_name_and_environment(hub: Hub) -> None:
    hub.run(null)
    worker = hub.worker  # type: ignore[attr-defined]
    assert worker.recorder.ready
    assert worker.recorder.settled >= 1


def test_a_task_returns_its_value(hub: Hub) -> None:
    assert hub.run(null, {"a": [1, 2]}).value == {"a": [1, 2]}


def test_a_slot_is_taken_while_a_task_runs_and_free_after_it(hub: Hub) -> None:
    def wait() -> None:
        import time

        time.sleep(0.3)

    worker = hub.worker  # type: ignore[attr-defined]
    task = hub.assignment(wait)
    hub.assign(task)
    hub.pump(lambda: worker.recorder.slots())
    (slot,) = worker.recorder.slots()
    assert (slot.task_id, slot.token, slot.executed) == (task.task_id, task.token, False)
    hub.pump(lambda: hub.verdict(task))
    assert worker.recorder.slots() == []


def test_tasks_end_in_the_order_in_which_they_came(hub: Hub) -> None:
    tasks = [hub.assignment(null, i) for i in range(300)]
    hub.assign(*tasks)
    hub.pump(lambda: sum(len(s.verdicts) for s in hub.of(p.Settle)) == 300)
    settled = [v.token for s in hub.of(p.Settle) for v in s.verdicts]
    assert settled == [t.token for t in tasks]
    numbers = [s.number for s in hub.of(p.Settle)]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_an_error_brings_the_frames_of_the_task(hub: Hub) -> None:
    def outer() -> float:
        def inner(x: int) -> float:
            return 1 / x

        return inner(0)

    task = hub.run(outer)
    assert task.status == TaskStatus.FAILED
    assert isinstance(task.error, ZeroDivisionError)
    assert "in inner" in str(task.error.__cause__)


def test_sys_exit_is_the_tasks_error_and_the_worker_goes_on(hub: Hub) -> None:
    def leave() -> None:
        import sys

        sys.exit(3)

    task = hub.run(leave)
    assert task.status == TaskStatus.FAILED
    assert "SystemExit: 3" in task.verdict.outcome.error
    assert hub.run(null, 1).value == 1


def test_a_forked_child_that_leaves_the_task_ends_there(hub: Hub) -> None:
    def fork() -> int:
        import os
        import sys

        pid = os.fork()
        if pid == 0:
            sys.exit(1)
        return os.waitpid(pid, 0)[1]

    assert hub.run(fork).value == 0
    assert hub.run(null, 1).value == 1


def test_a_process_pool_works_in_a_task_and_its_children_can_be_terminated(hub: Hub) -> None:
    def spread() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, -2])

    assert hub.run(spread).value == [1, 2]


def test_a_function_is_fetched_once(hub: Hub) -> None:
    big = bytes(range(256)) * 8192

    def size() -> int:
        return len(big)

    assert hub.run(size).value == len(big)
    assert hub.run(size).value == len(big)
    asked = [digest for fetch in hub.of(p.Fetch) for digest in fetch.digests]
    assert len(asked) == len(set(asked)) >= 1


def test_large_captured_buffers_come_with_their_function(hub: Hub) -> None:
    np = pytest.importorskip("numpy")
    big = np.full(4 << 20, 3, "u1")

    def total() -> int:
        return int(big.sum())

    assert hub.run(total).value == 12 << 20
    assert sum(len(fetch.digests) for fetch in hub.of(p.Fetch)) == 2


def test_a_segmentation_fault_leaves_its_stack_in_the_log(pair: tuple[Hub, Worker]) -> None:
    hub, worker = pair

    def crash() -> None:
        import ctypes

        ctypes.string_at(0)

    task = hub.assignment(crash)
    hub.assign(task)
    assert worker.process is not None
    hub.pump(lambda: worker.process.poll() is not None)  # type: ignore[union-attr]
    assert worker.process.returncode == -signal.SIGSEGV
    assert "in crash" in worker.log.read_text()
    assert [slot.token for slot in worker.recorder.slots()] == [task.token]


def test_a_function_that_nobody_has_rejects_its_task_only(hub: Hub) -> None:
    lost = hub.assignment(b"x" * 16)
    found = hub.assignment(null, 5)
    hub.assign(lost, found)
    hub.pump(lambda: hub.verdict(found))
    verdict = hub.verdict(lost)
    assert verdict is not None
    assert verdict.kind == p.VerdictKind.REJECT
    assert verdict.outcome.status == TaskStatus.REJECTED
    assert "lost" in verdict.outcome.error
    assert Task(hub, found).value == 5


def test_results_of_other_tasks_arrive_with_their_buffers(hub: Hub) -> None:
    np = pytest.importorskip("numpy")
    own, other = np.full(2 << 20, 2, "u1"), np.full(3 << 20, 3, "u1")
    value = SERIALIZER.dumps(other)
    outcome = p.Outcome(b"t-1", TaskStatus.SUCCEEDED, value.body, len(value.buffers))
    call = SERIALIZER.dumps(((own, Handle("t-1")), {}), root="call")
    assert call.needs == ("t-1",)
    assert call.buffers
    assert value.buffers

    def measure(own: Any, other: Any) -> tuple[int, int]:
        return int(own.sum()), int(other.sum())

    blank = hub.assignment(measure)
    task = msgspec.structs.replace(
        blank, body=call.body, buffers=len(call.buffers), results=[outcome]
    )
    hub.send(p.Assign([task]), [*call.buffers, *value.buffers])
    hub.pump(lambda: hub.verdict(task))
    assert Task(hub, task).value == (4 << 20, 9 << 20)


def test_asyncio_run_works_in_a_synchronous_task(hub: Hub) -> None:
    def start() -> int:
        import asyncio

        async def answer() -> int:
            await asyncio.sleep(0.01)
            return 42

        return asyncio.run(answer())

    assert hub.run(start).value == 42


def test_coroutines_run_at_the_same_time(hub: Hub) -> None:
    async def meet(i: int) -> int:
        import asyncio
        import builtins

        all_here = vars(builtins).setdefault("all_here", asyncio.Barrier(20))
        await all_here.wait()
        vars(builtins).pop("all_here", None)
        return i

    meet = local(meet)
    tasks = [hub.assignment(meet, i, flavor=p.Flavor.ASYNC) for i in range(20)]
    hub.assign(*tasks)
    hub.pump(lambda: all(hub.verdict(t) for t in tasks))
    assert [Task(hub, t).value for t in tasks] == list(range(20))


def test_input_says_why_it_cannot_work(hub: Hub) -> None:
    def ask() -> str:
        return input("name? ")

    assert "background" in str(hub.run(ask).error)


def test_a_task_that_runs_for_a_while_is_announced_once(hub: Hub) -> None:
    def wait() -> None:
        import time

        time.sleep(0.3)

    task = hub.run(wait).task
    rows = [row for started in hub.of(p.Started) for row in started.running]
    assert [(i, token) for i, token, _ in rows] == [(task.task_id, task.token)]
    assert abs(rows[0][2] - time.time()) < 10
    hub.received.clear()
    hub.run(null)
    assert hub.of(p.Started) == []


def test_a_delivery_that_has_not_begun_can_be_called_back(hub: Hub) -> None:
    def wait() -> None:
        import time

        time.sleep(0.5)

    running, waiting, last = (hub.assignment(f) for f in (wait, null, null))
    hub.assign(running, waiting, last)
    hub.pump(lambda: hub.of(p.Started))
    hub.send(p.Recall([running.token, waiting.token]))
    hub.pump(lambda: hub.of(p.Recalled))
    assert hub.of(p.Recalled) == [p.Recalled([waiting.token], [running.token])]
    hub.pump(lambda: hub.verdict(last))
    assert hub.verdict(running) is not None
    assert hub.verdict(waiting) is None


def test_a_retry_keeps_the_labels(hub: Hub) -> None:
    def fail() -> None:
        raise ValueError

    task = hub.run(fail, labels={"max_retries": 2})
    assert task.verdict.kind == p.VerdictKind.RETRY
    assert p.decode_labels(task.verdict.labels)["max_retries"] == 2


# -- the environment between tasks ---------------------------------------------------------


def test_what_a_task_changes_is_restored(hub: Hub) -> None:
    def state() -> tuple[Any, ...]:
        import os
        import sys
        import warnings

        return os.getcwd(), dict(os.environ), sys.path, len(warnings.filters)

    def spoil() -> None:
        import os
        import sys
        import warnings

        os.chdir("/")
        os.environ["SPOILED"] = "1"
        del os.environ["PATH"]
        os.environ["HOME"] = "/nowhere"
        sys.path.insert(0, "/nowhere")
        warnings.simplefilter("error")
        sys.stdout = None

    before = hub.run(state).value
    hub.run(spoil)
    assert hub.run(state).value == before


def test_a_task_that_removes_its_own_folder_spoils_nothing(hub: Hub) -> None:
    def leave() -> None:
        import os
        import tempfile

        folder = tempfile.mkdtemp()
        os.chdir(folder)
        os.rmdir(folder)

    def where() -> str:
        import os

        return os.getcwd()

    hub.run(leave)
    assert hub.run(where).value == os.getcwd()


def test_a_task_runs_in_its_senders_folder_with_its_modules(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside_it.py").write_text("class Thing:\n    value = 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import beside_it  # type: ignore[import-not-found]

    def look(thing: Any) -> tuple[str, int]:
        import os

        return os.getcwd(), thing.value

    try:
        assert hub.run(look, beside_it.Thing()).value == (str(tmp_path), 7)
    finally:
        del sys.modules["beside_it"]


def test_a_handler_that_a_task_installed_does_not_stay(hub: Hub) -> None:
    def ignore() -> None:
        import signal
        import time

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(0.01)

    hub.run(ignore)
    assert_interruptible(hub)


# -- interrupts ----------------------------------------------------------------------------


def assert_interruptible(hub: Hub) -> None:
    def forever() -> None:
        import time

        while True:
            time.sleep(0.01)

    worker = hub.worker  # type: ignore[attr-defined]
    task = hub.assignment(forever)
    hub.assign(task)
    hub.pump(lambda: any(s.token == task.token for s in worker.recorder.slots()))
    worker.interrupt(task)
    hub.pump(lambda: hub.verdict(task))
    assert "KeyboardInterrupt" in hub.verdict(task).outcome.error  # type: ignore[union-attr]


def test_an_interrupt_ends_the_task_that_it_is_meant_for(hub: Hub) -> None:
    assert_interruptible(hub)


def test_an_interrupt_for_another_task_or_none_is_ignored(hub: Hub) -> None:
    def wait() -> str:
        import time

        time.sleep(0.3)
        return "done"

    worker = hub.worker  # type: ignore[attr-defined]
    worker.recorder.cancel_target = 0
    os.kill(worker.pid, signal.SIGINT)
    task = hub.assignment(wait)
    hub.assign(task)
    hub.pump(lambda: worker.recorder.slots())
    for target in (0, task.token - 1, task.token + 1):
        worker.recorder.cancel_target = target
        os.kill(worker.pid, signal.SIGINT)
    hub.pump(lambda: hub.verdict(task))
    assert Task(hub, task).value == "done"


def test_an_interrupted_coroutine_is_cancelled(hub: Hub) -> None:
    async def forever() -> None:
        import asyncio

        await asyncio.sleep(60)

    forever = local(forever)
    worker = hub.worker  # type: ignore[attr-defined]
    task, other = (hub.assignment(forever, flavor=p.Flavor.ASYNC) for _ in range(2))
    hub.assign(task, other)
    hub.pump(lambda: len(worker.recorder.slots()) == 2)
    worker.interrupt(task)
    hub.pump(lambda: hub.verdict(task))
    assert hub.verdict(other) is None
    worker.interrupt(other)
    hub.pump(lambda: hub.verdict(other))


def test_interrupts_while_a_task_prints_leave_its_output_whole(hub: Hub) -> None:
    def chatter() -> None:
        import sys

        i = caught = 0
        while caught < 8:
            try:
                while True:
                    i += 1
                    sys.stdout.write(f"<{i}>\n")
            except KeyboardInterrupt:
                caught += 1

    worker = hub.worker  # type: ignore[attr-defined]
    task = hub.assignment(chatter)
    hub.assign(task)
    hub.pump(lambda: any(s.token == task.token for s in worker.recorder.slots()))
    worker.interrupt(task)
    hub.pump(lambda: worker.interrupt(task) or hub.verdict(task))
    lines = Task(hub, task).text().split("\n")
    assert lines.pop() == ""
    numbers = [int(line.removeprefix("<").removesuffix(">")) for line in lines]
    assert numbers == sorted(set(numbers))
    assert hub.run(null, 1).value == 1


# -- console -------------------------------------------------------------------------------


def test_a_console_attaches_between_tasks(hub: Hub) -> None:
    from jupyter_client import BlockingKernelClient

    worker: Worker = hub.worker  # type: ignore[attr-defined]
    assert worker.connection_file.stat().st_mode & 0o777 == 0o600
    client = BlockingKernelClient(connection_file=str(worker.connection_file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        seen: list[Any] = []
        reply = client.execute_interactive(
            "x = 20 + 1; print('console', x); x * 2", timeout=20, output_hook=seen.append
        )
        assert reply["content"]["status"] == "ok"
        kinds = {m["msg_type"]: m["content"] for m in seen}
        assert kinds["stream"]["text"] == "console 21\n"
        assert kinds["execute_result"]["data"]["text/plain"] == "42"

        def wait() -> str:
            import time

            time.sleep(0.3)
            print("task")
            return "done"

        task = hub.assignment(wait)
        hub.assign(task)
        hub.pump(lambda: worker.recorder.slots())
        seen.clear()
        client.execute_interactive("print('after', x)", timeout=20, output_hook=seen.append)
        hub.pump(lambda: hub.verdict(task))
        assert Task(hub, task).text() == "task\n"
        assert [m["content"]["text"] for m in seen if m["msg_type"] == "stream"] == ["after 21\n"]
    finally:
        client.stop_channels()


def test_a_console_cell_that_awaits_does_not_overlap_with_a_task(hub: Hub) -> None:
    from jupyter_client import BlockingKernelClient

    worker: Worker = hub.worker  # type: ignore[attr-defined]
    client = BlockingKernelClient(connection_file=str(worker.connection_file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        client.execute(
            "import asyncio, builtins; builtins.inside = True\n"
            "await asyncio.sleep(0.5); builtins.inside = False"
        )

        def look() -> bool:
            import builtins

            return getattr(builtins, "inside", None)  # type: ignore[return-value]

        deadline = time.monotonic() + 10
        while (msg := client.get_iopub_msg(timeout=10))["msg_type"] != "execute_input":
            assert time.monotonic() < deadline, msg
        assert hub.run(look).value is False
    finally:
        client.stop_channels()


def test_an_interrupt_ends_a_console_cell(hub: Hub) -> None:
    from jupyter_client import BlockingKernelClient

    worker: Worker = hub.worker  # type: ignore[attr-defined]
    worker.recorder.cancel_target = 0
    client = BlockingKernelClient(connection_file=str(worker.connection_file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        sent = client.execute("print('on', flush=True); import time; time.sleep(60)")
        while client.get_iopub_msg(timeout=20)["msg_type"] != "stream":
            pass
        os.kill(worker.pid, signal.SIGINT)
        while (reply := client.get_shell_msg(timeout=20))["parent_header"]["msg_id"] != sent:
            pass
        assert reply["content"]["ename"] == "KeyboardInterrupt"
    finally:
        client.stop_channels()
    assert hub.run(null, 1).value == 1


# -- one worker each -----------------------------------------------------------------------


def test_it_starts_light_and_keeps_nothing_of_the_users_profile(pair: tuple[Hub, Worker]) -> None:
    hub, worker = pair
    found = {
        os.readlink(link)
        for link in Path(f"/proc/{worker.pid}/fd").iterdir()
        if os.path.lexists(link)
    }
    assert not [path for path in found if "sqlite" in path]
    mapped = Path(f"/proc/{worker.pid}/maps").read_text()
    assert "numpy" not in mapped
    assert "pandas" not in mapped

    def loaded() -> list[str]:
        import sys

        return [name for name in ("pandas", "debugpy", "ipywidgets") if name in sys.modules]

    assert hub.run(loaded).value == []
    assert worker.log.read_text() == ""


def test_a_hub_that_comes_back_hears_what_is_held_and_gets_the_verdict_again(
    pair: tuple[Hub, Worker],
) -> None:
    hub, worker = pair

    def wait() -> int:
        import time

        time.sleep(0.2)
        return 1

    hub.records = False
    first, second, third = (hub.assignment(wait) for _ in range(3))
    hub.assign(first, second, third)
    hub.pump(lambda: hub.verdict(first))
    hub.unbind()
    before = hub.of(p.Settle)
    until(lambda: worker.recorder.settled == 3, "it has settled, while nobody listens")
    hub.received.clear()
    hub.bind()
    hub.pump(lambda: all(hub.verdict(t) for t in (first, second, third)))
    (hello,) = hub.of(p.Hello)
    assert set(hello.holding) == {(t.task_id, t.token) for t in (first, second, third)}
    assert hub.of(p.Settle)[0] == before[0]
    numbers = [s.number for s in hub.of(p.Settle)]
    assert numbers == list(range(1, len(numbers) + 1))
    hub.send(p.Recorded(numbers[-1]))
    hub.records = True
    assert Task(hub, third).value == 1
    hub.run(null)
    hub.send(p.Recall([10**9]))
    hub.pump(lambda: hub.of(p.Recalled))  # it has read what was sent before, too
    hub.unbind()
    hub.received.clear()
    hub.bind()
    hub.pump(lambda: hub.of(p.Hello))
    assert hub.of(p.Hello)[0].holding == []


def test_a_terminated_worker_sends_what_is_settled_and_ends(pair: tuple[Hub, Worker]) -> None:
    hub, worker = pair

    def wait() -> None:
        import time

        time.sleep(60)

    hub.run(null)
    task = hub.assignment(wait)
    hub.assign(task)
    hub.pump(lambda: worker.recorder.slots())
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.process is not None
    assert worker.process.wait(10) == -signal.SIGTERM
    assert not worker.connection_file.exists()


def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    folder.mkdir(mode=0o700)
    hub = Hub(folder)
    script = (
        "import sys, pathlib, time\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import stand_in\n"
        "class There: address = sys.argv[1]\n"
        "worker = stand_in.Worker(There, pathlib.Path(sys.argv[2]))\n"
        "worker.start(); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, hub.address, str(folder)])
    try:
        hello = hub.pump(lambda: hub.of(p.Hello))[0]
        parent.kill()
        parent.wait()
        until(lambda: not alive(hello.pid), "the worker is gone", 5.0)
    finally:
        parent.kill()
        parent.wait()
        hub.close()


def test_a_worker_that_its_hub_refuses_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "k"
    folder.mkdir(mode=0o700)
    hub = Hub(folder)
    worker = Worker(hub, folder)
    worker.start()
    try:
        assert worker.process is not None
        hub.socket.poll(20_000)
        frames = hub.socket.recv_multipart()
        hub.peer = frames[0]
        hub.send(p.Refused("version", "this hub speaks protocol 2"))
        assert worker.process.wait(20) == os.EX_SOFTWARE
        assert "protocol 2" in worker.log.read_text()
    finally:
        worker.stop()
        hub.close()
