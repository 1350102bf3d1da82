"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from doubles import ROOT

from nbtaskq import launcher
from nbtaskq.workspace import Workspace

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.delenv("NBTASKQ_WORKSPACE", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HOME", str(tmp_path))
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", short)
        workspace = Workspace.at(tmp_path / ".nbtaskq")
        yield workspace
        launcher.stop_running(workspace)


@pytest.fixture
def run(workspace: Workspace) -> Run:
    """Run `nbtaskq` in the folder of a workspace of its own."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "nbtaskq.cli", *arguments],
            cwd=workspace.folder.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_help_shows_examples_and_exit_status(run: Run) -> None:
    for command in ("up", "down", "status", "logs"):
        done = run(command, "--help")
        assert done.returncode == 0
        assert f"nbtaskq {command}" in done.stdout.split("Examples:")[1]
        assert "3  nothing runs" in done.stdout


def test_wrong_usage_has_a_status_of_its_own(run: Run) -> None:
    assert run("dance").returncode == 2
    assert run("up", "-n", "-1").returncode == 2
    assert run("up", "3", "-n", "4").returncode == 2


def test_nothing_is_started_by_looking(run: Run, workspace: Workspace) -> None:
    assert run("status").returncode == 3
    assert run("logs").returncode == 3
    done = run("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["running"] is False
    assert not workspace.exists


def test_an_error_is_a_sentence(run: Run, workspace: Workspace) -> None:
    workspace.folder.mkdir(mode=0o755)
    os.chmod(workspace.folder, 0o755)
    done = run("up")
    assert done.returncode == 1
    assert "chmod 700" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_log_can_be_asked_for(run: Run, workspace: Workspace) -> None:
    workspace.create()
    for name in ("hub", "w1"):
        workspace.log(name).write_text(f"first of {name}\nlast of {name}\n")
    assert run("logs", "--worker", "w1", "-n", "1").stdout == "last of w1\n"
    assert "last of hub" in run("logs").stdout
    done = run("logs", "--worker", "w9")
    assert done.returncode == 1
    assert "there are: hub, w1" in done.stderr


@pytest.mark.kernels
def test_a_workspace_is_started_looked_at_and_stopped(run: Run, workspace: Workspace) -> None:
    done = run("up", "1")
    assert done.returncode == 0, done.stderr
    pid = launcher.running(workspace)
    found = json.loads(run("status", "--json", "--workspace", str(workspace.folder)).stdout)
    assert [worker["name"] for worker in found["workers"]] == ["w1"]
    assert run("up").returncode == 0
    assert launcher.running(workspace) == pid
    assert run("down").returncode == 0
    assert launcher.running(workspace) is None
    assert run("status").returncode == 3
    assert run("down").returncode == 0
