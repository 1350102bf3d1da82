"""Worker kernels are started, watched and replaced."""

from __future__ import annotations

import itertools
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import workspace_with_stand_ins

from nbtaskq import process
from nbtaskq.hub.protocol import Died, Slot
from nbtaskq.worker import resources
from nbtaskq.worker.guard import Guard
from nbtaskq.worker.pool import KEPT_LOGS, StartLimit, WorkerPool
from nbtaskq.worker.resources import available_cpus, cpu_quota
from nbtaskq.workspace import Workspace
from tests.waiting import alive, until


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """A workspace beside a folder of stand-in modules."""
    with workspace_with_stand_ins(tmp_path, monkeypatch) as found:
        yield found


class Driver:
    """Does what the supervisor's loop does, and keeps the notices."""

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.notices: list[Died] = []

    def turn(self) -> None:
        poller = select.poll()
        for descriptor in self.pool.descriptors():
            poller.register(descriptor, select.POLLIN)
        poller.poll(10)
        self.notices += self.pool.step(time.monotonic())

    def until(self, condition: Callable[[], Any], what: str, limit: float = 10.0) -> None:
        def turn() -> Any:
            self.turn()
            return condition()

        until(turn, what, limit)

    def ready(self, *names: str) -> None:
        def up() -> bool:
            children = self.pool.children
            return set(children) == set(names) and all(c.ready for c in children.values())

        self.until(up, f"{names} are ready")


@pytest.fixture
def start(workspace: Workspace) -> Iterator[Callable[..., Driver]]:
    """Start pools that are ended with the test."""
    drivers: list[Driver] = []

    def start(**options: Any) -> Driver:
        pool = WorkerPool(workspace, itertools.count(1), module="standin_worker", **options)
        drivers.append(Driver(pool))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.pool.stop(0.0, time.monotonic())
        driver.until(lambda: not driver.pool.children, "all are gone")  # noqa: B023


def kill(driver: Driver, name: str, signum: int = signal.SIGKILL) -> None:
    os.kill(driver.pool.children[name].pid, signum)


def test_a_killed_worker_is_reported_with_what_it_ran_and_why_it_died(
    start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "task")
    driver = start(size=1)
    driver.ready("w1")
    kill(driver, "w1")
    driver.until(lambda: driver.notices, "its death is noticed")
    died = driver.notices[0]
    assert (died.worker, died.reason) == ("w1", "killed by signal 9 (SIGKILL)")
    assert died.slots == [Slot(b"abc", 42, 1.5)]
    assert died.settled == 7
    assert died.tail.startswith("epoch 3\n")
    assert died.tail.endswith("hello from the log")


def test_what_a_killed_worker_started_is_killed_too(
    start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "task")
    driver = start(size=1)
    driver.ready("w1")
    grandchild = int(driver.pool.children["w1"].recorder.tail().split()[-1])
    assert alive(grandchild)
    kill(driver, "w1")
    driver.until(lambda: driver.notices, "its death is noticed")
    until(lambda: not alive(grandchild), "the grandchild is gone")


def test_a_dead_worker_is_replaced_under_a_new_name(start: Callable[..., Driver]) -> None:
    driver = start(size=2)
    driver.ready("w1", "w2")
    kill(driver, "w1")
    driver.ready("w2", "w3")
    kill(driver, "w3", signal.SIGSEGV)
    driver.ready("w2", "w4")
    assert [died.reason for died in driver.notices] == [
        "killed by signal 9 (SIGKILL)",
        "killed by signal 11 (SIGSEGV)",
    ]


def test_a_dead_worker_leaves_nothing_but_its_log(
    start: Callable[..., Driver], workspace: Workspace
) -> None:
    driver = start(size=1)
    driver.ready("w1")
    workspace.connection_file("w1").write_text("{}")
    (workspace.runtime / "kernel-w1-1").touch()
    pid = driver.pool.children["w1"].pid
    descriptors = set(os.listdir("/proc/self/fd"))
    kill(driver, "w1")
    driver.ready("w2")
    assert {path.name for path in workspace.runtime.iterdir()} == {"w2.rec"}
    assert not workspace.connection_file("w1").exists()
    assert workspace.log("w1").exists()
    assert not Path(f"/proc/{pid}").exists()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_logs_of_dead_workers_do_not_pile_up(
    start: Callable[..., Driver], workspace: Workspace
) -> None:
    for number in range(KEPT_LOGS + 10):
        workspace.log(f"w{number + 100}").touch()
    driver = start(size=1)
    driver.ready("w1")
    kill(driver, "w1")
    driver.ready("w2")
    assert len(list(workspace.logs.iterdir())) == KEPT_LOGS + 1


def test_workers_that_do_not_come_up_are_tried_less_and_less_and_the_cause_is_kept(
    start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "early")
    driver = start(size=2)
    driver.until(lambda: len(driver.notices) == 4, "four have died")
    assert driver.pool.start_error == "exited with status 3 before it was ready\nhello from the log"
    assert driver.pool.deadline(time.monotonic()) > time.monotonic() + 0.3
    monkeypatch.setenv("MOOD", "")
    driver.until(lambda: len(driver.pool.children) == 2, "two are up")
    driver.until(lambda: not driver.pool.start_error, "the cause is forgotten")


def test_a_python_that_is_not_there_is_a_failed_start(start: Callable[..., Driver]) -> None:
    driver = start(size=1, executable="/no/such/python")
    driver.turn()
    assert "/no/such/python cannot be started" in driver.pool.start_error
    assert driver.pool.deadline(time.monotonic()) > time.monotonic()


