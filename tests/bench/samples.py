"""What several tests of the benchmarks use."""

from __future__ import annotations

from pipeline.bench.figures import Figure, Report
from pipeline.plan.placement import Machine

MACHINE = Machine(num_cores=2, memory_bytes=4 << 30)


def quiet(text: str) -> None:
    pass


def report(*figures: Figure, what: str = "decode") -> Report:
    return Report(what=what, headline="fast enough", figures=figures, environment={"cpu": "abacus", "cores": 2})
