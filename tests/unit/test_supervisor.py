"""The supervisor: one for each workspace, and nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from doubles import HubDouble, workspace_with_stand_ins

from nbtaskq import launcher, process
from nbtaskq.errors import BrokerUnreachable
from nbtaskq.hub.protocol import Died, Hello, Order, Renew, Reply
from nbtaskq.process import Lock
from nbtaskq.workspace import Workspace
from tests.waiting import alive, until


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace beside a folder of stand-in modules; whatever runs there is gone afterwards."""
    with workspace_with_stand_ins(tmp_path, monkeypatch) as workspace:
        yield workspace
        pid = launcher.running(workspace)
        launcher.stop_running(workspace)
        if pid:
            until(lambda: not alive(pid), "the supervisor is gone")


def start(workspace: Workspace, **options: Any) -> int:
    """Start a supervisor with stand-ins for its children; return its pid once it is at work."""
    modules = {"worker_module": "standin_worker", "hub_module": "standin_hub"}
    facts = {"workspace": str(workspace.folder), "workers": 2} | modules | options
    child = process.spawn("nbtaskq.supervisor", facts, log=workspace.log("supervisor"), detach=True)
    until(workspace.supervisor_file.exists, "the supervisor is at work")
    return child.pid


@pytest.fixture
def hub(workspace: Workspace) -> Iterator[Callable[..., HubDouble]]:
    """Bind the hub's address in this process."""
    doubles: list[HubDouble] = []

    def bind(**options: Any) -> HubDouble:
        doubles.append(HubDouble(workspace.hub_address, **options))
        return doubles[-1]

    yield bind
    for double in doubles:
        double.close()


