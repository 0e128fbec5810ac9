"""What the scheduler promises, first of anything that may happen, then case by case."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from operators.errors import StageError
from operators.records import ClipLabel, Media, Source, clip_id
from pipeline.steering.batching import Batcher
from pipeline.steering.in_flight import FlowLimits, PlannedCall
from pipeline.steering.messages import Advance, ClipRef, PieceInfo, ReadReply, Reply
from pipeline.steering.read_queue import failed_label
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler
from tests.support.scheduler_world import PIECE_BYTES, STRIDE_S, Video, World

FAULTS = ["kill_open", "kill_focus", "kill_step", "raise_open", "raise_focus", "raise_step"]


@st.composite
def videos(draw: st.DrawFn, number: int = 0) -> Video:
    num_windows = draw(st.integers(0, 4))
    rounds = draw(
        st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=num_windows, max_size=num_windows)
    )
    faults = draw(st.dictionaries(st.integers(0, 3), st.sampled_from(FAULTS), max_size=1))
    for window, fault in list(faults.items()):
        # Without a patch a clip never comes to the later stages.
        if window >= num_windows or (not rounds[window] and not fault.endswith("open")):
            del faults[window]
    read_fault = draw(st.sampled_from([None, None, None, "kill", "hang", "raise", "corrupt"]))
    return Video(
        name="",
        rounds=rounds,
        faults=faults,
        read_fault=read_fault,
        windows_per_piece=draw(st.integers(1, 3)),
        is_image=draw(st.booleans()),
    )


@st.composite
def archives(draw: st.DrawFn) -> list[Video]:
    given_videos = draw(st.lists(videos(), min_size=1, max_size=8))
    for number, video in enumerate(given_videos):
        video.name = f"{number:032x}"
    return given_videos


@st.composite
def limits(draw: st.DrawFn) -> FlowLimits:
    return FlowLimits(
        max_pieces=draw(st.sampled_from([1, 2, 5, 32])),
        max_bytes=draw(st.sampled_from([1, 25, 1000])),
        pieces_per_source=2,
        bytes_per_source=2 * PIECE_BYTES,
        max_open_clips=draw(st.sampled_from([1, 2, 16])),
        sources_per_call=draw(st.sampled_from([1, 3])),
        images_per_call=draw(st.sampled_from([1, 4])),
        stride_s=STRIDE_S,
        pieces_per_call=draw(st.sampled_from([1, 2, 8])),
        rows_per_part=draw(st.sampled_from([1, 3, 100])),
        part_age_s=draw(st.sampled_from([0.0, 2.0])),
        focus_depth=draw(st.sampled_from([1, 2])),
        shares_cores=draw(st.booleans()),
    )


@st.composite
def machines(draw: st.DrawFn) -> dict[str, int]:
    return {SINK: 1, **{stage: draw(st.integers(1, 3)) for stage in (SOURCE, STREAM, FOCUS)}}


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(
    archive=archives(),
    limits=limits(),
    workers=machines(),
    max_rows=st.sampled_from([1, 7, 64]),
    shapes=st.sampled_from([(), (1, 2, 4, 8, 16, 64)]),
    seed=st.integers(0, 2**32),
    deaths=st.integers(0, 6),
    losses=st.integers(0, 3),
    stalls=st.integers(0, 4),
    absences=st.integers(0, 6),
)
def test_every_clip_has_one_label_whatever_dies(archive: list[Video], **world: Any) -> None:
    World(archive, **world).run().check_end()


@FUZZ
@given(
    archive=archives(),
    limits=limits(),
    workers=machines(),
    seed=st.integers(0, 2**32),
    deaths=st.integers(0, 3),
    stalls=st.integers(0, 2),
    absences=st.integers(0, 4),
    drain_at=st.integers(0, 30),
)
def test_a_drained_run_labels_what_it_has_read(archive: list[Video], **world: Any) -> None:
    world_ = World(archive, **world).run()
    world_.check_end()
    assert world_.clips_read <= world_.done


@FUZZ
@given(
    archive=archives(),
    limits=limits(),
    workers=machines(),
    seed=st.integers(0, 2**32),
    deaths=st.integers(0, 3),
    chosen=st.sets(st.integers(0, 40)),
)
def test_a_resumed_run_labels_what_is_missing_and_nothing_else(
    archive: list[Video], chosen: set[int], **world: Any
) -> None:
    rows = [clip for video in archive for clip in video.expected]
    World(archive, done={rows[i] for i in chosen if i < len(rows)}, **world).run().check_end()


# Case by case


def name(number: int) -> str:
    return f"{number:032x}"


def source(number: int = 0, media: Media = Media.VIDEO) -> Source:
    return Source(source_id=name(number), uri=f"/{number}", video_id=str(number), media=media)


def a_world(*archive: Video, workers: int = 1, **world: Any) -> World:
    limits = FlowLimits(**{"stride_s": STRIDE_S, "part_age_s": 0.0, **world.pop("limits", {})})
    counts = {SINK: 1, SOURCE: workers, STREAM: workers, FOCUS: workers}
    return World(list(archive), **{"workers": counts, "limits": limits, **world})


def codes(world: World) -> dict[str, str | None]:
    return {label.clip_id: label.error_code for label in world.labels}


class Desk:
    """A scheduler by hand: its calls are answered as the test says."""

    def __init__(self, *, done: tuple[str, ...] = (), max_rows: int = 64, workers: int = 1, **limits: Any) -> None:
        self.labels: list[ClipLabel] = []
        self.known = set(done)
        self.scheduler = Scheduler(
            workers={SINK: 1, SOURCE: workers, STREAM: workers, FOCUS: workers},
            limits=FlowLimits(**{"stride_s": STRIDE_S, **limits}),
            batcher=Batcher(max_rows=max_rows, max_wait_s=1.0),
            is_wanted=lambda clip: clip not in self.known,
            on_label=self._note,
        )

    def _note(self, label: ClipLabel) -> None:
        self.labels.append(label)
        self.known.add(label.clip_id)

    def next(self, method: str) -> PlannedCall:
        planned = self.scheduler.next_call(0.0)
        assert planned is not None and planned.call.method == method
        return planned

    def is_waiting(self) -> bool:
        return self.scheduler.next_call(0.0) is None

    def answer_read(self, planned: PlannedCall, *, windows: int = 1, is_done: bool = True, num_bytes: int = 1) -> None:
        rows, row = [], 0
        for request in planned.call.requests:
            key, pieces = request.source.source_id, []
            for window in range(request.first_window, request.first_window + windows):
                ref = ClipRef(clip_id(key, window * STRIDE_S), window * STRIDE_S, window * STRIDE_S + 1, window)
                pieces.append(PieceInfo(row=row, num_bytes=num_bytes, clips=(ref,)))
                row += 1
            rows.append(ReadReply(source_id=key, pieces=tuple(pieces), is_done=is_done))
        self.scheduler.on_done(planned, Reply(rows=tuple(rows)), object(), 0.0)

    def answer_failed(self, planned: PlannedCall, *, window: int) -> None:
        key = planned.call.requests[0].source.source_id
        ref = ClipRef(clip_id(key, window * STRIDE_S), window * STRIDE_S, window * STRIDE_S, window)
        failed = failed_label(source(), code="corrupt", message="as told", ref=ref)
        self.scheduler.on_done(planned, Reply(rows=(ReadReply(source_id=key, failed=failed),)), [], 0.0)

    def open_clips(self, num_clips: int, *, patches: int) -> None:
        """Brings clips of one source to where their patches wait."""
        self.scheduler.add_source(source())
        self.answer_read(self.next("read"), windows=num_clips)
        self.answer_open(self.next("open"), patches=patches)

    def answer_open(self, planned: PlannedCall, *, patches: int) -> None:
        clips = [clip for request in planned.call.requests for clip in request.clip_ids]
        rows = [Advance(clip_id=c, start=i * patches, stop=(i + 1) * patches) for i, c in enumerate(clips)]
        self.scheduler.on_done(planned, Reply(rows=tuple(rows)), object(), 0.0)

    def answer_label(self, planned: PlannedCall) -> None:
        clips = [stay.clip.ref.clip_id for stay in planned.stays]
        rows = [Advance(clip_id=c, label=ClipLabel(video_id="", clip_id=c, source_uri="")) for c in clips]
        self.scheduler.on_done(planned, Reply(rows=tuple(rows)), None, 0.0)

    def answer(self, planned: PlannedCall) -> None:
        self.scheduler.on_done(planned, Reply(rows=()), object(), 0.0)


@pytest.mark.parametrize("stage", ["open", "focus", "step"])
def test_a_clip_that_always_kills_its_worker_becomes_a_row_after_three_deaths_alone(stage: str) -> None:
    archive = [Video(name(n), rounds=[[2, 2]]) for n in range(6)]
    archive[2].faults = {0: f"kill_{stage}"}
    world = a_world(*archive, limits={"pieces_per_call": 6}).run()
    world.check_end()
    killer = archive[2].clip(0)
    assert {clip for clip, code in codes(world).items() if code} == {killer}
    assert codes(world)[killer] == "worker_died"
    assert world.deaths_alone == {killer: 3}
    # The first death was in company, or the clip was already alone in its batch.
    assert world.deaths[STREAM] + world.deaths[FOCUS] in (3, 4)


@pytest.mark.parametrize("stage", ["open", "focus", "step"])
def test_an_exception_costs_only_the_clip_that_raises_it(stage: str) -> None:
    archive = [Video(name(n)) for n in range(6)]
    archive[4].faults = {0: f"raise_{stage}"}
    world = a_world(*archive, limits={"pieces_per_call": 6}).run()
    world.check_end()
    assert {clip: code for clip, code in codes(world).items() if code} == {archive[4].clip(0): "internal"}


def test_clips_of_one_piece_are_told_apart() -> None:
    video = Video(name(0), rounds=[[1]] * 5, faults={3: "kill_focus"}, windows_per_piece=5)
    world = a_world(video).run()
    assert [codes(world)[video.clip(w)] for w in range(5)] == [None, None, None, "worker_died", None]


def test_a_decoder_that_hangs_gives_timeout_and_costs_nobody_else() -> None:
    archive = [Video(name(0)), Video(name(1), rounds=[], read_fault="hang"), Video(name(2))]
    world = a_world(*archive).run()
    assert [codes(world)[video.clip(0)] for video in archive] == [None, "timeout", None]


def test_images_in_one_call_are_told_apart() -> None:
    archive = [Video(name(n), is_image=True) for n in range(8)]
    archive[5] = Video(name(5), rounds=[], read_fault="hang", is_image=True)
    world = a_world(*archive).run()
    assert [codes(world)[video.clip(0)] for video in archive] == [None] * 5 + ["timeout"] + [None] * 2
    assert len(world.calls[0].call.requests) == 8


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


def test_a_clip_of_which_the_worker_says_nothing_is_a_row_and_not_a_wait_for_ever() -> None:
    desk = Desk()
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"))
    desk.scheduler.on_done(desk.next("open"), Reply(rows=()), None, 0.0)
    assert [label.error_code for label in desk.labels] == ["internal"]


def test_a_source_is_finished_when_its_last_clip_has_a_label() -> None:
    desk = Desk(pieces_per_call=2)
    desk.scheduler.add_source(source())
    desk.answer_read(desk.next("read"), windows=2)
    assert desk.scheduler.finished_sources == []
    desk.answer_label(desk.next("open"))
    assert [done.source_id for done in desk.scheduler.finished_sources] == [name(0)]


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
