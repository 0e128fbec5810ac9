"""Calls before and after the loop of a run whose answers are lost on the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators.errors import SinkError
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.loop import StopRequest
from pipeline.run.session import call_worker, open_sink
from pipeline.steering.executor import Call, Completion, WorkerSpec
from pipeline.steering.scheduler import SINK

IDENTITY = {"model_id": "m", "config_id": "c"}


class Lossy(InlineExecutor):
    """The first answers to each method are lost after the worker has done what it was asked."""

    def __init__(self, out: Path, *, num_lost: int) -> None:
        super().__init__()
        self.num_lost = num_lost
        self.methods: list[str] = []
        arguments = {"out": str(out), "run_id": "a", "resume": True, "retry_failed": False}
        self.start(WorkerSpec(stage=SINK, factory="pipeline.run.sink_worker:sink_worker", arguments=arguments))

    def submit(self, call: Call) -> int:
        self.methods.append(call.method)
        return super().submit(call)

    def poll(self, timeout_s: float) -> list[Completion]:
        is_lost = self.methods.count(self.methods[-1]) <= self.num_lost
        return [
            Completion(ticket=one.ticket, outcome="lost", error="ObjectLostError: it is gone") if is_lost else one
            for one in super().poll(timeout_s)
        ]


def test_a_call_whose_answer_is_lost_is_made_again_and_the_sink_that_has_the_lock_does_not_wait_for_itself(tmp_path):
    executor, said = Lossy(tmp_path, num_lost=2), []
    opened = open_sink(executor, said.append, StopRequest())
    assert opened is not None and opened.waits_for is None and said == []
    for method, requests in (("begin", (IDENTITY,)), ("finish", ())):
        call_worker(executor, Call(stage=SINK, worker=0, method=method, requests=requests))
    assert executor.methods == ["open"] * 3 + ["begin"] * 3 + ["finish"] * 3
    executor.close()


def test_a_call_whose_answers_are_lost_again_and_again_ends_the_run(tmp_path):
    executor = Lossy(tmp_path, num_lost=100)
    with pytest.raises(SinkError, match="sink worker could not open: ObjectLostError: it is gone"):
        call_worker(executor, Call(stage=SINK, worker=0, method="open", requests=()))
    assert len(executor.methods) == 4
    executor.close()