def family(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def order(hub: HubDouble, verb: str, **body: Any) -> Reply:
    request = len(list(hub.all(Reply))) + 1
    peer = next(peer for peer, message in hub.received if isinstance(message, Hello))
    hub.send(peer, Order(request, verb, body))
    return hub.expect(Reply, lambda reply: reply.request == request)


def workers_of(hub: HubDouble, count: int) -> dict[str, Any]:
    """Wait until so many workers are up; return what the pool says of them."""

    def enough(renew: Renew) -> bool:
        facts = renew.facts["workers"].values()
        return len(facts) == count and all(fact["state"] == "up" for fact in facts)

    hub.received = [(p, m) for p, m in hub.received if not isinstance(m, Renew)]
    found: dict[str, Any] = hub.expect(Renew, enough).facts["workers"]
    return found


def test_it_tells_the_hub_of_its_workers_each_second(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    pid = start(workspace)
    double = hub()
    hello = double.expect(Hello)
    assert (hello.role, hello.pid, hello.environment.prefix) == ("pool", pid, sys.prefix)
    assert set(workers_of(double, 2)) == {"w1", "w2"}
    renew = double.expect(Renew, lambda renew: renew.workers == ["w1", "w2"])
    assert renew.facts["target"] == 2
    assert renew.facts["start_error"] == ""
    facts = json.loads(workspace.supervisor_file.read_text())
    assert facts["pid"] == pid
    assert stat.S_IMODE(workspace.supervisor_file.stat().st_mode) == 0o600


def test_a_killed_worker_is_reported_and_replaced(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    start(workspace)
    double = hub()
    workers = workers_of(double, 2)
    os.kill(workers["w1"]["pid"], signal.SIGKILL)
    assert double.expect(Died).reason == "killed by signal 9 (SIGKILL)"
    assert set(workers_of(double, 2)) == {"w2", "w3"}


def test_a_death_is_reported_when_the_hub_is_back(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    start(workspace)
    double = hub()
    workers = workers_of(double, 2)
    double.close()
    os.kill(workers["w1"]["pid"], signal.SIGKILL)
    until(lambda: not Path(f"/proc/{workers['w1']['pid']}").exists(), "it is reaped")
    assert hub().expect(Died).worker == "w1"


def test_a_suspended_worker_is_not_renewed(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    start(workspace)
    double = hub()
    workers = workers_of(double, 2)
    os.kill(workers["w1"]["pid"], signal.SIGSTOP)
    double.expect(Renew, lambda renew: renew.workers == ["w2"])


def test_orders_are_obeyed_and_answered(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    start(workspace)
    double = hub()
    workers_of(double, 2)
    assert order(double, "scale", n=3).body == {"n": 3}
    workers_of(double, 3)
    assert order(double, "scale", n=1, exact=False).body == {"n": 3}
    assert order(double, "scale", n=1, exact=True).body == {"n": 1}
    workers_of(double, 1)
    assert order(double, "restart").ok
    double.expect(Died, lambda died: died.reason.startswith("stopped: restarted"))
    names = set(workers_of(double, 1))
    listed = order(double, "workers").body
    assert {worker["name"] for worker in listed} == names
    assert {"pid", "state", "environment"} <= set(listed[0])


@pytest.mark.parametrize(
    ("verb", "body", "words"),
    [
        ("dance", {}, "no such order: 'dance'"),
        ("scale", {"n": -1}, "-1 is no number of workers"),
        ("scale", {}, "'n'"),
        ("environment", {"prefix": "/no", "minor": "3.1", "executable": "/no/python"}, "no Python"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(
    workspace: Workspace,
    hub: Callable[..., HubDouble],
    verb: str,
    body: dict[str, Any],
    words: str,
) -> None:
    start(workspace, workers=0)
    double = hub()
    double.expect(Hello)
    reply = order(double, verb, **body)
    assert not reply.ok
    assert words in reply.body


def test_another_environment_gets_workers_of_its_own(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    start(workspace, workers=1)
    double = hub()
    workers_of(double, 1)
    other = {"prefix": "/other", "minor": "3.99", "executable": sys.executable}
    for _ in range(2):
        assert order(double, "environment", **other).ok
    assert set(workers_of(double, 2)) == {"w1", "w2"}
    listed = order(double, "workers").body
    assert {worker["environment"] for worker in listed} >= {"/other|3.99"}


def test_workers_that_do_not_come_up_are_named_with_their_last_words(
    workspace: Workspace, hub: Callable[..., HubDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "early")
    start(workspace, workers=1)
    renew = hub().expect(Renew, lambda renew: bool(renew.facts["start_error"]))
    assert "exited with status 3" in renew.facts["start_error"]
    assert "hello from the log" in renew.facts["start_error"]


# -- its end -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["order", "SIGTERM", "SIGINT"])
def test_after_its_end_nothing_is_left_but_data(
    workspace: Workspace, hub: Callable[..., HubDouble], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "task")
    (workspace.store_folder / "data").write_text("kept")
    pid = start(workspace)
    double = hub()
    workers_of(double, 2)
    pids = [pid, *family(pid)]
    if how == "order":
        assert order(double, "stop").ok
    else:
        os.kill(pid, getattr(signal, how))
    double.expect(Died, lambda died: died.reason.startswith("stopped: the workers were shut down"))
    until(lambda: not any(map(alive, pids)), "all processes are gone")
    assert [path.name for path in workspace.runtime.iterdir()] == []
    assert Lock.holder(workspace.supervisor_lock) is None
    assert (workspace.store_folder / "data").read_text() == "kept"


def test_no_orphan_is_left_when_it_is_killed(
    workspace: Workspace, hub: Callable[..., HubDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "task")
    pid = start(workspace)
    workers_of(hub(), 2)
    pids = family(pid)
    assert len(pids) == 6, "hub, guard, two workers and what these started"
    os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, pids)), "all processes are gone", 5.0)
    assert Lock.holder(workspace.supervisor_lock) is None


def test_after_a_kill_another_one_takes_over(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    pid = start(workspace)
    workers_of(hub(), 2)
    os.kill(pid, signal.SIGKILL)
    until(lambda: Lock.holder(workspace.supervisor_lock) is None, "the lock is free")
    workspace.supervisor_file.unlink()
    assert start(workspace) == Lock.holder(workspace.supervisor_lock)
    workers_of(hub(), 2)


def test_a_second_one_leaves_quietly(workspace: Workspace) -> None:
    pid = start(workspace, workers=0)
    log = workspace.log("second")
    second = process.spawn("nbtaskq.supervisor", {"workspace": str(workspace.folder)}, log=log)
    assert second.wait(10) == 0
    assert f"Process {pid} already serves" in log.read_text()
    assert alive(pid)


def test_it_ends_when_there_was_nothing_to_do_for_long_enough(
    workspace: Workspace, hub: Callable[..., HubDouble]
) -> None:
    pid = start(workspace, workers=1, idle=5)
    double = hub(idle=4.9)
    double.expect(Hello)
    double.until(lambda: pings(double) > 2, "it has been told that it is too early")
    assert alive(pid)
    double.idle = 5.0
    double.until(lambda: not alive(pid), "it ends")


def pings(double: HubDouble) -> int:
    return sum(type(message).__name__ == "Ping" for _, message in double.received)


def test_it_ends_when_the_hub_never_comes_up(workspace: Workspace) -> None:
    pid = start(workspace, workers=0, idle=0.5)
    until(lambda: not alive(pid), "it ends")


# -- the hub -------------------------------------------------------------------------------


def hub_of(pid: int) -> int | None:
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):
            if "standin_hub" in child.cmdline():
                return int(child.pid)
    return None


def test_a_killed_hub_is_started_again_at_once(workspace: Workspace) -> None:
    pid = start(workspace, workers=0)
    hubs = set()
    for _ in range(3):
        found = until(lambda: hub_of(pid), "a hub runs")
        hubs.add(found)
        os.kill(found, signal.SIGKILL)
        until(lambda: hub_of(pid) != found, "it is gone")  # noqa: B023
    assert len(hubs) == 3


def test_a_hub_that_cannot_start_is_tried_less_often_and_its_cause_can_be_raised(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_MOOD", "fatal")
    assert launcher.failure(workspace) is None
    start(workspace, workers=0)
    log = workspace.log("hub")
    until(lambda: log.exists() and log.read_text().count("not a database") >= 5, "five tries")
    count = workspace.log("hub").read_text().count("not a database")
    assert count <= 6
    error = launcher.failure(workspace)
    assert isinstance(error, BrokerUnreachable)
    assert str(error) == "The store is not a database: move it away."


def test_the_cause_is_forgotten_once_the_hub_serves(
    workspace: Workspace, hub: Callable[..., HubDouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUB_MOOD", "fatal")
    start(workspace, workers=0)
    until(lambda: launcher.failure(workspace), "a failure")
    double = hub()
    double.expect(Hello)
    double.until(lambda: not workspace.failure_file.exists(), "it is forgotten")


# -- the launcher --------------------------------------------------------------------------


def test_of_many_launches_at_once_one_starts_a_supervisor(workspace: Workspace) -> None:
    with ThreadPoolExecutor() as threads:
        launches = [threads.submit(launcher.ensure_running, workspace, 0) for _ in range(5)]
    assert [launch.result() for launch in launches].count(True) == 1
    pid = launcher.running(workspace)
    assert pid
    until(workspace.supervisor_file.exists, "the supervisor is at work")
    assert launcher.running(workspace) == pid
    assert workspace.log("supervisor").read_text() == ""


def test_what_is_running_is_not_started_again(workspace: Workspace) -> None:
    pid = start(workspace, workers=0)
    assert not launcher.ensure_running(workspace)
    assert launcher.running(workspace) == pid


def test_stopping_names_whether_there_was_anything(workspace: Workspace) -> None:
    assert not launcher.stop_running(workspace)
    pid = start(workspace, workers=1)
    assert launcher.stop_running(workspace)
    until(lambda: not alive(pid), "it is gone")
    assert launcher.running(workspace) is None


def test_one_that_does_not_obey_is_killed(workspace: Workspace) -> None:
    pid = start(workspace, workers=0)
    os.kill(pid, signal.SIGSTOP)
    assert launcher.stop_running(workspace, timeout=0.2)
    until(lambda: not alive(pid), "it is gone")


def test_a_stranger_that_holds_the_lock_is_not_harmed(workspace: Workspace) -> None:
    with Lock(workspace.supervisor_lock):
        assert not launcher.stop_running(workspace)


def test_a_workspace_that_was_never_made_has_nothing_running(tmp_path: Path) -> None:
    nowhere = Workspace.at(tmp_path / "none")
    assert launcher.running(nowhere) is None
    assert not launcher.stop_running(nowhere)
    assert not nowhere.exists


def test_starting_it_again_takes_back_that_the_user_said_down(workspace: Workspace) -> None:
    workspace.mark_down()
    start(workspace, workers=0)
    assert not workspace.is_down
