"""The hub's decisions, pure: stimuli in, actions out; no socket, no clock, no file.

    stimulus ──► submitting · leasing · settling · cancelling · deaths · reclaiming
                     └──► board (where tasks are) ──► journal (what the host is to do)

Every change that must survive is a store action; what may only be said once it is durable waits
in the journal until the host calls `committed`. A task is dispatched while it is being stored:
if the hub dies in between, the client sends it again under the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nbtaskq.hub import protocol as p
from nbtaskq.hub.actions import Action, Found, StoredTask
from nbtaskq.hub.board import Board
from nbtaskq.hub.cancelling import Cancelling
from nbtaskq.hub.deaths import Deaths
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.leasing import Leasing
from nbtaskq.hub.needs import Needs
from nbtaskq.hub.reclaiming import Reclaiming
from nbtaskq.hub.records import Client, Ending, Pool, Worker
from nbtaskq.hub.roster import Known, Roster, Staffing
from nbtaskq.hub.settling import Settling, share_out
from nbtaskq.hub.statistics import statistics
from nbtaskq.hub.submitting import Submitting, checksum
from nbtaskq.hub.telling import Telling, withhold, without_value
from nbtaskq.message import Buffer

__all__ = ["HubState", "checksum", "withhold", "without_value"]

#: unended tasks beyond which more are refused
LIMIT = 2_000_000

_Handler = Callable[[Any, Any, Sequence[Buffer]], None]


class HubState:
    """Tasks, leases and peers of one hub.

    The host performs the actions of each call in order, and answers a `Check` in the order in
    which it was asked, between the same commits.

    Parameters
    ----------
    epoch : int
        Durable number of this start of the hub.
    next_seq : int
        First row number that is free in the store.
    now : float
        Monotonic seconds, as in every other call.
    limit : int
        Unended tasks beyond which more are refused.

    Attributes
    ----------
    tasks : dict
        Unended tasks by id.
    ending : dict
        Tasks whose end is decided and not yet durable.
    """

    def __init__(
        self, epoch: int, next_seq: int = 1, now: float = 0.0, *, limit: int = LIMIT
    ) -> None:
        journal = self._journal = Journal()
        board = self._board = Board(journal, epoch, now)
        roster = self._roster = Roster(journal, board)
        self._staffing = Staffing(journal, roster)
        self._needs = Needs(board)
        self._telling = Telling(journal, board, roster)
        self._cancelling = Cancelling(journal, board, roster)
        self._leasing = Leasing(journal, board, self._telling, self._cancelling, self._staffing)
        self._reclaiming = Reclaiming(
            journal, board, roster, self._needs, self._leasing, self._cancelling
        )
        self._settling = Settling(
            journal, board, roster, self._telling, self._cancelling, self._reclaiming,
            self._leasing.estimates,
        )  # fmt: skip
        self._deaths = Deaths(
            journal, board, roster, self._leasing, self._cancelling, self._reclaiming
        )
        self._submitting = Submitting(
            journal, board, roster, self._telling, self._needs, self._reclaiming,
            next_seq=next_seq, limit=limit,
        )  # fmt: skip
        self.epoch = epoch
        self.tasks = board.tasks
        self.ending = board.ending
        self.workers = board.workers
        self.clients = roster.clients
        self.pools = roster.pools
        self._routes = self._make_routes()

    def _make_routes(self) -> dict[type, tuple[tuple[type, ...], _Handler]]:
        """Return who may send what, and who handles it."""
        anyone = (Client, Worker, Pool)
        return {
            p.Ping: (anyone, self._ping),
            p.Put: ((Client, Worker), self._submitting.put),
            p.Submit: ((Client,), self._submitting.submit),
            p.Wait: ((Client,), self._telling.wait),
            p.Get: ((Client,), self._telling.get),
            p.Cancel: ((Client,), self._cancelling.cancel),
            p.Settle: ((Worker,), self._settling.settle),
            p.Started: ((Worker,), self._settling.started),
            p.Output: ((Worker,), self._settling.output),
            p.Recalled: ((Worker,), self._leasing.recalled),
            p.Renew: ((Pool,), self._deaths.renew),
            p.Died: ((Pool,), self._deaths.died),
        }

    # -- stimuli ---------------------------------------------------------------------------

    def load(self, tasks: Iterable[StoredTask]) -> None:
        """Take over the unended tasks of an earlier epoch; call once, before anything else.

        They are not dispatched before their workers had a chance to say that they hold them.
        """
        self._reclaiming.load(tasks)

    def handle(
        self, peer: bytes, message: p.Inbound, buffers: Sequence[Buffer], now: float
    ) -> list[Action]:
        """Take in what a peer sent; `buffers` are the frames behind the message.

        Raises
        ------
        ValueError
            The message contradicts itself or comes from who may not send it; nothing was changed.
        """
        self._board.now = now
        if isinstance(message, p.Hello):
            self._hello(peer, message)
            return self._done()
        known = self._roster.known(peer)
        if known is None or known.peer is None:
            # one that was lost and still speaks is heard, and asked to say hello
            self._journal.send(peer, p.Refused("unknown_peer", "say hello first"))
        if known is not None:
            self._hear(known, message, buffers)
        return self._done()

    def submit(
        self,
        peer: bytes,
        message: p.Submit,
        buffers: Sequence[Buffer],
        found: Mapping[bytes, Found],
        now: float,
    ) -> list[Action]:
        """Go on with a `Check` when the store has answered."""
        self._board.now = now
        client = self._roster.known(peer)
        if isinstance(client, Client) and client.checking == message.batch:
            client.checking = None
            self._submitting.store(client, message, buffers, found)
            while client.behind and client.checking is None:
                self._route(client, *client.behind.popleft())
        return self._done()

    def committed(self, number: int, now: float) -> list[Action]:
        """Go on with what waited for the store's operations up to `number`."""
        self._board.now = now
        self._journal.commit(number)
        return self._done()

    def tick(self, now: float) -> list[Action]:
        """Do what is due."""
        self._board.now = now
        self._board.wake()
        self._deaths.tick()
        self._leasing.call_back()
        self._reclaiming.tick()
        return self._done()

    def deadline(self) -> float:
        """Return the time of the next `tick` that has something to do."""
        return min(
            self._board.timers.next(),
            self._deaths.deadline(),
            self._leasing.deadline(),
            self._reclaiming.deadline(),
        )

    def lost(self, peer: bytes, now: float) -> list[Action]:
        """Take in that nothing can be sent to this peer any more.

        Its leases stay: only its pool's word, or the lease's end, takes them.
        """
        self._board.now = now
        self._roster.lost(peer)
        return self._done()

    def corrupt(self, token: int, error: str, now: float) -> list[Action]:
        """End a task that was leased and cannot be sent: its stored bytes are damaged."""
        self._board.now = now
        self._leasing.corrupt(self.holder(token), token, error)
        return self._done()

    # -- routing ---------------------------------------------------------------------------

    def _hello(self, peer: bytes, hello: p.Hello) -> None:
        known = self._roster.greet(peer, hello)
        if known is None:
            return
        if not isinstance(known, Pool):
            self._staffing.learn(hello.environment)
        self._staffing.arrived(known)
        if isinstance(known, Worker):
            self._reclaiming.reconcile(known, hello.holding)

    def _hear(self, known: Known, message: p.Inbound, buffers: Sequence[Buffer]) -> None:
        if isinstance(known, Client):
            known.seen = self._board.now
            if known.checking is not None and not isinstance(message, p.Ping):
                # a client's messages are handled in order
                self._validate(message, buffers)
                known.behind.append((message, buffers))
                return
        self._route(known, message, buffers)
        if isinstance(known, Worker) and known.died is not None:
            self._deaths.heard(known)

    def _route(self, known: Known, message: p.Inbound, buffers: Sequence[Buffer]) -> None:
        route = self._routes.get(type(message))
        if route is None:
            return
        roles, handler = route
        if not isinstance(known, roles):
            raise ValueError(f"{type(known).__name__} may not send {type(message).__name__}")
        handler(known, message, buffers)

    @staticmethod
    def _validate(message: p.Inbound, buffers: Sequence[Buffer]) -> None:
        if isinstance(message, p.Submit):
            share_out([s.buffers for s in message.tasks], buffers)
        elif isinstance(message, p.Put):
            p.take(buffers, 0, 1)

    def _ping(self, known: Known, _: p.Ping, __: Sequence[Buffer]) -> None:
        idle = self._roster.idle_seconds() if isinstance(known, Pool) else 0.0
        trouble = self._roster.start_error(known) if isinstance(known, Client) else ""
        self._journal.send(known.peer, p.Pong(idle, trouble))

    def _done(self) -> list[Action]:
        """Finish a stimulus: promise what must wait, keep what need not, and dispatch."""
        board, journal = self._board, self._journal
        while True:
            if board.fresh:
                fresh, board.fresh = board.fresh, []
                self._telling.ended(fresh)
                journal.after_commit(self._durable, fresh)
            if not journal.keep_promises():
                break
        self._telling.flush()
        self._settling.flush()
        self._leasing.dispatch()
        if board.tasks:
            self._roster.busy()
        return journal.take()

    def _durable(self, endings: list[Ending]) -> None:
        """Tell of ends that are stored, and let dependents go."""
        for ending in endings:
            del self._board.ending[ending.task.task_id]
            self._telling.durable(ending)
            self._needs.ended(ending)

    # -- questions -------------------------------------------------------------------------

    @property
    def written(self) -> int:
        """Number of the last store action."""
        return self._journal.written

    def idle_seconds(self, now: float) -> float:
        """Return for how long there was no client and no unended task."""
        self._board.now = now
        return self._roster.idle_seconds()

    def notebook_of(self, peer: bytes) -> str:
        """Return the notebook that a client named at hello."""
        known = self._roster.known(peer)
        return known.notebook if isinstance(known, Client) else ""

    def pool_peers(self) -> list[bytes]:
        """Return where orders go."""
        return self._roster.pool_peers()

    def holder(self, token: int) -> str | None:
        """Return the worker that holds a lease."""
        return next((w.name for w in self.workers.values() if token in w.held), None)

    def statistics(self) -> dict[str, Any]:
        """Return counts for the status display, plain data."""
        return statistics(self._board, self._roster)
