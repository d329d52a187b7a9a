"""Fixtures of the checkpoint tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoint_memory import Memory


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def golden() -> Path:
    """Files that define the formats; a changed one is a decision."""
    return Path(__file__).parents[2] / "golden"
