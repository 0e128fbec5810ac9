"""Runs that get their inputs burst by burst."""

from __future__ import annotations

import numpy as np
import pytest

from operators.errors import PipelineError
from pipeline import config as configuration
from pipeline.bench.rivals import Files
from pipeline.bench.session import Beside, Session, stretch_seconds


def test_bursts_go_through_one_run_after_another(files: Files, small: configuration.Config) -> None:
    session = Session(small)
    seen = []

    def script(session: Session):  # type: ignore[no-untyped-def]
        yield from session.through(files.short[:2])
        seen.append((yield from session.burst(files.short * 4, lead=2, tail=2)))

    summary = session.run(script)
    # Two to warm up, then twelve amid two and two.
    assert summary.clips == 18 and summary.failed == 0
    assert seen[0].num_given == 16
    assert 0 < seen[0].num_clips <= 12
    assert seen[0].whole_s > 0 and session.start_s > 0
    assert set(seen[0].busy) == {"source", "stream", "focus", "sink"}


def test_a_stretch_is_timed_from_period_to_period() -> None:
    # Waves of three: two clips end together, the third takes the rest of the 3 s. Then all is twice as slow.
    waves = [3.0 * wave + at for wave in range(5) for at in (0.5, 0.5, 3.0)]
    slow = [15.0 + 6.0 * wave + at for wave in range(3) for at in (1.0, 1.0, 6.0)]
    found = stretch_seconds(np.array(waves[:9]), stretch=6, period=3)
    assert found == pytest.approx((1.0,))
    # From single clip to single clip, four of the same seem a third slower.
    assert stretch_seconds(np.array(waves[1:9]), stretch=4)[0] == pytest.approx(1.375)
    found = stretch_seconds(np.array([*waves, *slow]), stretch=3, period=3)
    assert len(found) == 7
    assert found[:4] == pytest.approx((1.0,) * 4) and found[5:] == pytest.approx((2.0, 2.0))


def test_stretches_lie_amid_others_of_the_same_files(files: Files, small: configuration.Config) -> None:
    seen = []

    def script(session: Session):  # type: ignore[no-untyped-def]
        seen.append((yield from session.timed(files.short, stretch=2, count=3, period=2, lead=3)))

    summary = Session(small).run(script)
    # Three before, three stretches of two and a period, three behind.
    assert summary.clips == seen[0].num_given == 3 + 6 + 2 + 3
    assert len(seen[0].stretches) == 3 and min(seen[0].stretches) >= 0


def test_two_runs_live_beside_each_other_and_work_in_turn(files: Files, small: configuration.Config) -> None:
    with Beside(small) as first, Beside(small.replaced({"policy.kind": "center"})) as second:
        second.begin(files.short[:2])
        assert first.through(files.short[:2]) > 0
        assert second.ready() > 0
        assert len(first.timed(files.short, stretch=2, count=2, lead=2).stretches) == 2
        assert first.plan.config.policy.kind == "learned" and second.plan.config.policy.kind == "center"
        assert first.start_s > 0


def test_what_was_measured_with_clips_that_failed_is_no_figure(files: Files, small: configuration.Config) -> None:
    with pytest.raises(PipelineError, match="1 clips of the workload failed"), Beside(small) as run:
        run.through([files.short[0].with_name("nothing.mp4")])


def test_a_script_that_fails_ends_its_run(small: configuration.Config) -> None:
    def script(session: Session):  # type: ignore[no-untyped-def]
        raise RuntimeError("no more")
        yield

    with pytest.raises(RuntimeError, match="no more"):
        Session(small).run(script)
