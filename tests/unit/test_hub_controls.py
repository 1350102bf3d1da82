"""Questions to the hub, and orders to the pool through it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hub_process import Hub, Peer, running_hub

from nbtaskq.hub import protocol as p
from nbtaskq.message import TaskStatus

BATCH = b"\x01\x02"


@pytest.fixture(scope="module")
def shared() -> Iterator[Hub]:
    """Give a hub that stores 1,100 tasks, all but the last 100 ended, some with output."""
    with running_hub() as hub:
        client, worker = hub.peer(notebook="one.ipynb"), hub.worker()
        tasks = [
            p.Submission(b"id%04d" % i, "f", b"", b"body%d" % i, batch=BATCH, index=i)
            for i in range(1100)
        ]
        client.send(p.Submit(1, tasks))
        done = 0
        while done < 1000:
            message, _ = worker.receive(p.Assign)
            for task in message.tasks:
                if done == 0:
                    notes = [p.Note(task.task_id, task.token, n, b"%d" % n) for n in range(700)]
                    worker.send(p.Output(notes))
                if done < 1000:
                    worker.settle(task)
                done += 1
        while worker.receive(p.Recorded)[0].number < 1000:
            pass
        yield hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def rows(hub: Hub, verb: str, body: Any) -> list[dict[str, Any]]:
    answer = hub.peer().ask(verb, body)
    assert answer.ok, answer.body
    found: list[dict[str, Any]] = answer.body
    return found


# -- questions -----------------------------------------------------------------------------


def test_status_says_how_many_tasks_workers_and_bytes_there_are(shared: Hub) -> None:
    assert shared.process is not None
    body = shared.peer().ask("status").body
    assert sum(body["tasks"].values()) == 100
    assert body["workers"][0]["name"] == "w1"
    assert body["store"]["tasks"] == 1100
    assert (body["pid"], body["epoch"]) == (shared.process.pid, 1)
    assert (body["malformed"], body["trouble"]) == ({}, "")


def test_history_goes_on_over_pages_newest_first(shared: Hub) -> None:
    found = rows(shared, "history", {"limit": 800})
    assert [row["task_id"] for row in found] == [f"id{i:04}" for i in range(1099, 299, -1)]
    behind = rows(shared, "history", {"before_seq": found[-1]["seq"]})
    assert [row["task_id"] for row in behind] == [f"id{i:04}" for i in range(299, -1, -1)]


def test_history_keeps_to_its_filters(shared: Hub) -> None:
    assert len(rows(shared, "history", {"status": "succeeded"})) == 1000
    assert len(rows(shared, "history", {"status": ["queued"]})) == 100
    assert rows(shared, "history", {"status": "failed"}) == []
    assert rows(shared, "history", {"name": "g"}) == []
    assert len(rows(shared, "history", {"name": "f", "notebook": "one.ipynb", "limit": 9})) == 9
    assert len(rows(shared, "history", {"batch": BATCH.hex(), "prefix": "id01"})) == 100


def test_find_knows_ids_names_and_beginnings(shared: Hub) -> None:
    (row,) = rows(shared, "find", {"key": "id0007"})
    expected = {
        "task_id": "id0007",
        "name": "f",
        "batch": BATCH.hex(),
        "index": 7,
        "notebook": "one.ipynb",
        "status": TaskStatus.SUCCEEDED,
    }
    assert expected.items() <= row.items()
    assert row["submitted"] > 1e9
    assert rows(shared, "find", {"key": "f", "notebook": "x"})[0]["task_id"] == "id1099"
    assert len(rows(shared, "find", {"key": "id000"})) == 10
    assert rows(shared, "find", {"key": "g"}) == []


def test_a_batch_comes_in_input_order_with_what_was_sent(shared: Hub) -> None:
    found = rows(shared, "batch", {"batch": BATCH.hex(), "payloads": True})
    assert [row["index"] for row in found] == list(range(1100))
    assert [row["body"] for row in found] == [b"body%d" % i for i in range(1100)]
    assert "body" not in rows(shared, "batch", {"batch": BATCH.hex()})[0]


def test_output_comes_in_order_behind_a_number(shared: Hub) -> None:
    found = rows(shared, "output", {"task_id": "id0000", "after": 9})
    assert found == [[n, b"%d" % n] for n in range(10, 700)]
    assert rows(shared, "output", {"task_id": "unknown"}) == []


@pytest.mark.parametrize(
    ("verb", "body", "word"),
    [
        ("nonsense", None, "status, history"),
        ("find", None, "key"),
        ("find", {"key": 3}, "str"),
        ("find", ["key"], "object"),
        ("history", {"colour": "red"}, "colour"),
        ("history", {"status": "fine"}, "succeeded"),
        ("history", {"before_seq": 2**63}, "before_seq"),
        ("history", {"limit": -1}, "limit"),
        ("batch", {"batch": "no hex"}, "no hex"),
        ("output", {"task_id": "x", "after": -(2**63)}, "after"),
        ("scale", 3, "mapping"),
        ("down", {"force": "yes"}, "force"),
    ],
)
def test_a_bad_question_is_answered_with_what_is_wrong(
    shared: Hub, verb: str, body: Any, word: str
) -> None:
    answer = shared.peer().ask(verb, body)
    assert not answer.ok
    assert word in answer.body


# -- orders --------------------------------------------------------------------------------


def obey(pool: Peer, verb: str, *, ok: bool = True, body: Any = None) -> p.Order:
    order = pool.receive(p.Order)[0]
    assert order.verb == verb
    pool.send(p.Reply(order.request, ok, body))
    return order


def test_an_order_goes_to_the_pool_and_its_reply_comes_back(hub: Hub) -> None:
    client, pool = hub.peer(), hub.peer("pool")
    client.send(p.Control(7, "scale", {"n": 3}))
    assert obey(pool, "scale", body={"n": 3}).body == {"n": 3}
    assert client.receive(p.Answer)[0] == p.Answer(7, True, {"n": 3})
    client.send(p.Control(8, "restart"))
    obey(pool, "restart", ok=False, body="cannot")
    assert client.receive(p.Answer)[0] == p.Answer(8, False, "cannot")


def test_only_the_pool_that_was_asked_can_answer(hub: Hub) -> None:
    client, pool, other = hub.peer(), hub.peer("pool"), hub.peer()
    client.send(p.Control(7, "workers"))
    order = pool.receive(p.Order)[0]
    other.send(p.Reply(order.request, False, "mischief"))
    other.ask("status")
    pool.send(p.Reply(order.request, True, []))
    assert client.receive(p.Answer)[0] == p.Answer(7, True, [])


def test_an_order_waits_for_a_pool_that_is_coming(hub: Hub) -> None:
    client = hub.peer()
    client.send(p.Control(7, "workers"))
    client.ask("find", {"key": "x"})
    obey(hub.peer("pool"), "workers", body=["w1"])
    assert client.receive(p.Answer)[0].body == ["w1"]


def test_an_order_without_any_pool_is_answered_with_what_to_do(hub: Hub) -> None:
    answer = hub.peer().ask("scale", {"n": 3})
    assert not answer.ok
    assert "nbtaskq up" in answer.body


def test_down_is_refused_while_another_notebook_has_work(hub: Hub) -> None:
    client, other, pool = hub.peer(notebook="mine"), hub.peer(notebook="theirs"), hub.peer("pool")
    client.submit(b"a")
    other.submit(b"b", b"c")
    answer = client.ask("down")
    assert not answer.ok
    assert "2 of theirs" in answer.body and "mine" not in answer.body
    pool.quiet(p.Order)
    orders = [message.verb for message, _ in pool.waiting if isinstance(message, p.Order)]
    assert set(orders) <= {"environment"}  # there is no worker
    pool.waiting.clear()
    client.send(p.Control(2, "down", {"force": True}))
    obey(pool, "stop")
    assert client.receive(p.Answer)[0].ok


def test_down_knows_whose_tasks_were_stored_before_a_restart(hub: Hub) -> None:
    hub.peer(notebook="theirs").submit(b"a")
    hub.kill()
    hub.start()
    pool = hub.peer("pool")
    assert "1 of theirs" in hub.peer(notebook="mine").ask("down").body
    client = hub.peer(notebook="theirs")
    client.send(p.Control(2, "down"))
    while (order := pool.receive(p.Order)[0]).verb != "stop":
        pass
    pool.send(p.Reply(order.request, True))
    assert client.receive(p.Answer)[0].ok
