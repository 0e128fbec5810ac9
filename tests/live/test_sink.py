"""The writing side of a live run, its sink played by the test: parts, folding, deaths, hanging, lost answers."""

from __future__ import annotations

import pytest

from operators.errors import StageError
from pipeline.live.worker import LiveNews
from pipeline.steering.executor import Completion
from tests.live.played_run import IDENTITY, steady


def test_finished_hours_are_folded_although_labels_never_end(run):
    run.players.news = steady(run.players)
    run.loop.run(for_s=65.0)
    assert 2 <= run.players.methods("sink").count("fold") <= 3


def test_that_hours_cannot_be_folded_is_told_once(run):
    run.players.news = steady(run.players)
    run.players.can_fold = False
    run.loop.run(for_s=65.0)
    assert run.players.methods("sink").count("fold") >= 2
    assert run.said == ["hours are not folded: this disk cannot exchange folders; their small parts stay"]


def test_folding_that_fails_is_told_and_left_and_labels_go_on(run):
    run.players.news = steady(run.players)
    run.players.failing = "fold"
    run.loop.run(for_s=65.0)
    assert run.players.methods("sink").count("fold") == 1
    assert run.said == ["hours are not folded: SinkError: part 7 is no Parquet file; their small parts stay"]
    assert sum(map(len, run.players.written())) == run.summary.labels > 60


def test_folding_that_ends_its_process_is_not_tried_again(run):
    run.players.news = steady(run.players)
    run.players.dying = [("sink", 0, "fold")] * 5
    run.loop.run(for_s=65.0)
    assert run.players.replaced == [("sink", 0)] and run.players.methods("sink").count("fold") == 1
    assert sum(map(len, run.players.written())) == run.summary.labels > 60


def test_a_sink_that_died_opens_again_and_is_sent_its_part_again(run):
    run.players.news = steady(run.players)
    run.players.dying = [("sink", 0, "write")]
    run.loop.run(for_s=3.0)
    assert run.players.replaced == [("sink", 0)]
    assert run.players.methods("sink")[:3] == ["write", "reopen", "write"]
    first, again, *_ = run.players.written()
    assert first == again
    (reopened,) = [call for _, call in run.players.calls if call.method == "reopen"]
    assert reopened.requests == (IDENTITY,)


def test_a_sink_that_hangs_is_ended_and_replaced_and_the_run_is_not_ready_meanwhile(run):
    made = steady(run.players)
    well: list[tuple[float, bool]] = []

    def news(worker: int, now_s: float) -> LiveNews:
        if 1010.0 < now_s < 1010.15:
            run.players.hanging = {("sink", 0)}
        well.append((now_s, run.metrics.readiness()[0]))
        return made(worker, now_s)

    run.players.news = news
    run.loop.run(for_s=90.0)
    assert run.players.killed == [("sink", 0)] == run.players.replaced
    ill = [now_s for now_s, is_well in well if not is_well and now_s > 1001.0]
    assert 1015.0 < ill[0] < 1017.0 and 1070.0 < ill[-1] < 1072.0
    # Nothing is lost, and nothing is given to a new one twice.
    written = [clip for part in run.players.written() for clip in part]
    assert len(set(written)) == run.summary.labels and run.players.methods("sink").count("reopen") == 1


def test_a_sink_that_has_nothing_to_do_does_not_hang(run):
    run.loop.run(for_s=90.0)
    assert not run.players.killed and run.metrics.health()[0]


def test_a_sink_that_hangs_while_it_is_replaced_is_ended_as_well(run):
    run.players.news = steady(run.players)
    run.players.dying = [("sink", 0, "write")]
    replace = run.players.replace

    def replace_with_one_that_hangs(stage: str, worker: int) -> None:
        replace(stage, worker)
        if len(run.players.replaced) == 1:
            run.players.hanging = {("sink", 0)}

    run.players.replace = replace_with_one_that_hangs
    run.loop.run(for_s=90.0)
    assert run.players.killed == [("sink", 0)] and run.players.replaced == [("sink", 0)] * 2
    written = {clip for part in run.players.written() for clip in part}
    assert len(written) == run.summary.labels > 90


def test_a_sink_that_never_comes_back_ends_the_run(run):
    run.players.news = steady(run.players)
    run.players.dying = [("sink", 0, "write")]
    run.players.replace = lambda stage, worker: run.players.hanging.add((stage, worker))
    with pytest.raises(StageError, match="died 3 times in a row"):
        run.loop.run(for_s=None)
    assert run.players.now_s < 1130.0


def test_of_labels_that_wait_for_a_sink_that_is_away_the_oldest_are_dropped_and_counted(run, monkeypatch):
    monkeypatch.setattr(run.loop._writer, "_max_waiting", 50)
    run.players.news = steady(run.players)
    run.players.dying = [("sink", 0, "write")]
    run.players.replace = lambda stage, worker: run.players.hanging.add((stage, worker))
    poll = run.players.poll

    def come_back(timeout_s: float) -> list[Completion]:
        if run.players.now_s > 1030.0:
            run.players.hanging.clear()
        return poll(timeout_s)

    run.players.poll = come_back
    run.loop.run(for_s=40.0)
    written = {clip for part in run.players.written() for clip in part}
    dropped = {name: camera.dropped_labels for name, camera in run.summary.cameras.items()}
    assert sum(dropped.values()) > 100 and min(dropped.values()) > 50
    assert len(written) + sum(dropped.values()) == run.summary.labels
    assert run.said.count("50 labels wait for a disk that is away; the oldest are dropped") == 1
    value = run.metrics.registry.get_sample_value("saccade_labels_dropped_total", {"camera": "door"})
    assert value == dropped["door"] == run.summary.to_dict()["cameras"]["door"]["dropped_labels"]


def test_a_part_whose_answer_was_lost_is_written_again_under_its_number(run):
    run.players.news = steady(run.players)
    run.players.losing = [("sink", 0, "write")] * 2
    run.loop.run(for_s=3.0)
    parts = [call.requests[0] for _, call in run.players.calls if call.method == "write"]
    assert parts[0] == parts[1] == parts[2] and parts[3].sequence == 1
    assert run.players.replaced == [] and run.summary.lost == 2
    assert len({clip for part in run.players.written() for clip in part}) == run.summary.labels


def test_folding_whose_answer_was_lost_is_tried_again_later(run):
    run.players.news = steady(run.players)
    run.players.losing = [("sink", 0, "fold")]
    run.loop.run(for_s=65.0)
    assert run.players.methods("sink").count("fold") >= 2 and run.players.replaced == []


def test_a_new_sink_whose_first_answer_was_lost_is_replaced_once_more(run):
    run.players.news = steady(run.players)
    run.players.dying, run.players.losing = [("sink", 0, "write")], [("sink", 0, "reopen")]
    run.loop.run(for_s=3.0)
    # It may hold the lock, and would wait for itself.
    assert run.players.killed == [("sink", 0)] and run.players.replaced == [("sink", 0)] * 2
    assert len({clip for part in run.players.written() for clip in part}) == run.summary.labels


def test_a_sink_that_dies_at_every_part_ends_the_run(run):
    run.players.news = steady(run.players)
    run.players.dying = [("sink", 0, "write")] * 3
    with pytest.raises(StageError, match="died 3 times in a row"):
        run.loop.run(for_s=None)
