"""`bench archive`: from files to labels, over Ray, beside what the machine allows and beside a plain loop.

The limit is the sum of all stages' CPU seconds, each measured alone, over the number of cores: nothing that does this
work with these parts can be faster. Rates are of the steady state; the start is a figure of its own.

Every sample of a ratio is a stretch of a burst over what was measured alone right before or after that burst. The
pipeline needs many sources in flight to be steady, the others need one file. The runs that are compared all live at
once, each in a process of its own, and stand still while they are not asked.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.bench.archive_figures import archive_figures
from pipeline.bench.environment import environment
from pipeline.bench.figures import Figure, Report, headline_of, short
from pipeline.bench.quick import QUICK_SETTINGS
from pipeline.bench.rig import Rig, take_parts
from pipeline.bench.rivals import Files, Say, likely_cost, start
from pipeline.bench.sizes import QUICK_SIZES, fitting
from pipeline.bench.workloads import CACHE, LONG, QUICK_LONG, QUICK_SHORT, SHORT, Clips, make
from pipeline.config import Config
from pipeline.plan.placement import this_machine

POLICIES = ("center", "random", "full")


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
    """Measures the model of `config` with whatever else it sets. Sizes are such that all ends within `minutes`, files
    and the end of the runs apart; what is left of them is for baselines and further rounds."""
    where = environment()
    cores = this_machine().num_cores
    if quick:
        config, rounds, policies = config.replaced(QUICK_SETTINGS), 1, policies[:1]
    long, short_ = (QUICK_LONG, QUICK_SHORT) if quick else (LONG, SHORT)
    files = Files(long=make(long, cache, say=say, workers=cores), short=make(short_, cache, say=say, workers=cores))
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
    figures = archive_figures(rig, cores)
    plan = rig.rivals.exact.plan
    settings = {
        "quick": quick, "rounds": len(rig.seconds.bursts), "minutes": minutes, "config": plan.config.given(),
        "placement": vars(plan.placement), "long": vars(long), "short": vars(short_), "sizes": vars(rig.sizes),
    }  # fmt: skip
    return Report(
        what="archive",
        headline=headline_of(_headline(figures, files, long, short_, cores), quick=quick),
        figures=tuple(figures),
        environment=where,
        settings=settings,
        notes=_notes(rig, left_out),
    )


def _headline(figures: Sequence[Figure], files: Files, long: Clips, short_: Clips, cores: int) -> str:
    by_name = {figure.name: figure for figure in figures}
    return (
        f"{short(by_name['archive.clips_per_s'].value)} clips per second ({len(files.short)} of {short_.seconds:g} s "
        f"and {len(files.long)} of {long.seconds:g} s) on {cores} cores, "
        f"{by_name['archive.share_of_limit'].value:.0%} of what they allow; long videos "
        f"{short(by_name['archive.vs_plain_long'].value)} times and short ones "
        f"{short(by_name['archive.vs_plain_short'].value)} times as fast as a plain loop"
    )


def _notes(rig: Rig, left_out: Sequence[str]) -> tuple[str, ...]:
    decoders = rig.rivals.aside.decoders
    return (
        rig.rivals.exact.plan.opening_line(),
        f"the plain loop decodes long videos with {decoders['long']} and short ones with {decoders['short']}, "
        "the faster of OpenCV and PyAV here",
        *(f"{name}: no time was left; --minutes gives more" for name in left_out),
        "rates are of the steady state: stretches in the middle of a burst, with full stages before and more waiting "
        "behind; a sample of a ratio is one stretch over what was measured alone next to that burst",
    )
