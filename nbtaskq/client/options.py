"""What the labels of a message ask of the broker."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from nbtaskq.errors import TaskDefinitionError
from nbtaskq.message import OPTION_LABELS, UNSUPPORTED_LABELS, AckType

#: of all priorities, and of their negatives
HIGHEST = 2**31 - 1


class SendOptions(NamedTuple):
    """The labels that the broker acts on, checked.

    `delay` and `expires` are seconds from the sending; a higher `priority` runs first.
    """

    priority: int = 0
    delay: float = 0.0
    expires: float = 0.0
    at_most_once: bool = False


def read_options(labels: Mapping[str, Any]) -> SendOptions:
    """Return the options in some labels; raise `TaskDefinitionError` for what cannot be meant."""
    for name, value in labels.items():
        _check(name, value)
    return SendOptions(
        labels.get("priority", 0),
        float(labels.get("delay", 0.0)),
        float(labels.get("expires", 0.0)),
        labels.get("ack_type", AckType.WHEN_SAVED) == AckType.WHEN_RECEIVED,
    )


def is_text(text: str) -> bool:
    """Whether a text can be sent: one with lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check(name: str, value: Any) -> None:
    if name in UNSUPPORTED_LABELS:
        raise TaskDefinitionError(
            f"the option {name}={value!r} is not supported by this version of nbtaskq; "
            f"supported options: {', '.join(OPTION_LABELS)}"
        )
    types = OPTION_LABELS.get(name)
    if types is None:
        close = difflib.get_close_matches(name, OPTION_LABELS, 1, 0.8)
        if close:
            raise TaskDefinitionError(f"unknown option {name!r}; did you mean {close[0]!r}?")
        return
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join(t.__name__ for t in types)
        raise TaskDefinitionError(f"the option {name!r} takes {wanted}, not {value!r}")
    _check_range(name, value)


def _check_range(name: str, value: Any) -> None:
    if name in ("delay", "expires") and not math.isfinite(value):
        raise TaskDefinitionError(f"the option {name!r} takes seconds, not {value!r}")
    if name in ("delay", "expires", "max_retries") and value < 0:
        raise TaskDefinitionError(f"the option {name!r} cannot be negative: {value!r}")
    if name == "priority" and abs(value) > HIGHEST:
        raise TaskDefinitionError(
            f"the option 'priority' lies between -{HIGHEST:,} and {HIGHEST:,}: {value:.3g}"
        )
    if name == "ack_type" and value not in set(AckType):
        allowed = ", ".join(AckType)
        raise TaskDefinitionError(f"ack_type={value!r}: this version knows {allowed}")
