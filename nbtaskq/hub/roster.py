"""Who is connected: clients, workers, pools, and what each is called on the socket."""

from __future__ import annotations

from nbtaskq.hub import protocol as p
from nbtaskq.hub.board import Board
from nbtaskq.hub.journal import Journal
from nbtaskq.hub.records import Client, Pool, Worker

#: seconds without a pool's word after which a worker's leases end
LEASE = 10.0
#: seconds without a word after which a client counts as gone
CLIENT_SILENCE = 5.0
#: seconds of silence after which a client is forgotten: at once when it is not connected, …
FORGET = 600.0
#: … else when there are more than this many
MAX_CLIENTS = 1000
#: names of dead workers that are remembered, so that a late hello does not revive them
MAX_DEAD = 1000

Known = Client | Worker | Pool


class Roster:
    """Sessions and their connections.

    A session that is lost is still read: its last words may be in the socket.
    """

    def __init__(self, journal: Journal, board: Board) -> None:
        self.clients: dict[bytes, Client] = {}
        self.pools: dict[bytes, Pool] = {}
        self._journal = journal
        self._board = board
        self._peers: dict[bytes, Known] = {}
        self._dead: dict[str, None] = {}
        #: environment keys as one object each
        self._keys: dict[str, str] = {}
        self._last_busy = board.now

    def known(self, peer: bytes) -> Known | None:
        """Return who speaks from there."""
        return self._peers.get(peer)

    def peer_of(self, session: bytes) -> bytes | None:
        """Return where a client can be reached now."""
        client = self.clients.get(session)
        return client.peer if client is not None else None

    def start_error(self, client: Client) -> str:
        """Return why no worker comes up for a client's tasks; empty while there is one."""
        workers = self._board.workers.values()
        if any(w.peer is not None and w.environment == client.environment_key for w in workers):
            return ""
        errors = (str(pool.facts.get("start_error") or "") for pool in self.pools.values())
        return next((error for error in errors if error), "")

    def pool_peers(self) -> list[bytes]:
        """Return where orders go."""
        return [pool.peer for pool in self.pools.values() if pool.peer is not None]

    # -- coming and going ------------------------------------------------------------------

    def greet(self, peer: bytes, hello: p.Hello) -> Known | None:
        """Welcome a peer, or refuse it and return `None`."""
        refused = self._refusal(hello)
        if refused is not None:
            self._journal.send(peer, refused)
            return None
        known: Known
        if hello.role == p.Role.CLIENT:
            known = self._client(hello)
        elif hello.role == p.Role.POOL:
            known = self._pool(hello)
        else:
            known = self._worker(hello)
        self._connect(known, peer)
        self._journal.send(peer, p.Welcome(p.VERSION, self._board.epoch, 0))
        return known

    def _refusal(self, hello: p.Hello) -> p.Refused | None:
        if hello.version != p.VERSION:
            text = f"this hub speaks protocol {p.VERSION}, you speak {hello.version}"
            return p.Refused("version", text)
        if hello.role not in tuple(p.Role):
            return p.Refused("role", f"there is no such role: {hello.role!r}")
        if hello.role == p.Role.WORKER:
            if hello.name in self._dead:
                return p.Refused("dead", f"the pool has said that {hello.name} is dead")
            worker = self._board.workers.get(hello.name)
            if worker is not None and worker.session != hello.session:
                return p.Refused("duplicate", f"there is another worker named {hello.name}")
        return None

    def _client(self, hello: p.Hello) -> Client:
        client = self.clients.get(hello.session)
        if client is None:
            self._forget_silent()
            client = Client(hello.session, hello.environment, "")
            self.clients[hello.session] = client
        client.environment = hello.environment
        client.environment_key = self._keys.setdefault(*2 * (hello.environment.key,))
        client.notebook = hello.notebook
        client.seen = self._board.now
        client.checking = None
        client.behind.clear()
        return client

    def _pool(self, hello: p.Hello) -> Pool:
        now = self._board.now
        for session, pool in list(self.pools.items()):
            if session != hello.session and (pool.peer is None or pool.seen < now - LEASE):
                self._peers.pop(self.pools.pop(session).address, None)
        pool = self.pools.setdefault(hello.session, Pool(hello.session))
        pool.seen = now
        return pool

    def _worker(self, hello: p.Hello) -> Worker:
        worker = self._board.workers.get(hello.name)
        if worker is None:
            worker = Worker(
                hello.name, hello.session, hello.environment.key, max(1, hello.concurrency)
            )
            self._board.workers[hello.name] = worker
        worker.lease_until = self._board.now + LEASE
        return worker

    def _connect(self, known: Known, peer: bytes) -> None:
        before = self._peers.get(peer)
        if before is not None and before is not known:
            before.peer = None
        if known.address != peer:
            self._peers.pop(known.address, None)
        known.address = known.peer = peer
        self._peers[peer] = known

    def lost(self, peer: bytes) -> None:
        """Take in that nothing can be sent there any more."""
        known = self._peers.get(peer)
        if known is not None and known.peer == peer:
            known.peer = None

    def remove(self, worker: Worker) -> None:
        """Forget a worker; what it still says is refused."""
        del self._board.workers[worker.name]
        self._peers.pop(worker.address, None)

    def mark_dead(self, name: str) -> None:
        """Remember that a worker's process is gone: names are never used again."""
        self._dead[name] = None
        if len(self._dead) > MAX_DEAD:
            del self._dead[next(iter(self._dead))]

    def _forget_silent(self) -> None:
        before = self._board.now - FORGET
        for session, client in list(self.clients.items()):
            if client.seen < before and (client.peer is None or len(self.clients) > MAX_CLIENTS):
                self._peers.pop(client.address, None)
                del self.clients[session]

    # -- idleness --------------------------------------------------------------------------

    def idle_seconds(self) -> float:
        """Return for how long there was no client and no unended task."""
        now = self._board.now
        spoke = (client.seen for client in self.clients.values())
        self._last_busy = max(self._last_busy, *spoke, -1.0)
        if self._board.tasks or any(
            c.peer is not None and now - c.seen < CLIENT_SILENCE for c in self.clients.values()
        ):
            self._last_busy = now
        return now - self._last_busy

    def busy(self) -> None:
        """Take in that there is an unended task now."""
        self._last_busy = self._board.now


class Staffing:
    """Asks the pools for workers of environments that have tasks and no worker."""

    def __init__(self, journal: Journal, roster: Roster) -> None:
        self._journal = journal
        self._roster = roster
        self._environments: dict[str, p.Environment] = {}
        self._asked: set[str] = set()

    def learn(self, environment: p.Environment) -> None:
        """Remember which executable an environment has."""
        if environment.executable or environment.key not in self._environments:
            self._environments[environment.key] = environment

    def arrived(self, known: Known) -> None:
        """Ask again when there is a new pool, or when a worker that has come goes again."""
        if isinstance(known, Pool):
            self._asked.clear()
        elif isinstance(known, Worker):
            self._asked.discard(known.environment)

    def need(self, key: str) -> None:
        """Ask for workers, once."""
        peers = self._roster.pool_peers()
        if key in self._asked or not peers:
            return
        self._asked.add(key)
        prefix, _, minor = key.rpartition("|")
        executable = self._environments[key].executable if key in self._environments else ""
        body = {"prefix": prefix, "minor": minor, "executable": executable}
        for peer in peers:
            self._journal.send(peer, p.Order(0, "environment", body))