def test_at_most_ten_starts_fail_within_thirty_seconds() -> None:
    limit = StartLimit()
    starts: list[float] = []
    now = 0.0
    while now < 300:
        for _ in range(limit.allowance(now, 0)):
            starts.append(now)
            limit.failed(now)
        now += 0.05
    assert max(sum(at <= other < at + 30 for other in starts) for at in starts) <= 10
    assert starts[-1] > 250, "it does not give up"


def test_one_that_comes_up_ends_the_waiting() -> None:
    limit = StartLimit()
    limit.failed(0.0)
    limit.failed(0.0)
    assert limit.allowance(0.0, 0) == 0
    assert limit.allowance(5.0, 0) == 1
    assert limit.allowance(5.0, 1) == 0
    limit.succeeded()
    assert limit.not_before() == -math.inf
    assert limit.allowance(5.0, 1) == 7


def test_deaths_after_the_start_are_not_held_against_it(start: Callable[..., Driver]) -> None:
    driver = start(size=1)
    for number in range(1, 15):
        driver.ready(f"w{number}")
        kill(driver, f"w{number}")
    driver.ready("w15")


def test_a_suspended_worker_does_not_count_as_living(start: Callable[..., Driver]) -> None:
    driver = start(size=2)
    driver.ready("w1", "w2")
    assert driver.pool.living() == ["w1", "w2"]
    kill(driver, "w1", signal.SIGSTOP)
    driver.until(lambda: driver.pool.living() == ["w2"], "w1 is suspended")
    assert driver.pool.facts(time.monotonic())["w1"]["state"] == "suspended"
    kill(driver, "w1", signal.SIGCONT)
    driver.until(lambda: driver.pool.living() == ["w1", "w2"], "w1 goes on")
    assert driver.notices == []


def test_facts_are_those_of_the_process(start: Callable[..., Driver]) -> None:
    driver = start(size=1)
    driver.ready("w1")
    facts = driver.pool.facts(time.monotonic())["w1"]
    assert facts["pid"] == driver.pool.children["w1"].pid
    assert facts["state"] == "up"
    assert 5_000_000 < facts["rss"] < 500_000_000
    assert facts["cpu"] >= 0
    assert facts["uptime"] >= 0


def test_of_too_many_workers_the_idle_and_then_the_newest_end(
    start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "task")
    driver = start(size=1)
    driver.ready("w1")
    monkeypatch.setenv("MOOD", "")
    driver.pool.scale(3, time.monotonic())
    driver.ready("w1", "w2", "w3")
    driver.pool.scale(2, time.monotonic())
    driver.ready("w1", "w2")
    driver.pool.scale(1, time.monotonic())
    driver.ready("w1")
    assert [died.worker for died in driver.notices] == ["w3", "w2"]
    assert all(died.reason.startswith("stopped: ") for died in driver.notices)


def test_a_restart_replaces_all(start: Callable[..., Driver]) -> None:
    driver = start(size=2)
    driver.ready("w1", "w2")
    driver.pool.restart(time.monotonic())
    driver.ready("w3", "w4")
    assert all(died.reason.startswith("stopped: restarted") for died in driver.notices)


def test_a_worker_that_does_not_obey_is_killed_after_the_grace(
    start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOOD", "stubborn")
    driver = start(size=1)
    driver.ready("w1")
    driver.pool.stop(0.2, time.monotonic())
    assert driver.pool.deadline(time.monotonic()) < time.monotonic() + 0.3
    driver.until(lambda: not driver.pool.children, "it is gone")
    assert "SIGKILL" in driver.notices[0].reason
    assert driver.notices[0].reason.startswith("stopped: ")


def test_threads_of_libraries_share_the_processors(
    start: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "17")
    driver = start(size=1)
    driver.ready("w1")
    raw = Path(f"/proc/{driver.pool.children['w1'].pid}/environ").read_bytes()
    environment = dict(item.split("=", 1) for item in raw.decode().split("\0") if "=" in item)
    assert environment["OMP_NUM_THREADS"] == str(available_cpus())
    assert environment["OPENBLAS_NUM_THREADS"] == "17"


# -- the guard -----------------------------------------------------------------------------


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three processes in groups of their own."""
    (tmp_path / "sleeper.py").write_text("import time; time.sleep(300)")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    started = [process.spawn("sleeper", {}, log=tmp_path / "log", env=env) for _ in range(3)]
    yield started
    for sleeper in started:
        sleeper.kill()
        sleeper.wait()


def test_the_guard_kills_what_it_watched_last_and_nothing_else(
    sleepers: list[subprocess.Popen[bytes]],
) -> None:
    guard = Guard()
    guard.watch(sleeper.pid for sleeper in sleepers)
    guard.watch(sleeper.pid for sleeper in sleepers[:2])
    guard.close()
    assert [sleeper.wait(10) for sleeper in sleepers[:2]] == [-signal.SIGKILL] * 2
    assert sleepers[2].poll() is None


def test_a_killed_guard_is_replaced(sleepers: list[subprocess.Popen[bytes]]) -> None:
    guard = Guard()
    os.kill(guard.pid, signal.SIGKILL)
    until(lambda: not alive(guard.pid), "the guard is gone")
    guard.watch([sleepers[0].pid])
    guard.close()
    assert sleepers[0].wait(10) == -signal.SIGKILL


# -- processors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_limit_is_read(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_processors_are_bounded_by_affinity_and_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))
    for folder in (tmp_path, tmp_path / "cpu"):
        folder.mkdir(exist_ok=True)
        (folder / "cpu.max").write_text("20000 100000")
    monkeypatch.setattr(resources, "CGROUPS", tmp_path)
    assert available_cpus() == 1
