"""Facts of stored tasks: filters, order, pages, and what a user's word can mean."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_driver import Driver, finish, insert

from nbtaskq.message import TaskStatus


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path)
    yield driver
    driver.close()


@pytest.fixture
def mixed(driver: Driver) -> Driver:
    """Ten tasks of two names, in two notebooks; some have ended."""
    for seq in range(1, 11):
        name = "train" if seq % 2 else "score"
        batch = b"\x0a\x0b" if seq > 5 else b""
        notebook = "a.ipynb" if seq < 9 else "b.ipynb"
        driver.write(insert(seq, name=name, batch=batch, index=seq, notebook=notebook))
    driver.write(finish(1), finish(2), finish(3, status=11, error="boom"), finish(4, status=12))
    return driver


def seqs(driver: Driver, **filters: Any) -> list[int]:
    return [row["seq"] for row in driver.ask(lambda r: r.facts(**filters))]


def test_a_fact_has_every_column(mixed: Driver) -> None:
    row = mixed.ask(lambda r: r.facts(limit=1, before_seq=4))[0]
    assert row.pop("submitted") > 1.6e9
    assert row == {
        "seq": 3,
        "task_id": "task-000003",
        "task_name": "train",
        "status": TaskStatus.FAILED,
        "started": 1.5,
        "seconds": 2.5,
        "worker": "w1",
        "attempts": 1,
        "error": "boom",
        "notebook": "a.ipynb",
        "batch": "",
        "index": 3,
    }
    row = mixed.ask(lambda r: r.facts(limit=1))[0]
    assert (row["status"], row["started"], row["seconds"]) == (TaskStatus.QUEUED, None, None)
    assert (row["worker"], row["error"], row["batch"]) == ("", "", "0a0b")


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ({"limit": 3}, [10, 9, 8]),
        ({"limit": 3, "before_seq": 8}, [7, 6, 5]),
        ({"name": "train"}, [9, 7, 5, 3, 1]),
        ({"notebook": "b.ipynb"}, [10, 9]),
        ({"notebook": "a.ipynb", "name": "score"}, [8, 6, 4, 2]),
        ({"batch": b"\x0a\x0b"}, [10, 9, 8, 7, 6]),
        ({"prefix": "task-00001"}, [10]),
        ({"status": {TaskStatus.SUCCEEDED}}, [2, 1]),
        ({"status": {TaskStatus.FAILED}}, [3]),
        ({"status": {TaskStatus.FAILED, TaskStatus.CANCELLED}}, [4, 3]),
        ({"status": {TaskStatus.FAILED, TaskStatus.CANCELLED}, "before_seq": 4}, [3]),
        ({"status": {TaskStatus.FAILED, TaskStatus.SUCCEEDED}}, [3, 2, 1]),
        ({"status": {TaskStatus.RUNNING}}, [10, 9, 8, 7, 6, 5]),
        ({"status": {TaskStatus.QUEUED}, "name": "train", "before_seq": 9}, [7, 5]),
        ({"status": {TaskStatus.QUEUED, TaskStatus.CANCELLED}}, [10, 9, 8, 7, 6, 5, 4]),
        ({"name": "'; DROP TABLE task; --"}, []),
    ],
)
def test_facts_are_filtered_newest_first(
    mixed: Driver, filters: dict[str, Any], expected: list[int]
) -> None:
    assert seqs(mixed, **filters) == expected


def test_a_page_has_at_most_500_rows(driver: Driver) -> None:
    driver.write(*(insert(seq) for seq in range(1, 801)))
    first = seqs(driver, limit=10_000)
    assert first == list(range(800, 300, -1))
    assert seqs(driver, before_seq=first[-1]) == list(range(300, 0, -1))


@pytest.mark.parametrize(
    ("key", "notebook", "expected"),
    [
        ("task-000004", None, [4]),
        ("train", "a.ipynb", [7, 5, 3, 1]),
        ("train", None, [9, 7, 5, 3, 1]),
        ("train", "elsewhere.ipynb", [9, 7, 5, 3, 1]),
        ("task-00001", None, [10]),
        ("task-00000", "b.ipynb", [9, 8, 7, 6, 5, 4, 3, 2, 1]),
        ("tas", None, []),
        ("nothing", None, []),
        ("", None, []),
    ],
)
def test_a_key_means_an_id_a_name_or_the_beginning_of_an_id(
    mixed: Driver, key: str, notebook: str | None, expected: list[int]
) -> None:
    rows = mixed.ask(lambda r: r.matching(key, notebook))
    assert [row["seq"] for row in rows] == expected


def test_a_whole_name_comes_before_the_beginning_of_an_id(mixed: Driver) -> None:
    mixed.write(insert(11, name="task-00"))
    assert [row["seq"] for row in mixed.ask(lambda r: r.matching("task-00"))] == [11]


def test_names_with_odd_characters_are_text(driver: Driver) -> None:
    name = "x\0y\u202e'\"<script>%_"
    driver.write(insert(1, name=name))
    assert driver.ask(lambda r: r.facts(name=name))[0]["task_name"] == name


def test_sizes_count_tasks_and_bytes(mixed: Driver) -> None:
    mixed.write(insert(11, delay=60.0), insert(12, buffers=[bytes(1 << 20)]))
    sizes = mixed.ask(lambda r: r.sizes())
    assert sizes["counts"] == {
        "waiting": 1,
        "queued": 7,
        "succeeded": 2,
        "failed": 1,
        "cancelled": 1,
    }
    assert sizes["tasks"] == 12
    assert (sizes["blobs"], sizes["blob_files"]) == (1 << 20, 1)
    assert sizes["file"] > 0
