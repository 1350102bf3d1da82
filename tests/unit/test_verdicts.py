"""Verdicts on their way to the hub: each can be written down, whatever a hook did."""

from __future__ import annotations

from nbtaskq.abc import Delivery, Settlement
from nbtaskq.hub.protocol import Outcome, VerdictKind, encode
from nbtaskq.message import Parcel, TaskStatus
from nbtaskq.worker.verdicts import Verdicts


def test_labels_that_cannot_be_sent_reject_their_task_and_no_other() -> None:
    verdicts = Verdicts()
    outcome = Outcome(b"t", TaskStatus.FAILED)
    bad = Settlement(VerdictKind.RETRY, outcome, labels={"x": object()})
    good = Settlement(VerdictKind.RETRY, outcome, labels={"x": 1})
    one, two = (Delivery(f"t{i}", "f", {}, Parcel(b""), token=i) for i in (1, 2))
    verdicts.add([(one, bad), (two, good)], None)
    (letter,) = verdicts.letters()
    encode(letter.message)
    assert [v.kind for v in letter.message.verdicts] == [VerdictKind.REJECT, VerdictKind.RETRY]
    assert "label" in letter.message.verdicts[0].outcome.error
