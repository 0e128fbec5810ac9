"""The loop of a live run over workers that the test plays: slices, parts, deaths, hanging, stopping.

Time passes only while the loop waits for its workers.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import types
from collections import deque
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

from operators.errors import ConfigError, StageError
from operators.records import CameraCounts, ClipLabel
from pipeline.config import Camera, load
from pipeline.live.camera_process import CameraSpec
from pipeline.live.camera_state import CameraState
from pipeline.live.prometheus import LiveMetrics
from pipeline.live.watch import CameraSummary, LiveLoop, LiveSummary, LiveTold, check, watch_cameras
from pipeline.live.worker import CameraNews, CameraPlan, LiveNews
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.loop import StopRequest
from pipeline.run.sink_worker import SinkOpened
from pipeline.steering.executor import Call, Completion
from pipeline.steering.messages import Reply

IDENTITY = {"model_id": "m", "config_id": "c"}
ROOT = Path(__file__).resolve().parents[2]


def label(camera: str, number: int) -> ClipLabel:
    return ClipLabel(
        video_id=camera,
        clip_id=f"{camera}{number}",
        source_uri=f"rtsp://{camera}/",
        camera=camera,
        start_s=float(number),
        end_s=number + 1.0,
        latency_s=0.2,
    )


class Players(InlineExecutor):
    """An executor whose workers answer at once, as the test says. One poll takes a tenth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.calls: list[tuple[float, Call]] = []
        self.replaced: list[tuple[str, int]] = []
        self.killed: list[tuple[str, int]] = []
        self.hanging: set[tuple[str, int]] = set()
        self.dying: list[tuple[str, int, str]] = []
        """(stage, worker, method): the next such call ends with the worker's death."""
        self.losing: list[tuple[str, int, str]] = []
        """(stage, worker, method): the answer of the next such call is lost on the way."""
        self.news: Callable[[int, float], LiveNews] = lambda worker, now_s: LiveNews(
            labels=(), cameras={}, is_over=False
        )
        self.can_fold = True
        self.failing = ""
        """The method whose calls end with an exception."""
        self._num = 0

    def clock(self) -> float:
        return self.now_s

    def submit(self, call: Call) -> int:
        self._num += 1
        self.calls.append((self.now_s, call))
        self._waiting.append((self._num, call))
        return self._num

    def poll(self, timeout_s: float) -> list[Completion]:
        self.now_s += 0.1
        now, self._waiting = self._waiting, deque()
        done: list[Completion] = []
        dead: set[tuple[str, int]] = set()
        for ticket, call in now:
            place = (call.stage, call.worker)
            if place in self.hanging:
                self._waiting.append((ticket, call))
            elif place in dead or (*place, call.method) in self.dying:
                if place not in dead:
                    self.dying.remove((*place, call.method))
                dead.add(place)
                done.append(Completion(ticket=ticket, outcome="died"))
            elif (*place, call.method) in self.losing:
                self.losing.remove((*place, call.method))
                done.append(Completion(ticket=ticket, outcome="lost", error="ObjectLostError: it is gone"))
            elif call.method == self.failing:
                done.append(Completion(ticket=ticket, outcome="failed", error="SinkError: part 7 is no Parquet file"))
            else:
                row = self.news(call.worker, self.now_s) if call.method == "watch" else self.can_fold
                done.append(Completion(ticket=ticket, outcome="done", reply=Reply(rows=(row,))))
        return done

    def kill(self, stage: str, worker: int) -> None:
        self.killed.append((stage, worker))
        self.hanging.discard((stage, worker))
        waiting = [call.method for _, call in self._waiting if (call.stage, call.worker) == (stage, worker)]
        self.dying += [(stage, worker, method) for method in waiting[:1]]

    def replace(self, stage: str, worker: int) -> None:
        self.replaced.append((stage, worker))

    def methods(self, stage: str) -> list[str]:
        return [call.method for _, call in self.calls if call.stage == stage]

    def written(self) -> list[list[str]]:
        return [
            [one.clip_id for one in call.requests[0].labels] for _, call in self.calls if call.method == "write"
        ]


