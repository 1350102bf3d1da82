"""Killed with SIGKILL while it computes: nothing that was accepted is lost.

Each task appends a line to a file when it starts and one when it ends, with one write that no
kill can tear, so that the file tells what ran how often.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import nbtaskq as nq
from nbtaskq.errors import TaskCrashed, TaskUncertain
from nbtaskq.workspace import Workspace
from tests.conftest import processes_of
from tests.waiting import until


class Effects:
    """The file that tasks write their beginnings and ends to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[str, str, int]]:
        """Return (what, key, pid of the worker) for each beginning and end."""
        if not self.path.exists():
            return []
        rows = (line.split() for line in self.path.read_text().splitlines())
        return [(what, key, int(pid)) for what, key, pid in rows]

    def pids(self, key: str) -> list[int]:
        """Return the workers that began a task."""
        return [pid for what, k, pid in self.lines() if (what, k) == ("start", key)]

    def began(self, key: str) -> int:
        """Wait until a task has begun and return its worker's pid."""
        return int(until(lambda: self.pids(key), f"{key} has begun")[-1])


@pytest.fixture
def effects(tmp_path: Path) -> Effects:
    return Effects(tmp_path / "effects")


def tasks(effects: Effects) -> dict[str, Callable[..., object]]:
    """Return functions as a cell would define them."""
    source = f"""
    import os, time

    def note(what, key):
        handle = os.open({str(effects.path)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, f"{{what}} {{key}} {{os.getpid()}}\\n".encode())
        os.close(handle)

    def work(key, seconds):
        note("start", key)
        time.sleep(seconds)
        note("end", key)
        return key

    def suicide(key):
        note("start", key)
        print("last words", flush=True)
        os.kill(os.getpid(), 9)
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), namespace)
    return namespace  # type: ignore[return-value]


def hub_pid(workspace: Workspace) -> int:
    return int(workspace.hub_lock.read_text())


def test_a_killed_worker_returns_its_task_within_a_second(
    fresh_workspace: Workspace, effects: Effects
) -> None:
    nq.up(2)
    work = nq.task(tasks(effects)["work"])
    handle = work.kiq("long", 1.5)
    others = work.map([f"short{i}" for i in range(20)], [0.01] * 20)
    pid = effects.began("long")
    others.results(20)
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: len(effects.pids("long")) == 2, "the task runs again")
    again = time.monotonic() - killed
    assert handle.result(20) == "long"
    assert again < 1.0
    assert effects.pids("long")[0] != effects.pids("long")[1]
    starts = Counter(key for what, key, _ in effects.lines() if what == "start")
    assert {key: n for key, n in starts.items() if n > 1} == {"long": 2}
    assert handle.facts.attempts == 2
    until(lambda: len(nq.status().workers) == 2, "the worker is replaced")


def test_a_task_that_kills_its_workers_is_told_why(
    fresh_workspace: Workspace, effects: Effects
) -> None:
    nq.up(1)
    defined = tasks(effects)
    work, suicide = nq.task(defined["work"]), nq.task(defined["suicide"])
    poison = suicide.kiq("poison")
    neighbours = work.map([f"n{i}" for i in range(10)], [0.0] * 10)
    with pytest.raises(TaskCrashed, match="killed by signal 9") as caught:
        poison.result(20)
    assert "last words" in str(caught.value)
    assert poison.status is nq.TaskStatus.CRASHED
    assert neighbours.results(20) == [f"n{i}" for i in range(10)]
    assert len(effects.pids("poison")) == 2
    assert all(h.facts.attempts == 1 for h in neighbours)


def test_arguments_that_kill_who_unpacks_them_end_their_task(
    fresh_workspace: Workspace, main_module: dict[str, object]
) -> None:
    source = """
    class Deadly:
        def __setstate__(self, state):
            import os
            os.kill(os.getpid(), 9)

        def __getstate__(self):
            return {"x": 1}

    def take(x): return x
    """
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), main_module)
    nq.up(1)
    handle = nq.task(main_module["take"]).kiq(main_module["Deadly"]())  # type: ignore[arg-type,operator]
    with pytest.raises(TaskCrashed, match="killed by signal 9"):
        handle.result(20)


def test_an_at_most_once_task_does_not_run_again(
    fresh_workspace: Workspace, effects: Effects
) -> None:
    nq.up(1)
    suicide = nq.task("suicide", ack_type="when_received")(tasks(effects)["suicide"])
    with pytest.raises(TaskUncertain, match="while it may have run"):
        suicide.kiq("once").result(20)
    assert len(effects.pids("once")) == 1


def test_a_killed_hub_comes_back_and_loses_nothing(
    fresh_workspace: Workspace, effects: Effects
) -> None:
    nq.up(2)
    work = nq.task(tasks(effects)["work"])
    long = work.kiq("long", 2.0)
    worker = effects.began("long")
    many = work.map([f"t{i}" for i in range(300)], [0.005] * 300)
    first = hub_pid(fresh_workspace)
    os.kill(first, signal.SIGKILL)
    late = work.kiq("late", 0.0)  # sent while there is no hub
    assert len(many.results(30)) == 300
    assert late.result(30) == "late"
    assert long.result(30) == "long"
    assert hub_pid(fresh_workspace) != first
    assert effects.pids("long") == [worker]  # its worker went on, and it ran once
    ends = Counter(key for what, key, _ in effects.lines() if what == "end")
    assert set(ends) == {"long", "late", *(f"t{i}" for i in range(300))}


def test_a_hub_killed_again_and_again_records_each_end_once(
    fresh_workspace: Workspace, effects: Effects
) -> None:
    nq.up(2)
    work = nq.task(tasks(effects)["work"])
    batches = []
    for round_ in range(5):
        batches.append(work.map([f"r{round_}-{i}" for i in range(100)], [0.002] * 100))
        until(lambda: any(h.done() for h in batches[-1]), "some have ended")
        pid = hub_pid(fresh_workspace)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: hub_pid_or_none(fresh_workspace) not in (None, pid), "another hub")
    for round_, batch in enumerate(batches):
        assert batch.results(30) == [f"r{round_}-{i}" for i in range(100)]
    frame = nq.history("work", limit=5000)
    assert len(frame) == 500
    assert set(frame.task_status) == {"succeeded"}


def hub_pid_or_none(workspace: Workspace) -> int | None:
    text = workspace.hub_lock.read_text().strip()
    return int(text) if text else None


NOTEBOOK = """
import os, sys, time
import nbtaskq as nq

