"""Files that the store refuses to use: it says why in one line, and leaves them alone."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_driver import (
    Driver,
    crashed,
    environment,
    insert,
    noise,
    truncate,
)

from nbtaskq.errors import StoreError
from nbtaskq.hub.store import Store

MB = 1 << 20


def cut_header(file: Path) -> None:
    os.truncate(file, 60)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other_content(file: Path) -> None:
    file.write_bytes(b"Dear diary, " * 1000)


def other_program(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
    connection.close()


def newer_schema(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def read_only(file: Path) -> None:
    file.chmod(0o400)


def damaged_inside(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.seek(4096)
        handle.write(b"\xff" * 4096)


def a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (truncate, "truncated"),
        (cut_header, "truncated"),
        (empty, "empty"),
        (other_content, "not an SQLite database"),
        (other_program, "another program"),
        (newer_schema, "version 99"),
        (read_only, "read-only"),
        (damaged_inside, "damaged"),
        (a_link, "cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_bad_file_is_refused_in_one_line_and_left_as_it_was(
    stored: Path, spoil: Callable[[Path], None], cause: str
) -> None:
    file = stored / "hub.sqlite"
    spoil(file)
    before = file.read_bytes()
    start = time.monotonic()
    with pytest.raises(StoreError) as caught:
        Store.open(stored)
    assert time.monotonic() - start < 2
    text = str(caught.value)
    assert cause in text and "\n" not in text
    assert str(file) in text and re.search("; .*(again|another)", text)
    assert file.read_bytes() == before


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere: the folder cannot be found"):
        Store.open(tmp_path / "nowhere")


def test_a_read_only_folder_is_named(stored: Path) -> None:
    stored.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="the folder is read-only"):
            Store.open(stored)
    finally:
        stored.chmod(0o700)


def test_a_log_without_its_database_is_not_thrown_away(tmp_path: Path) -> None:
    crashed(tmp_path, "driver.write(insert(1))")
    (tmp_path / "hub.sqlite").rename(tmp_path / "kept")
    with pytest.raises(StoreError, match="missing, but its log"):
        Store.open(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "hub.sqlite")
    driver = Driver(tmp_path, start=False)
    assert [task.seq for task in driver.store.unended()] == [1]
    driver.close()


def test_the_database_cut_off_under_its_log_is_refused(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(*(insert(seq, body=noise(2000)) for seq in range(1, 100)))
    driver.close()
    crashed(tmp_path, "driver.write(insert(200))")
    os.truncate(tmp_path / "hub.sqlite", 5 * 4096)
    with pytest.raises(StoreError, match="truncated"):
        Store.open(tmp_path)


def test_a_second_store_on_the_folder_is_refused_and_the_first_goes_on(stored: Path) -> None:
    driver = Driver(stored)
    with pytest.raises(StoreError, match=f"process {os.getpid()} has it open"):
        Store.open(stored)
    script = "import sys; from store_driver import *; Store.open(Path(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(stored)]
    other = subprocess.run(
        command, env=environment(), timeout=30, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert f"process {os.getpid()} has it open" in other.stderr
    driver.write(insert(7))
    driver.close()


def test_a_file_that_another_program_has_locked_is_refused(stored: Path) -> None:
    other = sqlite3.connect(stored / "hub.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreError, match="another process has it open"):
            Store.open(stored)
    finally:
        other.close()
    Store.open(stored).close()


def test_the_files_are_private(stored: Path) -> None:
    driver = Driver(stored)
    driver.write(insert(10))
    files = [f for f in stored.iterdir() if f.is_file()]
    assert {"hub.sqlite", "hub.sqlite-wal"} <= {f.name for f in files}
    assert {f.stat().st_mode & 0o077 for f in files} == {0}
    assert (stored / "blobs").stat().st_mode & 0o077 == 0
    driver.close()
