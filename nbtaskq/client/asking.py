"""Questions and orders to the broker's server, for plain code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbtaskq.client.portal import portal
from nbtaskq.errors import BrokerUnreachable

if TYPE_CHECKING:
    from nbtaskq.abc import Broker

#: seconds that a question to the hub may take
ANSWER_TIMEOUT = 5.0


def ask(broker: Broker, verb: str, body: Any = None, timeout: float = ANSWER_TIMEOUT) -> Any:
    """Ask or order something, and wait for the answer.

    Raises
    ------
    BrokerUnreachable
        There is no answer in time, or nobody who could give one.
    """
    try:
        return portal.run(broker.control(verb, body), timeout)
    except TimeoutError:
        raise BrokerUnreachable(
            f"the hub did not answer {verb!r} within {timeout:g} s; see `nbtaskq logs`"
        ) from None
