"""One run at a time writes to an output folder; the next one waits and says so."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest

from operators.errors import SinkError
from pipeline.run.sink_worker import SinkWorker
from pipeline.steering.messages import WriteRequest
from tests.table.table_rows import IDENTITY, clip, sink, start_child, videos


def test_the_next_run_waits_for_the_lock_says_so_and_then_sees_what_was_committed(tmp_path: Path) -> None:
    first, said = sink(tmp_path).__enter__(), []

    def end_first(text: str) -> None:
        said.append(text)
        first.write(0, [clip(0)])
        first.__exit__(None, None, None)

    with sink(tmp_path, "run2", on_wait=end_first) as second:
        assert len(second.done()) == 1
    assert said == [
        f"waiting for the lock: run run1, process {os.getpid()} on {os.uname().nodename} writes to {tmp_path}"
    ]


def test_waiting_for_the_lock_can_be_bounded(tmp_path: Path) -> None:
    now = itertools.count()
    with sink(tmp_path), pytest.raises(SinkError, match=r"run run1, .* within 3 s"):
        sink(tmp_path, "run2", lock_timeout_s=3, clock=lambda: next(now), sleep=lambda _: None).__enter__()


def test_a_killed_holder_gives_the_lock_back(tmp_path: Path) -> None:
    child = start_child(_hold, tmp_path)
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    with pytest.raises(SinkError, match="holder"):
        sink(tmp_path, lock_timeout_s=0).__enter__()
    child.kill()
    child.join()
    with sink(tmp_path, lock_timeout_s=0):
        pass


def test_a_sink_in_a_dead_one_s_place_says_that_the_lock_is_held_and_does_not_wait_for_ever(tmp_path: Path) -> None:
    arguments = {"out": str(tmp_path), "run_id": "run1", "resume": True, "retry_failed": False}
    worker = SinkWorker(**arguments, lock_slice_s=0.3, lock_timeout_s=0.5)
    with sink(tmp_path):
        (opened,) = worker.try_reopen((IDENTITY,), ())[0].rows
        assert opened.waits_for is not None and opened.waits_for.startswith("waiting for the lock: run run1")
        with pytest.raises(SinkError, match=r"run run1, .* did not end within 0\.5 s"):
            worker.reopen((IDENTITY,), ())
    (opened,) = worker.try_reopen((IDENTITY,), ())[0].rows
    assert opened.waits_for is None
    worker.write((WriteRequest(sequence=0, labels=(clip(0),)),), ())
    worker.finish((), ())
    assert videos(tmp_path) == {"v0": None}


def _hold(out: Path) -> None:
    with sink(out, "holder"):
        (out / "held").touch()
        time.sleep(60)
