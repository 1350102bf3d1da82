"""The hub process, seen from its socket."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator

import pytest
from hub_process import Hub, running_hub

from nbtaskq.hub import protocol as p
from nbtaskq.message import TaskStatus

LARGE = os.urandom(2_000_000)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


# -- the way of a task ---------------------------------------------------------------------


def test_a_task_is_accepted_assigned_recorded_and_told(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    assert client.submit(b"a", code=b"digest") == p.Accepted(1)
    task = worker.assigned()
    assert (task.task_id, task.name, task.body, task.code) == (b"a", "f", b"a", b"digest")
    assert task.attempt == 1
    worker.settle(task, b"value")
    assert worker.receive(p.Recorded)[0] == p.Recorded(1)
    (outcome,) = client.receive(p.Finished)[0].outcomes
    assert (outcome.task_id, outcome.status, outcome.body) == (b"a", 10, b"value")
    assert (outcome.worker, outcome.attempts) == ("w1", 1)


def test_the_welcome_names_the_process_of_the_hub(hub: Hub) -> None:
    assert hub.process is not None
    assert hub.peer().welcome.pid == hub.process.pid


def test_large_buffers_arrive_and_a_large_value_is_sent_when_asked_for(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.send(p.Submit(1, [p.Submission(b"a", "f", b"", b"", 2)]), LARGE, b"small")
    message, buffers = worker.receive(p.Assign)
    assert message.tasks[0].buffers == 2
    assert buffers == [LARGE, b"small"]
    worker.settle(message.tasks[0], b"value", LARGE)
    message, buffers = client.receive(p.Finished)
    assert (message.outcomes[0].withheld, message.outcomes[0].body, buffers) == (True, b"", [])
    client.send(p.Get([b"a", b"b"], values=True))
    message, buffers = client.receive(p.Finished)
    assert (message.outcomes[0].withheld, buffers) == (False, [LARGE])
    assert client.receive(p.Missing)[0].keys == [b"b"]


def test_a_task_comes_with_the_results_that_it_needs(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.submit(b"a", b"b")
    for buffers in ((b"one",), ()):
        worker.settle(worker.assigned(), b"value", *buffers)
    client.receive(p.Finished)
    client.submit(b"c", needs=[b"a", b"b"], buffers=0)
    message, buffers = worker.receive(p.Assign)
    (task,) = message.tasks
    assert [(r.task_id, r.body, r.buffers) for r in task.results] == [
        (b"a", b"value", 1),
        (b"b", b"value", 0),
    ]
    assert buffers == [b"one"]


def test_a_retry_is_sent_with_its_new_labels(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.submit(b"a")
    token = worker.assigned().token
    labels = p.encode_labels({"tries": 1})
    worker.send(
        p.Settle(1, [p.Verdict(token, p.VerdictKind.RETRY, p.Outcome(b"a", 11), labels=labels)])
    )
    task = worker.assigned()
    assert (task.labels, task.attempt) == (labels, 2)
    assert task.token > token


def test_objects_are_given_to_who_lacks_them(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.send(p.Put(b"digest", [b"other"]), LARGE)
    client.ask("status")  # what one peer sends is handled in order
    worker.send(p.Fetch([b"digest", b"unknown"]))
    assert worker.receive(p.Given) == (p.Given(b"digest", [b"other"]), [LARGE])
    assert worker.receive(p.Missing)[0].keys == [b"unknown"]


def test_a_client_that_went_and_came_hears_how_its_tasks_ended(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.submit(b"a")
    client.close()
    hub.peers.remove(client)
    worker.settle(worker.assigned())
    worker.receive(p.Recorded)
    client = hub.peer(session=client.session)
    client.send(p.Get([b"a"]))
    assert client.receive(p.Finished)[0].outcomes[0].body == b"value"


# -- restarts ------------------------------------------------------------------------------


def test_accepted_tasks_survive_a_kill_and_are_stored_once(hub: Hub) -> None:
    client = hub.peer()
    ids = [b"%04d" % i for i in range(1200)]
    client.submit(*ids)
    hub.kill()
    hub.start()
    client = hub.peer(session=client.session)
    assert client.submit(*ids, again=True) == p.Accepted(1)
    assert client.ask("status").body["store"]["tasks"] == len(ids)
    hub.peer("pool").send(p.Renew([]))  # there are no workers to wait for
    worker = hub.worker()
    seen: list[bytes] = []
    while len(seen) < len(ids):
        message, _ = worker.receive(p.Assign)
        for task in message.tasks:
            assert task.body == task.task_id
            seen.append(task.task_id)
            worker.settle(task)
    assert seen == ids


def test_a_worker_keeps_what_it_held_when_the_hub_was_killed(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.submit(b"a")
    task = worker.assigned()
    sessions = client.session, worker.session
    hub.kill()
    hub.start()
    client = hub.peer(session=sessions[0])
    client.send(p.Get([b"a"]))
    worker = hub.worker(session=sessions[1], holding=[(b"a", task.token)])
    worker.settle(task)
    assert worker.receive(p.Recorded)[0] == p.Recorded(1)
    assert client.receive(p.Finished)[0].outcomes[0].attempts == 1
    assert worker.quiet(p.Assign)


def test_results_and_objects_are_read_again_after_a_restart(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    client.send(p.Put(b"digest", []), LARGE)
    client.submit(b"a")
    worker.settle(worker.assigned(), b"value", LARGE)
    client.receive(p.Finished)
    hub.kill()
    hub.start()
    client, worker = hub.peer(), hub.worker()
    client.submit(b"b", needs=[b"a"])
    message, buffers = worker.receive(p.Assign)
    assert [r.body for r in message.tasks[0].results] == [b"value"]
    assert buffers == [LARGE]
    worker.send(p.Fetch([b"digest"]))
    assert worker.receive(p.Given)[1] == [LARGE]


def test_a_task_whose_payload_is_damaged_ends_corrupt_and_others_run(hub: Hub) -> None:
    client = hub.peer()
    client.submit(b"a", b"b")
    hub.kill()
    (file,) = hub.workspace.store_folder.glob("*.sqlite")
    with sqlite3.connect(file) as store:
        store.execute("UPDATE payload SET data = zeroblob(20) WHERE seq = 1")
    store.close()
    hub.start()
    client = hub.peer(session=client.session)
    client.send(p.Get([b"a"]))
    hub.peer("pool").send(p.Renew([]))
    worker = hub.worker()
    (outcome,) = client.receive(p.Finished)[0].outcomes
    assert (outcome.task_id, outcome.status) == (b"a", TaskStatus.CORRUPT)
    assert "damaged" in outcome.error
    assert worker.assigned().task_id == b"b"


def test_sigterm_ends_the_hub_with_everything_stored(hub: Hub) -> None:
    client = hub.peer()
    client.send(p.Submit(1, [p.Submission(b"%d" % i, "f", b"", b"") for i in range(500)]))
    client.receive(p.Accepted)
    assert hub.kill(signal.SIGTERM) == 0
    hub.start()
    assert hub.peer().ask("status").body["store"]["tasks"] == 500


# -- starting ------------------------------------------------------------------------------


def test_a_second_hub_ends_at_once_and_names_the_first(hub: Hub) -> None:
    status, said = hub.refused_start()
    assert status == 2
    assert hub.process is not None
    assert f"Process {hub.process.pid} " in said
    assert hub.peer().welcome.epoch == 1


@pytest.mark.parametrize("content", [b"", b"not SQLite at all" * 100])
def test_a_bad_store_ends_the_start_with_one_line(hub: Hub, content: bytes) -> None:
    hub.kill(signal.SIGTERM)
    (file,) = hub.workspace.store_folder.glob("*.sqlite")
    file.write_bytes(content)
    status, said = hub.refused_start()
    assert status == 3
    (line,) = said.splitlines()
    assert str(file) in line
    facts = json.loads(hub.workspace.failure_file.read_bytes())
    assert facts == {"error": "StoreError", "text": line}
    assert file.read_bytes() == content


def test_every_socket_is_private(hub: Hub) -> None:
    (socket,) = hub.workspace.runtime.glob("*.sock")
    assert socket.stat().st_mode & 0o077 == 0
    assert hub.workspace.runtime.stat().st_mode & 0o777 == 0o700
