"""Workers as Ray actors: one cluster for all of these tests, null workers, real deaths."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from operators.errors import CheckpointError
from operators.records import ClipLabel, Source, source_id
from pipeline.run.label_recorder import LabelRecorder
from pipeline.run.loop import Runner, StopRequest
from pipeline.run.metrics import RunMetrics, StageTime
from pipeline.run.ray_executor import RayExecutor
from pipeline.run.source_feed import SourceFeed
from pipeline.steering.batching import Batcher
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Call, Completion, WorkerSpec
from pipeline.steering.in_flight import FlowLimits
from pipeline.steering.messages import ReadRequest
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler
from tests.support.processes import wait_for

pytestmark = pytest.mark.ray
ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope="module")
def executor() -> Iterator[RayExecutor]:
    before = os.environ.get("PYTHONPATH")
    # The null workers are no part of the installed program.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, before]))
    executor = RayExecutor(num_cpus=2, store_bytes=80 << 20)
    yield executor
    executor.close()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def start(executor: RayExecutor, stage: str, factory: str, count: int = 1) -> None:
    executor.start(WorkerSpec(stage=stage, factory=f"tests.support.null_workers:{factory}", count=count))


def end_of(executor: RayExecutor, ticket: int) -> Completion:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for completion in executor.poll(0.5):
            if completion.ticket == ticket:
                return completion
    raise AssertionError("the call did not end")


def label_all(executor: RayExecutor, names: list[str], *, deadline_s: float = 30.0) -> dict[str, str | None]:
    """A run over null workers: the error code, or None, by name. A row too few or too many fails."""
    for stage in (SOURCE, STREAM, FOCUS):
        start(executor, stage, f"null_{stage}")
    executor.start(WorkerSpec(stage=SINK, factory="tests.support.null_workers:null_sink", arguments={"written": []}))
    executor.wait_ready()
    rows: list[ClipLabel] = []
    metrics = RunMetrics(stages={name: StageTime() for name in (SOURCE, STREAM, FOCUS, SINK)})
    recorder = LabelRecorder(done=DoneSet(), metrics=metrics)

    def keep(label: ClipLabel) -> None:
        rows.append(label)
        recorder.add(label)

    scheduler = Scheduler(
        workers={SOURCE: 1, STREAM: 1, FOCUS: 1, SINK: 1},
        limits=FlowLimits(max_pieces=8, max_open_clips=4, rows_per_part=4),
        batcher=Batcher(max_rows=8, max_wait_s=0.05),
        is_wanted=recorder.is_wanted,
        on_label=keep,
    )
    sources = [Source(source_id=source_id(f"/{name}"), uri=f"/{name}", video_id=name) for name in names]
    runner = Runner(
        executor=executor,
        scheduler=scheduler,
        feed=SourceFeed(iter(sources)),
        recorder=recorder,
        stop=StopRequest(),
        deadline_s=deadline_s,
        on_progress=lambda runner: None,
    )
    runner.run()
    assert sorted(row.video_id for row in rows) == sorted(names)
    assert metrics.committed == len(names)
    return {row.video_id: row.error_code for row in rows}


def test_payloads_go_from_worker_to_worker_and_the_driver_holds_their_names_only(executor: RayExecutor) -> None:
    names = [f"clip-{number}" for number in range(40)]
    assert label_all(executor, names) == dict.fromkeys(names)


def test_an_input_that_ends_its_workers_becomes_a_row_and_its_neighbours_are_labelled(executor: RayExecutor) -> None:
    good = [f"clip-{number}" for number in range(12)]
    poison = ["kills-source-1", "kills-stream-1", "kills-focus-1"]
    names = good[:5] + poison + good[5:]
    assert label_all(executor, names) == dict.fromkeys(good) | dict.fromkeys(poison, "worker_died")


def test_a_decoder_that_hangs_is_ended_and_the_others_go_on(executor: RayExecutor) -> None:
    names = ["clip-1", "hangs-1", "clip-2"]
    codes = label_all(executor, names, deadline_s=6.0)
    assert codes == {"clip-1": None, "hangs-1": "timeout", "clip-2": None}


def test_what_a_factory_raises_reaches_the_user_as_it_is(executor: RayExecutor) -> None:
    start(executor, "refused", "refused")
    with pytest.raises(CheckpointError, match="give --checkpoint"):
        executor.wait_ready()


def test_a_killed_worker_s_call_comes_back_as_died_and_a_new_one_takes_its_place(executor: RayExecutor) -> None:
    start(executor, STREAM, "null_stream")
    executor.wait_ready()
    pid = executor.pids()[STREAM, 0]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10)
    call = Call(stage=STREAM, worker=0, method="close", requests=("x",))
    assert end_of(executor, executor.submit(call)).outcome == "died"
    executor.replace(STREAM, 0)
    assert (STREAM, 0) not in executor.pids(), "until the new one is there, nobody may be killed in its name"
    assert end_of(executor, executor.submit(call)).outcome == "done"
    assert executor.pids()[STREAM, 0] != pid


def test_an_exception_comes_back_with_its_text(executor: RayExecutor) -> None:
    start(executor, STREAM, "null_stream")
    completion = end_of(executor, executor.submit(Call(stage=STREAM, worker=0, method="nothing", requests=())))
    assert completion.outcome == "failed"
    assert "nothing" in completion.error


LEFT_ALONE = """
import signal
from ray._private import utils, worker
before = (utils.set_sigterm_handler, worker.print_to_stdstream, signal.getsignal(signal.SIGTERM))

