"""The little that middlewares see of a broker."""

from __future__ import annotations

from typing import Any, Protocol


class SupportsKick(Protocol):
    """A broker without its tasks and its traffic: it can be asked, ordered, started and stopped."""

    async def control(self, verb: str, body: Any = None) -> Any:
        """Ask or order something of the broker's server: plain data in, plain data out."""

    async def startup(self) -> None:
        """Get ready to send."""

    async def shutdown(self) -> None:
        """Let go of all resources."""
