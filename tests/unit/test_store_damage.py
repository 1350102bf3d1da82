"""Damaged bytes: what they hit is named, the rest goes on, and no wrong value comes back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from store_driver import (
    Driver,
    crashed,
    finish,
    insert,
    noise,
    task_id,
    truncate,
)

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.actions import ChangeTask
from nbtaskq.message import TaskStatus

MB = 1 << 20


def edit(folder: Path, sql: str) -> None:
    connection = sqlite3.connect(folder / "hub.sqlite")
    with connection:
        assert connection.execute(sql).rowcount == 1
    connection.close()


@pytest.fixture
def opened(stored: Path) -> Iterator[Callable[[], Driver]]:
    drivers: list[Driver] = []

    def again() -> Driver:
        drivers.append(Driver(stored))
        return drivers[-1]

    yield again
    for driver in drivers:
        driver.close()


FLIP = "CAST(substr({0}, 1, 9) || x'00' || substr({0}, 11) AS BLOB)"


def test_a_damaged_payload_is_marked_and_the_others_come(
    stored: Path, opened: Callable[[], Driver]
) -> None:
    edit(stored, f"UPDATE payload SET data = {FLIP.format('data')} WHERE seq = 2")
    found = opened().ask(lambda r: r.payloads([1, 2, 3]))
    assert isinstance(found[2], TaskCorrupt)
    assert [found[seq][0].task_id for seq in (1, 3)] == [task_id(1), task_id(3)]


@pytest.mark.parametrize(
    "change", ["name = 'other'", "task_id = x'00'"], ids=lambda value: value.split()[0]
)
def test_a_payload_under_a_damaged_fact_is_marked(
    stored: Path, opened: Callable[[], Driver], change: str
) -> None:
    edit(stored, f"UPDATE task SET {change} WHERE seq = 2")
    assert isinstance(opened().ask(lambda r: r.payloads([2]))[2], TaskCorrupt)


def test_damaged_labels_are_marked(stored: Path) -> None:
    driver = Driver(stored)
    driver.write(ChangeTask(2, 1, labels=b"a new one"))
    driver.close()
    edit(stored, "UPDATE payload SET labels = x'00' WHERE seq = 2")
    driver = Driver(stored)
    assert isinstance(driver.ask(lambda r: r.payloads([2]))[2], TaskCorrupt)
    driver.close()


def test_a_damaged_result_ends_corrupt_and_the_others_come(
    stored: Path, opened: Callable[[], Driver]
) -> None:
    edit(stored, f"UPDATE result SET data = {FLIP.format('data')} WHERE seq = 5")
    ends = opened().ask(lambda r: r.outcomes_by_seq([4, 5, 6]))
    assert {seq: end.status for seq, (end, _) in ends.items()} == {
        4: TaskStatus.SUCCEEDED,
        5: TaskStatus.CORRUPT,
        6: TaskStatus.SUCCEEDED,
    }
    end = ends[5][0]
    assert (end.task_id, end.body, end.withheld) == (task_id(5), b"", False)
    assert "damaged" in end.error


def test_a_damaged_object_is_marked(stored: Path, opened: Callable[[], Driver]) -> None:
    edit(stored, "UPDATE object SET body = x'00'")
    assert isinstance(opened().ask(lambda r: r.objects([b"d1"]))[b"d1"], TaskCorrupt)


def flip_file(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("spoil", [flip_file, truncate, Path.unlink])
def test_a_damaged_blob_file_marks_its_task_alone(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    driver = Driver(tmp_path)
    driver.write(insert(1, buffers=[noise(MB)]), insert(2), finish(1, b"", [noise(MB)]))
    for file in (tmp_path / "blobs").iterdir():
        spoil(file)
    found = driver.ask(lambda r: r.payloads([1, 2]))
    assert isinstance(found[1], TaskCorrupt) and found[2][0].task_id == task_id(2)
    assert driver.ask(lambda r: r.outcomes_by_seq([1]))[1][0].status == TaskStatus.CORRUPT
    driver.close()


def test_a_damaged_page_costs_only_the_tasks_in_it(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(*(insert(seq, body=noise(3000)) for seq in range(1, 4001)))
    driver.close()
    file = tmp_path / "hub.sqlite"
    data = bytearray(file.read_bytes())
    assert len(data) > 8 * MB, "small files are looked through when they are opened"
    page = data.index(task_id(2000) + b"\xa5train") // 4096 * 4096
    data[page : page + 4096] = b"\xff" * 4096
    file.write_bytes(data)
    driver = Driver(tmp_path)
    found = driver.ask(lambda r: r.payloads(range(1900, 2100)))
    bad = [seq for seq, payload in found.items() if isinstance(payload, TaskCorrupt)]
    assert 2000 in bad and len(bad) < 10
    assert len(found) == 200
    driver.close()


def test_a_damaged_log_is_reported_and_a_copy_kept(tmp_path: Path) -> None:
    crashed(tmp_path, "for seq in range(1, 21): driver.write(insert(seq))")
    log = tmp_path / "hub.sqlite-wal"
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 1
    log.write_bytes(data)
    driver = Driver(tmp_path, start=False)
    (notice,) = driver.store.notices
    kept = tmp_path / "hub.sqlite-wal.damaged-1"
    assert str(kept) in notice and kept.read_bytes() == bytes(data)
    seqs = [task.seq for task in driver.store.unended()]
    assert 0 < len(seqs) < 20 and seqs == list(range(1, len(seqs) + 1))
    driver.close()
    driver = Driver(tmp_path, start=False)
    assert driver.store.notices == []
    driver.close()


def test_a_log_with_a_damaged_header_is_reported(tmp_path: Path) -> None:
    crashed(tmp_path, "driver.write(insert(1))")
    with (tmp_path / "hub.sqlite-wal").open("r+b") as handle:
        handle.seek(17)
        handle.write(b"\xee")
    driver = Driver(tmp_path, start=False)
    assert len(driver.store.notices) == 1
    assert (tmp_path / "hub.sqlite-wal.damaged-1").exists()
    driver.close()
