"""The store through its interface: what goes in comes out, also after it was opened again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_driver import Driver, finish, insert, noise, task_id

from nbtaskq.hub.actions import (
    AppendOutput,
    ChangeTask,
    FinishTask,
    Found,
    LeaseTask,
    PutObject,
)
from nbtaskq.hub.protocol import Note, Outcome, Submission
from nbtaskq.message import TaskStatus

MB = 1 << 20


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path)
    yield driver
    driver.close()


# -- round trips ---------------------------------------------------------------------------


def test_a_payload_comes_back_as_it_was_given(driver: Driver) -> None:
    op = insert(
        1,
        buffers=[b"small", memoryview(b"view")],
        labels=b"labels",
        code=b"digest",
        flavor=1,
        priority=-3,
        needs=[b"other"],
        batch=b"batch",
        index=4,
    )
    driver.write(op)
    payload, buffers = driver.ask(lambda r: r.payloads([1]))[1]
    assert payload == op.submission
    assert list(buffers) == [b"small", b"view"]


def test_a_payload_that_is_not_there_is_left_out(driver: Driver) -> None:
    driver.write(insert(1))
    assert set(driver.ask(lambda r: r.payloads([1, 2]))) == {1}


def test_a_result_comes_back_as_it_was_given(driver: Driver) -> None:
    op = finish(1, b"value", [b"part"], error="none")
    driver.write(insert(1), op)
    assert driver.ask(lambda r: r.outcomes([task_id(1)], False, MB)) == [(op.outcome, (b"part",))]
    assert driver.ask(lambda r: r.outcomes_by_seq([1])) == {1: (op.outcome, (b"part",))}


def test_a_result_stored_after_its_task_is_the_same(driver: Driver) -> None:
    driver.write(insert(1))
    op = finish(1)
    driver.write(op)
    assert driver.ask(lambda r: r.outcomes_by_seq([1]))[1][0] == op.outcome


def test_outcomes_are_in_the_order_asked_and_only_of_ended_tasks(driver: Driver) -> None:
    driver.write(*(insert(seq) for seq in range(1, 6)), finish(2), finish(4), finish(5))
    asked = [task_id(seq) for seq in (5, 1, 2, 99, 4)]
    ends = driver.ask(lambda r: r.outcomes(asked, True, 0))
    assert [end.task_id for end, _ in ends] == [task_id(5), task_id(2), task_id(4)]


def test_a_value_over_the_limit_is_withheld_until_it_is_asked_for(driver: Driver) -> None:
    op = finish(1, b"x" * 90, [b"y" * 20])
    driver.write(insert(1), op)
    ((end, buffers),) = driver.ask(lambda r: r.outcomes([task_id(1)], False, 100))
    assert end == Outcome(
        task_id(1), 10, started=1.5, seconds=2.5, worker="w1", attempts=1, withheld=True
    )
    assert buffers == ()
    assert driver.ask(lambda r: r.outcomes([task_id(1)], False, 110))[0][0] == op.outcome
    assert driver.ask(lambda r: r.outcomes([task_id(1)], True, 0))[0][0] == op.outcome


def test_found_tells_row_status_and_checksum(driver: Driver) -> None:
    driver.write(insert(1, checksum=5), insert(2, delay=60.0), insert(3), finish(3, status=11))
    ids = [task_id(seq) for seq in (1, 2, 3, 4)]
    assert driver.ask(lambda r: r.found(ids)) == {
        task_id(1): Found(1, TaskStatus.QUEUED, 5),
        task_id(2): Found(2, TaskStatus.WAITING, 77),
        task_id(3): Found(3, TaskStatus.FAILED, 77),
    }


def test_objects_come_back_and_the_first_of_a_digest_stays(driver: Driver) -> None:
    driver.write(
        PutObject(b"d1", b"body", ()),
        PutObject(b"d2", memoryview(b"other"), (b"d1",)),
        PutObject(b"d1", b"another", ()),
    )
    assert driver.ask(lambda r: r.objects([b"d1", b"d2", b"d3"])) == {
        b"d1": (b"body", ()),
        b"d2": (b"other", (b"d1",)),
    }


def test_output_is_stored_once_per_number_and_read_from_there_on(driver: Driver) -> None:
    notes = [AppendOutput(1, Note(task_id(1), 9, n, b"piece %d" % n)) for n in (0, 1, 2, 1)]
    driver.write(insert(1), *notes)
    driver.write(AppendOutput(1, Note(task_id(1), 9, 2, b"again")))
    everything = driver.ask(lambda r: r.outputs(task_id(1), -1))
    assert everything == [(0, b"piece 0"), (1, b"piece 1"), (2, b"piece 2")]
    assert driver.ask(lambda r: r.outputs(task_id(1), 1)) == [(2, b"piece 2")]
    assert driver.ask(lambda r: r.outputs(b"nobody", -1)) == []


def test_large_buffers_bodies_and_objects_are_private_files(driver: Driver) -> None:
    big, body, value, thing = noise(MB), noise(2 * MB), noise(MB + 1), noise(3 * MB)
    driver.write(
        insert(1, buffers=[b"small", memoryview(big)], body=body),
        finish(1, value, [memoryview(big)]),
        PutObject(b"\x01" * 16, thing, ()),
    )
    payload, buffers = driver.ask(lambda r: r.payloads([1]))[1]
    assert (payload.body, list(buffers)) == (body, [b"small", big])
    end, buffers = driver.ask(lambda r: r.outcomes_by_seq([1]))[1]
    assert (end.body, list(buffers)) == (value, [big])
    assert driver.ask(lambda r: r.objects([b"\x01" * 16])) == {b"\x01" * 16: (thing, ())}
    files = list((driver.folder / "blobs").iterdir())
    assert sorted(f.stat().st_size for f in files) == [MB, MB + 1, 2 * MB, 3 * MB]
    assert {f.stat().st_mode & 0o777 for f in files} == {0o600}
    assert (driver.folder / "hub.sqlite").stat().st_size < MB


def test_many_small_buffers_do_not_make_a_row_too_large(driver: Driver) -> None:
    parts = [noise(MB - 1) for _ in range(12)]
    driver.write(insert(1, buffers=parts))
    assert list(driver.ask(lambda r: r.payloads([1]))[1][1]) == parts
    assert len(list((driver.folder / "blobs").iterdir())) == 4


def test_numbers_that_sqlite_cannot_hold_do_not_stop_the_others(driver: Driver) -> None:
    driver.write(insert(1, index=(1 << 64) - 1, priority=-(1 << 63)), insert(2))
    assert set(driver.ask(lambda r: r.payloads([1, 2]))) == {1, 2}


# -- changes -------------------------------------------------------------------------------


def test_changed_labels_replace_the_stored_ones(driver: Driver) -> None:
    driver.write(insert(1, labels=b"old"))
    driver.write(ChangeTask(1, 1, labels=b"new"))
    assert driver.ask(lambda r: r.payloads([1]))[1][0].labels == b"new"
    driver.write(ChangeTask(1, 2))
    assert driver.ask(lambda r: r.payloads([1]))[1][0].labels == b"new"


def test_changes_within_one_group_apply_in_order(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(
        insert(1),
        LeaseTask(1, 9),
        ChangeTask(1, 1),
        insert(2),
        LeaseTask(2, 10),
        ChangeTask(2, 1, labels=b"a"),
        LeaseTask(2, 11),
        ChangeTask(1, 2, labels=b"b", reasons=("died",)),
    )
    driver, (one, two) = driver.reopened()
    assert (one.attempts, one.leased, one.token, one.reasons) == (2, False, 0, ("died",))
    assert (two.attempts, two.leased, two.token) == (1, True, 11)
    driver.close()


def test_the_first_end_of_a_task_stays(driver: Driver) -> None:
    driver.write(insert(1), insert(2), finish(1, b"first"), finish(1, b"second"))
    driver.write(finish(1, b"third"), finish(2, b"own"))
    ends = driver.ask(lambda r: r.outcomes_by_seq([1, 2]))
    assert {seq: end.body for seq, (end, _) in ends.items()} == {1: b"first", 2: b"own"}


def test_operations_on_unknown_tasks_are_ignored(driver: Driver) -> None:
    driver.write(insert(1), LeaseTask(8, 1), ChangeTask(8, 1, labels=b"x"), finish(8), finish(1))
    assert set(driver.ask(lambda r: r.outcomes_by_seq([1, 8]))) == {1}
    assert driver.ask(lambda r: r.payloads([8])) == {}


@pytest.mark.parametrize("together", [True, False])
def test_an_id_that_is_stored_again_changes_nothing(driver: Driver, together: bool) -> None:
    first = [insert(1, body=b"one"), insert(2), finish(2, b"two")]
    again: list[Any] = [
        insert(3, task_id=task_id(1), body=b"wrong"),
        ChangeTask(3, 5),
        insert(4, task_id=task_id(2), body=b"wrong"),
        FinishTask(4, finish(2, b"wrong").outcome),
        insert(5, body=b"five"),
        finish(5, b"value of five"),
    ]
    for ops in [first + again] if together else [first, again]:
        driver.write(*ops)
    payloads = driver.ask(lambda r: r.payloads(range(1, 6)))
    assert {seq: p[0].body for seq, p in payloads.items()} == {1: b"one", 2: b"args", 5: b"five"}
    ends = driver.ask(lambda r: r.outcomes_by_seq(range(1, 6)))
    assert {seq: end.body for seq, (end, _) in ends.items()} == {2: b"two", 5: b"value of five"}
    driver, unended = driver.reopened()
    assert [task.seq for task in unended] == [1]
    driver.close()


def test_an_operation_that_is_stored_twice_does_not_wake_an_ended_task(driver: Driver) -> None:
    driver.write(insert(1), finish(1))
    driver.write(insert(1), insert(2), ChangeTask(1, 7))
    driver, unended = driver.reopened()
    assert [task.seq for task in unended] == [2]
    driver.close()


def test_a_number_that_another_task_has_harms_neither(driver: Driver) -> None:
    driver.write(insert(1, body=b"mine"))
    driver.write(
        insert(1, task_id=b"stranger", body=b"theirs"), FinishTask(1, Outcome(b"stranger", 10))
    )
    assert driver.ask(lambda r: r.payloads([1]))[1][0].body == b"mine"
    assert driver.ask(lambda r: r.outcomes_by_seq([1])) == {}


# -- opening again -------------------------------------------------------------------------


def test_the_epoch_grows_and_numbers_go_on(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    assert (driver.store.epoch, driver.store.next_seq) == (1, 1)
    driver.write(insert(1), insert(7), finish(7))
    driver, _ = driver.reopened()
    assert (driver.store.epoch, driver.store.next_seq) == (2, 8)
    driver.close()


def test_unended_tasks_come_back_with_all_that_was_stored_of_them(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(
        insert(1, name="ä", flavor=1, priority=5, at_most_once=True, delay=100.0, expires=200.0),
        insert(2),
        insert(3),
        finish(3),
        LeaseTask(1, 5),
    )
    driver.write(ChangeTask(2, 2, due=50.0, reasons=("killed by signal 9",)))
    driver, (one, two) = driver.reopened()
    assert one[:9] == (1, task_id(1), "ä", b"owner", "a.ipynb", "/usr|3.11", 77, 1, 5)
    assert 90 < one.due <= 100 and 190 < one.expires <= 200
    assert (one.at_most_once, one.leased, one.attempts, one.reasons) == (True, True, 0, ())
    assert 40 < two.due <= 50 and two.expires == 0.0
    assert (two.at_most_once, two.leased, two.attempts) == (False, False, 2)
    assert two.reasons == ("killed by signal 9",)
    driver.close()


def test_reasons_stay_when_a_later_change_has_none(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(insert(1), ChangeTask(1, 1, reasons=("died",)), ChangeTask(1, 2))
    driver, (task,) = driver.reopened()
    assert (task.attempts, task.reasons) == (2, ("died",))
    driver.close()


def test_what_is_over_comes_back_as_due_and_as_expired(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(insert(1, delay=1e-6, expires=1e-6))
    driver, (task,) = driver.reopened()
    assert task.due == 0.0
    assert task.expires < 0
    driver.close()


def test_needs_are_told_apart_by_whether_they_have_ended(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(insert(1), insert(2), finish(1), insert(3, needs=[task_id(1), task_id(2)]))
    driver, unended = driver.reopened()
    assert [task.seq for task in unended] == [2, 3]
    assert unended[1].needs == (task_id(2),)
    assert unended[1].met == (Found(1, TaskStatus.SUCCEEDED, 77),)
    driver.close()


def test_unended_tasks_come_in_order_over_many_pages(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.write(*(insert(seq) for seq in range(1, 2302)))
    driver.write(*(finish(seq) for seq in range(1, 2302, 2)))
    driver, unended = driver.reopened()
    assert [task.seq for task in unended] == list(range(2, 2302, 2))
    driver.close()


# -- reads and writes together -------------------------------------------------------------


def test_a_read_sees_everything_that_was_written_before_it(driver: Driver) -> None:
    tickets = {}
    for start in range(1, 20_001, 200):
        driver.store.write([insert(seq) for seq in range(start, start + 200)])
        last = start + 199
        tickets[driver.store.read(lambda r, s=last: set(r.payloads([s, s + 20_000])))] = last
    driver.until(lambda: len(driver.answers) == len(tickets) and driver.durable == 20_000)
    assert {t: driver.answers[t] for t in tickets} == {t: {seq} for t, seq in tickets.items()}
    assert list(driver.answers) == sorted(driver.answers)
    assert driver.store.backlog == 0


def test_a_failing_read_gives_its_error_and_the_next_works(driver: Driver) -> None:
    with pytest.raises(ZeroDivisionError):
        driver.ask(lambda r: 1 // 0)
    assert driver.ask(lambda r: r.payloads([])) == {}


def test_what_is_queued_at_closing_is_stored(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.store.write([insert(seq) for seq in range(1, 9001)])
    driver.store.write([insert(9001)])
    driver, unended = driver.reopened()
    assert len(unended) == 9001
    driver.close()


def test_closing_twice_or_before_the_start_is_harmless(tmp_path: Path) -> None:
    driver = Driver(tmp_path, start=False)
    driver.store.write([insert(1)])
    driver.close()
    driver.close()
    driver = Driver(tmp_path, start=False)
    assert [task.seq for task in driver.store.unended()] == [1]
    driver.close()


def test_submissions_and_outcomes_stay_decodable_with_fields_left_out() -> None:
    # rows hold these structs: a field may only be added behind the others, with a default
    assert Submission.__struct_fields__[:4] == ("task_id", "name", "labels", "body")
    assert Outcome.__struct_fields__[:3] == ("task_id", "status", "body")
