"""Cost against size."""

from __future__ import annotations

from operators.errors import PipelineError
from pipeline import config as configuration
from pipeline.bench.figures import Report
from pipeline.bench.rivals import Files
from pipeline.bench.session import Session
from pipeline.bench.sweep import bench_sweep
from tests.bench.samples import quiet


def test_a_sweep_keeps_what_was_measured_when_a_run_fails(files: Files, small: configuration.Config) -> None:
    kept: list[Report] = []

    def broken(config: configuration.Config) -> Session:
        if config.sampling.num_frames == 2:
            raise PipelineError("no such luck")
        return Session(config)

    cache = files.short[0].parent.parent
    found = bench_sweep(small, cache=cache, say=quiet, quick=True, keep=kept.append, make_session=broken)
    names = [figure.name for figure in found.figures]
    assert names == ["archive.sweep_clips_2_s", "archive.sweep_clips_4_s", "archive.sweep_frames_4_s"]
    assert [figure.n for figure in found.figures] == [2, 1, 3]
    assert found.notes == ("frames_2 was not measured: no such luck",)
    assert [len(report.figures) for report in kept] == [2, 3]
