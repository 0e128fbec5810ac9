"""Fixtures that several test files of cameras share."""

from __future__ import annotations

import pytest

from tests.live.played_run import Run, two_workers


@pytest.fixture
def run() -> Run:
    """A run of two workers with a camera each, which the test plays."""
    return two_workers()
