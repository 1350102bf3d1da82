"""Drives `serializer_peer.py` processes: notebooks that send and workers that run."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from nbtaskq.abc.serializer import Frozen
from nbtaskq.message import Parcel

ROOT = Path(__file__).parents[2]


class PeerError(Exception):
    """What went wrong in a peer: the exception's type name and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Peer:
    """One process with a `__main__` of its own."""

    def __init__(self, cwd: Path | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serializer_peer.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=cwd,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        )

    def ask(self, verb: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(pickle.dumps((verb, *arguments)))
        self._process.stdin.flush()
        ok, value = pickle.load(self._process.stdout)
        if not ok:
            raise PeerError(*value)
        return value

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)
        self._process.stdout.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def code_parcel(frozen: Frozen) -> Parcel:
    """Return what a worker is given of a frozen function: its body and its buffers in order."""
    bodies = {item.digest: item.body for item in frozen.objects}
    return Parcel(
        bytes(frozen.code.body),
        tuple(bodies[ref] for ref in frozen.code.refs),
        (),
        frozen.code.refs,
    )


class Link:
    """A notebook and a worker."""

    def __init__(self, notebook: Peer, worker: Peer) -> None:
        self.notebook = notebook
        self.worker = worker

    def cell(self, source: str, visible: bool = True) -> None:
        self.notebook.ask("cell", source, visible)

    def send(self, function: str, arguments: str = "") -> tuple[str, Parcel]:
        """Run ``function(arguments)`` of the notebook in the worker."""
        frozen = self.notebook.ask("freeze", function)
        return self.run(frozen, arguments)

    def run(self, frozen: Frozen, arguments: str = "") -> tuple[str, Parcel]:
        collect = f"(lambda *a, **k: (a, k))({arguments})"
        call = self.notebook.ask("dumps", collect)
        kind, parcel = self.worker.ask("call", code_parcel(frozen), call)
        return kind, parcel

    def result(self, function: str, arguments: str = "") -> None:
        """Run a call and bind ``result`` in the notebook."""
        kind, parcel = self.send(function, arguments)
        if kind == "error":
            self.notebook.ask("load_error", parcel)
            raise AssertionError(self.tell("f'{error!r} {error.__cause__}'"))
        self.notebook.ask("load", parcel)

    def error(self, function: str, arguments: str = "") -> None:
        """Run a call that raises and bind ``error`` in the notebook."""
        kind, parcel = self.send(function, arguments)
        assert kind == "error"
        self.notebook.ask("load_error", parcel)

    def tell(self, expression: str) -> Any:
        return self.notebook.ask("tell", expression)
