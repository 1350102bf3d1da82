"""The interfaces: one file each. What stands behind one is chosen by the broker's `with_*`."""

from nbtaskq.abc.broker import Broker, Code, Delivery, Envelope, Settlement, Watcher
from nbtaskq.abc.middleware import Middleware
from nbtaskq.abc.serializer import Frozen, Serializer

__all__ = [
    "Broker",
    "Code",
    "Delivery",
    "Envelope",
    "Frozen",
    "Middleware",
    "Serializer",
    "Settlement",
    "Watcher",
]
