"""Where a workspace is found, and that only its owner gets in."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbtaskq import filesystems as module
from nbtaskq.errors import WorkspaceError
from nbtaskq.workspace import Workspace


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder and a Jupyter runtime directory of this test's own."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("NBTASKQ_WORKSPACE", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", f"{short}/run")
        yield folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_new_workspace_is_beside_the_notebook(home: Path) -> None:
    assert Workspace.find(home).folder == home / ".nbtaskq"


def test_the_nearest_workspace_upwards_is_taken(home: Path) -> None:
    deep = home / "project" / "notebooks" / "old"
    deep.mkdir(parents=True)
    Workspace.at(home / "project" / ".nbtaskq").create()
    assert Workspace.find(deep).folder == home / "project" / ".nbtaskq"


def test_the_search_does_not_leave_the_home_folder(home: Path) -> None:
    (home.parent / ".nbtaskq").mkdir()
    assert Workspace.find(home).folder == home / ".nbtaskq"


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
def test_a_folder_of_another_owner_is_passed_over(home: Path) -> None:
    Workspace.at(home / ".nbtaskq").create()
    foreign = home / "project" / ".nbtaskq"
    foreign.mkdir(parents=True)
    os.chown(foreign, 12345, 12345)
    assert Workspace.find(home / "project").folder == home / ".nbtaskq"


def test_the_environment_variable_decides(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTASKQ_WORKSPACE", "~/elsewhere")
    assert Workspace.find().folder == home / "elsewhere"


def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    table = tmp_path / "mounts"
    table.write_text("".join(f"{line}\n" for line in ("none / ext4 rw 0 0", *lines)))
    monkeypatch.setattr(module, "MOUNTS", table)


def test_on_a_network_file_system_local_state_holds_it_and_it_says_so(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = home / "my share"
    share.mkdir()
    mounts(tmp_path, monkeypatch, f"server:/x {home}/my\\040share nfs4 rw 0 0")
    found = Workspace.find(share)
    assert found.folder.parent == home / ".local" / "state" / "nbtaskq"
    assert "nfs4" in found.note
    assert str(found.folder) in found.note


def test_where_everything_is_on_the_network_it_stays_beside_the_notebook(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts(tmp_path, monkeypatch, "none / 9p rw 0 0")
    found = Workspace.find(home)
    assert found.folder == home / ".nbtaskq"
    assert found.note == ""


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_written_local_state_holds_it(home: Path) -> None:
    (home / "shared").mkdir(mode=0o500)
    found = Workspace.find(home / "shared")
    assert found.folder.is_relative_to(home / ".local" / "state")
    assert "read-only" in found.note


def test_everything_that_is_made_is_private(home: Path) -> None:
    old = os.umask(0)
    try:
        made = Workspace.at(home / ".nbtaskq").create()
    finally:
        os.umask(old)
    folders = (made.folder, made.store_folder, made.blobs, made.logs, made.runtime)
    assert [mode(folder) for folder in folders] == [0o700] * 5
    assert (made.folder / ".gitignore").read_text() == "*\n"
    assert made.create() == made


def test_an_open_workspace_is_refused_with_the_remedy(home: Path) -> None:
    (home / ".nbtaskq").mkdir()
    (home / ".nbtaskq").chmod(0o755)
    with pytest.raises(WorkspaceError, match=r"mode 0755.*chmod 700"):
        Workspace.at(home / ".nbtaskq").create()


@pytest.mark.parametrize("harm", ["open", "link", "file"])
def test_a_runtime_folder_that_others_prepared_is_refused(home: Path, harm: str) -> None:
    workspace = Workspace.at(home / ".nbtaskq")
    workspace.runtime.parent.mkdir()
    if harm == "open":
        workspace.runtime.mkdir()
        workspace.runtime.chmod(0o770)
    elif harm == "link":
        (home / "trap").mkdir(mode=0o700)
        workspace.runtime.symlink_to(home / "trap")
    else:
        workspace.runtime.write_text("")
    with pytest.raises(WorkspaceError, match=str(workspace.runtime)) as caught:
        workspace.create()
    words = {"open": "mode 0770", "link": "symbolic link", "file": "not a folder"}
    assert words[harm] in str(caught.value)


@pytest.mark.skipif(os.getuid() != 0, reason="gives a folder to another user")
def test_a_runtime_folder_of_another_owner_is_refused(home: Path) -> None:
    workspace = Workspace.at(home / ".nbtaskq")
    workspace.runtime.mkdir(parents=True, mode=0o700)
    os.chown(workspace.runtime, 12345, 12345)
    with pytest.raises(WorkspaceError, match="belongs to user 12345"):
        workspace.create()


def test_a_workspace_that_cannot_be_made_says_what_to_do(home: Path) -> None:
    (home / "file").write_text("")
    with pytest.raises(WorkspaceError, match="NBTASKQ_WORKSPACE"):
        Workspace.at(home / "file" / ".nbtaskq").create()


def test_a_socket_path_that_the_kernel_would_refuse_is_moved_to_tmp(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / ("long" * 25)))
    runtime = Workspace.at(home / ".nbtaskq").runtime
    assert runtime.parent == Path("/tmp")
    assert str(os.getuid()) in runtime.name


def test_two_names_of_one_folder_share_their_sockets(home: Path) -> None:
    (home / "real").mkdir()
    (home / "alias").symlink_to(home / "real")
    one, other = Workspace.at(home / "real" / "w"), Workspace.at(home / "alias" / "w")
    assert one.hub_address == other.hub_address
    assert Workspace.at(home / "v").hub_address != one.hub_address


def test_that_the_user_said_down_is_remembered(home: Path) -> None:
    workspace = Workspace.at(home / ".nbtaskq").create()
    assert not workspace.is_down
    workspace.mark_down()
    assert workspace.is_down
    assert mode(workspace.folder / "down") == 0o600
    workspace.clear_down()
    workspace.clear_down()
    assert not workspace.is_down
