"""What happens to a delivery in a worker: decode → hooks → execute → settle."""

from nbtaskq.execution.executors import Executor
from nbtaskq.execution.receiver import Receiver, Source

__all__ = ["Executor", "Receiver", "Source"]
