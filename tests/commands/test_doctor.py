"""`doctor` tries what a run needs, and believes only what worked."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.commands import doctor
from pipeline.plan.placement import Machine
from pipeline.run.inline_executor import InlineExecutor
from pipeline.steering.executor import Completion

MACHINE = Machine(num_cores=2, memory_bytes=8 << 30)


class Here(InlineExecutor):
    """Stands in the place of Ray."""

    def __init__(self, **_: Any) -> None:
        super().__init__()


class Dying(Here):
    """Its worker dies of the second call."""

    num_polls = 0

    def poll(self, timeout_s: float) -> list[Completion]:
        (ended,) = super().poll(timeout_s)
        self.num_polls += 1
        return [Completion(ticket=ended.ticket, outcome="died")] if self.num_polls > 1 else [ended]


@pytest.mark.parametrize(
    ("executor", "state", "words"),
    [(Here, "ok", "writes labels that can be read"), (Dying, "fail", "could not begin: its process is gone")],
)
def test_ray_is_well_when_a_worker_has_written_a_label(executor, state, words, monkeypatch):
    monkeypatch.setattr("pipeline.run.ray_executor.RayExecutor", executor)
    finding = doctor._ray(MACHINE)
    assert finding.state == state and words in finding.text


def test_what_a_worker_wrote_elsewhere_is_no_success(monkeypatch):
    monkeypatch.setattr("pipeline.run.sink_worker.ParquetSink.write", lambda *_: None)
    assert doctor.try_writing(Here()).state == "fail"
