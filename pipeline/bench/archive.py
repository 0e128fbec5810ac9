"""`bench archive`: from files to labels, over Ray, beside what the machine allows and beside a plain loop.

The limit is the sum of all stages' CPU seconds, each measured alone, over the number of cores: nothing that does this
work with these parts can be faster. Rates are of the steady state; the start is a figure of its own.

Every sample of a ratio is a stretch of a burst over what was measured alone right before or after that burst. The
pipeline needs many sources in flight to be steady, the others need one file. The runs that are compared all live at
once, each in a process of its own, and stand still while they are not asked.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from pipeline.bench.figures import Figure, Report, environment, measured, ratio, short
from pipeline.bench.limit import Stages, stage_seconds
from pipeline.bench.plain import fastest_decoder, plain_seconds
from pipeline.bench.session import Beside, Burst
from pipeline.bench.sizes import QUICK_SIZES, Cost, Sizes, fitting
from pipeline.bench.workloads import CACHE, LONG, QUICK_LONG, QUICK_SHORT, SHORT, make
from pipeline.config import Config
from pipeline.plan.placement import this_machine
from pipeline.plan.resolve import Plan, resolve
from pipeline.plan.tuning import cache_folder
from pipeline.run.pools import process_pool
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM

Say = Callable[[str], None]
Kind = Literal["long", "short"]
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


@dataclass(slots=True)
class Seconds:
    """Per clip, in pairs: the n-th of ours was measured beside the n-th of the others."""

    mix: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    """Of the mix."""
    stages: list[Stages] = field(default_factory=list)
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
    """`config`: the model, and whatever else is to be measured. Sizes are such that all ends within `minutes`, files
    and the end of the runs apart; what is left of them is for baselines and further rounds."""
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
        sizes, cost = QUICK_SIZES, likely_cost(rivals, files)
        if not quick:
            left_s = until_s - time.monotonic()
            sizes = fitting(cost, left_s)
            say(f"{left_s:.0f} s are left, about {cost.round_s(sizes):.0f} s are needed: {sizes.stretches} samples")
        rig = Rig(rivals, files, sizes, cost, say=say)
        left_out = take_parts(rig.parts(), rounds=rounds, until_s=until_s, say=say)
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
    decoders = rig.rivals.aside.decoders
    notes = (
        plan.opening_line(),
        f"the plain loop decodes long videos with {decoders['long']} and short ones with {decoders['short']}, "
        "the faster of OpenCV and PyAV here",
        *(f"{name}: no time was left; --minutes gives more" for name in left_out),
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
    likely_s: float | None = None
    """Of what can be left out: how long it is likely to take."""


def take_parts(
    parts: Sequence[Part], *, rounds: int, until_s: float, say: Say, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """All parts, round after round; the order of a part's sides turns. A part that would end too late is left out,
    but what must be there is measured once. Returns the parts that never were."""
    longest_s = {part.name: part.likely_s or 0.0 for part in parts}
    times = {part.name: 0 for part in parts}
    for number in range(rounds):
        before = sum(times.values())
        for part in parts:
            begun_s = clock()
            if (number or part.likely_s is not None) and begun_s + longest_s[part.name] > until_s:
                say(f"time is up after {number} of {rounds} rounds: {part.name}")
                continue
            for side in part.sides if number % 2 == 0 else reversed(part.sides):
                side()
            longest_s[part.name] = max(longest_s[part.name], clock() - begun_s)
            times[part.name] += 1
        if sum(times.values()) == before:
            break
    return [name for name, count in times.items() if not count]


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What takes turns. It runs, waits, and has done something once."""

    exact: Beside
    near: Beside
    """By keyframes."""
    aside: Aside
    inline: Callable[[], Beside] | None
    """One process, made when it is first asked for; none where all is one process anyway."""
    plans: Callable[[], dict[str, Plan]]
    """By policy, the learned one first; made ready when first asked for."""


