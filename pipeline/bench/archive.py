"""`bench archive`: from files to labels, over Ray, beside what the machine allows and beside a plain loop.

The limit is the sum of all stages' CPU seconds, each measured alone, over the number of cores: nothing that does this
work with these parts can be faster. Rates are of the steady state; the start is a figure of its own.

Every sample of a ratio is a stretch of a burst over what was measured alone right before or after that burst. The
pipeline needs many sources in flight to be steady, the others need one file. The runs that are compared all live at
once, each in a process of its own, and stand still while they are not asked.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from operators.errors import PipelineError
from pipeline.bench.alone import label_pieces, workers_of
from pipeline.bench.figures import Figure, Report, environment, measured, ratio, short
from pipeline.bench.plain import fastest_decoder, plain_seconds
from pipeline.bench.session import Beside, Burst
from pipeline.bench.workloads import CACHE, LONG, QUICK_LONG, QUICK_SHORT, SHORT, as_sources, make
from pipeline.config import Config
from pipeline.executor import WorkerSpec, make_worker
from pipeline.messages import ReadRequest, WriteRequest
from pipeline.placement import this_machine
from pipeline.pools import process_pool
from pipeline.resolve import Plan, resolve
from pipeline.scheduler import FOCUS, SINK, SOURCE, STREAM
from pipeline.tuning import cache_folder

Say = Callable[[str], None]
POLICIES = ("center", "random", "full")
LEARNED = "learned"
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
    """The workload."""

    long: list[Path]
    short: list[Path]

    @property
    def groups(self) -> list[list[Path]]:
        """A long one and its share of the short ones each; all of them are one lap of the mix."""
        every = len(self.short) // len(self.long)
        return [[long, *self.short[number * every : (number + 1) * every]] for number, long in enumerate(self.long)]

    @property
    def mix(self) -> list[Path]:
        """One lap: the long ones evenly between the short ones, so that any stretch is like any other."""
        return [path for group in self.groups for path in group]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What one sample is. Clips of the pipeline's are of a stretch; those of the others are measured one by one."""

    stretches: int = 6
    """Of a burst, and as many samples of what it is measured against: fewer have no interval of 95 %."""
    groups: int = 2
    """Of the mix in a stretch: three stretches are a lap."""
    long: int = 3
    short: int = 12
    near: int = 8
    """Long videos by their keyframes."""
    plain_short: int = 5
    policy_short: int = 2
    policy_samples: int = 3
    inline_samples: int = 2


QUICK_SIZES = Sizes(
    stretches=2, groups=1, long=1, short=2, near=2, plain_short=1, policy_short=1, policy_samples=1, inline_samples=1
)


@dataclass(slots=True)
class Seconds:
    """Per clip, in pairs: the n-th of ours was measured beside the n-th of the others."""

    mix: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    """Of the mix."""
    stages: list[dict[str, float]] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    near: list[float] = field(default_factory=list)
    plain_long: list[float] = field(default_factory=list)
    """Beside `long` and beside `near`."""
    short: list[float] = field(default_factory=list)
    plain_short: list[float] = field(default_factory=list)
    inline: list[float] = field(default_factory=list)
    mix_beside_inline: list[float] = field(default_factory=list)
    policies: dict[str, list[float]] = field(default_factory=dict)
    """CPU seconds of all stages, the learned one's among them."""
    bursts: list[Burst] = field(default_factory=list)
    """Of the mix."""