@dataclasses.dataclass
class Run:
    loop: LiveLoop
    players: Players
    summary: LiveSummary
    stop: StopRequest
    metrics: LiveMetrics
    said: list[str]


@pytest.fixture
def run() -> Run:
    """Two workers, one camera each."""
    players, stop = Players(), StopRequest()
    cameras = ("door", "yard")
    metrics = LiveMetrics(clock=players.clock)
    for name in cameras:
        metrics.add_camera(name)
    summary = LiveSummary({name: CameraSummary() for name in cameras})
    said: list[str] = []
    plans = [CameraPlan(spec=CameraSpec(name=n, uri=f"rtsp://{n}/"), window_s=1, stride_s=1) for n in cameras]
    loop = LiveLoop(
        executor=players,
        shares=[(plan,) for plan in plans],
        identity=IDENTITY,
        metrics=metrics,
        told=LiveTold(message=said.append),
        stop=stop,
        summary=summary,
        can_kill=True,
        clock=players.clock,
        unix_clock=players.clock,
    )
    return Run(loop, players, summary, stop, metrics, said)


CAMERAS = ("door", "yard")


def steady(players: Players, *, over_after_s: float = 1e9) -> Callable[[int, float], LiveNews]:
    """Every slice brings a label of the worker's camera; nothing more once it is told to stop."""
    numbers = iter(range(1_000_000))

    def news(worker: int, now_s: float) -> LiveNews:
        is_over = now_s >= 1000.0 + over_after_s or any(
            call.method == "stop" and call.worker == worker for _, call in players.calls
        )
        name = CAMERAS[worker]
        camera = CameraNews(
            state=CameraState.STOPPED if is_over else CameraState.LIVE,
            num_connects=1,
            counts=CameraCounts(num_decoded=15),
            dropped=2,
        )
        labels = () if is_over else (label(name, next(numbers)),)
        return LiveNews(labels=labels, cameras={name: camera}, is_over=is_over)

    return news


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
        told = made(worker, now_s)
        failed = tuple(dataclasses.replace(one, error_code="not_finite", error="no number") for one in told.labels)
        return dataclasses.replace(told, labels=failed) if worker else told

    run.players.news = news
    run.loop.run(for_s=5.0)
    door, yard = run.summary.cameras["door"], run.summary.cameras["yard"]
    assert (yard.labels, door.failed) == (0, 0) and yard.failed > 20 and run.summary.labels == door.labels
    assert sum(map(len, run.players.written())) == door.labels + yard.failed
    assert run.said == ["yard has no label but a failed row: no number"]
    assert run.metrics.registry.get_sample_value("saccade_labels_failed_total", {"camera": "yard"}) == yard.failed


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


def test_a_run_whose_cameras_are_all_over_ends_by_itself(run):
    run.players.news = steady(run.players, over_after_s=2.0)
    run.loop.run(for_s=None)
    assert run.players.now_s < 1003.5 and "stop" not in run.players.methods("live")
    assert sum(map(len, run.players.written())) == run.summary.labels > 0


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


def test_a_part_whose_answer_was_lost_is_written_again_under_its_number(run):
    run.players.news = steady(run.players)
    run.players.losing = [("sink", 0, "write")] * 2
    run.loop.run(for_s=3.0)
    parts = [call.requests[0] for _, call in run.players.calls if call.method == "write"]
    assert parts[0] == parts[1] == parts[2] and parts[3].sequence == 1
    assert run.players.replaced == [] and run.summary.lost == 2
    assert len({clip for part in run.players.written() for clip in part}) == run.summary.labels


