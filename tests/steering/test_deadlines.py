"""How long calls and workers are waited for."""

from __future__ import annotations

from pipeline.steering.deadlines import FIRST_S, MAKE_S, NONE_S, SPARE_S, WAITS_S, Deadlines, Staffing, Verdict

PLACE = ("focus", 1)


def test_a_call_has_four_times_the_slowest_and_a_minute() -> None:
    deadlines = Deadlines()
    assert not deadlines.is_late(PLACE, 0.0, FIRST_S)
    assert deadlines.is_late(PLACE, 0.0, FIRST_S + 1)
    deadlines.ended(PLACE, submitted_s=0.0, now_s=10.0)
    assert not deadlines.is_late(PLACE, 10.0, 10.0 + 40.0 + SPARE_S)
    assert deadlines.is_late(PLACE, 10.0, 10.0 + 41.0 + SPARE_S)
    assert not deadlines.is_late(("stream", 0), 10.0, 111.0 + SPARE_S), "each stage has its own"


def test_a_call_behind_another_begins_when_that_one_ends() -> None:
    deadlines = Deadlines()
    deadlines.ended(PLACE, submitted_s=0.0, now_s=1.0)
    deadlines.ended(PLACE, submitted_s=0.0, now_s=50.0)
    assert deadlines.limit_s("focus") == 4 * 49.0 + SPARE_S
    assert deadlines.running_s(PLACE, submitted_s=0.0, now_s=52.0) == 2.0


def test_one_worker_that_waits_for_a_place_is_reported_once_and_the_stage_goes_on() -> None:
    staffing = Staffing({"focus": 2, "stream": 1})
    assert staffing.verdicts({PLACE: False}, 0.0) == []
    assert staffing.verdicts({PLACE: False}, WAITS_S + 1) == [Verdict("waits", "focus", (1,), 1, 2)]
    assert staffing.verdicts({PLACE: False}, 10 * NONE_S) == []
    assert staffing.verdicts({}, 10 * NONE_S + 1) == []
    assert staffing.verdicts({PLACE: False}, 20 * NONE_S) == [], "made meanwhile, and lost again: the time begins anew"


def test_a_stage_without_anybody_is_reported_and_then_ends_the_run() -> None:
    staffing = Staffing({"focus": 2})
    none = {("focus", 0): False, PLACE: False}
    assert staffing.verdicts(none, 0.0) == []
    assert staffing.verdicts(none, WAITS_S + 1) == [Verdict("waits", "focus", (0, 1), 0, 2)]
    assert staffing.absent_s("focus", WAITS_S + 1) == WAITS_S + 1
    assert staffing.verdicts(none, NONE_S + 1) == [Verdict("none", "focus", (0, 1), 0, 2)]


def test_a_stage_whose_worker_is_being_made_is_waited_for_and_one_that_never_ends_is_made_again() -> None:
    staffing = Staffing({"focus": 2})
    some = {("focus", 0): False, PLACE: True}
    staffing.verdicts(some, 0.0)
    kinds = [verdict.kind for verdict in staffing.verdicts(some, NONE_S + 1)]
    assert kinds == ["waits"]
    assert Verdict("again", "focus", (1,), 0, 2) in staffing.verdicts(some, MAKE_S + 1)
