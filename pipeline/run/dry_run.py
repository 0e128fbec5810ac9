"""`--dry-run`: what a run would do and cost. Its inputs are counted, and a few of them are labelled to time it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from operators.records import ClipLabel, Source, clip_id
from operators.table.output import inspect_table
from pipeline.config import Config
from pipeline.plan.placement import Machine, Placement, this_machine
from pipeline.plan.resolve import resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.plan.tuning import cache_folder
from pipeline.run.inline_executor import InlineExecutor
from pipeline.run.label_recorder import LabelRecorder
from pipeline.run.loop import Runner, StopRequest
from pipeline.run.metrics import RunMetrics, StageTime
from pipeline.run.session import machine_of, settings_of_table
from pipeline.run.source_feed import SourceFeed
from pipeline.steering.done_set import DoneSet
from pipeline.steering.executor import WorkerSpec
from pipeline.steering.messages import Reply, WriteRequest
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Scheduler

WORKER_BYTES = 420 << 20
"""Resident size of a worker that has torch loaded, measured on Linux with torch 2.13; a source worker takes a fifth."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would do, and what it would cost as far as that is known."""

    inputs: int
    done_before: int
    """How many inputs have a row from an earlier run, even if it is that of their first window only."""
    failed_before: int
    """How many of those have a row that says that they failed."""
    clips: int
    """How many clips would be labelled now."""
    gmacs_per_clip: float
    gmacs: float
    seconds_per_clip: float | None
    """The time of one core, measured on the first inputs. None where none of them could be labelled."""
    wall_s: float | None
    memory_bytes: int
    sampled: int
    remark: str | None
    """How the measured time differs from what the run will have; None where it does not."""
    errors: list[str]
    """Why inputs that were tried could not be labelled."""
    is_trained: bool

    def to_dict(self) -> dict[str, object]:
        return asdict(self)

    def text(self) -> str:
        time_text = "unknown: none of the first inputs could be labelled"
        if not self.clips:
            time_text = "none: nothing is left to label"
        elif self.seconds_per_clip is not None and self.wall_s is None:
            time_text = f"unknown; {self.seconds_per_clip:.3g} s a clip on one core of this machine"
        elif self.wall_s is not None:
            time_text = f"about {self.wall_s:.0f} s, from {self.sampled} input(s) labelled for a try"
        lines = [f"inputs      {self.inputs}"]
        if self.done_before > self.failed_before:
            lines.append(f"labelled    {self.done_before - self.failed_before} of them before")
        if self.failed_before:
            lines.append(f"failed      {self.failed_before} of them before; --retry-failed labels them again")
        lines += [
            f"clips       {self.clips}",
            f"GMACs       {self.gmacs:.4g} ({self.gmacs_per_clip:.4g} per clip, if no clip stops early)",
            f"time        {time_text}",
            f"memory      {self.memory_bytes / 2**30:.1f} GiB at most",
        ]
        if self.remark is not None:
            lines.append(f"note        {self.remark}")
        lines += [f"error       {error}" for error in self.errors]
        if not self.is_trained:
            lines.append("weights     UNTRAINED (seeded random)")
        return "\n".join(lines)


class _NullSink:
    """A sink worker that writes nothing and keeps the labels that failed."""

    def __init__(self, failed: list[ClipLabel]) -> None:
        self._failed = failed

    def write(self, requests: tuple[WriteRequest, ...], payloads: tuple) -> tuple[Reply, None]:
        self._failed += [label for request in requests for label in request.labels if label.error_code is not None]
        return Reply(rows=()), None


def null_sink(failed: list[ClipLabel]) -> _NullSink:
    return _NullSink(failed)


def estimate(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    *,
    sample: int = 3,
    out: Path | None = None,
    resume: bool = True,
    retry_failed: bool = False,
) -> Estimate:
    """Lists all inputs and labels the first few in this process, writing nothing.

    `out`: the table that a run would go on with. Raises what the run would be refused with. A cluster's plan is not
    run here: the first inputs are labelled on what this machine has.
    """
    machine = machine_of(config)
    seen = inspect_table(out) if out is not None and resume else None
    plan = resolve(config, machine, remembered=settings_of_table(seen.identity) if seen else None, cache=cache_folder())
    if seen is not None:
        seen.check(plan.identity())
    inputs = _Inputs(
        labelled=DoneSet(seen.labelled if seen else None),
        failed=DoneSet(seen.failed if seen and not retry_failed else None),
    )
    head = inputs.count(list_sources(plan.class_names), sample=sample)
    trial = _plan_here(config, plan)
    if trial.placement.device == "cuda":
        # A GPU's first passes take many times as long as all others.
        _try_out(trial, head[:1], [])
    errors: list[ClipLabel] = []
    metrics, busy_s = _try_out(trial, head, errors)
    per_source = max(1.0, (metrics.labelled + metrics.failed) / len(head)) if head else 0.0
    clips = round((inputs.num - inputs.num_labelled - inputs.num_failed) * per_source)
    seconds = busy_s / metrics.labelled if metrics.labelled else None
    gmacs = metrics.gmacs / metrics.labelled if metrics.labelled else 0.0
    workers = plan.placement
    is_inline = config.run.executor == "inline"
    is_alike = workers.device == trial.placement.device
    return Estimate(
        inputs=inputs.num,
        done_before=inputs.num_labelled + inputs.num_failed,
        failed_before=inputs.num_failed,
        clips=clips,
        gmacs_per_clip=gmacs,
        gmacs=gmacs * clips,
        seconds_per_clip=seconds,
        wall_s=None
        if seconds is None or not is_alike
        else wall_s(metrics, busy_s, machine, workers, in_turn=is_inline) * clips / metrics.labelled,
        memory_bytes=_memory_bytes(workers),
        sampled=len(head),
        remark=None if config.run.ray_address is None else _remark(workers.device, tried_on=trial.placement.device),
        errors=[f"{label.error_code}: {label.error}" for label in errors],
        is_trained=plan.is_trained,
    )


