"""The loop when answers are lost, workers are not made, locks are held and the cluster's head goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from operators.errors import ClusterGone, SinkError, StageError
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.loop import LOCK_S, StopRequest
from pipeline.run.sink_worker import SinkOpened
from pipeline.steering.deadlines import NONE_S, WAITS_S
from pipeline.steering.executor import Call, Completion
from pipeline.steering.messages import Reply
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE
from tests.run.test_loop import Run, run, source

NAMES = [f"cat-{number}" for number in range(6)]


class Far(InlineExecutor):
    """Workers on other machines: a poll takes a second, and what a test drops comes back only when it is killed."""

    def __init__(self, *, drop: Callable[[Call], bool] = lambda call: False) -> None:
        super().__init__()
        self.now_s = 0.0
        self.drop = drop
        self.held: dict[int, Call] = {}
        self.killed: list[tuple[str, int]] = []
        self.answered = True
        self.absent: Mapping[tuple[str, int], bool] = {}

    def clock(self) -> float:
        return self.now_s

    def is_here(self, stage: str, worker: int) -> bool:
        return False

    def machine_answered(self, stage: str, worker: int, for_s: float) -> bool:
        return self.answered

    def missing(self) -> Mapping[tuple[str, int], bool]:
        return self.absent

    def why_missing(self, stage: str) -> str:
        return "1 CPU; free: nothing"

    def submit(self, call: Call) -> int:
        ticket = super().submit(call)
        if self.drop(call):
            self.held[ticket] = call
            self._waiting.pop()
        return ticket

    def poll(self, timeout_s: float) -> list[Completion]:
        self.now_s += 1.0
        ended = [ticket for ticket, call in self.held.items() if (call.stage, call.worker) in self.killed]
        for ticket in ended:
            del self.held[ticket]
        self.killed.clear()
        return [Completion(ticket=ticket, outcome="died") for ticket in ended] or super().poll(timeout_s)

    def kill(self, stage: str, worker: int) -> None:
        self.killed.append((stage, worker))


def far(executor: Far, names: list[str] = NAMES, *, on_progress: Any = lambda run: None, **options: Any) -> Run:
    stop = options.pop("stop", None)
    return run(
        map(source, names),
        executor=executor,
        clock=executor.clock,
        on_progress=on_progress,
        stop=stop,
        options=options,
    )


def first(number: int, stage: str) -> Callable[[Call], bool]:
    """A rule that drops the first so many calls of a stage."""
    calls: list[Call] = []

    def drop(call: Call) -> bool:
        calls.extend([call] if call.stage == stage else [])
        return call.stage == stage and len(calls) <= number

    return drop


@pytest.mark.parametrize("stage", ["stream", FOCUS, SINK])
def test_a_call_whose_answer_is_lost_is_made_again_and_nobody_is_to_blame(stage: str) -> None:
    done = far(Far(drop=first(2, stage)))
    assert done.codes == dict.fromkeys(NAMES)
    assert done.metrics.stages[stage].deaths == 2


def test_a_clip_that_always_hangs_is_a_row_and_its_neighbours_are_labelled() -> None:
    def drop(call: Call) -> bool:
        return call.method == "focus" and any("cat-3" in names for names in call.payloads)

    done = far(Far(drop=drop))
    assert done.codes == dict.fromkeys(NAMES) | {"cat-3": "worker_died"}


def test_a_video_on_a_machine_that_did_not_answer_has_no_timeout_row() -> None:
    executor = Far(drop=first(2, SOURCE))
    executor.answered = False
    assert far(executor, ["cat-1"]).codes == {"cat-1": None}


def test_on_another_machine_only_the_second_timeout_makes_a_row() -> None:
    assert far(Far(drop=first(1, SOURCE)), ["cat-1"]).codes == {"cat-1": None}
    assert far(Far(drop=first(2, SOURCE)), ["cat-1"]).codes == {"cat-1": "timeout"}


def test_a_worker_that_waits_for_a_place_is_reported_gets_no_work_and_joins_when_it_is_made() -> None:
    executor, said, given = Far(), [], []
    executor.absent = {(FOCUS, 0): False}
    executor.drop = lambda call: bool(given.append(call.stage)) if executor.absent else False

    def make(seen: Run) -> None:
        executor.absent = {} if executor.now_s > WAITS_S + 10 else executor.absent

    done = far(executor, say=said.append, on_progress=make)
    assert done.codes == dict.fromkeys(NAMES)
    assert said == ["the focus worker waits for 1 CPU; free: nothing"]
    assert FOCUS not in given


def test_a_stage_for_which_there_is_no_place_ends_the_run_with_what_it_waits_for() -> None:
    executor = Far()
    executor.absent = {(FOCUS, 0): False}
    with pytest.raises(StageError, match="the focus worker waits for 1 CPU; free: nothing; what is committed is safe"):
        far(executor)
    assert NONE_S < executor.now_s < NONE_S + 10


@pytest.mark.parametrize("stuck", ["answers", "place"])
def test_a_run_that_is_stopped_does_not_wait_for_what_does_not_come_and_commits_what_it_has(stuck: str) -> None:
    executor, stop = Far(), StopRequest()

    def ask_to_stop(seen: Run) -> None:
        if seen.metrics.labelled >= 3 and not stop.is_set:
            stop.is_set, stopped_s[0] = True, executor.now_s
            executor.drop = lambda call: call.stage == FOCUS and stuck == "answers"
            executor.absent = {(FOCUS, 0): False} if stuck == "place" else {}

    stopped_s = [0.0]
    done = far(executor, [f"cat-{n}" for n in range(40)], stop=stop, on_progress=ask_to_stop)
    assert done.runner.was_stopped
    assert executor.now_s - stopped_s[0] <= 12, "it is the drain of others that takes the rest"
    assert len(done.written) == done.metrics.labelled >= 3


def test_what_is_labelled_is_committed_when_the_head_is_gone() -> None:
    rescued: list[str] = []

    class Headless(Far):
        labelled = 0

        def poll(self, timeout_s: float) -> list[Completion]:
            if self.labelled >= 3:
                raise ClusterGone("the cluster's head is gone")
            return super().poll(timeout_s)

    # Nothing is written before: the first part is dropped on its way.
    executor = Headless(drop=lambda call: call.stage == SINK)
    seen: list[Run] = []

    def note_labelled(run: Run) -> None:
        seen[:] = [run]
        executor.labelled = run.metrics.labelled

    with pytest.raises(ClusterGone):
        far(
            executor,
            on_progress=note_labelled,
            rescue=lambda parts: rescued.extend(label.video_id for part in parts for label in part.labels),
        )
    assert len(rescued) == seen[0].metrics.committed == seen[0].metrics.labelled >= 3
    assert len(set(rescued)) == len(rescued)


class Locked(Far):
    """Its sink dies once; the one in its place finds the lock held for so many tries."""

    def __init__(self, tries: int) -> None:
        super().__init__(drop=first(1, SINK))
        self.tries = tries
        self.replies: dict[int, Completion] = {}

    def submit(self, call: Call) -> int:
        if call.method != "try_reopen":
            return super().submit(call)
        self.tries -= 1
        opened = SinkOpened(waits_for="waiting for the lock: run 7 writes to out" if self.tries >= 0 else None)
        ticket = next(self._tickets)
        self.replies[ticket] = Completion(ticket=ticket, outcome="done", reply=Reply(rows=(opened,)))
        return ticket

    def poll(self, timeout_s: float) -> list[Completion]:
        if self.replies:
            self.now_s += 2.0
            return [self.replies.pop(next(iter(self.replies)))]
        return super().poll(timeout_s)


REVIVE = {SINK: Call(stage=SINK, worker=0, method="try_reopen", requests=({},))}


def test_a_sink_that_finds_the_lock_held_says_so_once_and_writes_when_it_has_it() -> None:
    said: list[str] = []
    done = far(Locked(tries=20), revive=REVIVE, say=said.append)
    assert done.codes == dict.fromkeys(NAMES)
    assert said == ["waiting for the lock: run 7 writes to out"]


def test_a_lock_that_is_never_given_back_ends_the_run() -> None:
    executor = Locked(tries=10**6)
    with pytest.raises(SinkError, match="run 7 writes to out, and that did not end within 120 s"):
        far(executor, revive=REVIVE)
    assert executor.now_s < LOCK_S + 700


def test_a_run_that_is_stopped_while_the_lock_is_held_ends() -> None:
    executor, stop, said = Locked(tries=10**6), StopRequest(), []

    def ask_to_stop(seen: Run) -> None:
        if executor.tries < 10**6 - 3 and not stop.is_set:
            stop.is_set, stopped_s[0] = True, executor.now_s

    stopped_s = [0.0]
    done = far(executor, revive=REVIVE, stop=stop, on_progress=ask_to_stop, say=said.append)
    assert done.runner.was_stopped and not done.runner.sink_is_here
    assert executor.now_s - stopped_s[0] < 10
    assert "are not committed" in said[-1]