def start(stack: ExitStack, config: Config, files: Files, policies: Sequence[str], *, say: Say) -> Rivals:
    """What is measured, warmed up: weights are loaded, what is compiled is compiled."""
    # The first one starts alone: how long that takes is a figure.
    exact = stack.enter_context(Beside(config.replaced({"sampling.seek": "exact"})))
    exact.through(files.mix[: len(files.mix) // 3])
    plan = exact.plan
    say(f"{plan.opening_line()}; first label after {exact.start_s:.1f} s")
    near = stack.enter_context(Beside(config.replaced({"sampling.seek": "keyframe"})))
    near.begin(files.long)
    aside = Aside(stack)
    aside.stages(plan, files.short[:1])
    near.ready()
    # Nothing else may start or run meanwhile.
    aside.choose_decoders(plan, files)
    aside.plain(plan, files.short[:1], "short")

    @functools.cache
    def inline() -> Beside:
        run = stack.enter_context(Beside(config.replaced({"sampling.seek": "exact", "run.executor": "inline"})))
        run.through(files.short[:2])
        return run

    @functools.cache
    def plans() -> dict[str, Plan]:
        found = {LEARNED: plan}
        for policy in policies:
            changed = config.replaced({"sampling.seek": "exact", "policy.kind": policy})
            found[policy] = resolve(changed, this_machine(), cache=cache_folder())
            aside.stages(found[policy], files.short[:1])
        return found

    is_inline = plan.config.run.executor == "inline"
    return Rivals(exact=exact, near=near, aside=aside, inline=None if is_inline else inline, plans=plans)


_BUSY = 0.8
"""Share of the cores that a run is expected to use well."""


def likely_cost(rivals: Rivals, files: Files) -> Cost:
    """By one clip of each kind, which takes seconds."""
    plan, aside = rivals.exact.plan, rivals.aside
    place, cores = plan.placement, this_machine().num_cores
    alone = aside.stages(plan, [files.long[0], files.short[0]])
    workers = {SOURCE: place.source_workers, STREAM: place.stream_workers, FOCUS: place.focus_workers, SINK: 1}
    num_short = len(files.groups[0]) - 1

    def piped_s(source_s: float) -> float:
        stages = {**alone.seconds, SOURCE: source_s}
        if rivals.inline is None:
            return sum(stages.values())
        return max(sum(stages.values()) / cores, *(s / workers[stage] for stage, s in stages.items())) / _BUSY

    long_s, short_s = alone.sources
    mix_source_s = (long_s + num_short * short_s) / (1 + num_short)
    plain_short_s = min(aside.plain(plan, files.short[:1], "short") for _ in range(2))
    return Cost(
        mix_s=piped_s(mix_source_s),
        alone_s=alone.total_s - alone.seconds[SOURCE] + mix_source_s,
        long_s=piped_s(long_s),
        short_s=piped_s(short_s),
        plain_long_s=plain_short_s + aside.decode_s["long"] - aside.decode_s["short"],
        plain_short_s=plain_short_s,
        group=1 + num_short,
        lead=plan.limits.max_pieces,
        readers=place.source_workers,
        scale=stretch_scale(plan),
        start_s=rivals.exact.start_s,
    )


def stretch_scale(plan: Plan) -> int:
    """On many cores a stretch of few clips is over before it says anything."""
    return max(1, plan.placement.source_workers // 2)


class Rig:
    """How the rivals are measured, and what was found."""

    def __init__(self, rivals: Rivals, files: Files, sizes: Sizes, cost: Cost, *, say: Say) -> None:
        self.rivals, self.files, self.sizes, self.cost, self._say = rivals, files, sizes, cost, say
        self.seconds = Seconds()

    def parts(self) -> list[Part]:
        def share(side: Callable[[int], None], number: int, of: int) -> Callable[[], None]:
            """One of several shares of a side's samples."""
            count = self.sizes.stretches
            return functools.partial(side, count * (number + 1) // of - count * number // of)

        limit, plain_short, plain_long = self._limit, self._plain_short, self._plain_long
        inline = Part(name="inline", sides=(self._all_inline,), likely_s=self.cost.inline_s(self.sizes))
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
            Part(name="policies", sides=(self._policies,), likely_s=self.cost.policies_s(self.sizes)),
            *([inline] if self.rivals.inline else []),
        ]  # fmt: skip

    def _stretches(self, run: Beside, paths: Sequence[Path], stretch: int, **form: Any) -> Burst:
        burst = run.timed(paths, stretch=stretch * self.cost.scale, count=self.sizes.stretches, **form)
        # Where all labels came at once, which only the tiny ones of --quick do, a stretch has no length.
        return replace(burst, stretches=tuple(s if s > 0 else burst.seconds_per_clip for s in burst.stretches))

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
            self.seconds.limit.append(stages.total_s / cores)
            self._told("limit of the mix", self.seconds.limit[-1:])

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
            self.seconds.plain_long.append(self.rivals.aside.plain(self.rivals.exact.plan, [path], "long"))
            self._told("long, plain loop", self.seconds.plain_long[-1:])

    def _short(self) -> None:
        burst = self._stretches(self.rivals.exact, self.files.short, self.sizes.short, period=4)
        self.seconds.short += burst.stretches
        self._told("short", burst.stretches)

    def _plain_short(self, count: int) -> None:
        for _ in range(count):
            some = self._some(len(self.seconds.plain_short), self.sizes.plain_short)
            self.seconds.plain_short.append(self.rivals.aside.plain(self.rivals.exact.plan, some, "short"))
            self._told("short, plain loop", self.seconds.plain_short[-1:])

    def _some(self, sample: int, size: int) -> list[Path]:
        """The short files of a sample: each takes on where the one before ended."""
        return [self.files.short[place % len(self.files.short)] for place in range(sample * size, (sample + 1) * size)]

    def _policies(self) -> None:
        """In an order of their own, which turns with every sample."""
        plans = self.rivals.plans()
        for _ in range(self.sizes.policy_samples):
            turn = len(self.seconds.policies.get(LEARNED, ()))
            some = self._some(turn, self.sizes.policy_short)
            for policy in plans if turn % 2 == 0 else reversed(plans):
                stages = self.rivals.aside.stages(plans[policy], some)
                self.seconds.policies.setdefault(policy, []).append(stages.total_s)
            told = [f"{policy} {samples[-1]:.3f}" for policy, samples in self.seconds.policies.items()]
            self._say(f"policies, CPU seconds per clip: {', '.join(told)}")

    def _all_inline(self) -> None:
        assert self.rivals.inline is not None
        run = self.rivals.inline()
        for _ in range(self.sizes.inline_samples):
            group = self.files.groups[len(self.seconds.inline) % len(self.files.groups)]
            # One stage after another: there is nothing to fill or to empty, and labels come when much else is done.
            self.seconds.inline.append(run.through(group) / len(group))
            self.seconds.mix_beside_inline.append(median(self.seconds.mix[-self.sizes.stretches :]))
            self._told("inline", self.seconds.inline[-1:])


class Aside:
    """What the pipeline is measured against, each in a process of its own that waits until it is asked."""

    def __init__(self, stack: ExitStack) -> None:
        self._plain, self._stages = (stack.enter_context(process_pool(1)) for _ in range(2))
        self._cores = this_machine().num_cores
        self.decoders: dict[Kind, str] = {}
        """Of the plain loop."""
        self.decode_s: dict[Kind, float] = {}
        """What they take for a file."""

    def choose_decoders(self, plan: Plan, files: Files) -> None:
        """The beginning of a long video says which is faster, in a quarter of the time."""
        ways: list[tuple[Kind, Path, float]] = [("long", files.long[0], 0.25), ("short", files.short[0], 1.0)]
        for kind, path, share in ways:
            num_frames = plan.config.sampling.num_frames
            asked = self._plain.submit(fastest_decoder, str(path), num_frames, share=share)
            self.decoders[kind], self.decode_s[kind] = asked.result()

    def plain(self, plan: Plan, paths: Sequence[Path], kind: Kind) -> float:
        """Seconds per clip of the plain loop."""
        form = plan.config.model_dump_json(), plan.model_id
        names, decoder = [str(path) for path in paths], self.decoders[kind]
        return self._plain.submit(plain_seconds, *form, names, self._cores, decoder).result() / len(paths)

    def stages(self, plan: Plan, paths: Sequence[Path]) -> Stages:
        """CPU seconds per clip of each stage, alone in a process and in one thread."""
        sizes = plan.placement.clips_per_call, plan.rows_per_batch
        return self._stages.submit(stage_seconds, plan.worker_specs(), sizes, [str(path) for path in paths]).result()


# Figures


def _figures(files: Files, rig: Rig, cores: int) -> list[Figure]:
    seconds = rig.seconds
    stretch = rig.sizes.groups * len(files.groups[0])
    # The first of a group is the long one.
    long_limit_s = median(stages.total_with_s(stages.sources[:1]) for stages in seconds.stages) / cores
    short_limit_s = median(stages.total_with_s(stages.sources[1:]) for stages in seconds.stages) / cores
    beside = f"limit: the plain loop's seconds over the CPU seconds of all stages alone over {cores} cores"
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
            limit=median(seconds.plain_long) / long_limit_s,
            about=f"exact frames; {rig.sizes.long} videos over one of them by the plain loop; {beside}",
        ),
        ratio(
            "archive.vs_plain_short",
            seconds.plain_short,
            seconds.short,
            goal=3.3,
            limit=median(seconds.plain_short) / short_limit_s,
            about=f"exact frames; {rig.sizes.short} clips over {rig.sizes.plain_short} of them by the plain loop; "
            + beside,
        ),
        ratio(
            "archive.keyframe_vs_plain_long",
            seconds.plain_long,
            seconds.near,
            goal=25.0,
            about=f"sampling.seek=keyframe; {rig.sizes.near} videos over one of them by the plain loop",
        ),
        *(
            [
                ratio(
                    "archive.ray_vs_inline",
                    seconds.inline,
                    seconds.mix_beside_inline,
                    about="the mix; inline is one process",
                )
            ]
            if seconds.inline
            else []
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
        measured(
            "archive.long_s", seconds.long, unit="s", goal_is="at_most", limit=long_limit_s, about="per long video"
        ),
        measured(
            "archive.short_s", seconds.short, unit="s", goal_is="at_most", limit=short_limit_s, about="per short clip"
        ),
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
        alone = [stages.seconds[stage] for stages in seconds.stages]
        share = [stages.seconds[stage] / stages.total_s for stages in seconds.stages]
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