@dataclass(slots=True)
class _Inputs:
    """The inputs of a run, counted, and which of their clips have a row from an earlier run."""

    labelled: DoneSet
    failed: DoneSet
    num: int = 0
    num_labelled: int = 0
    num_failed: int = 0

    def count(self, sources: Iterator[Source], *, sample: int) -> list[Source]:
        """Counts all inputs, and gives the first so many of those that would be labelled now."""
        head: list[Source] = []
        for source in sources:
            self.num += 1
            clip = clip_id(source.source_id, 0.0)
            if clip in self.labelled:
                self.num_labelled += 1
            elif clip in self.failed:
                self.num_failed += 1
            elif len(head) < sample:
                head.append(source)
        return head


def _memory_bytes(workers: Placement) -> int:
    """The memory that the driver, all workers and the object store take at most."""
    return (
        (1 + workers.stream_workers + workers.focus_workers) * WORKER_BYTES
        + workers.source_workers * WORKER_BYTES // 5
        + workers.store_bytes
    )


def _remark(device: str, *, tried_on: str) -> str:
    """What the figures of inputs that were tried here leave out where a cluster would label them."""
    remark = f"the inputs were tried on this machine ({tried_on}), not on the cluster"
    return remark if device == tried_on else f"{remark} ({device}): how fast that is, is not known here"


def _plan_here(config: Config, plan: RunPlan) -> RunPlan:
    """The plan by which the first inputs are tried: on this machine, by one thread, networks as in the run."""
    compute, device = plan.config.compute, plan.placement.device
    is_joined = config.run.ray_address is not None
    tried = config.replaced(
        {
            "run.executor": "inline",
            "run.ray_address": None,
            "run.threads": 1,
            "run.source_workers": None,
            "run.stream_workers": None,
            "run.focus_workers": None,
            # A cluster may have a GPU, and kernels, that this machine lacks.
            "compute.device": "auto" if is_joined and device == "cuda" else device,
            "compute.precision": compute.precision,
            "compute.compile": "auto" if is_joined else plan.tuned.compile,
            "focus.batch_size": config.focus.batch_size or plan.tuned.focus_batch,
        }
    )
    return resolve(tried, this_machine())


def wall_s(
    metrics: RunMetrics, busy_s: float, machine: Machine, workers: Placement, *, in_turn: bool = False
) -> float:
    """The time that the clips which were tried take with all workers at work, by the seconds that one thread took.

    All stages share the cores that the run may use, and no stage has more of them than its workers' threads; `in_turn`:
    in one process one stage works at a time. What a GPU does is not shared out among cores.
    """
    times = metrics.stages
    if workers.device == "cpu":
        threads = {
            SOURCE: workers.source_workers * workers.source_threads,
            STREAM: workers.stream_workers * workers.stream_threads,
            FOCUS: workers.focus_workers * workers.focus_threads,
        }
        cores = min(machine.num_cores, workers.num_threads)
        alone = [times[stage].busy_s / min(n, cores) for stage, n in threads.items()]
        return sum(alone) if in_turn else max(busy_s / cores, *alone)
    if in_turn:
        return busy_s
    on_gpus_s = (times[STREAM].busy_s + times[FOCUS].busy_s) / max(1, machine.num_gpus)
    return max(times[SOURCE].busy_s / workers.source_workers, on_gpus_s)


def _try_out(plan: RunPlan, sources: list[Source], failed: list[ClipLabel]) -> tuple[RunMetrics, float]:
    executor = InlineExecutor()
    recorder = LabelRecorder(
        done=DoneSet(), metrics=RunMetrics(stages={name: StageTime() for name in plan.workers})
    )
    with contextlib.closing(executor), SourceFeed(iter(sources)) as feed:
        executor.start(
            WorkerSpec(stage=SINK, factory="pipeline.run.dry_run:null_sink", arguments={"failed": failed})
        )
        for spec in plan.worker_specs():
            executor.start(spec)
        runner = Runner(
            executor=executor,
            scheduler=Scheduler(
                workers=plan.workers,
                limits=plan.limits,
                batcher=plan.batcher(),
                is_wanted=recorder.is_wanted,
                on_label=recorder.add,
            ),
            feed=feed,
            recorder=recorder,
            stop=StopRequest(),
            deadline_s=plan.config.decode.timeout_s,
            stride_s=plan.limits.stride_s,
        )
        begun_s = time.monotonic()
        runner.run()
    return recorder.metrics, time.monotonic() - begun_s
