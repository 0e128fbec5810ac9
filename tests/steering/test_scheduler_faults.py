"""The scheduler when workers die, raise, or lose what they had: who is to blame, and what is made again."""

from __future__ import annotations

import pytest

from operators.errors import StageError
from operators.records import Media, clip_id
from pipeline.steering.in_flight import PlannedCall
from pipeline.steering.messages import Reply
from tests.support.scheduler_desk import Desk, name, source
from tests.support.scheduler_workers import STRIDE_S


def test_a_source_that_kills_late_is_given_up_though_calls_before_succeed() -> None:
    desk = Desk()
    desk.scheduler.add_source(source())
    desk.scheduler.end_sources()
    for _ in range(3):
        begun = desk.next("read")
        desk.answer_read(begun, windows=0, is_done=False)
        desk.scheduler.on_died(desk.next("read"), 0.0)
    assert [label.error_code for label in desk.labels] == ["worker_died"]


def test_a_call_that_only_queued_behind_a_death_is_not_blamed() -> None:
    desk = Desk(max_rows=2, focus_depth=2, pieces_per_call=2)
    desk.open_clips(2, patches=2)
    first, second = desk.next("focus"), desk.next("focus")
    assert desk.scheduler.on_died(first, 0.0)
    assert not desk.scheduler.on_died(second, 0.0)
    (blamed,), (other,) = first.stays, second.stays
    assert (blamed.clip.deaths, blamed.clip.is_suspect, blamed.is_over) == (1, True, True)
    assert (other.clip.deaths, other.clip.is_suspect, other.is_over) == (0, False, False)
    again = desk.next("close")
    assert again.call.requests == (blamed.clip.ref.clip_id,)
    assert desk.next("focus").stays == [other]


def test_what_comes_back_for_a_clip_that_started_again_is_ignored() -> None:
    desk = Desk(max_rows=2, workers=2)
    desk.open_clips(1, patches=4)
    first, second = desk.next("focus"), desk.next("focus")
    desk.scheduler.on_died(first, 0.0)
    desk.answer(desk.next("close"))
    desk.answer(second)
    desk.answer_open(desk.next("open"), patches=4)
    desk.answer(desk.next("focus"))
    assert desk.scheduler.num_patches_waiting == 2
    desk.answer(desk.next("focus"))
    (request,) = desk.next("step").call.requests
    assert sum(rows.stop - rows.start for rows in request.features) == 4


def test_a_suspect_has_its_turn_though_the_worker_always_has_a_call_queued() -> None:
    desk = Desk(max_rows=2, focus_depth=2, pieces_per_call=8, max_open_clips=8)
    desk.open_clips(8, patches=2)
    first, second = desk.next("focus"), desk.next("focus")
    desk.scheduler.on_died(first, 0.0)
    desk.scheduler.on_died(second, 0.0)
    order: list[int] = []
    running: list[PlannedCall] = []
    while (planned := desk.scheduler.next_call(0.0)) is not None or running:
        if planned is None:
            planned = running.pop(0)
            order.append(planned.stays[0].clip.number)
            desk.answer(planned)
        elif planned.call.method == "focus":
            running.append(planned)
            assert not planned.is_suspect or running == [planned]
        elif planned.call.method == "open":
            desk.answer_open(planned, patches=2)
        elif planned.call.method == "step":
            desk.answer_label(planned)
        else:
            desk.answer(planned)
    # The clip that queued behind is as old as it was; the suspect's new patches are the youngest.
    assert order == [1, 2, 3, 4, 5, 6, 7, 0]
    assert len(desk.labels) == 8


def test_suspect_sources_are_read_one_at_a_time_also_when_they_go_on() -> None:
    desk = Desk(workers=2, sources_per_call=2, max_pieces=100)
    for number in range(2):
        desk.scheduler.add_source(source(number))
    desk.scheduler.on_died(desk.next("read"), 0.0)
    going_on = desk.next("read")
    assert len(going_on.readings) == 1 and desk.is_waiting()
    desk.answer_read(going_on, windows=0, is_done=False)
    for _ in range(4):
        planned = desk.next("read")
        assert desk.is_waiting()
        desk.answer_read(planned, windows=0, is_done=False)


def test_a_suspect_source_that_goes_on_waits_while_another_suspect_is_read() -> None:
    desk = Desk(workers=2, sources_per_call=2, max_pieces=100)
    desk.scheduler.add_source(source(9))
    busy = desk.next("read")
    for number in range(2):
        desk.scheduler.add_source(source(number))
    desk.scheduler.on_died(desk.next("read"), 0.0)
    first = desk.next("read")
    assert (first.is_suspect, first.call.worker) == (True, 1)
    desk.answer_read(first, windows=0, is_done=False)
    desk.answer_read(busy, windows=0)
    second = desk.next("read")
    assert (second.is_suspect, second.call.worker) == (True, 0)
    assert desk.is_waiting(), "the first is open on worker 1, which is idle"
    desk.answer_read(second, windows=0)
    assert desk.next("read").readings == first.readings


