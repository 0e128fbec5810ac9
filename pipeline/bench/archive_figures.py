"""The figures of `bench archive`, out of what its rig has measured."""

from __future__ import annotations

from statistics import median

from pipeline.bench.figures import Figure, measured, ratio
from pipeline.bench.rig import Rig, Seconds
from pipeline.bench.rivals import LEARNED
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM


def archive_figures(rig: Rig, cores: int) -> list[Figure]:
    """Every figure for which there are samples."""
    # The first of a group is the long one.
    long_limit_s = median(stages.total_with_s(stages.sources[:1]) for stages in rig.seconds.stages) / cores
    short_limit_s = median(stages.total_with_s(stages.sources[1:]) for stages in rig.seconds.stages) / cores
    return [
        *_mix_figures(rig, cores),
        *_plain_figures(rig, cores, long_limit_s, short_limit_s),
        *_baseline_figures(rig.seconds),
        *_second_figures(rig, long_limit_s, short_limit_s),
        *(_share_figure(rig.seconds, stage) for stage in (SOURCE, STREAM, FOCUS, SINK)),
    ]


def _mix_figures(rig: Rig, cores: int) -> list[Figure]:
    """The rate of the mix, and its share of what the machine allows."""
    seconds, files = rig.seconds, rig.files
    stretch = rig.sizes.groups * len(files.groups[0])
    return [
        measured(
            "archive.clips_per_s",
            [1 / s for s in seconds.mix],
            unit="clips/s",
            limit=1 / median(seconds.limit),
            about=f"a lap has {len(files.short)} short and {len(files.long)} long videos, a sample {stretch} of them",
        ),
        ratio(
            "archive.share_of_limit",
            seconds.limit,
            seconds.mix,
            unit="",
            goal=0.9,
            limit=1.0,
            about=f"the limit is the CPU seconds of all stages alone, over {cores} cores; a sample has {stretch} clips",
        ),
    ]


def _plain_figures(rig: Rig, cores: int, long_limit_s: float, short_limit_s: float) -> list[Figure]:
    """How many times as fast as the plain loop the pipeline is."""
    seconds, sizes = rig.seconds, rig.sizes
    limit = f"the limit is the plain loop's seconds over the CPU seconds of all stages alone over {cores} cores"
    return [
        ratio(
            "archive.vs_plain_long",
            seconds.plain_long,
            seconds.long,
            goal=4.0,
            limit=median(seconds.plain_long) / long_limit_s,
            about=f"exact frames of {sizes.long} videos are compared with one of them by the plain loop; {limit}",
        ),
        ratio(
            "archive.vs_plain_short",
            seconds.plain_short,
            seconds.short,
            goal=3.3,
            limit=median(seconds.plain_short) / short_limit_s,
            about=f"exact frames of {sizes.short} clips are compared with {sizes.plain_short} of them by the plain "
            f"loop; {limit}",
        ),
        ratio(
            "archive.keyframe_vs_plain_long",
            seconds.plain_long,
            seconds.near,
            goal=25.0,
            about=f"with sampling.seek=keyframe {sizes.near} videos are compared with one of them by the plain loop",
        ),
    ]


def _baseline_figures(seconds: Seconds) -> list[Figure]:
    """What can be left out: one process for all, and other policies than the learned one."""
    figures = []
    if seconds.inline:
        about = "the mix over Ray is compared with the mix in one process"
        figures.append(ratio("archive.ray_vs_inline", seconds.inline, seconds.mix_beside_inline, about=about))
    for policy in seconds.policies:
        if policy == LEARNED:
            continue
        about = (
            "the rate on short clips is compared by the CPU seconds of all stages alone: the learned policy's over "
            f"{policy}'s" + (", where the whole view goes through the focus network" if policy == "full" else "")
        )
        over, under = seconds.policies[LEARNED], seconds.policies[policy]
        figures.append(ratio(f"archive.{policy}_vs_learned", over, under, goal_is="neither", about=about))
    return figures


def _second_figures(rig: Rig, long_limit_s: float, short_limit_s: float) -> list[Figure]:
    """What a file takes, what the start takes, and how busy the machine was."""
    seconds = rig.seconds
    samples = {
        "long_s": (seconds.long, long_limit_s, "a long video takes so long, in the steady state"),
        "short_s": (seconds.short, short_limit_s, "a short clip takes so long, in the steady state"),
        "keyframe_long_s": (seconds.near, None, "a long video takes so long by its keyframes, in the steady state"),
        "start_s": ([rig.rivals.exact.start_s], None, "the first label comes so long after the call"),
    }
    return [
        *(
            measured(f"archive.{name}", found, unit="s", goal_is="at_most", limit=limit, about=about)
            for name, (found, limit, about) in samples.items()
        ),
        measured(
            "archive.machine_busy",
            [burst.machine_busy for burst in seconds.bursts],
            unit="",
            limit=1.0,
            goal_is="neither",
            about="the share of all cores' time that was used while the mix ran; other people's work counts",
        ),
    ]


def _share_figure(seconds: Seconds, stage: str) -> Figure:
    alone = median(stages.seconds[stage] for stages in seconds.stages)
    busy = median(burst.busy.get(stage, 0.0) for burst in seconds.bursts)
    return measured(
        f"archive.{stage}_share",
        [stages.seconds[stage] / stages.total_s for stages in seconds.stages],
        unit="",
        goal_is="neither",
        about=f"the stage takes this share of all CPU time, {1000 * alone:.1f} ms a clip; its workers are busy "
        f"{busy:.0%} of the time",
    )
