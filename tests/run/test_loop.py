"""The loop over the stages in this process, with workers that do nothing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from operators.errors import ConfigError, StageError
from operators.records import ClipLabel, Media, Source, clip_id, source_id
from pipeline.commands.label_display import summary_rows
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.label_recorder import LabelRecorder
from pipeline.run.loop import Runner, StopRequest
from pipeline.run.metrics import RunMetrics, StageTime, summarise
from pipeline.run.source_feed import SourceFeed
from pipeline.steering.batching import Batcher
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import Completion, WorkerSpec
from pipeline.steering.in_flight import FlowLimits
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler

STAGES = (SOURCE, STREAM, FOCUS, SINK)


def source(name: str, media: Media = Media.VIDEO) -> Source:
    return Source(source_id=source_id(name), uri=f"/{name}", video_id=name, media=media)


def clip(name: str, start_s: float = 0.0) -> str:
    return clip_id(source_id(name), start_s)


@dataclass
class Run:
    """A run that has ended: its runner and the labels that were written."""

    runner: Runner
    written: list[ClipLabel] = field(default_factory=list)

    @property
    def metrics(self) -> RunMetrics:
        return self.runner.metrics

    @property
    def names(self) -> list[str]:
        return sorted(label.video_id for label in self.written)

    @property
    def codes(self) -> dict[str, str | None]:
        return {label.video_id: label.error_code for label in self.written}


def run(
    sources: Iterable[Source],
    *,
    done: DoneSet | None = None,
    num_windows: int = 1,
    stride_s: float = 0.0,
    max_failed: int | None = None,
    stop: StopRequest | None = None,
    on_progress: Callable[[Run], None] = lambda run: None,
    clock: Callable[[], float] = time.monotonic,
    note: Callable[..., None] = lambda event, **facts: None,
    executor: InlineExecutor | None = None,
    options: Mapping[str, Any] | None = None,
    **limits: Any,
) -> Run:
    """Runs to the end, with one worker per stage and few clips under way. `options`: further ones of the runner."""
    recorder = LabelRecorder(
        done=DoneSet() if done is None else done,
        metrics=RunMetrics(stages={stage: StageTime() for stage in STAGES}),
        max_failed=max_failed,
        clock=clock,
    )
    written: list[ClipLabel] = []
    executor = executor or InlineExecutor()
    arguments: dict[str, dict[str, Any]] = {
        SOURCE: {"num_windows": num_windows, "stride_s": stride_s},
        SINK: {"written": written},
    }
    for stage in STAGES:
        factory = f"tests.support.null_workers:null_{stage}"
        executor.start(WorkerSpec(stage=stage, factory=factory, arguments=arguments.get(stage, {})))
    scheduler = Scheduler(
        workers=dict.fromkeys(STAGES, 1),
        limits=FlowLimits(stride_s=stride_s, **{"max_pieces": 4, "part_age_s": 0.0, **limits}),
        batcher=Batcher(max_rows=8, max_wait_s=0.1),
        is_wanted=recorder.is_wanted,
        on_label=recorder.add,
    )
    seen: list[Run] = []
    runner = Runner(
        executor=executor,
        scheduler=scheduler,
        feed=SourceFeed(iter(sources)),
        recorder=recorder,
        stop=stop or StopRequest(),
        deadline_s=30.0,
        stride_s=stride_s,
        on_progress=lambda runner: on_progress(seen[0]),
        note=note,
        clock=clock,
        **(options or {}),
    )
    seen.append(Run(runner, written))
    runner.run()
    executor.close()
    return seen[0]


def test_every_source_gives_its_row_once() -> None:
    names = [f"cat-{n}" for n in range(20)]
    done = run([source(name) for name in names])
    assert done.names == sorted(names)
    assert {label.clip_id for label in done.written} == {clip(name) for name in names}
    assert done.metrics.labelled == done.metrics.committed == 20


def test_a_run_without_inputs_ends() -> None:
    assert run([]).written == []


def test_what_cannot_be_read_is_a_row_and_costs_nobody_else() -> None:
    done = run([source("cat"), source("corrupt-1"), source("raises-1"), source("dog")])
    assert done.codes == {"cat": None, "corrupt-1": "corrupt", "raises-1": "internal", "dog": None}
    assert done.metrics.errors == {"corrupt": 1, "internal": 1}
    assert (done.metrics.labelled, done.metrics.failed) == (2, 2)


def test_images_that_were_in_one_call_with_one_that_raises_are_labelled() -> None:
    images = [source(name, Media.IMAGE) for name in ("cat", "raises-1", "dog", "corrupt-1")]
    assert run(images).codes == {"cat": None, "raises-1": "internal", "dog": None, "corrupt-1": "corrupt"}


def test_a_path_that_is_given_again_is_labelled_once_and_counted() -> None:
    done = run([source("cat"), source("cat"), source("dog"), source("cat")])
    assert done.names == ["cat", "dog"]
    assert (done.metrics.duplicates, done.metrics.done_before) == (2, 0)


def _labelled_before(*clips: str) -> DoneSet:
    return DoneSet(np.array([divmod(int(name, 16), 2**64) for name in clips], np.uint64))


@pytest.mark.parametrize("num_windows", [1, 3])
def test_a_source_that_is_given_again_long_after_its_label_is_one_that_was_given_twice(num_windows: int) -> None:
    names = [f"cat-{n}" for n in range(60)]
    again = ["cat-0", "cat-1", "corrupt-1", "cat-7", "cat-0"]
    known = _labelled_before(*(clip("cat-7", window * 2.0) for window in range(num_windows)))
    sources = [source(name) for name in ["corrupt-1", *names, *again]]
    done = run(sources, done=known, num_windows=num_windows, stride_s=2.0 if num_windows > 1 else 0.0)
    assert done.metrics.duplicates == len(again)
    # The windows of a source in part labelled before are counted where they are read.
    assert done.metrics.done_before == (1 if num_windows == 1 else 0)
    assert len(done.written) == 59 * num_windows + 1 and len(set(done.names)) == 60


def test_a_second_run_labels_only_what_is_missing() -> None:
    known = _labelled_before(clip("cat-1"), clip("cat-3"))
    done = run([source(f"cat-{n}") for n in range(5)], done=known)
    assert done.names == ["cat-0", "cat-2", "cat-4"]
    assert done.metrics.done_before == 2


@pytest.mark.parametrize("stride_s", [0.0, 2.0])
def test_inputs_that_failed_in_an_earlier_run_are_counted_apart_from_those_that_it_labelled(stride_s: float) -> None:
    keys = [tuple(divmod(int(clip(name), 16), 2**64)) for name in ("cat-1", "corrupt-1", "corrupt-2")]
    known = DoneSet(np.array(keys, np.uint64), failed=np.array(keys[1:], np.uint64))
    run([source("cat-1"), source("cat-2"), source("corrupt-1"), source("corrupt-3")], done=known, stride_s=stride_s)
    assert known.num_failed_met == 1


def test_a_source_that_was_labelled_in_part_goes_on_behind_its_last_label() -> None:
    known = _labelled_before(*(clip("cat", window * 2.0) for window in (0, 1, 3)))
    done = run([source("cat")], done=known, num_windows=6, stride_s=2.0)
    assert {label.clip_id for label in done.written} == {clip("cat", window * 2.0) for window in (2, 4, 5)}


def test_too_many_failures_end_the_run_and_what_was_done_is_written() -> None:
    names = ["cat", *(f"corrupt-{n}" for n in range(100))]
    done = run([source(name) for name in names], max_failed=3)
    assert done.runner.ended_early == "3 items failed (run.max_failed=3)"
    assert 3 <= len([code for code in done.codes.values() if code]) < 100
    assert len(done.written) == done.metrics.labelled + done.metrics.failed


def test_no_failure_allowed_means_that_the_first_one_ends_the_run() -> None:
    done = run([source(f"cat-{n}") for n in range(10)], max_failed=0)
    assert (done.runner.ended_early, len(done.written)) == (None, 10)
    failed = run([source("corrupt-1"), *(source(f"cat-{n}") for n in range(100))], max_failed=0)
    assert failed.runner.ended_early and len(failed.written) < 100


def test_a_run_that_is_stopped_writes_what_it_has_read_and_the_next_does_the_rest() -> None:
    stop = StopRequest()
    known = DoneSet()

    def stop_after_five(seen: Run) -> None:
        stop.is_set = stop.is_set or seen.metrics.labelled >= 5

    names = [f"cat-{n}" for n in range(60)]
    first = run([source(name) for name in names], done=known, stop=stop, on_progress=stop_after_five)
    assert first.runner.was_stopped
    # Labelled five, and at most what was held beside them.
    assert 5 <= len(first.written) < 20
    assert first.metrics.committed == first.metrics.labelled == len(first.written)
    second = run([source(name) for name in names], done=known)
    assert sorted(first.names + second.names) == sorted(names)


def test_a_call_that_waits_long_for_its_turn_is_not_given_up_where_nothing_can_be_killed() -> None:
    # Two looks at the clock are longer than the deadline, and one call runs at a time.
    ticks = itertools.count()
    done = run([source(f"cat-{n}") for n in range(10)], clock=lambda: 20.0 * next(ticks))
    assert set(done.codes.values()) == {None}


class Mortal(InlineExecutor):
    """Its focus worker dies once, at its first call."""

    is_dead = False

    def poll(self, timeout_s: float) -> list[Completion]:
        if not self.is_dead and self._waiting and self._waiting[0][1].stage == FOCUS:
            self.is_dead = True
            return [Completion(ticket=self._waiting.popleft()[0], outcome="died", error="out of memory")]
        return super().poll(timeout_s)


def test_deaths_exceptions_and_the_end_are_noted() -> None:
    noted: list[tuple[str, dict[str, Any]]] = []
    names = ["cat-1", "raises-1", "corrupt-1", *(f"dog-{n}" for n in range(50))]
    sources = map(source, names)
    run(sources, max_failed=1, executor=Mortal(), note=lambda event, **facts: noted.append((event, facts)))
    by_event = dict(noted)
    assert by_event.keys() == {"died", "exception", "stopping"}
    assert (by_event["died"]["stage"], by_event["died"]["why"]) == (FOCUS, "out of memory")
    assert "/raises-1" in by_event["exception"]["sources"]
    assert "RuntimeError: raises-1 raises" in by_event["exception"]["trace"]
    assert "run.max_failed=1" in by_event["stopping"]["why"]


def test_what_the_listing_raises_ends_the_run() -> None:
    def listing() -> Iterator[Source]:
        yield source("cat")
        raise ConfigError("list.txt: line 2 is no path")

    with pytest.raises(ConfigError, match="line 2"):
        run(listing())


def test_a_sink_that_raises_ends_the_run() -> None:
    class Full(list):  # type: ignore[type-arg]
        def extend(self, labels: object) -> None:
            raise OSError("no space left on device")

    with pytest.raises(StageError, match="no space left on device"):
        run_with_sink(Full())


def run_with_sink(written: list[ClipLabel]) -> None:
    executor = InlineExecutor()
    arguments: dict[str, dict[str, Any]] = {SINK: {"written": written}}
    for stage in STAGES:
        factory = f"tests.support.null_workers:null_{stage}"
        executor.start(WorkerSpec(stage=stage, factory=factory, arguments=arguments.get(stage, {})))
    recorder = LabelRecorder(done=DoneSet(), metrics=RunMetrics())
    scheduler = Scheduler(
        workers=dict.fromkeys(STAGES, 1),
        limits=FlowLimits(part_age_s=0.0),
        batcher=Batcher(max_rows=8, max_wait_s=0.1),
        is_wanted=recorder.is_wanted,
        on_label=recorder.add,
    )
    Runner(
        executor=executor,
        scheduler=scheduler,
        feed=SourceFeed(iter([source("cat")])),
        recorder=recorder,
        stop=StopRequest(),
        deadline_s=30.0,
    ).run()


def test_a_run_is_summed_up() -> None:
    done = run([source("cat-1"), source("cat-2"), source("dog-1"), source("corrupt-1")])
    stages = done.metrics.stages
    assert stages[FOCUS].items == 6
    assert stages[FOCUS].padded == 6
    assert stages[SOURCE].busy_s == 0.25 * stages[SOURCE].calls
    summary = summarise(
        done.metrics,
        wall_s=10.0,
        skipped_files={"txt": 2},
        out="out",
        run_id="run",
        interrupted=False,
        ended_early=None,
        is_trained=True,
        model_id="model",
        config_id="config",
    )
    assert (summary.clips, summary.failed, summary.errors) == (3, 1, {"corrupt": 1})
    assert summary.clips_per_s == pytest.approx(0.3)
    # Two of three are cats, and all are said to be.
    assert summary.accuracy == pytest.approx(2 / 3)
    assert summary.focused_share == pytest.approx(2 / 8)
    assert summary.mean_steps == 3.0
    assert (summary.gmacs_per_clip, summary.gmacs_full_per_clip) == (1.5, 6.0)
    assert summary.occupancy == 0.5
    assert summary.stages[FOCUS]["busy_share"] == pytest.approx(stages[FOCUS].calls / 10)
    assert summary.bottleneck == FOCUS


def test_the_summary_says_how_long_patches_waited_and_how_much_focus_workers_idled() -> None:
    # Two passes of 1.5 and 2.5 s with 1 s between them; 20 patches that waited 3 s all together.
    focus = StageTime(workers=2, calls=2, busy_s=4.0, wait_s=1.0, items=20)
    metrics = RunMetrics(stages={FOCUS: focus}, labelled=4, patches_sent=20, patches_waited_s=3.0)
    facts = {"run_id": "run", "interrupted": False, "ended_early": None, "is_trained": True}
    summary = summarise(metrics, wall_s=9.0, skipped_files={}, out="out", model_id="m", config_id="c", **facts)
    assert (summary.patch_wait_s, summary.focus_idle_share) == pytest.approx((0.15, 0.2))
    rows = dict(summary_rows(summary, stats=True))
    assert rows["patches waited"] == "150.0 ms on average, until their batch went"
    assert rows["focus workers idle"] == "20% of the time between their first batch and their last"
    assert rows["focus batches"] == "100.0% real patches"


def test_a_run_that_did_nothing_is_summed_up_too() -> None:
    summary = summarise(
        RunMetrics(),
        wall_s=0.0,
        skipped_files={},
        out="out",
        run_id="run",
        interrupted=True,
        ended_early=None,
        is_trained=True,
        model_id="model",
        config_id="config",
    )
    assert (summary.clips, summary.clips_per_s, summary.accuracy, summary.occupancy) == (0, 0.0, None, None)
    assert summary.bottleneck is None
