"""The road to the hub: hello first, comes back by itself, loses nothing without saying so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from doubles import HubDouble

from nbtaskq.errors import ProtocolMismatch
from nbtaskq.hub.link import SILENCE, Link
from nbtaskq.hub.protocol import (
    VERSION,
    Environment,
    Fetch,
    Given,
    Hello,
    Ping,
    Pong,
    Put,
    Recorded,
    Refused,
    Welcome,
)
from tests.waiting import until


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/hub.sock"


def hello() -> Hello:
    return Hello(VERSION, "client", b"session", Environment("/usr", "3.11"), os.getpid())


class Peer:
    """A link and what it received."""

    def __init__(self, address: str, **options: Any) -> None:
        self.link = Link(address, hello, **options)
        self.got: list[Any] = []
        self.buffers: list[Any] = []

    def turn(self) -> None:
        self.link.wait(0.01)
        for message, buffers in self.link.receive():
            self.got.append(message)
            self.buffers += buffers
        self.link.tick()


@pytest.fixture
def peer(address: str) -> Iterator[Peer]:
    peer = Peer(address)
    yield peer
    peer.link.close()


def drive(hub: HubDouble | None, peer: Peer, condition: Callable[[], Any], what: str) -> None:
    """Let both ends work until a condition holds; without a hub that reads, only the peer."""

    def turn() -> Any:
        if hub is not None:
            hub.serve()
        peer.turn()
        return condition()

    until(turn, what)


def test_hello_comes_first_and_nothing_is_sent_before_the_welcome(address: str, peer: Peer) -> None:
    assert not peer.link.send(Ping())
    with HubDouble(address) as hub:
        drive(None, peer, lambda: hub.socket.poll(0), "hello")
        assert not peer.link.send(Fetch([b"early"]))
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        assert peer.link.send(Fetch([b"late"]))
        hub.expect(Fetch)
    kinds = [type(message) for _, message in hub.received]
    assert kinds == [Hello, Fetch]
    assert peer.link.epoch == 1
    assert isinstance(peer.got[0], Welcome)


def test_after_each_reconnection_hello_comes_first(address: str) -> None:
    welcomes: list[Welcome] = []
    peer = Peer(address, on_welcome=welcomes.append)
    for epoch in range(1, 5):
        with HubDouble(address) as hub:
            hub.epoch = epoch
            drive(hub, peer, lambda: peer.link.welcomed, "welcome")
            assert peer.link.send(Fetch([b"%d" % epoch]))
            hub.expect(Fetch)
            assert isinstance(hub.received[0][1], Hello)
        drive(None, peer, lambda: not peer.link.welcomed, "the loss is noticed")
        assert not peer.link.send(Fetch([b"lost"]))
    assert [welcome.epoch for welcome in welcomes] == [1, 2, 3, 4]
    peer.link.close()


def test_what_comes_between_hello_and_welcome_is_of_the_past(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(None, peer, lambda: hub.socket.poll(0), "hello")
        who = hub.socket.recv_multipart()[0]
        for message in (Recorded(1), Welcome(VERSION, 1, 1), Recorded(2)):
            hub.send(who, message)
        drive(None, peer, lambda: len(peer.got) == 2, "welcome and what follows")
    assert [type(message) for message in peer.got] == [Welcome, Recorded]
    assert peer.got[1].number == 2


def test_buffers_of_all_sizes_pass_unchanged(address: str, peer: Peer) -> None:
    sizes = (0, 1, 65_535, 65_536, 3_000_000)
    buffers = [os.urandom(size) for size in sizes]
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        views = [memoryview(bytearray(buffer)) for buffer in buffers]
        assert peer.link.send(Put(b"digest"), [*buffers, *views])
        hub.expect(Put)
        assert hub.buffers == buffers * 2
        hub.send(hub.received[0][0], Given(b"digest"), *buffers)
        drive(hub, peer, lambda: len(peer.buffers) == len(sizes), "the buffers come back")
    assert [bytes(buffer) for buffer in peer.buffers] == buffers
    assert [type(buffer) for buffer in peer.buffers] == [bytes] * 3 + [memoryview] * 2


def test_a_burst_arrives_whole_and_in_order(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        for number in range(2000):
            hub.send(hub.received[0][0], Recorded(number))
        drive(hub, peer, lambda: len(peer.got) > 2000, "all arrive")
    assert [m.number for m in peer.got if isinstance(m, Recorded)] == list(range(2000))


def test_malformed_frames_are_counted_and_skipped(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        whom = hub.received[0][0]
        for junk in (b"", b"\xc1", b"\x91\xa4nope", b"\x92\xa8recorded\xa1x", os.urandom(500)):
            hub.socket.send_multipart([whom, junk])
        hub.send(whom, Recorded(1))
        drive(hub, peer, lambda: Recorded(1) in peer.got, "the good one arrives")
    assert peer.link.malformed == 5


def test_an_unknown_peer_says_hello_again_once(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        whom = hub.received[0][0]
        for _ in range(50):
            hub.send(whom, Refused("unknown_peer", "who are you?"))
        drive(None, peer, lambda: len(peer.got) == 51, "all refusals arrive")
        drive(hub, peer, lambda: peer.link.welcomed, "welcome again")
        assert len(list(hub.all(Hello))) == 2


def test_another_version_is_an_error_that_says_what_to_do(address: str, peer: Peer) -> None:
    with (
        HubDouble(address, refuse=Refused("version", "I speak 2.")) as hub,
        pytest.raises(ProtocolMismatch, match=r"I speak 2\..*nbtaskq down"),
    ):
        drive(hub, peer, lambda: False, "an end")
    assert not peer.link.send(Ping())
    with HubDouble(address) as newer:
        drive(newer, peer, lambda: peer.link.welcomed, "the replaced hub welcomes")


def test_a_quiet_hub_is_asked_and_stays(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: Pong() in peer.got, "a pong")
        assert len(list(hub.all(Hello))) == 1


def test_a_silent_hub_counts_as_disconnected_until_it_speaks(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        now = time.monotonic()
        for half_seconds in range(1, int(2 * SILENCE)):
            peer.link.tick(now + half_seconds / 2)
            assert peer.link.welcomed
        peer.link.tick(now + SILENCE + 0.1)
        assert not peer.link.welcomed
        drive(hub, peer, lambda: peer.link.welcomed, "welcome again")
    assert len(list(hub.all(Hello))) == 2


def test_a_process_that_was_held_up_itself_does_not_blame_the_hub(address: str, peer: Peer) -> None:
    with HubDouble(address) as hub:
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        peer.link.tick(time.monotonic() + 100 * SILENCE)
        assert peer.link.welcomed


def test_a_link_can_share_a_context_which_it_leaves_alone(address: str) -> None:
    with zmq.Context() as context, HubDouble(address) as hub:
        peer = Peer(address, context=context)
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        peer.link.close()
        peer.link.close()
        assert not context.closed


def test_the_last_words_leave_before_the_link_closes(address: str) -> None:
    with HubDouble(address) as hub:
        peer = Peer(address)
        drive(hub, peer, lambda: peer.link.welcomed, "welcome")
        for number in range(500):
            peer.link.send(Fetch([b"%d" % number]))
        peer.link.close(linger=2.0)
        hub.expect(Fetch, lambda message: message.digests == [b"499"])
