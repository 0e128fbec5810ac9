"""`bench archive`: from files to labels, over Ray, beside what the machine allows and beside a plain loop.

The limit is the sum of all stages' CPU seconds, each measured alone, over the number of cores: nothing that does this
work with these parts can be faster. Rates are of the steady state; the start is a figure of its own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from operators.errors import PipelineError
from operators.records import Source
from pipeline.bench.figures import Figure, Report, environment, measured, ratio, short
from pipeline.bench.plain import fastest_decoder, plain_seconds
from pipeline.bench.session import Burst, Session
from pipeline.bench.sweep import sweep
from pipeline.bench.workloads import CACHE, LONG, QUICK_LONG, QUICK_SHORT, SHORT, as_sources, make
from pipeline.config import Config
from pipeline.executor import WorkerSpec, make_worker
from pipeline.messages import OpenRequest, ReadRequest, Slice, StepRequest, WriteRequest
from pipeline.placement import this_machine
from pipeline.resolve import Plan
from pipeline.scheduler import FOCUS, SINK, SOURCE, STREAM

Say = Callable[[str], None]
POLICIES = ("center", "random", "full")
QUICK_SETTINGS = {
    "model.glance_backbone": "small_glance",
    "model.focus_backbone": "small_focus",
    "sampling.num_frames": 4,
    "view.resize_px": 96,
    "view.crop_px": 96,
    "glance.size_px": 32,
    "focus.patch_px": 32,
    # Each clip ends by itself, so that few are enough to tell a rate.
    "focus.batch_size": 4,
}


@dataclass(frozen=True, kw_only=True)
class Files:
    """The workload, and how much of it is one sample."""

    long: list[Path]
    short: list[Path]

    @property
    def mix(self) -> list[Path]:
        """One lap: the long ones evenly between the short ones, so that any stretch is like any other."""
        every = len(self.short) // len(self.long)
        return [
            path
            for number, long in enumerate(self.long)
            for path in (long, *self.short[number * every : (number + 1) * every])
        ]


@dataclass(slots=True)
class Seconds:
    """Per clip, one entry per round."""

    mix: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    short: list[float] = field(default_factory=list)
    inline: list[float] = field(default_factory=list)
    plain_long: list[float] = field(default_factory=list)
    plain_short: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    """Of the mix."""
    stages: list[dict[str, float]] = field(default_factory=list)
    bursts: list[Burst] = field(default_factory=list)


def bench_archive(
    config: Config,
    *,
    cache: Path = CACHE,
    say: Say,
    quick: bool = False,
    rounds: int = 5,
    minutes: float = 7.0,
    policies: Sequence[str] = POLICIES,
    is_swept: bool = False,
) -> Report:
    """`config`: the model, and whatever else is to be measured. Rounds that would go beyond `minutes` are not begun.

    `is_swept`: also what a clip costs as the work grows, which takes longer than that.
    """
    where = environment()
    cores = this_machine().num_cores
    if quick:
        config, rounds, policies = config.replaced(QUICK_SETTINGS), 1, policies[:1]
    kinds = (QUICK_LONG, QUICK_SHORT) if quick else (LONG, SHORT)
    files = Files(
        long=make(kinds[0], cache, say=say, workers=cores), short=make(kinds[1], cache, say=say, workers=cores)
    )
    begun_s = time.monotonic()

    def until(share: float) -> float:
        return begun_s + share * minutes * 60

    with ExitStack() as stack:
        aside = Aside(stack, cores=cores)
        exact = Session(config.replaced({"sampling.seek": "exact"}))
        seconds = Seconds()
        exact.run(functools.partial(_rounds, files, aside, seconds, rounds, until(0.62), say))
        near, plain_near = Session(config.replaced({"sampling.seek": "keyframe"})), Seconds()
        near.run(functools.partial(_keyframe_rounds, files, aside, plain_near, rounds, until(0.78), say))
    figures = _figures(files, exact, seconds, plain_near, cores)
    for policy in policies:
        if time.monotonic() > until(0.97):
            say(f"time is up: policy {policy} is left out")
            continue
        found = _policy_burst(config, policy, files, say)
        rates = [1 / found.seconds_per_clip]
        about = "short clips" + (", the whole view through the focus network" if policy == "full" else "")
        figures.append(measured(f"archive.clips_per_s_{policy}", rates, unit="clips/s", about=about))
    if is_swept:
        figures += sweep(config, files.short, say=say, quick=quick)
    by_name = {figure.name: figure for figure in figures}
    headline = (
        f"{short(by_name['archive.clips_per_s'].value)} clips per second ({len(files.short)} of {kinds[1].seconds:g} s "
        f"and {len(files.long)} of {kinds[0].seconds:g} s) on {cores} cores, "
        f"{by_name['archive.share_of_limit'].value:.0%} of what they allow; long videos "
        f"{short(by_name['archive.vs_plain_long'].value)} times and short ones "
        f"{short(by_name['archive.vs_plain_short'].value)} times as fast as a plain loop"
    )
    assert exact.plan is not None
    settings = {
        "quick": quick, "rounds": len(seconds.mix), "minutes": minutes, "config": exact.plan.config.given(),
        "placement": vars(exact.plan.placement), "long": vars(kinds[0]), "short": vars(kinds[1]),
    }  # fmt: skip
    notes = (
        exact.plan.opening_line(),
        f"the plain loop decodes with {aside.decoder}, the faster of OpenCV and PyAV here",
        "rates are of the steady state: the middle of a burst, with full stages before and more waiting behind",
    )
    return Report(
        what="archive", headline=headline, figures=tuple(figures), environment=where, settings=settings, notes=notes
    )


class Aside:
    """What the pipeline is measured against, each in a process of its own that waits until it is asked."""

    def __init__(self, stack: ExitStack, *, cores: int) -> None:
        self._plain, self._stages, self._inline = (_process(stack) for _ in range(3))
        self._cores = cores
        self.decoder = ""

    def plain(self, plan: Plan, paths: Sequence[Path]) -> float:
        """Seconds per clip of the plain loop."""
        if not self.decoder:
            self.decoder = self._plain.submit(fastest_decoder, str(paths[0]), plan.config.sampling.num_frames).result()
        form = plan.config.model_dump_json(), plan.model_id
        names = [str(path) for path in paths]
        return self._plain.submit(plain_seconds, *form, names, self._cores, self.decoder).result() / len(paths)

    def stages(self, plan: Plan, paths: Sequence[Path]) -> dict[str, float]:
        """CPU seconds per clip of each stage, alone in a process and in one thread."""
        sizes = plan.placement.clips_per_call, plan.rows_per_batch
        return self._stages.submit(stage_seconds, plan.worker_specs(), sizes, [str(path) for path in paths]).result()

    def inline(self, plan: Plan, files: Files) -> float:
        """Seconds per clip of the mix with everything in one process."""
        return self._inline.submit(_inline_seconds, plan.config.model_dump_json(), files).result()


def _process(stack: ExitStack) -> ProcessPoolExecutor:
    """One that runs already: what is started during a run over Ray ends with it."""
    pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")))
    pool.submit(os.getpid).result()
    return pool


# What runs inside a session


def _rounds(
    files: Files, aside: Aside, seconds: Seconds, rounds: int, until_s: float, say: Say, session: Session
) -> Generator[Source, None, None]:
    """Our side and the others, in turn; the order of the two is turned every round."""
    yield from session.through(files.mix[: len(files.mix) // 3])
    plan = session.plan
    assert plan is not None
    say(f"{plan.opening_line()}; first label after {session.start_s:.1f} s")
    some_long, some_short = files.long[:1], files.short[:4]
    # Once before it counts: weights are loaded, pages are touched, whatever is compiled is compiled.
    aside.plain(plan, some_short[:1])
    aside.stages(plan, some_short[:2])

    def ours() -> Generator[Source, None, None]:
        burst = yield from session.steady(files.mix)
        seconds.bursts.append(burst)
        seconds.mix.append(burst.seconds_per_clip)
        # Reading is what they wait for, so nothing piles up that would have to before it is steady.
        few = max(1, len(files.long) // 3)
        burst = yield from session.steady(files.long, lead=few)
        seconds.long.append(burst.seconds_per_clip)
        burst = yield from session.steady(files.short)
        seconds.short.append(burst.seconds_per_clip)

    def theirs() -> None:
        seconds.plain_long.append(aside.plain(plan, some_long))
        seconds.plain_short.append(aside.plain(plan, some_short))
        by_kind = aside.stages(plan, some_long), aside.stages(plan, some_short)
        seconds.stages.append(_mixed(files, *by_kind))
        seconds.limit.append(sum(seconds.stages[-1].values()) / this_machine().num_cores)
        seconds.inline.append(aside.inline(plan, files))

    longest_s = 0.0
    for number in range(rounds):
        round_s = time.monotonic()
        if number and round_s + longest_s > until_s:
            say(f"time is up after {number} of {rounds} rounds")
            return
        if number % 2:
            theirs()
        yield from ours()
        if number % 2 == 0:
            theirs()
        longest_s = max(longest_s, time.monotonic() - round_s)
        say(
            f"round {number + 1} of {rounds}, seconds per clip: mix {seconds.mix[-1]:.3f} "
            f"(limit {seconds.limit[-1]:.3f}, inline {seconds.inline[-1]:.3f}), "
            f"long {seconds.long[-1]:.3f} (plain {seconds.plain_long[-1]:.3f}), "
            f"short {seconds.short[-1]:.3f} (plain {seconds.plain_short[-1]:.3f})"
        )


def _keyframe_rounds(
    files: Files, aside: Aside, seconds: Seconds, rounds: int, until_s: float, say: Say, session: Session
) -> Generator[Source, None, None]:
    yield from session.through(files.long)
    plan = session.plan
    assert plan is not None
    longest_s = 0.0
    for number in range(rounds):
        round_s = time.monotonic()
        if number and round_s + longest_s > until_s:
            say(f"time is up after {number} of {rounds} rounds")
            return
        burst = yield from session.steady(files.long * 3)
        seconds.long.append(burst.seconds_per_clip)
        seconds.plain_long.append(aside.plain(plan, files.long[:1]))
        longest_s = max(longest_s, time.monotonic() - round_s)
        say(f"keyframes, round {number + 1}: {seconds.long[-1]:.3f} s per clip (plain {seconds.plain_long[-1]:.3f})")


def _policy_burst(config: Config, policy: str, files: Files, say: Say) -> Burst:
    found: list[Burst] = []

    def script(session: Session) -> Generator[Source, None, None]:
        yield from session.through(files.short[:4])
        found.append((yield from session.steady(files.short)))

    Session(config.replaced({"policy.kind": policy})).run(script)
    say(f"policy {policy}: {1 / found[0].seconds_per_clip:.2f} short clips per second")
    return found[0]


def _inline_seconds(config_json: str, files: Files) -> float:
    """In a process of its own: a third of a lap, after a few to warm up."""
    found: list[Burst] = []

    def script(session: Session) -> Generator[Source, None, None]:
        yield from session.through(files.short[:2])
        found.append((yield from session.burst(files.mix[: len(files.mix) // 3], lead=0, tail=0)))

    Session(Config.model_validate_json(config_json).replaced({"run.executor": "inline"})).run(script)
    # One stage after another: there is nothing to fill or to empty, and labels come when much else is done.
    return found[0].whole_s / found[0].num_given


# The limit


_alone: dict[str, dict[str, Any]] = {}
"""The workers of the process that measures stages, kept from one time to the next."""


def _workers(specs: Sequence[WorkerSpec]) -> dict[str, Any]:
    """One of each stage, in one thread: what a stage costs at its best."""
    key = repr(specs)
    if key not in _alone:
        _alone[key] = {
            spec.stage: make_worker(
                spec.factory, {k: 1 if k == "num_threads" else v for k, v in spec.arguments.items()}
            )
            for spec in specs
        }
    return _alone[key]


def stage_seconds(specs: Sequence[WorkerSpec], sizes: tuple[int, int], paths: Sequence[str]) -> dict[str, float]:
    """CPU seconds per clip of source, stream, focus and sink, one after another in this process.

    `sizes`: clips per call of the stream worker and patches per pass of the focus worker, as the run has them.
    """
    workers = _workers(specs)
    clips_per_call, rows_per_pass = sizes
    spent = dict.fromkeys((SOURCE, STREAM, FOCUS, SINK), 0.0)

    def timed(stage: str, method: Callable[..., Any], *arguments: Any) -> Any:
        begun_s = time.process_time()
        answer = method(*arguments)
        spent[stage] += time.process_time() - begun_s
        return answer

    pieces: list[tuple[Any, list[str]]] = []
    for source in as_sources([Path(path) for path in paths], lap=0):
        is_done = False
        while not is_done:
            reply, batches = timed(SOURCE, workers[SOURCE].read, (ReadRequest(source=source),), ())
            row = reply.rows[0]
            if row.failed is not None:
                raise PipelineError(f"{source.uri}: {row.failed.error}")
            pieces += [(batches[info.row], [clip.clip_id for clip in info.clips]) for info in row.pieces]
            is_done = row.is_done
    labels: list[Any] = []
    for start in range(0, len(pieces), clips_per_call):
        group = pieces[start : start + clips_per_call]
        requests = tuple(OpenRequest(Slice(0, i, i + 1), tuple(ids)) for i, (_, ids) in enumerate(group))
        reply, patches = timed(STREAM, workers[STREAM].open, requests, ([batch for batch, _ in group],))
        while patches is not None:
            labels += [row.label for row in reply.rows if row.label is not None]
            waiting = [row for row in reply.rows if row.label is None]
            features = [
                timed(FOCUS, workers[FOCUS].focus, (Slice(0, first, last),), (patches,))[1]
                for first, last in _passes(len(patches.pixels), rows_per_pass)
            ]
            steps = tuple(StepRequest(row.clip_id, _slices(row.start, row.stop, rows_per_pass)) for row in waiting)
            reply, patches = timed(STREAM, workers[STREAM].step, steps, tuple(features))
        labels += [row.label for row in reply.rows if row.label is not None]
    spent[SINK] = _sink_seconds(labels)
    return {stage: seconds / len(paths) for stage, seconds in spent.items()}


def _passes(num_rows: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _slices(start: int, stop: int, size: int) -> tuple[Slice, ...]:
    """Rows start..stop of all patches, as rows of the passes that they fell into."""
    found = []
    for number in range(start // size, -(-stop // size)):
        begin = number * size
        found.append(Slice(number, max(start, begin) - begin, min(stop, begin + size) - begin))
    return tuple(found)


def _sink_seconds(labels: Sequence[Any]) -> float:
    with tempfile.TemporaryDirectory() as out:
        sink = make_worker(
            "pipeline.sink_worker:sink_worker",
            {"out": out, "run_id": "limit", "resume": False, "retry_failed": False},
        )
        sink.open((), ())
        sink.begin(({},), ())
        # A part of a real run holds hundreds; its own cost must not fall on a handful.
        many = list(labels) * max(1, 512 // len(labels))
        begun_s = time.process_time()
        sink.write((WriteRequest(sequence=0, labels=tuple(many)),), ())
        spent_s = time.process_time() - begun_s
        sink.finish((), ())
    return spent_s * len(labels) / len(many)


def _mixed(files: Files, of_long: dict[str, float], of_short: dict[str, float]) -> dict[str, float]:
    """Per clip of the mix."""
    num_long, num_all = len(files.long), len(files.mix)
    return {stage: (num_long * of_long[stage] + (num_all - num_long) * of_short[stage]) / num_all for stage in of_long}


# Figures


def _figures(files: Files, exact: Session, seconds: Seconds, near: Seconds, cores: int) -> list[Figure]:
    limit_s = median(seconds.limit)
    num_timed = seconds.bursts[0].num_clips
    figures = [
        measured(
            "archive.clips_per_s",
            [1 / s for s in seconds.mix],
            unit="clips/s",
            limit=1 / limit_s,
            about=f"{len(files.short)} short and {len(files.long)} long a lap, {num_timed} clips timed a round",
        ),
        ratio(
            "archive.share_of_limit",
            seconds.limit,
            seconds.mix,
            unit="",
            goal=0.9,
            limit=1.0,
            about=f"limit: CPU seconds of all stages alone, over {cores} cores",
        ),
        ratio("archive.vs_plain_long", seconds.plain_long, seconds.long, goal=4.0, about="exact frames"),
        ratio("archive.vs_plain_short", seconds.plain_short, seconds.short, goal=3.3, about="exact frames"),
        ratio("archive.keyframe_vs_plain_long", near.plain_long, near.long, goal=25.0, about="sampling.seek=keyframe"),
        ratio("archive.ray_vs_inline", seconds.inline, seconds.mix, about="the mix; inline is one process"),
        measured("archive.long_s", seconds.long, unit="s", goal_is="at_most", about="per long video"),
        measured("archive.short_s", seconds.short, unit="s", goal_is="at_most", about="per short clip"),
        measured("archive.keyframe_long_s", near.long, unit="s", goal_is="at_most", about="per long video, keyframes"),
        measured(
            "archive.start_s", [exact.start_s], unit="s", goal_is="at_most", about="from the call to the first label"
        ),
        measured(
            "archive.machine_busy",
            [burst.machine_busy for burst in seconds.bursts],
            unit="",
            limit=1.0,
            about="of all cores' time, while the mix ran; other people's work counts",
        ),
    ]
    for stage in (SOURCE, STREAM, FOCUS, SINK):
        alone = [stages[stage] for stages in seconds.stages]
        share = [stages[stage] / sum(stages.values()) for stages in seconds.stages]
        busy = median(burst.busy.get(stage, 0.0) for burst in seconds.bursts)
        figures.append(
            measured(
                f"archive.{stage}_share",
                share,
                unit="",
                about=f"of all CPU time: {1000 * float(np.median(alone)):.1f} ms a clip; its workers busy {busy:.0%}",
            )
        )
    return figures
