"""Locks, children and their ends."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from doubles import ROOT

from nbtaskq.errors import HubAlreadyRunning
from nbtaskq.process import Lock, describe_exit, spawn
from tests.waiting import alive, until


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules children can run."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")
    return folder


def run(code: str, modules: Path, options: dict[str, object], log: Path) -> subprocess.Popen[bytes]:
    (modules / "child_under_test.py").write_text(code)
    return spawn("child_under_test", options, log=log)


def test_a_child_gets_its_options_by_stdin_and_writes_to_a_private_log(
    modules: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys\n"
        "from nbtaskq.process import read_options\n"
        "print(read_options(), sys.argv[1:], repr(sys.stdin.read()), os.getsid(0) == os.getpid())\n"
    )
    child = run(code, modules, {"key": "ключ"}, tmp_path / "log")
    assert child.wait(10) == 0
    assert (tmp_path / "log").read_text() == "{'key': 'ключ'} [] '' True\n"
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_a_child_knows_nothing_of_the_notebook_that_started_it(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    child = run("import os; print('JPY_PARENT_PID' in os.environ)", modules, {}, tmp_path / "log")
    assert child.wait(10) == 0
    assert (tmp_path / "log").read_text() == "False\n"


def test_a_file_in_the_current_folder_does_not_stand_in_for_a_module(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('trapped')")
    monkeypatch.chdir(tmp_path)
    child = run("import json", modules, {}, tmp_path / "log")
    assert child.wait(10) == 0


def test_a_child_that_does_not_read_its_options_harms_nobody(modules: Path, tmp_path: Path) -> None:
    child = run("", modules, {"large": "x" * 10_000_000}, tmp_path / "log")
    assert child.wait(10) == 0


def test_a_detached_child_leaves_no_zombie(modules: Path, tmp_path: Path) -> None:
    (modules / "short_lived.py").write_text("")
    child = spawn("short_lived", {}, log=tmp_path / "log", detach=True)
    until(lambda: not Path(f"/proc/{child.pid}").exists(), "the child is reaped")


def test_a_link_in_place_of_the_log_is_not_followed(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        run("", modules, {}, tmp_path / "log")
    assert not (tmp_path / "target").exists()


def test_a_child_dies_with_its_killed_parent(modules: Path, tmp_path: Path) -> None:
    (modules / "inner.py").write_text(
        "import os, signal\n"
        "from nbtaskq.process import die_with_parent, read_options\n"
        "die_with_parent(read_options()['parent'])\n"
        "print(os.getpid(), flush=True)\n"
        "signal.pause()\n"
    )
    outer = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from nbtaskq.process import spawn\n"
        f"spawn('inner', {{'parent': os.getpid()}}, log=Path({str(tmp_path / 'inner.log')!r}))\n"
        "signal.pause()\n"
    )
    parent = run(outer, modules, {}, tmp_path / "log")
    log = tmp_path / "inner.log"
    until(lambda: log.exists() and log.read_text().endswith("\n"), "the inner child is up")
    inner = int(log.read_text())
    assert alive(inner)
    parent.kill()
    parent.wait(10)
    until(lambda: not alive(inner), "the inner child is gone")


def test_a_child_whose_parent_is_gone_already_ends_at_once(modules: Path, tmp_path: Path) -> None:
    code = "from nbtaskq.process import die_with_parent\ndie_with_parent(1 << 22)\nprint('lives')"
    child = run(code, modules, {}, tmp_path / "log")
    assert child.wait(10) == -signal.SIGKILL
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "killed by signal 9 (SIGKILL)"),
        (-11, "killed by signal 11 (SIGSEGV)"),
        (-63, "killed by signal 63"),
    ],
)
def test_an_end_is_put_into_words(status: int, words: str) -> None:
    assert describe_exit(status) == words


# -- locks ---------------------------------------------------------------------------------


def test_a_second_holder_is_told_the_pid_of_the_first(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock"), pytest.raises(HubAlreadyRunning, match=f"Process {os.getpid()} "):
        Lock(tmp_path / "lock").acquire()


def test_a_lock_is_free_again_once_released(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    for _ in range(2):
        lock.acquire()
        lock.release()
        lock.release()
    assert Lock.holder(tmp_path / "lock") is None


def test_the_lock_of_a_killed_process_is_taken_over(modules: Path, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import signal\n"
        "from pathlib import Path\n"
        "from nbtaskq.process import Lock\n"
        f"Lock(Path({str(path)!r})).acquire()\n"
        "print('held', flush=True)\n"
        "signal.pause()\n"
    )
    child = run(code, modules, {}, tmp_path / "log")
    until(lambda: "held" in (tmp_path / "log").read_text(), "the child holds the lock")
    assert Lock.holder(path) == child.pid
    child.kill()
    child.wait(10)
    assert Lock.holder(path) is None
    with Lock(path):
        assert Lock.holder(path) == os.getpid()


def test_a_lock_is_handed_over_without_a_gap(modules: Path, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    (modules / "heir.py").write_text(
        "import signal\n"
        "from pathlib import Path\n"
        "from nbtaskq.process import Lock, read_options\n"
        f"Lock(Path({str(path)!r})).adopt(read_options()['lock'])\n"
        "signal.pause()\n"
    )
    lock = Lock(path)
    lock.acquire()
    handle = lock.fileno()
    heir = spawn("heir", {"lock": handle}, log=tmp_path / "log", pass_fds=[handle])
    lock.hand_over(heir.pid)
    lock.release()
    assert Lock.holder(path) == heir.pid
    heir.kill()
    heir.wait(10)
    assert Lock.holder(path) is None


def test_a_lock_that_is_only_looked_at_can_be_taken(tmp_path: Path) -> None:
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pathlib import Path\nfrom nbtaskq.process import Lock\n"
            f"while True: Lock.holder(Path({str(tmp_path / 'lock')!r}))",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        for _ in range(2000):
            with Lock(tmp_path / "lock"):
                pass
    finally:
        looker.kill()
        looker.wait()


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"):
        Lock(tmp_path / "lock").acquire()