namespace = {"__name__": "__main__"}
exec(compile('''
import time
def slow(x, seconds):
    time.sleep(seconds)
    print("slow", x)
    return x * 10
''', "<cell>", "exec"), namespace)
slow = nq.task(namespace["slow"])
nq.up(2)
single = slow.kicker().with_task_id("mine").kiq(7, 1.0)
batch = slow.map(range(6), [0.3] * 6)
import asyncio
async def accepted():
    await single
    await batch
asyncio.run(accepted())
print("READY", flush=True)
time.sleep(60)
"""


def test_a_killed_notebook_finds_all_its_tasks_again(
    fresh_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/me/analysis.ipynb")
    notebook = subprocess.Popen([sys.executable, "-c", NOTEBOOK], stdout=subprocess.PIPE, text=True)
    assert notebook.stdout is not None
    assert notebook.stdout.readline().strip() == "READY"
    notebook.kill()
    notebook.wait()
    notebook.stdout.close()

    single = nq.attach("mine")
    assert isinstance(single, nq.TaskHandle)
    assert single.result(20) == 70
    assert single.output.text == "slow 7\n"
    batch = nq.attach("slow")
    assert isinstance(batch, nq.Batch)
    assert batch.results(20) == [0, 10, 20, 30, 40, 50]
    frame = batch.to_frame()
    assert list(frame.result) == [0, 10, 20, 30, 40, 50]


def test_no_process_is_left_after_down(fresh_workspace: Workspace) -> None:
    nq.up(2)
    assert len(processes_of(fresh_workspace)) >= 4
    nq.down()
    until(lambda: not processes_of(fresh_workspace), "all processes have ended", 5.0)


@pytest.mark.parametrize("victim", ["supervisor", "hub", "worker"])
def test_no_orphan_stays_when_one_is_killed(
    fresh_workspace: Workspace, effects: Effects, victim: str
) -> None:
    nq.up(2)
    work = nq.task(tasks(effects)["work"])
    handle = work.kiq("here", 1.0)
    pids = {
        "supervisor": json.loads(fresh_workspace.supervisor_file.read_bytes())["pid"],
        "hub": hub_pid(fresh_workspace),
        "worker": effects.began("here"),
    }
    os.kill(pids[victim], signal.SIGKILL)
    assert handle.result(30) == "here"  # whoever waits starts a dead supervisor again
    nq.down()
    until(lambda: not processes_of(fresh_workspace), "all processes have ended", 5.0)
