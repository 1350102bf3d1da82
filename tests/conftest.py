"""Fixtures that start the real thing: a workspace, its hub and its worker kernels."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import nbtaskq as nq
from nbtaskq.client.current import set_current_broker
from nbtaskq.launcher import running, stop_running
from nbtaskq.workspace import Workspace
from tests.waiting import until


def pytest_configure() -> None:
    # user code of the tests must not find a workspace above the working folder
    os.environ.pop("NBTASKQ_WORKSPACE", None)


def processes_of(workspace: Workspace) -> list[psutil.Process]:
    """Return all processes that were started for a workspace."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environ = process.environ()
            if environ.get("NBTASKQ_TEST_WORKSPACE") == str(workspace.folder) and (
                process.pid != os.getpid()
            ):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """Give a workspace of its own; whatever runs in it is gone afterwards."""
    folder = tmp_path_factory.mktemp("ws") / ".nbtaskq"
    yield from _workspace(folder)


@pytest.fixture
def fresh_workspace(tmp_path: Path) -> Iterator[Workspace]:
    """Give a workspace to one test alone."""
    yield from _workspace(tmp_path / ".nbtaskq")


def _workspace(folder: Path) -> Iterator[Workspace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NBTASKQ_WORKSPACE", str(folder))
        patch.setenv("NBTASKQ_TEST_WORKSPACE", str(folder))
        before = set_current_broker(None)
        found = Workspace.at(folder)
        try:
            yield found
        finally:
            broker = set_current_broker(before)
            if isinstance(broker, nq.ZeroMQBroker):
                broker.connection.close(1.0)
            if running(found) is not None:
                stop_running(found)
            until(lambda: not processes_of(found), f"the processes of {folder} have ended")


@pytest.fixture(scope="module")
def hub(workspace: Workspace) -> Workspace:
    """Give a workspace whose hub and two workers are up."""
    nq.up(2)
    return workspace


@pytest.fixture
def main_module() -> Iterator[dict[str, object]]:
    """Give the namespace of `__main__`, as cells see it; new names go away afterwards."""
    namespace = vars(sys.modules["__main__"])
    before = set(namespace)
    yield namespace
    for name in set(namespace) - before:
        del namespace[name]


@pytest.fixture(autouse=True)
def no_stray_threads() -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread behind."""
    before = set(threading.enumerate())
    yield
    stray = [t for t in threading.enumerate() if t not in before and not t.daemon]
    assert not stray, stray