def test_a_death_in_company_does_not_count() -> None:
    desk = Desk(max_pieces=100)
    for number in range(2):
        desk.scheduler.add_source(source(number, Media.IMAGE))
    desk.scheduler.end_sources()
    desk.scheduler.on_died(desk.next("read"), 0.0)
    for _ in range(4):
        desk.scheduler.on_died(desk.next("read"), 0.0)
    assert desk.labels == []
    for number in range(2):
        desk.scheduler.on_died(desk.next("read"), 0.0)
        assert len(desk.labels) == number + 1
    assert {label.error_code for label in desk.labels} == {"worker_died"}


def test_rows_that_came_back_are_dropped_with_their_clip() -> None:
    desk = Desk(max_rows=2, focus_depth=2, pieces_per_call=4)
    desk.open_clips(3, patches=2)
    first, second = desk.next("focus"), desk.next("focus")
    desk.scheduler.on_died(first, 0.0)
    desk.scheduler.on_died(second, 0.0)
    assert desk.scheduler.num_patches_waiting == 4
    desk.scheduler.on_died(desk.next("close"), 0.0)
    assert desk.scheduler.num_patches_waiting == 0
    assert len(desk.next("open").stays) == 1


def test_a_resumed_source_that_failed_then_and_now_gives_no_second_row() -> None:
    # Windows 0 and 1 have labels, window 2 the row of the failure; the next to look at is 3.
    rows = tuple(clip_id(name(0), window * STRIDE_S) for window in range(3))
    desk = Desk(done=rows)
    desk.scheduler.add_source(source(), first_window=3)
    desk.scheduler.end_sources()
    for window in (3, 2):
        planned = desk.next("read")
        assert planned.call.requests[0].first_window == window
        desk.answer_failed(planned, window=window)
    assert desk.labels == []
    assert desk.scheduler.is_finished
    assert desk.scheduler.num_done_before == 3


def test_a_resumed_source_that_fails_behind_its_labels_gives_the_row() -> None:
    rows = tuple(clip_id(name(0), window * STRIDE_S) for window in range(3))
    desk = Desk(done=rows)
    desk.scheduler.add_source(source(), first_window=3)
    desk.answer_failed(desk.next("read"), window=3)
    # Read again from the last label: that window is there, so the failure behind it is news.
    desk.answer_read(desk.next("read"), windows=1, is_done=False)
    desk.answer_failed(desk.next("read"), window=3)
    assert [(label.clip_id, label.error_code) for label in desk.labels] == [
        (clip_id(name(0), 3 * STRIDE_S), "corrupt")
    ]


def test_a_clip_of_which_the_worker_says_nothing_is_a_row_and_not_a_wait_for_ever() -> None:
    desk = Desk()
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"))
    desk.scheduler.on_done(desk.next("open"), Reply(rows=()), None, 0.0)
    assert [label.error_code for label in desk.labels] == ["internal"]


def test_lost_frames_are_read_again_from_the_first_clip_that_has_no_label() -> None:
    desk = Desk(pieces_per_call=1)
    desk.scheduler.add_source(source())
    desk.scheduler.end_sources()
    desk.answer_read(desk.next("read"), windows=3)
    desk.answer_label(desk.next("open"))
    desk.scheduler.on_lost(desk.next("open"), 0.0)
    desk.answer(desk.next("close"))
    again = desk.next("read")
    assert again.call.requests[0].first_window == 1
    desk.answer_read(again, windows=2)
    for _ in range(2):
        desk.answer_label(desk.next("open"))
    assert [label.clip_id for label in desk.labels] == [clip_id(name(0), w * STRIDE_S) for w in range(3)]
    assert desk.scheduler.num_bytes_held == 0


def test_a_source_whose_answer_is_lost_is_read_again_from_the_same_window_without_blame() -> None:
    desk = Desk(sources_per_call=2)
    for number in range(2):
        desk.scheduler.add_source(source(number))
    desk.answer_read(desk.next("read"), is_done=False)
    desk.answer_label(desk.next("open"))
    desk.answer_label(desk.next("open"))
    for _ in range(2):
        read = desk.next("read")
        # Whoever is to blame would be read alone.
        assert [request.first_window for request in read.call.requests] == [1, 1]
        desk.scheduler.on_lost(read, 0.0)
    desk.answer_read(desk.next("read"))
    desk.answer_label(desk.next("open"))
    desk.answer_label(desk.next("open"))
    assert [label.error_code for label in desk.labels] == [None] * 4
    assert len(desk.scheduler.finished_sources) == 2


def test_a_source_whose_answers_are_lost_again_and_again_is_a_row() -> None:
    desk = Desk()
    desk.scheduler.add_source(source())
    for _ in range(3):
        desk.scheduler.on_lost(desk.next("read"), 0.0)
    (label,) = desk.labels
    assert (label.error_code, label.error) == ("worker_died", "what was read of it was lost 3 times")
    assert desk.is_waiting()


def test_a_part_is_sent_again_under_its_number_and_the_third_death_ends_the_run() -> None:
    desk = Desk()
    desk.scheduler.add_source(source())
    desk.scheduler.end_sources()
    desk.answer_read(desk.next("read"))
    desk.answer_label(desk.next("open"))
    first = desk.next("write")
    desk.scheduler.on_died(first, 0.0)
    second = desk.next("write")
    assert second.call.requests == first.call.requests
    desk.scheduler.on_died(second, 0.0)
    with pytest.raises(StageError, match="died 3 times in a row"):
        desk.scheduler.on_died(desk.next("write"), 0.0)
