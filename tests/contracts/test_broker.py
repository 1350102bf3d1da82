"""What every broker keeps, whatever carries the messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

import nbtaskq as nq
from nbtaskq.errors import (
    DependencyFailed,
    ResultTimeout,
    SerializationError,
    TaskArgumentError,
    TaskCancelled,
    TaskIdConflict,
)
from nbtaskq.workspace import Workspace


@pytest.fixture(scope="module", params=["memory", "zeromq"])
def broker(
    request: pytest.FixtureRequest,
) -> Iterator[nq.InMemoryBroker | nq.ZeroMQBroker]:
    if request.param == "memory":
        made = nq.InMemoryBroker()
        yield made
        asyncio.run(made.shutdown())
    else:
        workspace: Workspace = request.getfixturevalue("hub")
        zeromq = nq.ZeroMQBroker(workspace)
        yield zeromq
        asyncio.run(zeromq.shutdown())


# tasks are sent as code, so they must not belong to an importable module
def cell(source: str, **names: object) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "__main__", "nq": nq, **names}
    exec(compile(source, "<cell>", "exec"), namespace)
    return namespace


ADD = "def add(a, b=1): return a + b"


def test_a_call_comes_back_with_its_value(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    assert add(1, 2) == 3
    assert add.kiq(1, b=2).result(10) == 3


def test_results_of_a_map_stand_in_input_order(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    batch = add.map(range(300))
    assert batch.results(30) == [i + 1 for i in range(300)]
    assert batch.counts == {"succeeded": 300}


def test_a_sweep_runs_every_combination(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    assert add.sweep(a=[1, 2], b=[10, 20]).results(10) == [11, 21, 12, 22]


def test_a_starmap_spreads_its_rows(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    assert add.starmap([(1, 2), (3, 4)]).results(10) == [3, 7]


def test_the_own_exception_is_raised_with_the_remote_frames(broker: nq.InMemoryBroker) -> None:
    fail = broker.task(cell("def fail(): raise KeyError('gone')")["fail"])
    handle = fail.kiq()
    with pytest.raises(KeyError, match="gone") as caught:
        handle.result(10)
    assert isinstance(caught.value.__cause__, nq.errors.RemoteTraceback)
    assert "in fail" in str(caught.value.__cause__)
    assert handle.status is nq.TaskStatus.FAILED
    assert isinstance(handle.exception(0), KeyError)


def test_an_error_that_is_raised_again_shows_only_this_time(broker: nq.InMemoryBroker) -> None:
    handle = broker.task(cell("def fail(): raise KeyError(1)")["fail"]).kiq()
    depths = []
    for _ in range(2):
        with pytest.raises(KeyError) as raised:
            handle.result(10)
        depths.append(len(raised.traceback))
    assert depths[0] == depths[1]


def test_exiting_is_an_error_not_an_end(broker: nq.InMemoryBroker) -> None:
    leave = broker.task(cell("import sys\ndef leave(): sys.exit(3)")["leave"])
    with pytest.raises(SystemExit):
        leave.kiq().result(10)
    add = broker.task(cell(ADD)["add"])
    assert add.kiq(1).result(10) == 2


def test_a_wrong_call_fails_before_it_is_sent(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    with pytest.raises(TaskArgumentError, match="nothing was sent"):
        add.kiq(1, 2, 3)
    with pytest.raises(TaskArgumentError, match="equally long"):
        add.map([1, 2], [3])


def test_an_argument_that_cannot_travel_is_named(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    with pytest.raises(SerializationError, match=r"args\[0\]\['rows'\]"):
        add.kiq({"rows": (row for row in ())})


def test_a_result_that_cannot_travel_is_an_error(broker: nq.InMemoryBroker) -> None:
    source = "def lazily(): return (row for row in ())"
    with pytest.raises(SerializationError, match="result"):
        broker.task(cell(source)["lazily"]).kiq().result(10)


def test_coroutines_run_concurrently(broker: nq.InMemoryBroker) -> None:
    source = "import asyncio\nasync def nap(s):\n    await asyncio.sleep(s)\n    return s"
    nap = broker.task(cell(source)["nap"])
    nap.kiq(0).result(10)
    begun = time.monotonic()
    assert nap.map([0.5] * 10).results(20) == [0.5] * 10
    assert time.monotonic() - begun < 4  # one after the other they would take 5 s


def test_asyncio_run_works_inside_a_task(broker: nq.InMemoryBroker) -> None:
    source = (
        "import asyncio\ndef outer():\n"
        "    async def inner(): return 7\n    return asyncio.run(inner())"
    )
    assert broker.task(cell(source)["outer"]).kiq().result(10) == 7


def test_a_handle_as_an_argument_is_a_dependency(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    first = add.kicker().with_delay(0.3).kiq(1, 1)
    second = add.kiq(first, 40)
    assert second.result(10) == 42
    assert add.kiq(first, 5).result(10) == 7  # also when it has ended already


def test_a_failed_dependency_fails_its_dependents(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    fail = broker.task(cell("def fail(): raise ValueError('no')")["fail"])
    dependent = add.kiq(add.kiq(fail.kiq(), 1), 1)
    with pytest.raises(DependencyFailed, match="did not succeed"):
        dependent.result(10)


def test_a_delayed_message_waits(broker: nq.InMemoryBroker) -> None:
    stamp = broker.task(cell("import time\ndef stamp(): return time.time()")["stamp"])
    sent = time.time()
    handle = stamp.kicker().with_delay(0.5).kiq()
    assert handle.result(10) - sent >= 0.49


def test_one_id_is_stored_once(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    kicker = add.kicker().with_task_id(f"only-once-{type(broker).__name__}")
    first, second = kicker.kiq(1), kicker.kiq(1)
    assert first.result(10) == second.result(10) == 2
    with pytest.raises(TaskIdConflict):
        kicker.kiq(99).result(10)


def test_a_queued_task_can_be_cancelled(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    waiting = add.kicker().with_delay(60).kiq(1)
    assert waiting.cancel() == "cancelled"
    with pytest.raises(TaskCancelled):
        waiting.result(10)
    ended = add.kiq(1)
    ended.result(10)
    assert ended.cancel() == "too_late"


def test_waiting_with_a_timeout_leaves_the_task_alone(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    handle = add.kicker().with_delay(0.5).kiq(1)
    with pytest.raises(ResultTimeout, match="it goes on"):
        handle.result(0)
    with pytest.raises(TimeoutError):
        handle.result(0.05)
    assert handle.result(10) == 2


def test_handles_can_be_awaited(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    fail = broker.task(cell("def fail(): raise KeyError('gone')")["fail"])

    async def main() -> None:
        handle = await add.kiq(1)  # accepted: it will be run
        assert isinstance(handle, nq.TaskHandle)
        assert await handle.value(10) == 2
        assert await handle.is_ready()
        result = await (await fail.kiq()).wait_result(timeout=10)
        assert result.is_err
        assert isinstance(result.error, KeyError)
        with pytest.raises(KeyError):
            result.raise_for_error()
        assert await nq.gather(add.kiq(1), add.kiq(2)) == [2, 3]

    asyncio.run(main())


def test_handles_come_in_the_order_of_their_ends(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    late = add.kicker().with_delay(0.6).kiq(1)
    early = add.kiq(2)
    assert list(nq.as_completed([late, early], 10)) == [early, late]
    done, pending = nq.wait([late, early, add.kicker().with_delay(60).kiq(3)], 0.2)
    assert len(done) == 2
    assert len(pending) == 1
    pending.pop().cancel()


def test_a_higher_priority_runs_first(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    gate = add.kicker().with_delay(0.4).kiq(0)
    low = [add.kicker().with_priority(-1).kiq(gate, i) for i in range(20)]
    high = [add.kicker().with_priority(1).kiq(gate, i) for i in range(20)]
    nq.wait(low + high, 20)
    assert sum(h.facts.started for h in high) < sum(h.facts.started for h in low)


def test_a_failed_task_is_tried_again_under_its_id(broker: nq.InMemoryBroker) -> None:
    broker.with_middlewares(nq.SimpleRetryMiddleware())
    source = "def flaky(): raise OSError('always')"
    handle = broker.task("flaky", max_retries=2)(cell(source)["flaky"]).kiq()
    with pytest.raises(OSError, match="always"):
        handle.result(10)
    assert handle.facts.attempts == 3


def test_labels_keep_their_types(broker: nq.InMemoryBroker) -> None:
    labels = {"i": 1, "f": 1.5, "b": True, "s": "x", "n": None, "l": [1, "2"], "y": b"z"}
    add = broker.task(cell(ADD)["add"])
    kicker = add.kicker().with_labels(**labels)
    assert dict(kicker.labels) == labels
    assert kicker.kiq(1).result(10) == 2
    assert add.labels == {}


def test_a_large_array_goes_there_and_back(broker: nq.InMemoryBroker) -> None:
    import numpy as np

    twice = broker.task(cell("def twice(x): return x * 2")["twice"])
    array = np.arange(1_000_000, dtype=float)
    assert (twice.kiq(array).result(30) == array * 2).all()


def test_what_is_no_list_of_values_is_refused_with_advice(broker: nq.InMemoryBroker) -> None:
    add = broker.task(cell(ADD)["add"])
    with pytest.raises(TaskArgumentError, match=r"write kiq\(5\)"):
        add.map(5)
    with pytest.raises(TaskArgumentError, match="use map"):
        add.starmap([1, 2])
    with pytest.raises(TaskArgumentError, match=r"write a=\[…\]|a=\["):
        add.sweep(a=1)
