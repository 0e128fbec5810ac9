"""A live worker and the readers of its cameras: the newest frames win, readers come and go, counts outlive them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from pipeline.commands.live_display import label_line
from pipeline.config import load
from pipeline.families.clip import NOT_FINITE
from pipeline.live.camera_process import Polled
from pipeline.live.camera_state import CameraLimits, CameraState
from pipeline.live.factories import live_worker
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from tests.live.studio import (
    FPS,
    START_S,
    stream,
)


def test_scores_that_are_not_finite_are_a_failed_row_and_no_label(studio):
    door = studio()
    door.reader().sends(*stream(*range(8)))
    door.watch_all()
    assert door.labels and all(label.error_code is None for label in door.labels)
    before = len(door.labels)
    with torch.no_grad():
        for parameter in door.worker._gaze._classifier.parameters():
            parameter.fill_(float("nan"))
    door.reader().sends(*stream(*range(8), start_s=START_S + 100))
    door.watch_all()
    failed = door.labels[before:]
    assert failed
    for label in failed:
        assert label.error_code == "not_finite" and label.topk == ()
        assert label.label is label.label_id is label.score is None
        assert label.error == NOT_FINITE and label.logits is None and label.step_logits is None
        line = json.loads(label_line(label), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert (line["label"], line["score"], line["error_code"]) == (None, None, "not_finite")


def test_a_new_connection_begins_a_segment_of_its_own(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 1.0})
    door.reader().sends(*stream(0, 1, 2))
    door.watch_all()
    door.reader().ends("the camera ended the stream")
    door.watch_until(lambda _: len(door.readers["door"]) == 2)
    door.reader().sends(*stream(0, 1, 2, 3, start_s=START_S + 0.75))
    door.watch_all()
    assert [label.start_s for label in door.labels] == [START_S + 0.75]


def test_a_corrupt_frame_counts_in_the_windows_that_it_came_in_and_in_no_later_one(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 0.5})
    # Two come between the ticks 4 and 5, which costs none.
    door.reader().sends(*stream(*range(5)), *stream(*range(5, 12), num_corrupt=2))
    door.watch_all()
    assert [label.num_corrupt for label in door.labels] == [0, 2, 2, 0, 0]


def test_a_corrupt_frame_before_a_window_counts_once_and_a_new_reader_counts_from_0(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 1.0})
    # What broke off the first segment lies in no window, and what came before the second in none yet.
    door.reader().sends(*stream(0, 1), *stream(2, num_corrupt=1))
    door.reader().sends(*stream(*range(8), start_s=START_S + 5, num_corrupt=4))
    # Another reader is there before these frames are looked at.
    door.reader().ends("lost")
    door.reader().counts = replace(door.reader().counts, num_corrupt=4)
    door.watch_until(lambda _: len(door.readers["door"]) == 2)
    door.reader().sends(*stream(*range(4), start_s=START_S + 9))
    door.reader().sends(*stream(*range(4, 8), start_s=START_S + 9, num_corrupt=1))
    door.watch_all()
    assert [label.num_corrupt for label in door.labels] == [4, 0, 0, 1]


def test_when_behind_the_oldest_frames_of_that_camera_go_and_are_counted(studio):
    run = studio("door", "yard", max_waiting=4, plan={"window_s": 1.0, "stride_s": 1.0})
    run.reader("door").sends(*stream(*range(11)))
    run.reader("yard").sends(*stream(*range(4)))
    news = run.watch_all()
    assert (news.cameras["door"].dropped, news.cameras["yard"].dropped) == (7, 0)
    ticks = [round((time_s - START_S) * FPS) for name, time_s in run.analysed if name == "door"]
    assert ticks == [7, 8, 9, 10]
    # Of the window of ticks 4 to 7 one frame is left; that of 8 to 11 is not complete.
    door, yard = sorted(run.labels, key=lambda label: label.camera)
    assert (door.start_s, door.coverage, door.frames_total) == (START_S + 1.0, 0.25, 1)
    assert (yard.start_s, yard.coverage) == (START_S, 1.0)


def test_a_camera_that_never_sends_keeps_waiting_while_the_others_work(studio):
    run = studio("door", "ghost")
    for start in range(0, 60, 2):
        run.reader("ghost").ends("nobody there")
        if start < 12:
            run.reader("door").sends(*stream(start, start + 1))
        run.watch(0.003)
    news = run.watch_all()
    assert news.cameras["door"].state is CameraState.LIVE and len(run.labels) == 5
    ghost = news.cameras["ghost"]
    assert ghost.state in (CameraState.WAITING, CameraState.CONNECTING) and ghost.last_error == "nobody there"
    assert len(run.readers["ghost"]) >= 3 and all(reader.was_killed for reader in run.readers["ghost"][:-1])


def test_a_reader_whose_process_takes_long_to_start_is_not_held_against_the_camera(studio):
    door = studio(limits=CameraLimits(open_s=0.02, start_s=1000.0, backoff_s=0.001), are_ready=False)
    for _ in range(3):
        door.watch(0.03)
    assert len(door.readers["door"]) == 1
    door.reader().is_ready = True
    door.watch_until(lambda _: len(door.readers["door"]) == 2)


def test_a_reader_that_cannot_be_started_costs_the_others_nothing_and_is_tried_again(studio):
    run = studio("door", "yard")
    run.full.add("yard")
    run.reader("yard").ends("lost")
    run.reader("door").sends(*stream(*range(12)))
    news = run.watch_until(lambda news: len(run.refused) >= 3 and news.cameras["yard"].state is CameraState.WAITING)
    assert news.cameras["yard"].last_error == "its reader cannot be started: OSError: [Errno 24] Too many open files"
    run.full.clear()
    run.watch_until(lambda _: len(run.readers["yard"]) == 2)
    run.reader("yard").sends(*stream(*range(4)))
    run.watch_until(lambda news: news.cameras["yard"].state is CameraState.LIVE)
    run.watch_all()
    assert {label.camera for label in run.labels} == {"door", "yard"}


def test_a_reader_that_says_nonsense_is_ended_like_one_that_was_lost(studio):
    def nonsense() -> Polled:
        raise KeyError("rtsp://eve:s3cret@yard/")

    run = studio("door", "yard")
    run.reader("yard").poll = nonsense
    run.reader("door").sends(*stream(*range(4)))
    news = run.watch_until(lambda _: len(run.readers["yard"]) == 2)
    assert run.readers["yard"][0].was_killed
    assert news.cameras["yard"].last_error == (
        "its reader cannot be understood: KeyError: 'rtsp://eve:***@yard/'"
    )
    run.watch_all()
    assert len(run.labels) == 1


def test_a_silent_camera_is_noticed_within_five_seconds_or_as_the_settings_say(tmp_path):
    def limits(*settings: str) -> CameraLimits:
        plan = resolve(load("live", settings=settings), Machine(num_cores=1, memory_bytes=4 << 30))
        return live_worker(**plan.live_arguments())._limits

    # A worker looks at cameras again at least every second.
    assert limits().open_s + 1 <= 5 >= limits().silence_s + 1
    own = limits("live.open_timeout_s=2", "live.watchdog_s=3", "live.keyframe_timeout_s=7")
    assert (own.open_s, own.silence_s, own.keyframe_s) == (2, 3, 7)


def test_counts_outlive_readers_and_a_camera_that_came_back_was_reconnected(studio):
    door = studio()
    door.reader().sends(*stream(0, 1, 2))
    door.watch_all()
    door.reader().ends("rtsp://eve:s3cret@door/: was lost")
    news = door.watch_until(lambda _: len(door.readers["door"]) == 2)
    assert news.cameras["door"].last_error == "rtsp://eve:***@door/: was lost"
    door.reader().sends(*stream(0, start_s=START_S + 9))
    camera = door.watch_until(lambda news: news.cameras["door"].state is CameraState.LIVE).cameras["door"]
    assert (camera.counts.num_decoded, camera.num_connects, camera.num_reconnects) == (4, 2, 1)


def test_stopped_it_still_labels_what_has_arrived_and_lets_the_readers_go(studio):
    run = studio("door", "yard", plan={"window_s": 1.0, "stride_s": 1.0})
    run.reader("door").sends(*stream(*range(8)))
    run.worker.stop((), ())
    news = run.watch_until(lambda news: news.is_over)
    assert [label.start_s - START_S for label in run.labels] == [0.0, 1.0]
    assert {camera.state for camera in news.cameras.values()} == {CameraState.STOPPED}
    assert all(reader.was_killed for readers in run.readers.values() for reader in readers)


def test_the_reason_that_a_reader_gives_just_before_a_stop_is_kept(studio):
    door = studio()
    door.reader().ends("nobody there")
    door.worker.stop((), ())
    news = door.watch_until(lambda news: news.is_over)
    assert news.cameras["door"].state is CameraState.STOPPED
    assert (news.cameras["door"].last_error, news.cameras["door"].num_misses) == ("nobody there", 1)


def test_a_file_that_is_over_is_not_opened_again(studio):
    run = studio("door", "film")
    run.reader("film").sends(*stream(0, 1, 2, 3))
    run.reader("film").ends("the file is over", is_final=True)
    news = run.watch_until(lambda news: news.cameras["film"].state is CameraState.STOPPED)
    assert news.cameras["film"].last_error == "the file is over" and not news.is_over
    run.watch(0.05)
    assert len(run.readers["film"]) == 1 and len(run.labels) == 1


def test_labels_are_told_of_at_once(studio):
    door = studio(plan={"window_s": 0.25, "stride_s": 0.25})
    door.reader().sends(*stream(*range(6)))
    # Each slice, however long it may last, ends with the first label.
    assert [len(door.watch(1000.0).labels) for _ in range(6)] == [1] * 6