@pytest.mark.parametrize("method", ["begin", "watch", "stop"])
def test_a_live_worker_whose_answer_was_lost_is_asked_again_and_goes_on(run, method):
    run.players.news = steady(run.players)
    run.players.losing = [("live", 1, method)]
    run.loop.run(for_s=3.0)
    assert run.players.replaced == [] and run.summary.lost == 1 == run.summary.to_dict()["lost"]
    assert run.summary.cameras["yard"].labels > 10 and run.players.now_s < 1005.0
    assert run.said == [f"an answer of live worker 1 was lost ({method}), with the labels that it held"]
    assert run.metrics.registry.get_sample_value("saccade_answers_lost_total") == 1


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


def test_a_bug_in_a_worker_ends_the_run_without_a_password(run):
    error = "Traceback\nValueError: rtsp://eve:s3cret@host/ is odd"
    run.players.poll = lambda timeout_s: [Completion(ticket=1, outcome="failed", error=error)]
    with pytest.raises(StageError, match="live worker 0 failed: ValueError: rtsp://eve:\\*\\*\\*@host/ is odd"):
        run.loop.run(for_s=None)


@pytest.mark.parametrize(("step", "started"), [("resolve", []), ("make_executor", []), ("write_run", ["sink"])])
def test_a_stop_is_heeded_before_the_next_step_of_a_start(step, started, tmp_path, monkeypatch):
    stop, seen = StopRequest(), []

    def is_stopped_by(name: str) -> None:
        stop.is_set = stop.is_set or name == step

    def resolved(*arguments, **more):
        is_stopped_by("resolve")
        return resolve(*arguments, **more)

    @contextmanager
    def executor(*_):
        is_stopped_by("make_executor")
        yield types.SimpleNamespace(start=lambda spec: seen.append(spec.stage))

    monkeypatch.setattr("pipeline.live.watch.resolve", resolved)
    monkeypatch.setattr("pipeline.live.watch.make_executor", executor)
    monkeypatch.setattr("pipeline.live.watch.open_sink", lambda *_: SinkOpened())
    monkeypatch.setattr("pipeline.live.watch.call_worker", lambda *_: None)
    monkeypatch.setattr("pipeline.live.watch.write_run", lambda *_: is_stopped_by("write_run"))
    summary = watch_cameras(load("live"), [Camera(name="door", url="rtsp://a/")], out=tmp_path, stop=stop)
    assert seen == started and summary.labels == 0


def test_latencies_are_quantiles_of_the_newest_labels():
    summary = LiveSummary({"door": CameraSummary(), "yard": CameraSummary()})
    assert summary.latency_s(0.95) is None
    summary.cameras["door"].latencies_s.extend(n / 100 for n in range(100))
    summary.cameras["yard"].latencies_s.extend([5.0] * 100)
    assert (summary.latency_s(0.95, "door"), summary.latency_s(0.25), summary.latency_s(0.5)) == (0.95, 0.5, 5.0)
    assert summary.to_dict()["cameras"]["door"]["latency_s"] == {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [
        ("live", ["stop.kind=confidence", "stop.thresholds=[0.9]"], "stop rules do not apply"),
        ("live", ["policy.kind=oracle", f"policy.truth={__file__}"], "nobody knows the truth"),
        ("gfnet_imagenet_resnet50", ["model.untrained=true"], "need a checkpoint of the family adafocus, not gfnet"),
    ],
)
def test_what_cannot_be_had_from_cameras_is_refused(preset, settings, words):
    plan = resolve(load(preset, settings=settings), Machine(num_cores=2, memory_bytes=4 << 30))
    with pytest.raises(ConfigError, match=words):
        check(plan.config, plan)


def test_torchs_threads_are_told_to_sleep_while_they_wait_before_torch_is_loaded(tmp_path):
    code = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("policy", os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
from run_pipeline import main
main(["live", "nowhere.mp4", "-o", sys.argv[1]])
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert told.stdout.splitlines()[:1] == ["policy passive"], told.stderr


def test_how_threads_wait_is_said_for_cameras_only():
    code = "import os, pipeline.run.factories, pipeline.run.archive; print(os.environ.get('OMP_WAIT_POLICY'))"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.split() == ["None"], told.stderr
