"""What `%load_ext nbtaskq` brings: magics, the look of handles, the delivery of `-o` names.

It injects no name, and imports no more than the magics until one of them is used.
"""

from __future__ import annotations

from typing import Any

#: what is shown as HTML: where its class lives, and which function of `html` makes it
_SHOWN = (
    ("nbtaskq.client.handle", "TaskHandle", "handle_html"),
    ("nbtaskq.client.batch", "Batch", "batch_html"),
)


def load_ipython_extension(shell: Any) -> None:
    """Register magics, formatters and hooks; doing it twice changes nothing."""
    from nbtaskq.notebook.errors import show_cells_syntax
    from nbtaskq.notebook.magics import NbTaskQMagics

    if NbTaskQMagics.__name__ in shell.magics_manager.registry:
        return
    magics = NbTaskQMagics(shell)
    shell.register_magics(magics)
    show_cells_syntax(shell)
    for event in ("pre_run_cell", "post_run_cell"):
        shell.events.register(event, magics.deliveries.between_cells)
    formatter = shell.display_formatter.formatters["text/html"]
    for module, name, maker in _SHOWN:
        formatter.for_type_by_name(module, name, _lazy(maker))


def unload_ipython_extension(shell: Any) -> None:
    """Remove all that `load_ipython_extension` registered; doing it twice changes nothing."""
    from nbtaskq.notebook.errors import forget_cells_syntax

    magics = shell.magics_manager.registry.pop("NbTaskQMagics", None)
    if magics is None:
        return
    forget_cells_syntax(shell)
    for kind, own in magics.magics.items():
        for name in own:
            shell.magics_manager.magics[kind].pop(name, None)
    for event in ("pre_run_cell", "post_run_cell"):
        shell.events.unregister(event, magics.deliveries.between_cells)
    formatter = shell.display_formatter.formatters["text/html"]
    for module, name, _ in _SHOWN:
        formatter.pop(f"{module}.{name}", None)


def _lazy(maker: str) -> Any:
    """Return a function of `nbtaskq.notebook.html`, imported at its first call."""

    def make(value: Any) -> str:
        from nbtaskq.notebook import html

        return str(getattr(html, maker)(value))

    return make
