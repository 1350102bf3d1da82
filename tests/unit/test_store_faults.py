"""Kills and full disks: what was promised is there, and nothing is half there."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_driver import (
    Driver,
    environment,
    finish,
    insert,
    noise,
)

from nbtaskq.errors import StoreError, TaskCorrupt

MB = 1 << 20


# -- kills ---------------------------------------------------------------------------------


WRITER = """
import sys
from pathlib import Path
from store_driver import *
driver = Driver(Path(sys.argv[1]))
seq = driver.store.next_seq
while True:
    ops = []
    for n in range(seq, seq + 50):
        ops += [insert(n, buffers=[noise(1 << 20)] if n % 100 == 0 else ()), finish(n - 50)]
    seq += 50
    driver.write(*ops)
    print(seq - 1, flush=True)
"""


def test_what_was_durable_is_there_after_a_kill(tmp_path: Path) -> None:
    durable = epoch = 0
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            env=environment(), stdout=subprocess.PIPE,
        )  # fmt: skip
        assert writer.stdout is not None
        for _ in range(5):
            durable = int(writer.stdout.readline())
        writer.kill()
        durable = int((writer.stdout.read().split() or [durable])[-1])
        writer.wait(10)
        writer.stdout.close()
        driver = Driver(tmp_path)
        assert driver.store.notices == []
        assert driver.store.epoch == epoch + 2
        epoch = driver.store.epoch
        for start in range(1, durable + 1, 500):
            page = range(start, min(start + 500, durable + 1))
            found = driver.ask(lambda r, page=page: r.payloads(page))
            assert list(found) == list(page)
            assert not any(isinstance(payload, TaskCorrupt) for payload in found.values())
        ends = driver.ask(lambda r, end=durable - 49: r.outcomes_by_seq(range(1, end)))
        assert len(ends) == durable - 50
        driver.close()


def test_a_kill_while_a_file_is_created_is_got_over(tmp_path: Path) -> None:
    (tmp_path / "hub.sqlite.new").write_bytes(b"")
    (tmp_path / "hub.sqlite.new-wal").write_bytes(b"half")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc.tmp").write_bytes(b"half")
    driver = Driver(tmp_path)
    driver.write(insert(1))
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "blobs", "hub.sqlite", "hub.sqlite-wal", "store.lock",
    ]  # fmt: skip
    assert list((tmp_path / "blobs").iterdir()) == []
    driver.close()


# -- a full disk ---------------------------------------------------------------------------


@pytest.fixture
def full_disk() -> Iterator[Callable[[int | None], None]]:
    """Set the size over which no file can grow; `None` makes room again."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("where", ["rows", "blobs"])
def test_a_failed_write_is_told_and_is_stored_once_there_is_room(
    stored: Path, full_disk: Callable[[int | None], None], where: str
) -> None:
    driver = Driver(stored)
    driver.write(insert(10))
    size = 900_000 if where == "blobs" else 300_000
    buffers = [noise(size)] * 2 if where == "rows" else [noise(MB)]
    full_disk(500_000)
    last = driver.store.write([insert(11), insert(12, buffers=buffers)])
    driver.until(lambda: driver.store.failed)
    assert driver.store.backlog == 2 and driver.durable == last - 2
    stale = driver.store.read(lambda r: set(r.payloads([10, 11, 12])), fresh=False)
    fresh = driver.store.read(lambda r: set(r.payloads([10, 11, 12])))
    driver.until(lambda: stale in driver.answers)
    assert driver.answers[stale] == {10}, "nothing may be half stored"
    assert fresh not in driver.answers
    full_disk(None)
    driver.until(lambda: driver.durable == last and fresh in driver.answers)
    assert driver.answers[fresh] == {10, 11, 12}
    assert driver.store.failed is None
    assert len(list((stored / "blobs").iterdir())) == (where == "blobs")
    driver.close()


def test_a_database_at_its_bound_fails_whole_and_recovers(stored: Path) -> None:
    driver = Driver(stored)

    def bound(pages: int) -> Callable[..., object]:
        return lambda r: driver.store._connection.execute(
            f"PRAGMA max_page_count = {pages}"
        ).fetchone()

    driver.ask(bound(1))  # as small as it is now
    ops = [insert(seq, body=noise(2000)) for seq in range(10, 60)]
    last = driver.store.write([finish(1), *ops])
    driver.until(lambda: isinstance(driver.store.failed, sqlite3.OperationalError))
    raised = driver.store.read(bound(1 << 30), fresh=False)
    driver.until(lambda: driver.durable == last and raised in driver.answers)
    assert driver.store.failed is None
    assert len(driver.ask(lambda r: r.payloads(range(10, 60)))) == 50
    driver.close()


def test_closing_on_a_full_disk_ends_and_says_what_is_lost(
    stored: Path, full_disk: Callable[[int | None], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbtaskq.hub.store.CLOSING", 0.5)
    driver = Driver(stored)
    full_disk(100_000)
    driver.store.write([insert(10, body=noise(MB - 1))])
    with pytest.raises(StoreError, match="1 changes could not be stored"):
        driver.close()
    full_disk(None)
    driver = Driver(stored, start=False)
    assert [task.seq for task in driver.store.unended()] == [1, 2, 3]
    driver.close()


def test_a_copy_of_the_folder_opens_as_it_is(stored: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(stored, tmp_path / "copy")
    driver = Driver(copy, start=False)
    assert [task.seq for task in driver.store.unended()] == [1, 2, 3]
    driver.close()
