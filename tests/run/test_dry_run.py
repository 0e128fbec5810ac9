"""How long a run would take: a CPU's stages share its cores, a GPU's work does not divide among them."""

from __future__ import annotations

import pytest

from pipeline.plan.placement import Machine, place
from pipeline.run.dry_run import wall_s
from pipeline.run.metrics import RunMetrics, StageTime
from pipeline.steering.scheduler import FOCUS, SOURCE, STREAM


@pytest.mark.parametrize(
    ("num_gpus", "source_s", "seconds"),
    [
        (0, 4.0, 10.0 / 8),
        (1, 4.0, 5.0),  # the GPU is what the run waits for
        (2, 4.0, 2.5),
        (1, 60.0, 10.0),  # six decoders are
    ],
)
def test_the_stage_that_takes_longest_says_how_long_it_takes(num_gpus, source_s, seconds):
    machine = Machine(num_cores=8, memory_bytes=16 << 30, num_gpus=num_gpus)
    stages = {SOURCE: StageTime(busy_s=source_s), STREAM: StageTime(busy_s=2.0), FOCUS: StageTime(busy_s=3.0)}
    metrics = RunMetrics(stages=stages)
    assert wall_s(metrics, 10.0, machine, place(machine)) == pytest.approx(seconds)
