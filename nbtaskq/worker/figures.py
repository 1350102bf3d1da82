"""Figures that a task leaves open."""

from __future__ import annotations

import sys


def show_figures() -> None:
    """Show and close the figures that are open; imports nothing of matplotlib by itself."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    numbers = getattr(pyplot, "get_fignums", None)
    if pyplot is None or numbers is None or not numbers():
        return
    inline = sys.modules.get("matplotlib_inline.backend_inline")
    try:
        if inline is not None:
            inline.flush_figures()
    finally:
        pyplot.close("all")
