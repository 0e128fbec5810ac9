"""Fixtures that several test files of cameras share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest

from pipeline.live.camera_state import CameraLimits
from tests.live.played_run import Run, two_workers
from tests.live.studio import QUICK, Studio, made_worker
from tests.support.looking import make_config


@pytest.fixture
def run() -> Run:
    """A run of two workers with a camera each, which the test plays."""
    return two_workers()


@pytest.fixture
def studio(tmp_path) -> Iterator[Callable[..., Studio]]:
    """Makes live workers whose readers the test plays; they are shut down after it."""
    opened: list[Studio] = []

    def make(
        *cameras: str,
        max_waiting: int = 100,
        max_batch: int = 32,
        limits: CameraLimits = QUICK,
        are_ready: bool = True,
        plan: dict[str, float] | None = None,
        **settings,
    ) -> Studio:
        config = make_config(live__max_waiting_frames=max_waiting, focus__batch_size=max_batch, **settings)
        make_worker = partial(made_worker, config, tmp_path, limits=limits)
        opened.append(Studio(make_worker, cameras or ("door",), are_ready=are_ready, **(plan or {})))
        return opened[-1]

    yield make
    for one in opened:
        one.worker.shutdown()
