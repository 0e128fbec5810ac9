"""Workers that watch, played by the test: slices, warming up, deaths, hanging, answers that are lost."""

from __future__ import annotations

import pytest

from operators.errors import StageError
from pipeline.live.worker import LiveNews
from pipeline.steering.executor import Completion
from tests.live.played_run import steady


def test_workers_have_the_next_slice_before_they_end_one(run):
    run.players.news = steady(run.players)
    run.loop.run(for_s=0.5)
    assert run.players.methods("live")[:6] == ["begin"] * 2 + ["watch"] * 4


def test_cameras_are_watched_once_every_worker_is_warm_and_one_that_dies_before_is_waited_for(run):
    run.players.news = steady(run.players)
    run.players.dying = [("live", 1, "begin")]
    run.loop.run(for_s=0.5)
    calls = [(call.method, call.worker) for _, call in run.players.calls if call.stage == "live"]
    assert calls[:3] == [("begin", 0), ("begin", 1), ("begin", 1)] and run.summary.deaths == 1
    assert sorted(calls[3:7]) == [("watch", 0)] * 2 + [("watch", 1)] * 2


def test_a_worker_that_never_gets_warm_does_not_keep_the_others_waiting_for_ever(run):
    run.players.news = steady(run.players)
    run.players.hanging = {("live", 1)}
    run.loop.run(for_s=70.0)
    begun_s = min(now_s for now_s, call in run.players.calls if call.method == "watch")
    assert 1060.0 < begun_s < 1062.0 and run.summary.cameras["door"].labels > 10
    assert run.said == ["1 live worker(s) are not ready; the others begin"]
    assert {call.worker for _, call in run.players.calls if call.method == "watch"} == {0}


def test_a_worker_that_hangs_in_its_first_slice_is_ended(run):
    run.players.news = steady(run.players)
    poll = run.players.poll

    def hang_once(timeout_s: float) -> list[Completion]:
        if run.players.methods("live").count("watch") == 4 and not run.players.killed:
            run.players.hanging = {("live", 0)}
        return poll(timeout_s)

    run.players.poll = hang_once
    run.loop.run(for_s=65.0)
    assert run.players.killed == [("live", 0)] == run.players.replaced


def test_a_worker_that_died_is_replaced_with_its_cameras_and_counts_go_on(run):
    run.players.news = steady(run.players)
    made = run.players.news

    def news(worker: int, now_s: float) -> LiveNews:
        if now_s > 1001.0 and not run.players.dying and not run.players.replaced:
            run.players.dying = [("live", 1, "watch")]
        return made(worker, now_s)

    run.players.news = news
    run.loop.run(for_s=3.0)
    assert run.players.replaced == [("live", 1)] and run.summary.deaths == 1
    begun = [call.requests[0].spec.name for _, call in run.players.calls if call.method == "begin"]
    assert begun == ["door", "yard", "yard"]
    assert any("live worker 1 died" in line for line in run.said)
    yard, door = run.summary.cameras["yard"].news, run.summary.cameras["door"].news
    assert (yard.counts.num_decoded, yard.dropped, yard.num_reconnects) == (30, 4, 1)
    assert (door.counts.num_decoded, door.dropped, door.num_reconnects) == (15, 2, 0)
    metrics = run.metrics.registry.get_sample_value
    assert metrics("saccade_frames_decoded_total", {"camera": "yard"}) == 30
    assert metrics("saccade_frames_dropped_total", {"camera": "yard", "reason": "queue"}) == 4
    assert metrics("saccade_reconnects_total", {"camera": "yard"}) == 1


def test_a_worker_that_dies_again_and_again_ends_the_run(run):
    run.players.dying = [("live", 0, "begin")] * 3
    with pytest.raises(StageError, match="live worker 0 died 3 times in a row"):
        run.loop.run(for_s=None)


def test_a_worker_that_died_while_the_run_stops_is_not_made_again(run):
    made = steady(run.players)

    def news(worker: int, now_s: float) -> LiveNews:
        run.stop.is_set = now_s > 1001.0
        return made(worker, now_s)

    run.players.news, run.players.dying = news, [("live", 1, "stop")]
    run.loop.run(for_s=None)
    assert run.players.replaced == [] and run.players.now_s < 1002.5


def test_a_worker_that_hangs_is_ended_and_replaced_and_the_run_is_alive_but_not_ready_meanwhile(run):
    made = steady(run.players)
    well: list[bool] = []
    alive: list[bool] = []

    def news(worker: int, now_s: float) -> LiveNews:
        if 1001.0 < now_s < 1001.15:
            run.players.hanging = {("live", 1)}
        well.append(run.metrics.readiness()[0])
        alive.append(run.metrics.health()[0])
        return made(worker, now_s)

    run.players.news = news
    run.loop.run(for_s=65.0)
    assert run.players.killed == [("live", 1)] == run.players.replaced
    # Told of within five seconds, and over with the new worker. It is no reason to start the whole run again.
    assert well.count(False) > 500 and well[5] and well[-1] and all(alive)


@pytest.mark.parametrize("method", ["begin", "watch", "stop"])
def test_a_live_worker_whose_answer_was_lost_is_asked_again_and_goes_on(run, method):
    run.players.news = steady(run.players)
    run.players.losing = [("live", 1, method)]
    run.loop.run(for_s=3.0)
    assert run.players.replaced == [] and run.summary.lost == 1 == run.summary.to_dict()["lost"]
    assert run.summary.cameras["yard"].labels > 10 and run.players.now_s < 1005.0
    assert run.said == [f"an answer of live worker 1 was lost ({method}), with the labels that it held"]
    assert run.metrics.registry.get_sample_value("saccade_answers_lost_total") == 1


def test_a_bug_in_a_worker_ends_the_run_without_a_password(run):
    error = "Traceback\nValueError: rtsp://eve:s3cret@host/ is odd"
    run.players.poll = lambda timeout_s: [Completion(ticket=1, outcome="failed", error=error)]
    with pytest.raises(StageError, match="live worker 0 failed: ValueError: rtsp://eve:\\*\\*\\*@host/ is odd"):
        run.loop.run(for_s=None)


def test_a_worker_that_hangs_while_it_warms_up_is_ended_and_replaced(run):
    run.players.news = steady(run.players)
    run.players.hanging = {("live", 1)}
    run.loop.run(for_s=400.0)
    assert run.players.killed == [("live", 1)] == run.players.replaced and run.summary.deaths == 1
    assert run.said[1:] == [
        "live worker 1 was not ready within 300 s and is ended",
        "live worker 1 died and is replaced; its cameras are opened again",
    ]
    begun_s = [now_s for now_s, call in run.players.calls if (call.worker, call.method) == (1, "begin")]
    assert 300.0 < begun_s[1] - begun_s[0] < 301.0 and run.summary.cameras["yard"].labels > 10


def test_a_worker_that_waits_for_a_place_is_not_late(run):
    run.players.news = steady(run.players)
    run.players.hanging = {("live", 1)}
    run.players.missing = lambda: {("live", 1): False}
    run.loop.run(for_s=900.0)
    assert run.players.killed == [] and run.summary.cameras["door"].labels > 10


def test_a_worker_that_has_a_place_and_is_never_made_there_is_ended(run):
    run.players.news = steady(run.players)
    run.players.hanging = {("live", 1)}
    run.players.missing = lambda: {("live", 1): True}
    run.loop.run(for_s=400.0)
    assert run.players.killed == [("live", 1)]
