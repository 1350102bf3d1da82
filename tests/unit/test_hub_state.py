"""The hub's rules, each in a sentence; the host of these tests commits only when told to."""

from __future__ import annotations

import math

import pytest
from hub_host import HERE, Client, Host, Pool, Worker, task

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import LeaseTask
from nbtaskq.hub.deaths import DRAIN
from nbtaskq.hub.dispatch import LARGEST_BATCH
from nbtaskq.hub.leasing import STUCK
from nbtaskq.hub.reclaiming import PARKING, RECOVERY
from nbtaskq.hub.roster import FORGET, LEASE
from nbtaskq.hub.state import HubState
from nbtaskq.hub.telling import OUTCOMES_PER_MESSAGE, WITHHOLD
from nbtaskq.message import TaskStatus

RETRY, REQUEUE, REJECT = p.VerdictKind.RETRY, p.VerdictKind.REQUEUE, p.VerdictKind.REJECT
SHORT = 0.0001


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def alice(host: Host) -> Client:
    return host.client("alice")


@pytest.fixture
def pool(host: Host) -> Pool:
    return host.pool()


def learn(client: Client, worker: Worker, name: str = "fit", seconds: float = SHORT) -> None:
    """Let the hub learn how long tasks of this name take."""
    client.submit(task(f"first {name}", name))
    worker.settle(f"first {name}", seconds=seconds)
    client.host.settle()


def run_all(host: Host, *workers: Worker) -> list[str]:
    """Let the workers end all they get, one task at a time; return the order."""
    order = []
    while any(worker.held for worker in workers):
        for worker in workers:
            if worker.held:
                order.append(worker.ids()[0])
                worker.settle(order[-1], seconds=1.0)
    host.settle()
    return order


# -- submitting ----------------------------------------------------------------------------


def test_a_batch_is_accepted_only_after_its_commit(host: Host, alice: Client) -> None:
    number = alice.submit(task("a"), task("b"))
    host.commit(1)
    assert alice.accepted(number) is None
    host.commit(2)
    assert alice.accepted(number) == []


