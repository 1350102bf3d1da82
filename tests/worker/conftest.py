"""Real worker kernels for the tests; one is shared by those that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"pair", "kernel", "hub"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kernels)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stand_in.Hub]:
    with stand_in.started(tmp_path_factory.mktemp("k")) as (hub, worker):
        hub.worker = worker  # type: ignore[attr-defined]
        yield hub


@pytest.fixture
def hub(shared: stand_in.Hub) -> stand_in.Hub:
    """A hub with a worker that others use too."""
    shared.received.clear()
    return shared


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[stand_in.Hub, stand_in.Worker]]:
    """A hub and a worker that nobody else uses."""
    with stand_in.started(tmp_path / "k") as both:
        yield both
