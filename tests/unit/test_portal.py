"""Blocking calls into a loop of their own thread."""

from __future__ import annotations

import pytest

from nbtaskq.client.portal import portal


def test_one_error_that_answers_many_calls_shows_the_lines_of_each_alone() -> None:
    error = OSError("gone")

    async def ask() -> None:
        raise error

    depths = []
    for _ in range(3):
        with pytest.raises(OSError, match="gone") as raised:
            portal.run(ask())
        depths.append(len(raised.traceback))
    assert depths == [2, 2, 2]  # this test, and `run`