def changed():
    now = (utils.set_sigterm_handler, worker.print_to_stdstream, signal.getsignal(signal.SIGTERM))
    return [old is not new for old, new in zip(before, now)]

from pipeline.run.ray_executor import RayExecutor
executor = RayExecutor(num_cpus=1, store_bytes=80 << 20)
print(*changed())
executor.close()
print(*changed())
"""


def test_what_is_replaced_inside_ray_is_put_back_when_ray_is_left() -> None:
    ended = subprocess.run([sys.executable, "-c", LEFT_ALONE], cwd=ROOT, capture_output=True, text=True)
    # Only what would print to standard output is kept away for as long as Ray is up.
    assert ended.stdout.splitlines() == ["False True False", "False False False"], ended.stderr


def private_kib(pid: int) -> int:
    """Memory that no other process shares."""
    lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))


def test_the_calls_of_one_worker_come_back_in_their_order(executor: RayExecutor) -> None:
    start(executor, STREAM, "null_counter", count=2)
    executor.wait_ready()
    counted: dict[int, list[int]] = {0: [], 1: []}

    def submit(worker: int) -> int:
        return executor.submit(Call(stage=STREAM, worker=worker, method="count", requests=()))

    # Ray reports the second of two calls before the first in one case of twenty.
    asked = {submit(worker): worker for worker in (0, 0, 0, 1, 1, 1)}
    while min(map(len, counted.values())) < 400:
        for completion in executor.poll(1.0):
            worker = asked.pop(completion.ticket)
            counted[worker].append(completion.reply.rows[0])
            asked[submit(worker)] = worker
    for numbers in counted.values():
        assert numbers == list(range(1, len(numbers) + 1))
    while asked:
        for completion in executor.poll(1.0):
            del asked[completion.ticket]


def test_rays_head_keeps_no_record_of_calls_that_are_over(executor: RayExecutor) -> None:
    start(executor, STREAM, "null_stream")
    executor.wait_ready()
    (head,) = (
        int(entry.parent.name)
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if "gcs_server" in (line := entry.read_text()) and executor._local and executor._local.folder in line
    )
    call = Call(stage=STREAM, worker=0, method="close", requests=("x",))

    def call_often() -> int:
        for _ in range(800):
            end_of(executor, executor.submit(call))
        time.sleep(2.5)  # until word of them would have come
        return private_kib(head)

    before = call_often()
    assert call_often() - before < 1200, "each call would leave 4 KB"


def test_a_call_of_a_worker_that_is_killed_ends_at_once_and_is_not_waited_for(executor: RayExecutor) -> None:
    start(executor, SOURCE, "null_source")
    executor.wait_ready()
    source = Source(source_id=source_id("/hangs-1"), uri="/hangs-1", video_id="hangs-1")
    ticket = executor.submit(Call(stage=SOURCE, worker=0, method="read", requests=(ReadRequest(source=source),)))
    assert executor.poll(0.5) == []
    executor.kill(SOURCE, 0)
    behind = executor.submit(Call(stage=SOURCE, worker=0, method="read", requests=()))
    assert [(ended.ticket, ended.outcome) for ended in executor.poll(0.0)] == [(ticket, "died"), (behind, "died")]


def test_a_worker_in_whose_place_another_is_made_is_ended_though_it_lives(executor: RayExecutor) -> None:
    start(executor, STREAM, "null_stream")
    executor.wait_ready()
    pid = executor.pids()[STREAM, 0]
    executor.replace(STREAM, 0)
    assert (STREAM, 0) in executor.missing() and not executor.is_ready(STREAM, 0)
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists(), 10), "two would do the work of one"
    executor.wait_ready()
    assert executor.missing().get((STREAM, 0)) is None
