"""Deliveries wait for their functions, in order; functions are kept within bounds."""

from __future__ import annotations

import asyncio
import threading

from nbtaskq.abc import Delivery, Settlement
from nbtaskq.hub.protocol import Outcome, VerdictKind
from nbtaskq.message import Parcel, TaskStatus
from nbtaskq.worker.arrivals import Arrivals
from nbtaskq.worker.codes import Codes
from nbtaskq.worker.inbox import Inbox
from nbtaskq.worker.verdicts import BATCH, Verdicts


def delivery(token: int) -> Delivery:
    return Delivery(f"t{token}", "f", {}, Parcel(b""), token)


def settlement(token: int) -> Settlement:
    return Settlement(VerdictKind.RESULT, Outcome(b"t%d" % token, TaskStatus.SUCCEEDED))


def test_a_delivery_that_waits_holds_back_those_behind_it() -> None:
    arrivals = Arrivals()
    arrivals.add(delivery(1), b"late")
    arrivals.add(delivery(2), b"")
    ready, lost, wanted = arrivals.sort()
    assert (ready, lost, wanted) == ([], [], [b"late"])
    arrivals.asked(wanted)
    assert arrivals.sort()[2] == []
    arrivals.given(b"late", [b"buffer"], b"body")
    assert arrivals.sort() == ([], [], [b"buffer"])
    arrivals.given(b"buffer", [], b"large")
    ready, _, _ = arrivals.sort()
    assert [d.token for d in ready] == [1, 2]
    assert ready[0].code is not None
    assert ready[0].code.parcel == Parcel(b"body", [b"large"], refs=(b"buffer",))


def test_a_lost_buffer_loses_its_function_but_not_for_ever() -> None:
    arrivals = Arrivals()
    arrivals.add(delivery(1), b"code")
    arrivals.sort()
    arrivals.given(b"code", [b"buffer"], b"body")
    arrivals.missing([b"buffer"])
    ready, lost, _ = arrivals.sort()
    assert (ready, [d.token for d in lost]) == ([], [1])
    arrivals.add(delivery(2), b"code")
    assert arrivals.sort()[2] == [b"buffer"]


def test_another_hub_is_asked_again() -> None:
    arrivals = Arrivals()
    arrivals.add(delivery(1), b"code")
    arrivals.asked(arrivals.sort()[2])
    arrivals.ask_again()
    assert arrivals.sort()[2] == [b"code"]


def test_a_waiting_delivery_can_be_called_back() -> None:
    arrivals = Arrivals()
    arrivals.add(delivery(1), b"code")
    arrivals.add(delivery(2), b"")
    assert arrivals.recall({1, 7}) == {1}
    assert [d.token for d in arrivals.sort()[0]] == [2]


def test_the_functions_used_last_are_kept_within_the_bound() -> None:
    codes = Codes(limit=250)
    for digest in (b"a", b"b"):
        codes.add(digest, [], bytes(100))
        assert codes.get(digest) is not None
    assert codes.get(b"a") is not None
    codes.add(b"c", [], bytes(100))
    assert codes.get(b"c") is not None
    assert codes.get(b"b") is None
    assert codes.get(b"a") is not None
    codes.add(b"huge", [], bytes(1000))
    assert codes.get(b"huge") is not None
    assert codes.get(b"a") is None


def test_a_buffer_that_two_functions_share_is_fetched_once() -> None:
    codes = Codes()
    codes.add(b"one", [b"buffer"], b"1")
    codes.add(b"buffer", [], b"large")
    assert codes.get(b"one") is not None
    codes.add(b"two", [b"buffer", b"buffer"], b"2")
    assert codes.missing(b"two") == []
    code = codes.get(b"two")
    assert code is not None
    assert code.parcel.buffers == [b"large", b"large"]


def test_letters_are_numbered_bounded_and_kept_until_recorded() -> None:
    verdicts = Verdicts()
    heard: list[str] = []
    count = BATCH + 3
    verdicts.add([(delivery(i), settlement(i)) for i in range(count)], lambda: heard.append("x"))
    letters = list(verdicts.letters())
    assert [letter.message.number for letter in letters] == [1, 2]
    assert [len(letter.message.verdicts) for letter in letters] == [BATCH, 3]
    assert list(verdicts.unrecorded()) == letters
    assert list(verdicts.recorded(1)) == list(range(BATCH))
    assert heard == []
    assert list(verdicts.recorded(2)) == list(range(BATCH, count))
    assert heard == ["x"]
    assert list(verdicts.unrecorded()) == []


def test_a_delivery_is_taken_or_called_back_never_both() -> None:
    inbox = Inbox()
    inbox.put(delivery(i) for i in range(20_000))
    taken: set[int] = set()

    def take() -> None:
        while (one := inbox.take()) is not None:
            taken.add(one.token)

    thread = threading.Thread(target=take)
    thread.start()
    back: set[int] = set()
    for start in range(0, 20_000, 100):
        back |= inbox.recall(set(range(start, start + 100)))
    thread.join()
    assert not taken & back
    assert taken | back == set(range(20_000))


def test_a_sleeping_loop_is_woken_by_another_thread() -> None:
    inbox = Inbox()

    async def main() -> Delivery | None:
        waiting = asyncio.ensure_future(inbox.wait())
        await asyncio.sleep(0)
        other = threading.Thread(target=inbox.put, args=([delivery(1)],))
        other.start()
        await asyncio.wait_for(waiting, 10)
        other.join()
        return inbox.take()

    found = asyncio.run(main())
    assert found is not None
    assert found.token == 1
