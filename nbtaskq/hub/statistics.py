"""Counts for the status display, plain data."""

from __future__ import annotations

from typing import Any

from nbtaskq.hub.board import Board
from nbtaskq.hub.records import Worker
from nbtaskq.hub.roster import Roster
from nbtaskq.message import TaskStatus


def statistics(board: Board, roster: Roster) -> dict[str, Any]:
    """Count tasks and peers; the cost does not grow with the number of waiting tasks."""
    held = [task.status for worker in board.workers.values() for task in worker.held.values()]
    running = held.count(TaskStatus.RUNNING)
    queued = len(held) - running + sum(map(len, board.queues.values()))
    facts: dict[str, Any] = {}
    for pool in roster.pools.values():
        facts.update(pool.facts)
    return {
        "epoch": board.epoch,
        "tasks": {
            "waiting": len(board.tasks) - queued - running,
            "queued": queued,
            "running": running,
        },
        "workers": [_worker(worker) for worker in board.workers.values()],
        "clients": sum(client.peer is not None for client in roster.clients.values()),
        "pools": sum(pool.peer is not None for pool in roster.pools.values()),
        "facts": facts,
    }


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "name": worker.name,
        "connected": worker.peer is not None,
        "holds": len(worker.held),
        "task": next((task.name for task in worker.held.values()), None),
    }
