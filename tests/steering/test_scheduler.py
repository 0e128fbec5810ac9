"""The scheduler when all goes well: what may be in flight, what waits for company, and when labels go out."""

from __future__ import annotations

from operators.records import ClipLabel
from pipeline.steering.messages import Advance, PieceInfo, ReadReply, Reply
from tests.support.scheduler_desk import Desk, name, source


def test_frames_without_a_window_do_no_harm_and_a_source_without_any_has_its_row() -> None:
    desk = Desk()
    desk.scheduler.add_source(source())
    planned = desk.next("read")
    piece = PieceInfo(row=0, num_bytes=7, clips=())
    reply = Reply(rows=(ReadReply(source_id=name(0), pieces=(piece,), is_done=True),))
    desk.scheduler.on_done(planned, reply, object(), 0.0)
    assert [label.error_code for label in desk.labels] == ["no_frames"]
    assert desk.scheduler.num_bytes_held == 0


def test_the_bytes_of_a_call_are_held_until_its_last_clip_is_labelled() -> None:
    desk = Desk(pieces_per_call=1, max_open_clips=1)
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"), windows=2, num_bytes=10)
    desk.answer_label(desk.next("open"))
    assert (desk.scheduler.num_bytes_held, desk.scheduler.num_pieces_held) == (20, 1)
    desk.answer_label(desk.next("open"))
    assert (desk.scheduler.num_bytes_held, desk.scheduler.num_pieces_held) == (0, 0)


def test_reading_begins_only_where_what_it_may_bring_has_room() -> None:
    desk = Desk(workers=3, max_bytes=25, bytes_per_source=10)
    for number in range(6):
        desk.scheduler.add_source(source(number))
    first, second = desk.next("read"), desk.next("read")
    assert desk.is_waiting(), "a third could make 30 bytes"
    desk.answer_read(first, num_bytes=5)
    desk.next("open")
    third = desk.next("read")
    assert desk.is_waiting(), "5 are held and 20 may come"
    for planned in (second, third):
        desk.answer_read(planned, num_bytes=10)
    assert desk.scheduler.num_bytes_held == 25


def test_a_source_that_is_larger_than_all_limits_is_let_through_alone() -> None:
    desk = Desk(workers=2, max_bytes=1, bytes_per_source=10)
    for number in range(2):
        desk.scheduler.add_source(source(number))
    planned = desk.next("read")
    assert desk.is_waiting()
    desk.answer_read(planned, num_bytes=10)
    opened = desk.next("open")
    assert desk.is_waiting()
    desk.answer_label(opened)
    desk.next("read")


def test_a_finished_clip_frees_its_place_for_the_next() -> None:
    desk = Desk(max_open_clips=2, pieces_per_call=2)
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"), windows=4)
    desk.answer_open(desk.next("open"), patches=1)
    focused = desk.next("focus")
    assert desk.is_waiting()
    desk.answer(focused)
    step = desk.next("step")
    assert [stay.clip.number for stay in step.stays] == [0, 1]
    advances = (
        Advance(clip_id=step.stays[0].clip.ref.clip_id, start=0, stop=1),
        Advance(
            clip_id=step.stays[1].clip.ref.clip_id,
            label=ClipLabel(video_id="", clip_id=step.stays[1].clip.ref.clip_id, source_uri=""),
        ),
    )
    desk.scheduler.on_done(step, Reply(rows=advances), object(), 0.0)
    assert [stay.clip.number for stay in desk.next("open").stays] == [2]
    desk.next("focus")


def test_on_shared_cores_a_batch_waits_for_the_patches_that_are_being_made_but_not_for_ever() -> None:
    desk = Desk(shares_cores=True, max_rows=4, max_open_clips=8, pieces_per_call=1)
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"), windows=3)
    desk.answer_open(desk.next("open"), patches=2)
    opening = desk.next("open")
    assert desk.is_waiting(), "two of four patches, and two more on their way"
    desk.answer_open(opening, patches=2)
    desk.next("open")
    assert desk.next("focus").num_rows == 4, "full"

    alone = Desk(shares_cores=True, max_rows=4)
    alone.open_clips(1, patches=1)
    assert alone.next("focus").num_rows == 1, "nothing else comes"

    late = Desk(shares_cores=True, max_rows=4, pieces_per_call=1)
    late.scheduler.add_source(source())
    late.answer_read(late.next("read"), windows=2)
    late.answer_open(late.next("open"), patches=1)
    late.next("open")
    assert late.scheduler.next_call(0.9) is None
    planned = late.scheduler.next_call(1.0)
    assert planned is not None and planned.call.method == "focus", "it has waited long enough"


def test_a_source_is_finished_when_its_last_clip_has_a_label() -> None:
    desk = Desk(pieces_per_call=2)
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"), windows=2)
    assert desk.scheduler.finished_sources == []
    desk.answer_label(desk.next("open"))
    assert [done.source_id for done in desk.scheduler.finished_sources] == [name(0)]


def test_labels_go_out_when_a_part_is_full_or_old_or_nothing_more_comes() -> None:
    desk = Desk(rows_per_part=2, part_age_s=5.0, pieces_per_call=4)
    scheduler = desk.scheduler
    scheduler.add_source(source())
    desk.answer_read(desk.next("read"), windows=3)
    desk.answer_label(desk.next("open"))
    full = desk.next("write")
    assert len(full.call.requests[0].labels) == 2 and desk.is_waiting()
    desk.answer(full)
    assert desk.is_waiting()
    old = scheduler.next_call(5.0)
    assert old is not None and len(old.call.requests[0].labels) == 1
    desk.answer(old)
    scheduler.add_source(source(1))
    desk.answer_read(desk.next("read"))
    desk.answer_label(desk.next("open"))
    assert desk.is_waiting()
    scheduler.end_sources()
    last = desk.next("write")
    assert not scheduler.is_finished
    desk.answer(last)
    assert scheduler.is_finished
    assert [w.call.requests[0].sequence for w in (full, old, last)] == [0, 1, 2]
