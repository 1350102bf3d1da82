"""What runs in a workspace, as text, as HTML, as data."""

from __future__ import annotations

import html
from typing import Any

from nbtaskq.workspace import Workspace


class Status:
    """A snapshot of a workspace: its hub, its workers, its tasks.

    Attributes
    ----------
    running : bool
        Whether a hub answers.
    workers : list of dict
        Name, whether it is connected, how many tasks it holds, the task it runs.
    tasks : dict
        How many unended tasks are `waiting`, `queued`, `running`.
    """

    def __init__(
        self, workspace: Workspace, answer: dict[str, Any] | None, *, stopped: bool = False
    ) -> None:
        self._workspace = workspace
        self._stopped = stopped
        self._answer = answer or {}
        self.running = answer is not None
        self.workers: list[dict[str, Any]] = sorted(
            self._answer.get("workers", []),
            key=lambda worker: (len(worker["name"]), worker["name"]),
        )
        self.tasks: dict[str, int] = self._answer.get("tasks", {})

    @property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self._answer.get("facts") or {}
        return facts

    @property
    def start_error(self) -> str:
        """Why workers do not come up; empty when they do."""
        return str(self._facts.get("start_error") or "")

    @property
    def ready(self) -> bool:
        """Whether as many workers answer as shall be there."""
        target = self._facts.get("target")
        connected = sum(bool(worker["connected"]) for worker in self.workers)
        return target is not None and connected == target

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "workspace": str(self._workspace.folder),
            "running": self.running,
            **self._answer,
        }

    def __str__(self) -> str:
        if not self.running:
            what = "hub and workers are stopped" if self._stopped else "nothing runs"
            return f"{what} in {self._workspace.folder}; `nbtaskq up` starts them"
        lines = [
            f"{self._workspace.folder}: "
            + ", ".join(f"{count} {state}" for state, count in self.tasks.items())
        ]
        for worker in self.workers:
            state = worker["task"] or "idle" if worker["connected"] else "away"
            more = f" (+{worker['holds'] - 1} ahead)" if worker["holds"] > 1 else ""
            console = self._workspace.connection_file(worker["name"]).name
            lines.append(f"  {worker['name']:<4} {state + more:<16} console: {console}")
        if self.workers:
            lines.append("  a console attaches by: jupyter console --existing FILE")
        if self.start_error:
            lines.append(f"  workers do not come up: {self.start_error}")
        if self._workspace.note:
            lines.append(f"  {self._workspace.note}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
