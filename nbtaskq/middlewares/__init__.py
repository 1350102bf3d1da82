"""The middlewares that ship: one file each."""

from nbtaskq.middlewares.retry import SimpleRetryMiddleware

__all__ = ["SimpleRetryMiddleware"]
