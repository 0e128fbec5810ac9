"""The scheduler's promises in worlds where anything may die: whatever happens, every clip has one label."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.steering.in_flight import FlowLimits
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM
from tests.support.scheduler_desk import name
from tests.support.scheduler_workers import PIECE_BYTES, STRIDE_S, Video
from tests.support.scheduler_world import World

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
    assert world_.crew.clips_read <= world_.done


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


def a_world(*archive: Video, workers: int = 1, **world: Any) -> World:
    limits = FlowLimits(**{"stride_s": STRIDE_S, "part_age_s": 0.0, **world.pop("limits", {})})
    counts = {SINK: 1, SOURCE: workers, STREAM: workers, FOCUS: workers}
    return World(list(archive), **{"workers": counts, "limits": limits, **world})


def codes(world: World) -> dict[str, str | None]:
    return {label.clip_id: label.error_code for label in world.labels}


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


def test_clips_of_one_piece_are_distinguished() -> None:
    video = Video(name(0), rounds=[[1]] * 5, faults={3: "kill_focus"}, windows_per_piece=5)
    world = a_world(video).run()
    assert [codes(world)[video.clip(w)] for w in range(5)] == [None, None, None, "worker_died", None]


def test_a_decoder_that_hangs_gives_timeout_and_costs_nobody_else() -> None:
    archive = [Video(name(0)), Video(name(1), rounds=[], read_fault="hang"), Video(name(2))]
    world = a_world(*archive).run()
    assert [codes(world)[video.clip(0)] for video in archive] == [None, "timeout", None]


def test_images_in_one_call_are_distinguished() -> None:
    archive = [Video(name(n), is_image=True) for n in range(8)]
    archive[5] = Video(name(5), rounds=[], read_fault="hang", is_image=True)
    world = a_world(*archive).run()
    assert [codes(world)[video.clip(0)] for video in archive] == [None] * 5 + ["timeout"] + [None] * 2
    assert len(world.calls[0].call.requests) == 8
