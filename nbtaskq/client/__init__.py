"""The sender's side: what a decorated function, a sent message and a batch of them can do."""

from nbtaskq.client.batch import Batch, as_completed, gather, wait
from nbtaskq.client.handle import TaskHandle
from nbtaskq.client.kicker import Kicker
from nbtaskq.client.task import Task

__all__ = ["Batch", "Kicker", "Task", "TaskHandle", "as_completed", "gather", "wait"]
