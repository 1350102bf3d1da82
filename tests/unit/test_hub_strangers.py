"""What strangers, and peers that talk nonsense, can do to the hub: nothing."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import msgspec
import pytest
from hub_process import ENVIRONMENT, Hub, Peer, running_hub

from nbtaskq.hub import protocol as p


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def test_another_version_is_refused_with_both_versions(hub: Hub) -> None:
    peer = hub.peer(greet=False)
    peer.send(p.Hello(p.VERSION + 1, "client", b"s", ENVIRONMENT, 1))
    refused = peer.receive(p.Refused)[0]
    assert refused.code == "version"
    assert str(p.VERSION) in refused.text and str(p.VERSION + 1) in refused.text


@pytest.mark.parametrize("message", [p.Ping(), p.Fetch([b"x"]), p.Control(1, "status")])
def test_a_stranger_is_told_to_say_hello(hub: Hub, message: p.Wire) -> None:
    peer = hub.peer(greet=False)
    peer.send(message)
    assert peer.receive(p.Refused)[0].code == "unknown_peer"
    assert not peer.waiting


def test_malformed_messages_are_counted_and_leave_the_hub_serving(hub: Hub) -> None:
    client, worker = hub.peer(), hub.worker()
    choose = random.Random(1)
    whole = p.encode(p.Submit(1, [p.Submission(b"x", "f", b"", b"", 3)]))
    for number in range(250):
        client.socket.send(choose.randbytes(choose.randrange(1, 200)))
        client.socket.send(whole[: choose.randrange(len(whole))])
        client.socket.send_multipart([whole, b"one of three"])
        worker.send(p.Submit(number, []))
    client.socket.send(b"\x91" * 100_000)
    assert client.submit(b"a").problems == []
    counts = client.ask("status").body["malformed"]
    assert counts["contradictory"] == 500
    # a random byte may be a message of its own: there are sixteen
    assert 480 <= counts["undecodable"] <= 501
    assert worker.assigned().task_id == b"a"


def _mutations(count: int) -> Iterator[bytes]:
    """Give valid messages in which a value was replaced by another of any type."""
    choose = random.Random(2)
    strange = [0, -1, 2**63, 2**64 - 1, 1e308, float("nan"), "", "x", b"", b"a", [], {}, None, True]
    verdict = p.Verdict(1, 0, p.Outcome(b"a", 10))
    samples = [
        p.Submit(1, [p.Submission(b"a", "f", b"", b"")]),
        p.Settle(1, [verdict]),
        p.Started([(b"a", 1, 0.0)]),
        p.Output([p.Note(b"a", 1, 1, b"")]),
        p.Died("w9", "killed", [p.Slot(b"a", 1, 0.0)], 0),
        p.Renew(["w9"], {}),
        p.Get([b"a"]),
        p.Cancel(1, [b"a"]),
        p.Control(1, "history", {"limit": 1}),
        p.Hello(p.VERSION, "worker", b"s", ENVIRONMENT, 1, "w9", "", [(b"a", 1)]),
    ]
    for _ in range(count):
        values = msgspec.msgpack.decode(p.encode(choose.choice(samples)))
        spot = values
        while True:
            index = choose.randrange(len(spot))
            if isinstance(spot[index], list) and spot[index] and choose.random() < 0.8:
                spot = spot[index]
                continue
            spot[index] = choose.choice(strange)
            break
        yield msgspec.msgpack.encode(values)


def test_mutated_messages_of_every_role_leave_the_hub_serving(hub: Hub) -> None:
    peers = [hub.peer(), hub.worker("w8"), hub.peer("pool")]
    for number, frame in enumerate(_mutations(3000)):
        peers[number % 3].socket.send(frame)
    for peer in peers:
        peer.waiting.clear()
        peer.send(p.Hello(p.VERSION, "client", os.urandom(8), ENVIRONMENT, 1))
        while "'last'" not in str(peer.ask("last").body):
            pass
    client = hub.peer()
    client.send(p.Submit(1, [p.Submission(b"last", "g", b"", b"")]))
    assert client.receive(p.Accepted)[0].problems == []
    assert client.ask("find", {"key": "last"}).body[0]["name"] == "g"


def test_a_hundred_peers_that_say_nothing_hold_up_nobody(hub: Hub) -> None:
    idle = [Peer(hub.workspace.hub_address, greet=False) for _ in range(100)]
    try:
        assert hub.peer().submit(b"a") == p.Accepted(1)
    finally:
        for peer in idle:
            peer.close()
