"""The loop of a live run over workers that the test plays: labels are written, and it ends in time."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from operators.errors import ClusterGone
from pipeline.live.worker import LiveNews
from pipeline.steering.executor import Completion
from tests.live.played_run import CAMERAS, steady


def test_every_label_is_written_once_in_parts_of_less_than_a_second(run):
    run.players.news = steady(run.players)
    run.loop.run(for_s=5.0)
    written = [clip for part in run.players.written() for clip in part]
    assert len(written) == len(set(written)) == run.summary.labels > 50
    times = [now_s for now_s, call in run.players.calls if call.method == "write"]
    assert len(times) >= 6 and max(b - a for a, b in itertools.pairwise(times)) < 1.0
    assert {name: camera.labels for name, camera in run.summary.cameras.items()} == {
        name: sum(clip.startswith(name) for clip in written) for name in CAMERAS
    }
    # The numbers of parts rise: a part that is sent again overwrites itself, and no other.
    sequences = [call.requests[0].sequence for _, call in run.players.calls if call.method == "write"]
    assert sequences == list(range(len(sequences)))


def test_a_failed_row_is_written_and_counted_apart_from_labels_and_said_once(run):
    made = steady(run.players)

    def news(worker: int, now_s: float) -> LiveNews:
        reply = made(worker, now_s)
        failed = tuple(dataclasses.replace(one, error_code="not_finite", error="no number") for one in reply.labels)
        return dataclasses.replace(reply, labels=failed) if worker else reply

    run.players.news = news
    run.loop.run(for_s=5.0)
    door, yard = run.summary.cameras["door"], run.summary.cameras["yard"]
    assert (yard.labels, door.failed) == (0, 0) and yard.failed > 20 and run.summary.labels == door.labels
    assert sum(map(len, run.players.written())) == door.labels + yard.failed
    assert run.said == ["yard has no label but a failed row: no number"]
    assert run.metrics.registry.get_sample_value("saccade_labels_failed_total", {"camera": "yard"}) == yard.failed


def test_how_long_to_watch_is_counted_from_when_cameras_are_watched(run):
    run.players.news = steady(run.players)
    run.players.hanging = {("live", 1)}  # one worker takes a minute to start
    run.loop.run(for_s=5.0)
    begun_s = min(now_s for now_s, call in run.players.calls if call.method == "watch")
    stopped_s = min(now_s for now_s, call in run.players.calls if call.method == "stop")
    assert begun_s > 1060.0 and 5.0 <= stopped_s - begun_s < 5.5
    assert run.summary.wall_s == pytest.approx(run.players.now_s - begun_s, abs=0.2)


def test_a_stop_before_all_are_warm_opens_no_camera(run):
    run.players.hanging, run.stop.is_set = {("live", 1)}, True
    run.loop.run(for_s=None)
    assert "watch" not in run.players.methods("live") and run.players.now_s < 1005.0


def test_a_run_whose_cameras_are_all_over_ends_by_itself(run):
    run.players.news = steady(run.players, over_after_s=2.0)
    run.loop.run(for_s=None)
    assert run.players.now_s < 1003.5 and "stop" not in run.players.methods("live")
    assert sum(map(len, run.players.written())) == run.summary.labels > 0


def test_a_stop_ends_a_run_with_the_labels_that_are_there(run):
    def news(worker: int, now_s: float) -> LiveNews:
        run.stop.is_set = now_s > 1002.0
        return made(worker, now_s)

    made = steady(run.players)
    run.players.news = news
    run.loop.run(for_s=None)
    assert run.players.methods("live").count("stop") == 2
    assert run.players.now_s < 1003.0
    assert sum(map(len, run.players.written())) == run.summary.labels > 0


def test_a_stop_does_not_wait_for_ever_for_a_worker_that_does_not_come_to_an_end(run):
    made = steady(run.players)

    def news(worker: int, now_s: float) -> LiveNews:
        run.stop.is_set = now_s > 1001.0
        return dataclasses.replace(made(worker, now_s), is_over=False)

    run.players.news = news
    run.loop.run(for_s=None)
    assert 1004.0 < run.players.now_s < 1005.5


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_signal_ends_the_run_in_time_although_the_sink_never_comes_back(run, is_replaced):
    made = steady(run.players)

    def news(worker: int, now_s: float) -> LiveNews:
        if 1010.0 < now_s < 1010.15:
            run.players.hanging = {("sink", 0)}
        run.stop.is_set = now_s > (1080.0 if is_replaced else 1020.0)
        return made(worker, now_s)

    run.players.news = news
    run.players.replace = lambda stage, worker: run.players.hanging.add((stage, worker))
    run.loop.run(for_s=None)
    assert run.players.killed[-1] == ("sink", 0)
    assert run.loop.has_given_up and run.players.now_s < (1084.8 if is_replaced else 1024.8)
    *parts, unanswered = run.players.written()
    written = {clip for part in parts for clip in part} - set(unanswered)
    dropped = sum(camera.dropped_labels for camera in run.summary.cameras.values())
    assert dropped > 0 and len(written) + dropped == run.summary.labels
    assert run.said[-1].endswith(f"does not answer and is left; {dropped} labels were dropped")


@pytest.mark.parametrize("is_writing", [False, True])
def test_labels_that_are_not_written_when_the_clusters_head_is_gone_are_committed_by_the_driver(run, is_writing):
    run.players.news = steady(run.players)
    poll = run.players.poll

    def poll_until_the_head_is_gone(timeout_s: float) -> list[Completion]:
        if is_writing and run.players.now_s > 1004.0:
            run.players.hanging = {("sink", 0)}
        if run.players.now_s > 1006.0:
            raise ClusterGone("the cluster's head is gone")
        return poll(timeout_s)

    run.players.poll = poll_until_the_head_is_gone
    with pytest.raises(ClusterGone):
        run.loop.run(for_s=None)
    asked = [call.requests[0] for _, call in run.players.calls if call.method == "write"]
    # A part that was handed over, and not answered, is written again under its number.
    answered = asked[:-1] if is_writing else asked
    assert run.rescued[:-1] == asked[len(answered) :] and run.rescued[-1].sequence == len(asked)
    written = [label.clip_id for part in [*answered, *run.rescued] for label in part.labels]
    assert len(written) == len(set(written)) == run.summary.labels > 50


def test_where_nothing_waits_nothing_is_committed_when_the_clusters_head_is_gone(run):
    def gone(timeout_s: float) -> list[Completion]:
        raise ClusterGone("the cluster's head is gone")

    run.players.poll = gone
    with pytest.raises(ClusterGone):
        run.loop.run(for_s=None)
    assert run.rescued == []
