"""The brokers: the road between clients and workers, in memory and through a hub."""

from nbtaskq.brokers.base import BaseBroker
from nbtaskq.brokers.memory import InMemoryBroker
from nbtaskq.brokers.zeromq import ZeroMQBroker

__all__ = ["BaseBroker", "InMemoryBroker", "ZeroMQBroker"]
