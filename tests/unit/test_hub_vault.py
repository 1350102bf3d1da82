"""What the hub keeps at hand, and what it has to read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtaskq.errors import TaskCorrupt
from nbtaskq.hub.actions import ChangeTask, FinishTask, InsertTask, Lease, PutObject
from nbtaskq.hub.protocol import Outcome, Submission
from nbtaskq.hub.store import Store
from nbtaskq.hub.vault import OVERHEAD, Delivery, PageRead, Vault

KB = b"x" * 1000


def task(seq: int, *needs: bytes, buffers: tuple[bytes, ...] = ()) -> InsertTask:
    submission = Submission(b"%d" % seq, "f", b"", KB, len(buffers), needs=list(needs))
    return InsertTask(seq, b"owner", "", "", submission, buffers, 0)


def end(seq: int) -> FinishTask:
    return FinishTask(seq, Outcome(b"%d" % seq, 10, b"value"), (b"frame",))


def delivery(*seqs: int, needs: tuple[int, ...] = ()) -> Delivery:
    return Delivery(b"peer", [Lease(seq, 100 + seq, 1, needs) for seq in seqs])


def filled(tasks: int, room: int) -> Vault:
    """Return a vault with so many durable tasks, and room for fewer."""
    vault = Vault({b"%d" % seq for seq in range(tasks)}, hot=room * (OVERHEAD + len(KB)))
    vault.absorb([task(seq) for seq in range(tasks)])
    vault.durable(tasks)
    return vault


def test_what_is_not_durable_is_at_hand_however_much_it_is() -> None:
    vault = Vault(set(), hot=0)
    vault.absorb([task(seq) for seq in range(10)])
    vault.absorb([task(seq) for seq in range(10, 20)])
    vault.durable(9)
    assert vault.page(delivery(*range(20))) is None
    vault.durable(10)
    page = vault.page(delivery(*range(20)))
    assert page is not None
    assert page.payloads == list(range(10))


def test_over_the_bound_the_newest_durable_ones_are_dropped() -> None:
    vault = filled(10, room=6)
    page = vault.page(delivery(*range(10)))
    assert page is not None
    assert page.payloads == [6, 7, 8, 9]
    assert vault.size == 6 * (OVERHEAD + len(KB))


def test_an_end_makes_room() -> None:
    vault = filled(10, room=6)
    vault.absorb([end(seq) for seq in range(10)])
    assert vault.size == 0


def test_a_page_brings_what_comes_next_unless_it_has_ended() -> None:
    unended = {b"%d" % seq for seq in range(10)} - {b"8"}
    vault = Vault(unended, hot=0)
    vault.absorb([task(seq) for seq in range(10)])
    vault.durable(10)
    wanted = delivery(5)
    page = vault.page(wanted)
    assert page is not None
    assert page.ahead[:4] == [6, 7, 8, 9]
    payloads = {seq: (task(seq).submission, ()) for seq in range(10)}
    ahead = {seq: payloads[seq] for seq in (6, 7, 8, 9)}
    assert vault.take(wanted, page, PageRead({5: payloads[5]}, ahead, {})) == {}
    assert vault.page(wanted) is None
    assert vault.assemble(wanted)[0].tasks[0].body == KB
    page = vault.page(delivery(6, 7, 8, 9))
    assert page is not None
    assert page.payloads == [8]


def test_damaged_and_missing_payloads_are_named() -> None:
    vault = filled(3, room=0)
    wanted = delivery(0, 1, 2)
    page = vault.page(wanted)
    assert page is not None
    found = PageRead({0: TaskCorrupt("bits flipped"), 1: (task(1).submission, ())}, {}, {})
    assert vault.take(wanted, page, found) == {
        0: "bits flipped",
        2: "the stored bytes of the task are gone",
    }


def test_new_labels_stand_for_the_old_until_the_task_ends() -> None:
    vault = filled(2, room=2)
    vault.absorb([ChangeTask(1, 1, labels=b"new")])
    assert [t.labels for t in vault.assemble(delivery(0, 1))[0].tasks] == [b"", b"new"]
    vault.absorb([end(1), task(1)])
    assert vault.assemble(delivery(1))[0].tasks[0].labels == b""


def test_results_that_a_stored_task_needs_are_kept() -> None:
    vault = Vault(set())
    vault.absorb([task(1), task(2), task(3, b"1", buffers=(b"own",))])
    vault.absorb([end(1), end(2)])
    wanted = delivery(3, needs=(1,))
    assert vault.page(wanted) is None
    message, frames = vault.assemble(wanted)
    assert [r.task_id for r in message.tasks[0].results] == [b"1"]
    assert frames == [b"own", b"frame"]
    page = vault.page(delivery(3, needs=(1, 2)))
    assert page is not None
    assert page.results == [2]


def test_objects_not_used_for_longest_go_first_but_never_before_durable() -> None:
    vault = Vault(set(), shelf=3 * OVERHEAD)
    vault.absorb([PutObject(b"%d" % n, b"", ()) for n in range(4)])
    vault.durable(3)
    assert vault.objects.get(b"0") is not None  # nothing of a group is durable before all is
    vault.durable(4)
    assert [vault.objects.get(b"%d" % n) is not None for n in range(4)] == [True, False, True, True]


@pytest.mark.parametrize("needs", [1, 700])
def test_everything_can_be_read_from_the_store_in_pages(tmp_path: Path, needs: int) -> None:
    store = Store.open(tmp_path)
    ids = [b"%d" % seq for seq in range(1, needs + 1)]
    last = needs + 1
    store.write([*map(task, range(1, last)), *map(end, range(1, last)), task(last, *ids)])
    vault = Vault(set())
    wanted = delivery(last, needs=tuple(range(1, last)))
    store.start(lambda: None)
    while (page := vault.page(wanted)) is not None:
        assert len(page.results) <= 500
        ticket = store.read(page.read)
        while not (completed := store.collect()[1]):
            pass
        assert completed[0].ticket == ticket
        vault.take(wanted, page, completed[0].value)
    message, frames = vault.assemble(wanted)
    assert [r.task_id for r in message.tasks[0].results] == ids
    assert frames == [b"frame"] * needs
    store.close()