def test_a_task_is_dispatched_while_it_is_being_stored(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    assert worker.ids() == ["a"] and host.durable == 0


def test_the_same_id_is_stored_once(host: Host, alice: Client) -> None:
    first = alice.submit(task("a"))
    again = alice.submit(task("a"), task("a"), again=True)
    host.settle()
    assert alice.accepted(first) == alice.accepted(again) == []
    assert len(host.tables.rows) == 1


def test_a_batch_that_adds_nothing_to_the_store_is_accepted_without_a_commit(
    host: Host, alice: Client
) -> None:
    alice.submit(task("a"))
    host.settle()
    number = alice.submit(task("a"), again=True)
    assert host.durable == len(host.ops) and alice.accepted(number) == []


def test_another_payload_under_a_known_id_is_a_conflict(host: Host, alice: Client) -> None:
    alice.submit(task("a"))
    number = alice.submit(task("a", body=b"other"), task("b"), again=True)
    host.settle()
    assert [(key, code) for key, code, _ in alice.accepted(number) or ()] == [(b"a", "conflict")]
    assert host.tables.by_id(b"b") is not None


def test_another_function_under_a_known_id_is_a_conflict(host: Host, alice: Client) -> None:
    alice.submit(task("a", "fit"))
    number = alice.submit(task("a", "score"), again=True)
    host.settle()
    assert [code for _, code, _ in alice.accepted(number) or ()] == ["conflict"]


def test_a_task_that_had_ended_is_not_run_again_and_its_end_is_told(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a")
    host.settle()
    alice.heard.clear()
    number = alice.submit(task("a"), again=True)
    host.settle()
    assert alice.accepted(number) == [] and not worker.held
    assert alice.outcome("a").status == TaskStatus.SUCCEEDED


def test_the_end_is_told_to_who_was_told_before_and_sends_again(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    alice.say(p.Wait(b"a"))
    worker.settle("a")
    alice.connect()
    alice.heard.clear()
    alice.submit(task("a"), again=True)
    host.settle()
    assert len(alice.outcomes("a")) == 1


def test_what_a_client_says_behind_a_lookup_waits_for_its_answer(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"), again=True)
    alice.submit(task("b"))
    alice.say(p.Wait(b"a"))
    assert not worker.held and not alice.of(p.Missing)
    host.answer()
    assert [insert.submission.task_id for insert, _ in host.ops] == [b"a", b"b"]
    host.settle()
    assert not alice.of(p.Missing)


def test_what_a_lost_client_had_sent_is_looked_up_too(host: Host, alice: Client) -> None:
    host.worker()
    alice.submit(task("a"))
    alice.cancel("a")
    host.settle()
    host.perform(host.state.lost(alice.address, host.now))
    alice.submit(task("a"), again=True)
    host.settle()
    assert len(host.tables.rows) == 1


def test_over_the_limit_tasks_are_refused_as_full(host: Host) -> None:
    host.state = HubState(1, now=host.now, limit=1)
    alice = host.client("alice")
    number = alice.submit(task("a"), task("b"))
    host.settle()
    assert [(key, code) for key, code, _ in alice.accepted(number) or ()] == [(b"b", "full")]


def test_an_object_is_stored(host: Host, alice: Client) -> None:
    alice.say(p.Put(b"digest", [b"other"]), b"body")
    host.settle()
    assert host.tables.objects == {b"digest": b"body"}


@pytest.mark.parametrize("counts", [(2,), (-1, 2)])
def test_buffers_that_do_not_fit_change_nothing(
    host: Host, alice: Client, counts: tuple[int, ...]
) -> None:
    tasks = [task(f"t{n}", buffers=count) for n, count in enumerate(counts)]
    with pytest.raises(ValueError):
        alice.say(p.Submit(1, tasks), b"one")
    assert not host.ops and not host.state.tasks


def test_buffers_go_to_the_tasks_that_announced_them(host: Host, alice: Client) -> None:
    alice.say(
        p.Submit(1, [task("a", buffers=1), task("b"), task("c", buffers=2)]), b"1", b"2", b"3"
    )
    assert [op.buffers for op, _ in host.ops] == [(b"1",), (), (b"2", b"3")]


# -- order ---------------------------------------------------------------------------------


def test_tasks_run_in_the_order_in_which_they_came(host: Host, alice: Client) -> None:
    alice.submit(*(task(f"t{n}") for n in range(5)))
    assert run_all(host, host.worker()) == [f"t{n}" for n in range(5)]


def test_higher_priority_runs_first(host: Host, alice: Client) -> None:
    alice.submit(task("low", priority=-1), task("middle"), task("high", priority=7))
    assert run_all(host, host.worker()) == ["high", "middle", "low"]


def test_a_delayed_task_waits_for_its_time(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("later", delay=2.0), task("now"))
    assert run_all(host, worker) == ["now"]
    assert host.state.deadline() == host.now + 2.0
    host.pass_time(1.9)
    assert not worker.held
    host.pass_time(0.2)
    assert worker.ids() == ["later"]


def test_two_tasks_may_be_due_at_the_same_moment(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(*(task(f"t{n}", delay=1.0, expires=5.0) for n in range(3)))
    host.pass_time(1.0)
    for _ in range(3):
        worker.settle(worker.ids()[0], kind=RETRY, delay=1.0)
    host.pass_time(1.0)
    assert len(worker.held) == 1 and host.state.statistics()["tasks"]["queued"] == 3


def test_a_task_that_is_too_old_expires(host: Host, alice: Client) -> None:
    alice.submit(task("a", expires=1.0))
    host.settle()
    host.pass_time(1.0)
    host.settle()
    assert alice.outcome("a").status == TaskStatus.EXPIRED


def test_a_running_task_does_not_expire_but_its_retry_does(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a", expires=1.0))
    host.pass_time(2.0)
    assert worker.ids() == ["a"]
    worker.settle("a", kind=RETRY)
    host.settle()
    assert alice.outcome("a").status == TaskStatus.EXPIRED


# -- dispatch ------------------------------------------------------------------------------


def test_while_the_cost_is_unknown_a_worker_gets_one_task(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(*(task(f"t{n}") for n in range(5)))
    assert worker.ids() == ["t0"]


def test_short_tasks_are_prefetched_up_to_the_window(host: Host, alice: Client) -> None:
    worker = host.worker()
    learn(alice, worker, seconds=0.001)
    alice.submit(*(task(f"t{n}") for n in range(50)))
    assert len(worker.held) == 6


def test_a_batch_has_an_upper_bound(host: Host, alice: Client) -> None:
    worker = host.worker()
    learn(alice, worker, seconds=0.0)
    alice.submit(*(task(f"t{n}") for n in range(2 * LARGEST_BATCH)))
    assert 200 < len(worker.held) <= LARGEST_BATCH


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_senseless_duration_does_no_harm(host: Host, alice: Client, seconds: float) -> None:
    worker = host.worker()
    learn(alice, worker, seconds=seconds)
    alice.submit(*(task(f"t{n}") for n in range(3)))
    assert len(run_all(host, worker)) == 3


def test_a_batch_has_one_name(host: Host, alice: Client) -> None:
    worker = host.worker()
    learn(alice, worker, "fit")
    learn(alice, worker, "score")
    alice.submit(task("a", "fit"), task("b", "fit"), task("c", "score"), task("d", "fit"))
    delivered = [m for m in host.deliveries if worker.address == m[0]]
    assert ["a", "b"] in [ids for _, ids in delivered]


def test_failures_teach_no_short_durations(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(*(task(f"t{n}") for n in range(5)))
    worker.settle("t0", status=TaskStatus.FAILED, seconds=SHORT)
    assert worker.ids() == ["t1"]


def test_work_is_shared_between_workers(host: Host, alice: Client) -> None:
    one, two = host.worker("w1"), host.worker("w2")
    learn(alice, one)
    alice.submit(*(task(f"t{n}") for n in range(10)))
    assert len(one.held) == len(two.held) == 5


def test_urgent_tasks_are_shared_though_many_others_wait(host: Host, alice: Client) -> None:
    one, two = host.worker("w1"), host.worker("w2")
    learn(alice, one)
    urgent = [task(f"u{n}", priority=1) for n in range(4)]
    alice.submit(*(task(f"t{n}") for n in range(50)), *urgent)
    assert one.ids()[:2] == ["u0", "u1"] and two.ids()[:2] == ["u2", "u3"]


def test_coroutines_fill_a_worker_up_to_its_concurrency(host: Host, alice: Client) -> None:
    worker = host.worker(concurrency=3)
    alice.submit(*(task(f"t{n}", flavor=p.Flavor.ASYNC) for n in range(5)))
    assert worker.ids() == ["t0", "t1", "t2"]


def test_coroutines_and_functions_do_not_meet_in_a_worker(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("co", flavor=p.Flavor.ASYNC), task("fn", "other"))
    assert worker.ids() == ["co"]
    worker.settle("co")
    assert worker.ids() == ["fn"]


def test_tasks_go_to_workers_of_their_senders_environment(host: Host) -> None:
    other = p.Environment("/other", "3.12")
    here, there = host.worker("w1"), host.worker("w2", other)
    host.client("alice").submit(task("a"))
    host.client("bob", other).submit(task("b"))
    assert (here.ids(), there.ids()) == (["a"], ["b"])


def test_the_pool_is_asked_once_for_workers_of_an_environment(host: Host, pool: Pool) -> None:
    other = p.Environment("/other", "3.12", "/other/bin/python")
    bob = host.client("bob", other)
    bob.submit(task("a"))
    bob.submit(task("b"))
    orders = pool.of(p.Order)
    body = {"prefix": "/other", "minor": "3.12", "executable": "/other/bin/python"}
    assert [(order.verb, order.body) for order in orders] == [("environment", body)]


def test_a_new_pool_is_asked_for_what_is_waiting(host: Host) -> None:
    host.client("bob", p.Environment("/other", "3.12")).submit(task("a"))
    assert [order.verb for order in host.pool().of(p.Order)] == ["environment"]


def test_after_a_restart_the_pool_is_asked_though_no_client_is_there(
    host: Host, alice: Client
) -> None:
    alice.submit(task("a"))
    host.settle()
    host.crash()
    pool = host.pool()
    host.pass_time(RECOVERY)
    assert pool.last(p.Order).body["prefix"] == "/env"


def test_what_waits_behind_a_long_task_is_called_back(host: Host, alice: Client) -> None:
    one, two = host.worker("w1"), host.worker("w2")
    learn(alice, one)
    alice.submit(*(task(f"t{n}") for n in range(6)))
    while two.held:
        two.settle(two.ids()[0], seconds=SHORT)
    host.pass_time(STUCK)
    (recall,) = one.of(p.Recall)
    assert recall.tokens == list(one.held)[1:]
    for token in recall.tokens:
        del one.held[token]
    one.say(p.Recalled(recall.tokens))
    assert one.ids() == ["t0"] and two.ids() == ["t1", "t2"]


def test_nothing_is_sent_behind_a_task_that_takes_longer_than_was_thought(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    learn(alice, worker)
    alice.submit(task("a"))
    host.pass_time(STUCK)
    alice.submit(task("b"))
    assert worker.ids() == ["a"]
    worker.settle("a")
    assert worker.ids() == ["b"]


# -- dependencies --------------------------------------------------------------------------


def test_a_dependent_waits_until_its_needs_have_ended_durably(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b", needs=["a"]))
    worker.settle("a")
    assert not worker.held
    host.settle()
    assert worker.lease("b").needs == (host.tables.seqs[b"a"],)


def test_a_dependent_may_be_in_the_same_batch_and_need_one_task_twice(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b", needs=["a", "a"]))
    worker.settle("a")
    host.settle()
    assert len(worker.lease("b").needs) == 1


def test_a_need_that_has_ended_is_looked_up(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a")
    host.settle()
    alice.submit(task("b", needs=["a"]))
    assert not worker.held
    host.answer()
    assert worker.ids() == ["b"]


def test_a_need_that_ends_while_another_is_looked_up_is_known(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("old"))
    worker.settle("old")
    host.settle()
    alice.submit(task("new"))
    number = alice.submit(task("b", needs=["old", "new"]))
    worker.settle("new")
    host.settle()
    assert alice.accepted(number) == [] and worker.ids() == ["b"]


def test_an_unknown_need_refuses_the_task(host: Host, alice: Client) -> None:
    number = alice.submit(task("b", needs=["nobody"]), task("c"))
    host.settle()
    problems = alice.accepted(number) or []
    assert [(key, code) for key, code, _ in problems] == [(b"b", "unknown_dependency")]


def test_a_failed_need_fails_all_that_depend_on_it(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b", "g", needs=["a"]), task("c", "h", needs=["b"]), task("d"))
    worker.settle("a", status=TaskStatus.FAILED, error="ValueError: no")
    host.settle()
    assert "fit (a) did not succeed: ValueError: no" in alice.outcome("b").error
    assert alice.outcome("c").status == TaskStatus.FAILED
    assert "ValueError: no" in alice.outcome("c").error
    assert worker.ids() == ["d"]


def test_a_task_that_needs_one_that_failed_before_ends_at_once(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a", status=TaskStatus.FAILED)
    host.settle()
    number = alice.submit(task("b", needs=["a"]))
    host.settle()
    assert alice.accepted(number) == [] and alice.outcome("b").status == TaskStatus.FAILED


def test_after_a_restart_a_lease_still_lists_all_needs(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b"), task("c", needs=["b", "a"]))
    worker.settle("a")
    worker.settle("b")
    host.settle()
    seqs = {host.tables.seqs[b"a"], host.tables.seqs[b"b"]}
    worker.cut()
    host.crash()
    host.pass_time(RECOVERY)
    assert set(host.worker("w2").lease("c").needs) == seqs


def test_after_a_restart_a_dependent_goes_on_to_wait(host: Host, alice: Client) -> None:
    alice.submit(task("a"), task("b"), task("c", needs=["a", "b"]))
    worker = host.worker()
    worker.settle("a")
    host.settle()
    host.crash()
    host.pass_time(RECOVERY)
    again = host.worker("w2")
    assert again.ids() == ["b"]
    again.settle("b")
    host.settle()
    assert len(again.lease("c").needs) == 2


def test_after_a_restart_a_dependent_of_a_failed_task_fails(host: Host, alice: Client) -> None:
    alice.submit(task("a"), task("b", needs=["a"]))
    host.settle()
    host.worker().settle("a", status=TaskStatus.FAILED)
    host.commit(len(host.ops))
    host.tables.rows[host.tables.seqs[b"b"]].outcomes.clear()
    host.crash()
    host.pass_time(RECOVERY)
    host.settle()
    assert host.ended("b").status == TaskStatus.FAILED


# -- verdicts ------------------------------------------------------------------------------


def test_a_verdict_is_recorded_after_its_commit_and_once_for_several(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b"))
    worker.settle("a")
    worker.settle("b")
    assert not worker.of(p.Recorded)
    host.settle()
    assert worker.of(p.Recorded) == [p.Recorded(2)]


def test_the_hub_signs_who_ran_a_task_and_how_often(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a", kind=RETRY)
    worker.settle("a")
    host.settle()
    outcome = alice.outcome("a")
    assert (outcome.worker, outcome.attempts, outcome.body) == ("w1", 2, b"a")


def test_a_retry_runs_again_later_under_a_new_token(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    first = worker.lease("a")
    worker.settle("a", kind=RETRY, delay=1.0)
    assert not worker.held
    host.pass_time(1.0)
    second = worker.lease("a")
    assert second.token > first.token and (first.attempt, second.attempt) == (1, 2)


def test_a_requeue_is_not_counted(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a", kind=REQUEUE)
    assert worker.lease("a").attempt == 1


def test_a_rejected_task_ends_rejected(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a", kind=REJECT, status=TaskStatus.SUCCEEDED)
    host.settle()
    assert alice.outcome("a").status == TaskStatus.REJECTED


def test_a_verdict_that_comes_twice_counts_once(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    message = worker.settle("a", kind=RETRY)
    worker.say(message)
    assert worker.lease("a").attempt == 2 and len(host.state.tasks) == 1
    host.settle()
    assert worker.last(p.Recorded) == p.Recorded(1)


def test_an_old_token_is_refused_and_still_acknowledged(host: Host, alice: Client) -> None:
    old, new = host.worker("w1"), host.worker("w2")
    alice.submit(task("a"))
    zombie = old.verdict("a", body=b"late")
    host.pool().renew(new)
    host.pass_time(LEASE - 1)
    host.pool().renew(new)
    host.pass_time(1)
    assert new.ids() == ["a"]
    old.say(p.Ping())
    assert old.last(p.Refused).code == "unknown_peer"
    old.connect()
    assert old.last(p.Recall).tokens == [zombie.token]
    old.say(p.Settle(1, [zombie]))
    new.settle("a", body=b"right")
    host.settle()
    assert host.ended("a").body == b"right" and old.of(p.Recorded)


@pytest.mark.parametrize("kind, status", [(9, 10), (0, 0), (0, 99)])
def test_a_senseless_verdict_changes_nothing(
    host: Host, alice: Client, kind: int, status: int
) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b"))
    good, bad = worker.verdict("a"), worker.verdict("a", kind=kind, status=status)
    with pytest.raises(ValueError):
        worker.say(p.Settle(1, [good, bad]))
    assert len(host.state.tasks) == 2


def test_no_verdict_is_acknowledged_over_a_gap(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(*(task(f"t{n}") for n in range(4)))
    worker.settle("t0")
    missing = p.Settle(2, [worker.verdict("t1")])
    worker.number = 2
    worker.say(p.Settle(3, []))
    host.settle()
    assert worker.last(p.Recorded) == p.Recorded(1)
    worker.say(missing)
    host.settle()
    assert worker.last(p.Recorded) == p.Recorded(3)


def test_output_is_stored_and_passed_on(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    note = p.Note(b"a", worker.token("a"), 1, b"hello")
    worker.say(p.Output([note, p.Note(b"a", 77, 2, b"stale")]))
    host.settle()
    row = host.tables.by_id(b"a")
    assert row is not None and row.notes == [note] and alice.last(p.Output).notes == [note]


def test_a_task_whose_bytes_are_damaged_ends_corrupt(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.perform(host.state.corrupt(worker.token("a"), "bad checksum", host.now))
    host.settle()
    assert alice.outcome("a").status == TaskStatus.CORRUPT


# -- telling -------------------------------------------------------------------------------


def test_an_end_is_told_after_its_commit(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a")
    assert not alice.outcomes("a")
    host.settle()
    assert alice.outcome("a").body == b"a"


def test_who_blocks_on_a_task_has_its_value_before_the_commit_and_once(
    host: Host, alice: Client
) -> None:
    bob, worker = host.client("bob"), host.worker()
    alice.submit(task("a"))
    bob.say(p.Wait(b"a"))
    worker.settle("a")
    assert bob.outcome("a").body == b"a" and not alice.outcomes("a")
    host.settle()
    assert len(bob.outcomes("a")) == len(alice.outcomes("a")) == 1


def test_who_blocks_on_an_ended_task_has_its_value_at_once(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a")
    alice.say(p.Wait(b"a"))
    assert alice.outcome("a").body == b"a"


def test_who_waited_and_was_away_at_the_end_is_told_when_it_asks(host: Host, alice: Client) -> None:
    bob, worker = host.client("bob"), host.worker()
    alice.submit(task("a"))
    bob.say(p.Wait(b"a"))
    bob.cut()
    worker.settle("a")
    bob.connect()
    bob.say(p.Get([b"a"]))
    host.settle()
    assert len(bob.outcomes("a")) == 1


def test_asking_for_values_is_no_reason_to_be_told_early(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    alice.say(p.Get([b"a"], values=True))
    worker.settle("a")
    assert not alice.outcomes("a")
    host.settle()
    assert alice.outcome("a").body == b"a"


def test_a_large_value_is_withheld_from_who_did_not_ask_for_it(host: Host, alice: Client) -> None:
    bob, worker = host.client("bob"), host.worker()
    alice.submit(task("a"))
    bob.say(p.Get([b"a"], values=True))
    worker.settle("a", body=bytes(WITHHOLD + 1))
    host.settle()
    assert alice.outcome("a").withheld and not alice.outcome("a").body
    assert len(bob.outcome("a").body) == WITHHOLD + 1


def test_many_ends_come_in_bounded_messages(host: Host, alice: Client) -> None:
    worker = host.worker(concurrency=1000)
    tasks = [task(f"t{n}", flavor=p.Flavor.ASYNC) for n in range(OUTCOMES_PER_MESSAGE + 1)]
    alice.submit(*tasks)
    worker.settle(*worker.ids())
    host.settle()
    sizes = [len(message.outcomes) for message in alice.of(p.Finished)]
    assert sizes == [OUTCOMES_PER_MESSAGE, 1]


def test_get_tells_where_a_task_is_and_of_its_end(host: Host, alice: Client) -> None:
    bob, worker = host.client("bob"), host.worker()
    alice.submit(task("a"))
    worker.start("a")
    bob.say(p.Get([b"a"]))
    assert bob.last(p.Progressed).changes == [(b"a", TaskStatus.RUNNING, "w1")]
    worker.settle("a")
    host.settle()
    assert bob.outcome("a").status == TaskStatus.SUCCEEDED


def test_get_of_an_ended_or_unknown_task_asks_the_store(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.settle("a")
    host.settle()
    bob = host.client("bob")
    bob.say(p.Get([b"a", b"nobody"]))
    host.answer()
    assert bob.outcome("a").body == b"a" and bob.last(p.Missing).keys == [b"nobody"]


def test_the_owner_hears_that_a_task_runs_and_that_it_waits_again(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.start("a")
    worker.settle("a", kind=RETRY, delay=1.0)
    changes = [change for message in alice.of(p.Progressed) for change in message.changes]
    assert changes == [(b"a", TaskStatus.RUNNING, "w1"), (b"a", TaskStatus.WAITING, "")]


# -- cancelling ----------------------------------------------------------------------------


def test_a_queued_task_is_cancelled_and_the_word_is_given_when_that_is_stored(
    host: Host, alice: Client
) -> None:
    alice.submit(task("a"))
    number = alice.cancel("a", "nobody")
    assert alice.word(number) is None
    host.settle()
    assert alice.word(number) == {"a": "cancelled", "nobody": "too_late"}
    assert alice.outcome("a").status == TaskStatus.CANCELLED
    assert not host.worker().held


def test_a_running_task_is_too_late_to_cancel(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.start("a")
    number = alice.cancel("a")
    host.settle()
    assert alice.word(number) == {"a": "too_late"} and worker.ids() == ["a"]


def test_a_prefetched_task_is_cancelled_by_its_workers_word(host: Host, alice: Client) -> None:
    worker = host.worker()
    learn(alice, worker)
    alice.submit(task("a"), task("b"), task("c"))
    first, second = alice.cancel("a", "b"), alice.cancel("b")
    a, b = worker.token("a"), worker.token("b")
    assert set(worker.last(p.Recall).tokens) <= {a, b}
    worker.say(p.Recalled([b], kept=[a]))
    host.settle()
    assert alice.word(first) == {"a": "too_late", "b": "cancelled"}
    assert alice.word(second) == {"b": "cancelled"}
    assert alice.outcome("b").status == TaskStatus.CANCELLED


def test_a_cancel_that_a_result_overtakes_is_too_late(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    number = alice.cancel("a")
    worker.settle("a")
    host.settle()
    assert alice.word(number) == {"a": "too_late"}


def test_a_task_that_is_to_be_cancelled_is_not_retried(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    number = alice.cancel("a")
    worker.settle("a", kind=RETRY)
    host.settle()
    assert alice.word(number) == {"a": "cancelled"} and not worker.held


def test_a_cancel_reaches_a_worker_that_was_away(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.cut()
    alice.cancel("a")
    worker.connect()
    assert worker.last(p.Recall).tokens == [worker.token("a")]


def test_a_cancel_is_answered_when_the_lease_never_arrived(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    number = alice.cancel("a")
    worker.held.clear()
    worker.connect()
    host.settle()
    assert alice.word(number) == {"a": "cancelled"} and not worker.held


def test_a_cancel_is_answered_when_the_worker_dies(host: Host, alice: Client, pool: Pool) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    number = alice.cancel("a")
    pool.report(worker, "a")
    host.settle()
    assert alice.word(number) == {"a": "cancelled"}


def test_during_recovery_a_cancel_waits_until_it_is_known_who_holds_the_task(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b"))
    host.settle()
    host.crash()
    alice.connect()
    number = alice.cancel("a", "b")
    worker.connect()
    host.pass_time(RECOVERY)
    assert worker.last(p.Recall).tokens == [worker.token("a")]
    worker.say(p.Recalled([], kept=[worker.token("a")]))
    host.settle()
    assert alice.word(number) == {"a": "too_late", "b": "cancelled"}


# -- workers -------------------------------------------------------------------------------


def test_who_did_not_say_hello_is_refused(host: Host, alice: Client) -> None:
    (action,) = host.state.handle(b"stranger", p.Ping(), (), host.now)
    assert action.message.code == "unknown_peer"  # type: ignore[union-attr]


def test_another_protocol_version_is_refused_with_both_versions(host: Host) -> None:
    hello = p.Hello(p.VERSION + 1, "client", b"x", HERE, 1)
    (action,) = host.state.handle(b"x", hello, (), host.now)
    refused = action.message  # type: ignore[union-attr]
    assert refused.code == "version"
    assert str(p.VERSION) in refused.text and str(p.VERSION + 1) in refused.text


def test_nobody_may_say_what_is_not_their_part(host: Host, alice: Client) -> None:
    with pytest.raises(ValueError):
        alice.say(p.Settle(1, []))


def test_a_lease_that_was_lost_on_its_way_is_handed_out_again(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    first = worker.token("a")
    worker.cut()
    worker.held.clear()
    worker.connect()
    assert worker.token("a") > first


def test_a_reconnected_worker_keeps_what_it_holds(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    worker.start("a")
    worker.cut()
    worker.connect()
    assert not worker.of(p.Recall)
    worker.settle("a")
    host.settle()
    assert alice.outcome("a").attempts == 1


def test_last_words_of_a_lost_worker_are_heard(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.perform(host.state.lost(worker.address, host.now))
    worker.settle("a")
    host.settle()
    assert alice.outcome("a").status == TaskStatus.SUCCEEDED
    assert worker.last(p.Refused).code == "unknown_peer"


def test_a_killed_worker_returns_its_task_which_is_charged(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    pool.report(worker, "a")
    assert host.worker("w2").lease("a").attempt == 2


def test_the_second_crash_ends_a_task_with_both_reasons(
    host: Host, alice: Client, pool: Pool
) -> None:
    alice.submit(task("a"))
    pool.report(host.worker("w1"), "a", reason="was killed by signal 9")
    host.settle()
    host.crash()
    pool.connect()
    host.pass_time(RECOVERY)
    pool.report(host.worker("w2"), "a", reason="exited with status 0")
    host.settle()
    outcome = host.ended("a")
    assert (outcome.status, outcome.attempts) == (TaskStatus.CRASHED, 2)
    assert "w1 was killed by signal 9" in outcome.error
    assert "w2 exited with status 0" in outcome.error


def test_a_retry_does_not_forget_a_charge(host: Host, alice: Client, pool: Pool) -> None:
    alice.submit(task("a"))
    pool.report(host.worker("w1"), "a")
    host.worker("w2").settle("a", kind=RETRY)
    host.settle()
    row = host.tables.by_id(b"a")
    assert row is not None and len(row.reasons) == 1


def test_prefetched_neighbours_are_charged_nothing(host: Host, alice: Client, pool: Pool) -> None:
    worker = host.worker()
    learn(alice, worker)
    alice.submit(task("poison"), task("b"), task("c"))
    pool.report(worker, "poison")
    assert host.worker("w2").ids() == ["poison", "b", "c"]
    host.settle()
    rows = {i: host.tables.by_id(i) for i in (b"poison", b"b", b"c")}
    assert {i: len(row.reasons) for i, row in rows.items() if row} == {
        b"poison": 1, b"b": 0, b"c": 0,
    }  # fmt: skip


def test_of_several_that_ran_all_run_again_alone_and_are_charged_only_then(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(*(task(i, flavor=p.Flavor.ASYNC) for i in "abc"))
    pool.report(worker, "a", "b")
    second = host.worker("w2")
    assert second.ids() == ["a"]
    pool.report(second, "a")
    third = host.worker("w3")
    assert third.ids() == ["a"] and third.lease("a").attempt == 2
    third.settle("a")
    assert third.ids() == ["b"]
    third.settle("b")
    host.settle()
    assert alice.outcome("b").attempts == 1


def test_a_worker_that_was_stopped_on_purpose_costs_nothing(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    pool.report(worker, "a", reason="stopped: restarted")
    assert host.worker("w2").lease("a").attempt == 1


def test_a_death_notice_waits_for_results_that_it_overtook(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    learn(alice, worker)
    alice.submit(task("a"), task("b"), task("c"))
    pool.report(worker, "c", settled=worker.number + 2)
    worker.settle("a")
    assert host.state.deadline() == host.now + DRAIN
    worker.settle("b")
    assert host.worker("w2").ids() == ["c"]
    host.settle()
    assert alice.outcome("a").status == alice.outcome("b").status == TaskStatus.SUCCEEDED


def test_a_death_notice_does_not_wait_for_ever(host: Host, alice: Client, pool: Pool) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    pool.report(worker, "a", settled=5)
    other = host.worker("w2")
    host.pass_time(DRAIN / 2)
    assert not other.held
    host.pass_time(DRAIN)
    assert other.ids() == ["a"]


def test_a_result_that_came_before_its_workers_death_stands(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    slot = p.Slot(b"a", worker.token("a"), 0.0)
    worker.settle("a")
    pool.say(p.Died("w1", "was killed by signal 9", [slot], 1))
    host.settle()
    assert alice.outcome("a").status == TaskStatus.SUCCEEDED


def test_the_dead_do_not_come_back(host: Host, alice: Client, pool: Pool) -> None:
    worker = host.worker()
    pool.report(worker)
    worker.connect()
    assert worker.last(p.Refused).code == "dead"
    alice.submit(task("a"))
    assert not worker.held


def test_a_death_that_is_reported_twice_is_charged_once(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    pool.report(worker, "a")
    pool.report(worker, "a")
    assert host.worker("w2").lease("a").attempt == 2
    assert host.state.statistics()["tasks"] == {"waiting": 0, "queued": 1, "running": 0}


def test_a_worker_that_its_pool_speaks_for_keeps_its_leases(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    for _ in range(5):
        host.pass_time(LEASE / 2)
        pool.renew(worker)
    worker.settle("a")
    host.settle()
    assert alice.outcome("a").attempts == 1


def test_a_worker_that_nobody_speaks_for_loses_its_leases_uncharged(
    host: Host, alice: Client
) -> None:
    host.worker()
    alice.submit(task("a"))
    host.pass_time(LEASE)
    assert host.worker("w2").lease("a").attempt == 1


# -- at most once --------------------------------------------------------------------------


def test_an_at_most_once_task_is_handed_out_after_its_lease_is_durable(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a", at_most_once=True))
    assert isinstance(host.ops[-1][0], LeaseTask) and not worker.held
    host.settle()
    assert worker.ids() == ["a"]


def test_an_at_most_once_task_whose_worker_dies_running_it_is_uncertain(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a", at_most_once=True))
    host.settle()
    pool.report(worker, "a")
    host.settle()
    assert alice.outcome("a").status == TaskStatus.UNCERTAIN
    assert "w1 was killed by signal 9" in alice.outcome("a").error


def test_an_at_most_once_task_is_uncertain_when_its_result_was_lost_with_its_worker(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a", at_most_once=True))
    host.settle()
    pool.report(worker, settled=1)
    host.pass_time(DRAIN)
    host.settle()
    assert alice.outcome("a").status == TaskStatus.UNCERTAIN


def test_an_at_most_once_task_that_had_not_begun_runs_elsewhere(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a", at_most_once=True))
    host.settle()
    pool.report(worker)
    other = host.worker("w2")
    host.settle()
    assert other.ids() == ["a"]


def test_an_at_most_once_task_is_uncertain_when_its_worker_falls_silent(
    host: Host, alice: Client
) -> None:
    host.worker()
    alice.submit(task("a", at_most_once=True))
    host.settle()
    host.pass_time(LEASE)
    host.settle()
    assert alice.outcome("a").status == TaskStatus.UNCERTAIN


def test_an_at_most_once_task_that_was_never_sent_survives_its_worker(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a", at_most_once=True))
    host.pass_time(LEASE)
    other = host.worker("w2")
    host.settle()
    assert other.ids() == ["a"] and not worker.held


def test_an_at_most_once_task_is_cancelled_before_it_is_sent(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a", at_most_once=True))
    number = alice.cancel("a")
    host.settle()
    assert alice.word(number) == {"a": "cancelled"} and not worker.held


def test_after_a_restart_an_at_most_once_task_that_nobody_holds_is_uncertain(
    host: Host, alice: Client
) -> None:
    host.worker()
    alice.submit(task("a", at_most_once=True))
    host.settle()
    host.crash()
    host.pass_time(RECOVERY)
    host.settle()
    assert host.ended("a").status == TaskStatus.UNCERTAIN


def test_after_a_restart_only_the_stored_lease_of_an_at_most_once_task_is_believed(
    host: Host, alice: Client
) -> None:
    worker = host.worker("w1")
    alice.submit(task("a", at_most_once=True))
    host.settle()
    retried = worker.settle("a", kind=RETRY)
    host.settle()
    old, stale = Worker(host, "old"), retried.verdicts[0].token
    holding = worker.held.copy()
    host.crash()
    old.held = {stale: next(iter(holding.values()))}
    old.connect()
    worker.connect()
    assert old.last(p.Recall).tokens == [stale]
    worker.settle("a")
    host.settle()
    assert host.ended("a").status == TaskStatus.SUCCEEDED


# -- after a restart -----------------------------------------------------------------------


def test_stored_tasks_wait_for_the_workers_that_may_hold_them(host: Host, alice: Client) -> None:
    worker = host.worker("w1")
    alice.submit(task("a"), task("b"))
    host.settle()
    host.crash()
    fresh = host.worker("w2")
    host.pass_time(RECOVERY / 2)
    assert not fresh.held
    worker.connect()
    host.pass_time(RECOVERY / 2)
    assert fresh.ids() == ["b"]
    worker.settle("a")
    host.settle()
    assert host.ended("a").attempts == 1


def test_the_wait_is_over_when_all_workers_of_the_pool_have_come(host: Host, alice: Client) -> None:
    alice.submit(task("a"))
    host.settle()
    host.crash()
    worker, pool = host.worker(), host.pool()
    pool.renew(worker)
    host.pass_time(0.1)
    assert worker.ids() == ["a"]


def test_a_result_that_was_not_stored_is_offered_again(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.settle()
    token = worker.token("a")
    held = worker.held.copy()
    message = worker.settle("a")
    host.crash()
    worker.held = held
    worker.connect()
    worker.held.clear()
    worker.say(message)
    host.settle()
    assert host.ended("a").status == TaskStatus.SUCCEEDED and token >> 40 == 1
    assert worker.last(p.Recorded) == p.Recorded(1)


def test_no_token_is_handed_out_twice(host: Host, alice: Client) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    before = worker.token("a")
    host.crash()
    alice.connect()
    alice.submit(task("a"))
    assert host.worker("w2").token("a") > before


def test_a_result_of_a_task_that_is_not_stored_waits_for_its_client(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.crash()
    worker.connect()
    worker.settle("a")
    alice.connect()
    alice.submit(task("a"), again=True)
    host.settle()
    assert alice.outcome("a").worker == "w1" and not worker.held


def test_a_lease_of_a_task_that_is_not_stored_is_taken_over_by_its_client(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    token = worker.token("a")
    host.crash()
    worker.connect()
    alice.connect()
    alice.submit(task("a"), again=True)
    host.settle()
    assert list(worker.held) == [token]
    worker.settle("a")
    host.settle()
    assert alice.outcome("a").attempts == 1


def test_a_task_that_is_sent_again_first_waits_for_who_may_hold_it(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.crash()
    alice.connect()
    alice.submit(task("a"), again=True)
    host.settle()
    other = host.worker("w2")
    worker.connect()
    assert not worker.of(p.Recall)
    host.pass_time(RECOVERY)
    assert not other.held and worker.ids() == ["a"]


def test_claims_and_results_that_no_client_asks_for_are_forgotten(
    host: Host, alice: Client
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.crash()
    worker.connect()
    worker.settle("a")
    host.pass_time(PARKING)
    other = host.worker("w2")
    alice.connect()
    alice.submit(task("a"), again=True)
    host.settle()
    assert other.ids() == ["a"]


def test_a_claim_ends_with_its_worker(host: Host, alice: Client, pool: Pool) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.crash()
    pool.connect()
    worker.connect()
    pool.report(worker)
    host.pass_time(RECOVERY)
    alice.connect()
    alice.submit(task("a"), again=True)
    host.settle()
    assert host.worker("w2").ids() == ["a"]


def test_of_two_claims_the_newer_lease_is_valid(host: Host, alice: Client, pool: Pool) -> None:
    old = host.worker("w1")
    alice.submit(task("a"))
    host.settle()
    host.pass_time(LEASE)
    new = host.worker("w2")
    assert new.ids() == ["a"]
    host.crash()
    old.connect()
    new.connect()
    assert old.last(p.Recall).tokens == [old.token("a")] and not new.of(p.Recall)
    old.settle("a", body=b"late")
    new.settle("a", body=b"right")
    host.settle()
    assert host.ended("a").body == b"right"


def test_a_worker_that_died_with_the_hub_is_charged_by_its_pool(
    host: Host, alice: Client, pool: Pool
) -> None:
    worker = host.worker()
    alice.submit(task("a"))
    host.settle()
    host.crash()
    pool.connect()
    pool.report(worker, "a")
    assert host.worker("w2").lease("a").attempt == 2


def test_delay_and_expiry_go_on_over_a_restart(host: Host, alice: Client) -> None:
    alice.submit(task("late", delay=20.0), task("old", expires=3.0))
    host.settle()
    host.pass_time(4.0 - 1.5)
    host.crash()
    host.pass_time(RECOVERY)
    host.settle()
    assert host.ended("old").status == TaskStatus.EXPIRED
    worker = host.worker()
    host.pass_time(5.0)
    assert not worker.held
    worker.connect()
    host.pass_time(8.0)
    assert worker.ids() == ["late"]


# -- the rest ------------------------------------------------------------------------------


def test_idle_is_the_time_without_client_and_task(host: Host, alice: Client) -> None:
    assert host.state.idle_seconds(host.now) == 0
    alice.submit(task("a"))
    alice.cut()
    host.pass_time(8.0)
    assert host.state.idle_seconds(host.now) == 0
    host.worker().settle("a")
    host.settle()
    host.pass_time(30.0)
    assert host.state.idle_seconds(host.now) == pytest.approx(30.0)


def test_a_short_visit_between_two_questions_is_not_idle(host: Host, alice: Client) -> None:
    host.pass_time(20.0)
    alice.submit(task("a"))
    host.worker().settle("a")
    host.settle()
    alice.cut()
    host.pass_time(7.0)
    assert host.state.idle_seconds(host.now) == pytest.approx(7.0)


def test_the_pool_is_told_how_long_nothing_was_to_be_done(host: Host, pool: Pool) -> None:
    host.pass_time(9.0)
    pool.say(p.Ping())
    assert pool.last(p.Pong).idle == pytest.approx(9.0)


def test_sessions_that_are_gone_for_long_are_forgotten(host: Host) -> None:
    for number in range(20):
        host.client(f"c{number}").cut()
        host.pass_time(FORGET / 4)
    assert len(host.state.clients) < 8


def test_orders_go_to_the_pool_that_is_there(host: Host) -> None:
    old, new = host.pool("old"), host.pool("new")
    assert set(host.state.pool_peers()) == {old.address, new.address}
    host.pass_time(2 * LEASE)
    new.renew()
    new.connect()
    assert host.state.pool_peers() == [new.address]


def test_ended_tasks_leave_no_timers_and_no_places_behind(host: Host, alice: Client) -> None:
    for number in range(30):
        ids = [f"{number}-{n}" for n in range(100)]
        alice.submit(*(task(i, expires=1e6) for i in ids))
        alice.cancel(*ids)
        host.settle()
    board = host.state._board
    assert len(board.timers._heap) < 1500
    assert sum(map(len, board.queues[HERE.key]._lanes.values())) < 1500


def test_statistics_count_tasks_by_where_they_are(host: Host, alice: Client, pool: Pool) -> None:
    worker = host.worker()
    alice.submit(task("a"), task("b"), task("c", delay=9.0), task("d", needs=["a"]))
    worker.start("a")
    counted = host.state.statistics()
    assert counted["tasks"] == {"waiting": 2, "queued": 1, "running": 1}
    assert counted["workers"][0]["task"] == "fit" and counted["clients"] == counted["pools"] == 1