def bench_archive(
    config: Config,
    *,
    cache: Path = CACHE,
    say: Say,
    quick: bool = False,
    rounds: int = 4,
    minutes: float = 7.0,
    policies: Sequence[str] = POLICIES,
) -> Report:
    """`config`: the model, and whatever else is to be measured. What would end after `minutes` is not begun."""
    where = environment()
    cores = this_machine().num_cores
    if quick:
        config, rounds, policies = config.replaced(QUICK_SETTINGS), 1, policies[:1]
    kinds = (QUICK_LONG, QUICK_SHORT) if quick else (LONG, SHORT)
    files = Files(
        long=make(kinds[0], cache, say=say, workers=cores), short=make(kinds[1], cache, say=say, workers=cores)
    )
    until_s = time.monotonic() + minutes * 60
    with ExitStack() as stack:
        rivals = start(stack, config, files, policies, say=say)
        rig = Rig(rivals, files, QUICK_SIZES if quick else Sizes(), say=say)
        take_parts(rig.parts(), rounds=rounds, until_s=until_s, say=say)
    figures = _figures(files, rig, cores)
    by_name = {figure.name: figure for figure in figures}
    headline = (
        f"{short(by_name['archive.clips_per_s'].value)} clips per second ({len(files.short)} of {kinds[1].seconds:g} s "
        f"and {len(files.long)} of {kinds[0].seconds:g} s) on {cores} cores, "
        f"{by_name['archive.share_of_limit'].value:.0%} of what they allow; long videos "
        f"{short(by_name['archive.vs_plain_long'].value)} times and short ones "
        f"{short(by_name['archive.vs_plain_short'].value)} times as fast as a plain loop"
    )
    plan = rig.rivals.exact.plan
    settings = {
        "quick": quick, "rounds": len(rig.seconds.bursts), "minutes": minutes, "config": plan.config.given(),
        "placement": vars(plan.placement), "long": vars(kinds[0]), "short": vars(kinds[1]), "sizes": vars(rig.sizes),
    }  # fmt: skip
    notes = (
        plan.opening_line(),
        f"the plain loop decodes with {rig.rivals.aside.decoder}, the faster of OpenCV and PyAV here",
        "rates are of the steady state: stretches in the middle of a burst, with full stages before and more waiting "
        "behind; a sample of a ratio is one stretch over what was measured alone next to that burst",
    )
    return Report(
        what="archive", headline=headline, figures=tuple(figures), environment=where, settings=settings, notes=notes
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Sides that are measured together."""

    name: str
    sides: tuple[Callable[[], None], ...]
    """In the order in which they run in even rounds."""


def take_parts(
    parts: Sequence[Part], *, rounds: int, until_s: float, say: Say, clock: Callable[[], float] = time.monotonic
) -> None:
    """All parts, round after round; the order of a part's sides turns. A part that would end too late is left out,
    but every one is measured once."""
    longest_s = dict.fromkeys((part.name for part in parts), 0.0)
    for number in range(rounds):
        for part in parts:
            begun_s = clock()
            if number and begun_s + longest_s[part.name] > until_s:
                say(f"time is up after {number} of {rounds} rounds: {part.name}")
                continue
            for side in part.sides if number % 2 == 0 else reversed(part.sides):
                side()
            longest_s[part.name] = max(longest_s[part.name], clock() - begun_s)


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What takes turns. All of it runs, waits, and has done something once."""

    exact: Beside
    near: Beside
    """By keyframes."""
    inline: Beside
    """One process."""
    aside: Aside
    plans: dict[str, Plan]
    """By policy, the learned one first."""


def start(stack: ExitStack, config: Config, files: Files, policies: Sequence[str], *, say: Say) -> Rivals:
    """Everything that is measured, warmed up: weights are loaded, what is compiled is compiled."""
    # The first one starts alone: how long that takes is a figure.
    exact = stack.enter_context(Beside(config.replaced({"sampling.seek": "exact"})))
    exact.through(files.mix[: len(files.mix) // 3])
    plan = exact.plan
    say(f"{plan.opening_line()}; first label after {exact.start_s:.1f} s")
    near = stack.enter_context(Beside(config.replaced({"sampling.seek": "keyframe"})))
    inline = stack.enter_context(Beside(config.replaced({"sampling.seek": "exact", "run.executor": "inline"})))
    near.begin(files.long)
    inline.begin(files.short[:2])
    aside = Aside(stack)
    plans = {LEARNED: plan}
    for policy in policies:
        changed = config.replaced({"sampling.seek": "exact", "policy.kind": policy})
        plans[policy] = resolve(changed, this_machine(), cache=cache_folder())
    aside.plain(plan, files.short[:1])
    for one in plans.values():
        aside.stages(one, files.short[:1])
    near.ready()
    inline.ready()
    return Rivals(exact=exact, near=near, inline=inline, aside=aside, plans=plans)


class Rig:
    """How the rivals are measured, and what was found."""

    def __init__(self, rivals: Rivals, files: Files, sizes: Sizes, *, say: Say) -> None:
        self.rivals, self.files, self.sizes, self._say = rivals, files, sizes, say
        self.seconds = Seconds()
        # On many cores a stretch of few clips is over before it says anything.
        self._scale = max(1, rivals.exact.plan.placement.source_workers // 2)

    def parts(self) -> list[Part]:
        def share(side: Callable[[int], None], number: int, of: int) -> Callable[[], None]:
            """One of several shares of a side's samples."""
            count = self.sizes.stretches
            return functools.partial(side, count * (number + 1) // of - count * number // of)

        limit, plain_short, plain_long = self._limit, self._plain_short, self._plain_long
        return [
            # What a burst is measured against stands before it and behind it.
            Part(name="mix", sides=(share(limit, 0, 2), self._mix, share(limit, 1, 2))),
            Part(
                name="long",
                sides=(
                    share(plain_long, 0, 3), self._long, share(plain_long, 1, 3), self._keyframes,
                    share(plain_long, 2, 3),
                ),
            ),
            Part(name="short", sides=(share(plain_short, 0, 2), self._short, share(plain_short, 1, 2))),
            Part(name="policies", sides=(self._policies,)),
            Part(name="inline", sides=(self._all_inline,)),
        ]  # fmt: skip

    def _stretches(self, run: Beside, paths: Sequence[Path], stretch: int, **form: Any) -> Burst:
        return run.timed(paths, stretch=stretch * self._scale, count=self.sizes.stretches, **form)

    def _told(self, name: str, samples: Sequence[float]) -> None:
        if samples:
            self._say(f"{name}, seconds per clip: " + ", ".join(f"{s:.3f}" for s in samples))

    def _mix(self) -> None:
        group = len(self.files.groups[0])
        burst = self._stretches(self.rivals.exact, self.files.mix, self.sizes.groups * group, period=group)
        self.seconds.bursts.append(burst)
        self.seconds.mix += burst.stretches
        self._told("mix", burst.stretches)

    def _limit(self, count: int) -> None:
        """Of each stretch one of its groups, in the next lap another: two laps of stretches are all files."""
        cores, groups, each = this_machine().num_cores, self.files.groups, self.sizes.groups
        for _ in range(count):
            first = len(self.seconds.limit) * each
            stages = self.rivals.aside.stages(
                self.rivals.exact.plan, groups[(first + first // len(groups) % each) % len(groups)]
            )
            self.seconds.stages.append(stages)
            self.seconds.limit.append(sum(stages.values()) / cores)
        self._told("limit of the mix", self.seconds.limit[-count:])

    def _long(self) -> None:
        # Reading is what they wait for, so nothing piles up that would have to before it is steady.
        readers = self.rivals.exact.plan.placement.source_workers
        burst = self._stretches(self.rivals.exact, self.files.long, self.sizes.long, period=readers, lead=readers)
        self.seconds.long += burst.stretches
        self._told("long", burst.stretches)

    def _keyframes(self) -> None:
        burst = self._stretches(self.rivals.near, self.files.long, self.sizes.near, period=4)
        self.seconds.near += burst.stretches
        self._told("long by keyframes", burst.stretches)

    def _plain_long(self, count: int) -> None:
        for _ in range(count):
            path = self.files.long[len(self.seconds.plain_long) % len(self.files.long)]
            self.seconds.plain_long.append(self.rivals.aside.plain(self.rivals.exact.plan, [path]))
            self._told("long, plain loop", self.seconds.plain_long[-1:])

    def _short(self) -> None:
        burst = self._stretches(self.rivals.exact, self.files.short, self.sizes.short, period=4)
        self.seconds.short += burst.stretches
        self._told("short", burst.stretches)

    def _plain_short(self, count: int) -> None:
        for _ in range(count):
            some = self._some(len(self.seconds.plain_short), self.sizes.plain_short)
            self.seconds.plain_short.append(self.rivals.aside.plain(self.rivals.exact.plan, some))
            self._told("short, plain loop", self.seconds.plain_short[-1:])

    def _some(self, sample: int, size: int) -> list[Path]:
        """The short files of a sample: each takes on where the one before ended."""
        return [self.files.short[place % len(self.files.short)] for place in range(sample * size, (sample + 1) * size)]

    def _policies(self) -> None:
        """In an order of their own, which turns with every sample."""
        for _ in range(self.sizes.policy_samples):
            turn = len(self.seconds.policies.get(LEARNED, ()))
            some = self._some(turn, self.sizes.policy_short)
            for policy in self.rivals.plans if turn % 2 == 0 else reversed(self.rivals.plans):
                stages = self.rivals.aside.stages(self.rivals.plans[policy], some)
                self.seconds.policies.setdefault(policy, []).append(sum(stages.values()))
            told = [f"{policy} {samples[-1]:.3f}" for policy, samples in self.seconds.policies.items()]
            self._say(f"policies, CPU seconds per clip: {', '.join(told)}")

    def _all_inline(self) -> None:
        for _ in range(self.sizes.inline_samples):
            group = self.files.groups[len(self.seconds.inline) % len(self.files.groups)]
            # One stage after another: there is nothing to fill or to empty, and labels come when much else is done.
            self.seconds.inline.append(self.rivals.inline.through(group) / len(group))
            self.seconds.mix_beside_inline.append(median(self.seconds.mix[-self.sizes.stretches :]))
            self._told("inline", self.seconds.inline[-1:])


class Aside:
    """What the pipeline is measured against, each in a process of its own that waits until it is asked."""

    def __init__(self, stack: ExitStack) -> None:
        self._plain, self._stages = (stack.enter_context(process_pool(1)) for _ in range(2))
        self._cores = this_machine().num_cores
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


# The limit


_alone: dict[str, dict[str, Any]] = {}
"""The workers of the process that measures stages, kept from one time to the next."""


def stage_seconds(specs: Sequence[WorkerSpec], sizes: tuple[int, int], paths: Sequence[str]) -> dict[str, float]:
    """CPU seconds per clip of source, stream, focus and sink, one after another in this process.

    `sizes`: clips per call of the stream worker and patches per pass of the focus worker, as the run has them.
    """
    key = repr(specs)
    if key not in _alone:
        _alone[key] = workers_of(specs)
    workers = _alone[key]
    spent = dict.fromkeys((SOURCE, STREAM, FOCUS, SINK), 0.0)

    def timed(stage: str, method: str, *arguments: Any) -> Any:
        begun_s = time.process_time()
        answer = getattr(workers[stage], method)(*arguments)
        spent[stage] += time.process_time() - begun_s
        return answer

    pieces: list[tuple[Any, list[str]]] = []
    for source in as_sources([Path(path) for path in paths], lap=0):
        is_done = False
        while not is_done:
            reply, batches = timed(SOURCE, "read", (ReadRequest(source=source),), ())
            row = reply.rows[0]
            if row.failed is not None:
                raise PipelineError(f"{source.uri}: {row.failed.error}")
            pieces += [(batches[info.row], [clip.clip_id for clip in info.clips]) for info in row.pieces]
            is_done = row.is_done
    clips_per_call, rows_per_pass = sizes
    labels = list(label_pieces(timed, pieces, clips_per_call=clips_per_call, rows_per_pass=rows_per_pass))
    spent[SINK] = _sink_seconds(labels)
    return {stage: seconds / len(paths) for stage, seconds in spent.items()}


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


# Figures


def _figures(files: Files, rig: Rig, cores: int) -> list[Figure]:
    seconds = rig.seconds
    stretch = rig.sizes.groups * len(files.groups[0])
    figures = [
        measured(
            "archive.clips_per_s",
            [1 / s for s in seconds.mix],
            unit="clips/s",
            limit=1 / median(seconds.limit),
            about=f"{len(files.short)} short and {len(files.long)} long a lap, {stretch} clips a sample",
        ),
        ratio(
            "archive.share_of_limit",
            seconds.limit,
            seconds.mix,
            unit="",
            goal=0.9,
            limit=1.0,
            about=f"limit: CPU seconds of all stages alone, over {cores} cores; {stretch} clips a sample",
        ),
        ratio(
            "archive.vs_plain_long",
            seconds.plain_long,
            seconds.long,
            goal=4.0,
            about=f"exact frames; {rig.sizes.long} videos over one of them by the plain loop",
        ),
        ratio(
            "archive.vs_plain_short",
            seconds.plain_short,
            seconds.short,
            goal=3.3,
            about=f"exact frames; {rig.sizes.short} clips over {rig.sizes.plain_short} of them by the plain loop",
        ),
        ratio(
            "archive.keyframe_vs_plain_long",
            seconds.plain_long,
            seconds.near,
            goal=25.0,
            about=f"sampling.seek=keyframe; {rig.sizes.near} videos over one of them by the plain loop",
        ),
        ratio(
            "archive.ray_vs_inline",
            seconds.inline,
            seconds.mix_beside_inline,
            about="the mix; inline is one process",
        ),
        *(
            ratio(
                f"archive.{policy}_vs_learned",
                seconds.policies[LEARNED],
                seconds.policies[policy],
                about=f"rate on short clips: CPU seconds of all stages alone, the learned policy's over {policy}'s"
                + ("; the whole view through the focus network" if policy == "full" else ""),
            )
            for policy in rig.seconds.policies
            if policy != LEARNED
        ),
        measured("archive.long_s", seconds.long, unit="s", goal_is="at_most", about="per long video"),
        measured("archive.short_s", seconds.short, unit="s", goal_is="at_most", about="per short clip"),
        measured(
            "archive.keyframe_long_s", seconds.near, unit="s", goal_is="at_most", about="per long video, keyframes"
        ),
        measured(
            "archive.start_s",
            [rig.rivals.exact.start_s],
            unit="s",
            goal_is="at_most",
            about="from the call to the first label",
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
