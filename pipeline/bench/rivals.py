"""What `bench archive` compares: runs over Ray, the stages alone, and a plain loop, each in a process of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.bench.limit import Stages, stage_seconds
from pipeline.bench.plain import fastest_decoder, plain_seconds
from pipeline.bench.session import Beside
from pipeline.bench.sizes import Cost
from pipeline.config import Config
from pipeline.plan.placement import this_machine
from pipeline.plan.resolve import resolve
from pipeline.plan.run_plan import RunPlan
from pipeline.plan.tuning import cache_folder
from pipeline.run.pools import process_pool
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM

Say = Callable[[str], None]
FileKind = Literal["long", "short"]
LEARNED = "learned"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The workload: long videos and short clips."""

    long: list[Path]
    short: list[Path]

    @property
    def groups(self) -> list[list[Path]]:
        """Groups of a long video and its share of the short clips; all of them are one lap of the mix."""
        every = len(self.short) // len(self.long)
        return [[long, *self.short[number * every : (number + 1) * every]] for number, long in enumerate(self.long)]

    @property
    def mix(self) -> list[Path]:
        """One lap, with the long videos evenly between the short clips, so that any stretch is like any other."""
        return [path for group in self.groups for path in group]


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What takes turns. Each rival runs, waits, and has done something once."""

    exact: Beside
    near: Beside
    """The run that takes the nearest keyframes."""
    aside: Aside
    inline: Callable[[], Beside] | None
    """Makes the run in one process, when it is first asked for; None where every run is one process anyway."""
    plans: Callable[[], dict[str, RunPlan]]
    """Gives the plan of each policy, the learned one first; they are made ready when first asked for."""


def start(stack: ExitStack, config: Config, files: Files, policies: Sequence[str], *, say: Say) -> Rivals:
    """Makes the rivals and warms them up: weights are loaded, and what is to be compiled is compiled."""
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
    def plans() -> dict[str, RunPlan]:
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
    """Measures one clip of each kind, which takes seconds, and estimates what the others will cost."""
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


def stretch_scale(plan: RunPlan) -> int:
    """How many times as long stretches are: on many cores one of few clips is over before it says anything."""
    return max(1, plan.placement.source_workers // 2)


class Aside:
    """What the pipeline is measured against, each in a process of its own that waits until it is asked."""

    def __init__(self, stack: ExitStack) -> None:
        self._plain, self._stages = (stack.enter_context(process_pool(1)) for _ in range(2))
        self._cores = this_machine().num_cores
        self.decoders: dict[FileKind, str] = {}
        """The plain loop's decoder for each kind of file."""
        self.decode_s: dict[FileKind, float] = {}
        """The seconds that this decoder takes for a file."""

    def choose_decoders(self, plan: RunPlan, files: Files) -> None:
        """Finds the faster decoder for each kind of file, by a quarter of a long video and a whole short one."""
        ways: list[tuple[FileKind, Path, float]] = [("long", files.long[0], 0.25), ("short", files.short[0], 1.0)]
        for kind, path, share in ways:
            num_frames = plan.config.sampling.num_frames
            asked = self._plain.submit(fastest_decoder, str(path), num_frames, share=share)
            self.decoders[kind], self.decode_s[kind] = asked.result()

    def plain(self, plan: RunPlan, paths: Sequence[Path], kind: FileKind) -> float:
        """The seconds per clip that the plain loop takes."""
        form = plan.config.model_dump_json(), plan.model_id
        names, decoder = [str(path) for path in paths], self.decoders[kind]
        return self._plain.submit(plain_seconds, *form, names, self._cores, decoder).result() / len(paths)

    def stages(self, plan: RunPlan, paths: Sequence[Path]) -> Stages:
        """The CPU seconds per clip that each stage takes, alone in a process and in one thread."""
        sizes = plan.placement.clips_per_call, plan.rows_per_batch
        return self._stages.submit(stage_seconds, plan.worker_specs(), sizes, [str(path) for path in paths]).result()
