"""What several unit tests start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_driver import fill


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """The folder of a closed store with three unended and three ended tasks."""
    return fill(tmp_path)
