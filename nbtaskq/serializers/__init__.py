"""How values and functions become bytes. Nothing heavy is imported before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbtaskq.serializers.default import DillSerializer
    from nbtaskq.serializers.exceptions import dump_exception, load_exception
    from nbtaskq.serializers.home import Home

__all__ = ["DillSerializer", "Home", "dump_exception", "load_exception"]

_HOMES = {
    "DillSerializer": "nbtaskq.serializers.default",
    "Home": "nbtaskq.serializers.home",
    "dump_exception": "nbtaskq.serializers.exceptions",
    "load_exception": "nbtaskq.serializers.exceptions",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
