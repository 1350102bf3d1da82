"""The broker that late-bound tasks of this process use, set by whoever owns the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbtaskq.abc import Broker


class _Current:
    """The default broker, or how to make one when it is first needed."""

    broker: Broker | None = None
    make: Callable[[], Broker] | None = None


_current = _Current()


def current_broker() -> Broker:
    """Return the default broker of this process."""
    if _current.broker is None:
        if _current.make is None:
            raise LookupError("this process has no default broker; call nq.set_default_broker(b)")
        _current.broker = _current.make()
    return _current.broker


def set_current_broker(broker: Broker | None) -> Broker | None:
    """Make `broker` the default (`None`: make one again when needed); return the one before."""
    before, _current.broker = _current.broker, broker
    return before


def known_broker() -> Broker | None:
    """Return the default broker if there is one already."""
    return _current.broker


def set_factory(make: Callable[[], Broker]) -> None:
    """Say how the default broker is made."""
    _current.make = make
