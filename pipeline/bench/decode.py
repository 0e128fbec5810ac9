"""`bench decode`: sixteen frames out of a video, by this project's reader and by others, in turn.

Every side opens the file, finds out what is in it and gives the frames that the published rule names. This project's
reader ends at views; the others end at full-size RGB, which is less work. TorchCodec and decord run in a process of
their own, because each brings or loads FFmpeg libraries of its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pipeline.bench.best_modes import Say, SharedFiles, in_turn
from pipeline.bench.decode_count import Planned, planned
from pipeline.bench.environment import environment
from pipeline.bench.figures import Figure, Report, headline_of, measured, ratio, short
from pipeline.bench.plain import with_pyav
from pipeline.bench.readers import EVERYTHING, NUM_FRAMES, Side, other_libraries, our_reader, reading, viewer, views
from pipeline.bench.turns import take_turns
from pipeline.bench.workloads import CACHE, LONG, QUICK_LONG, QUICK_SHORT, SHORT, Clips, make
from pipeline.plan.placement import this_machine
from pipeline.run.pools import process_pool


def bench_decode(
    *,
    cache: Path = CACHE,
    say: Say,
    quick: bool = False,
    rounds: int = 9,
    minutes: float = 7.0,
    cores: int | None = None,
) -> Report:
    """Measures long and short files; rounds are left out when they would take longer than `minutes`."""
    cores = cores or this_machine().num_cores
    where = environment()
    long_clips, short_clips = (QUICK_LONG, QUICK_SHORT) if quick else (LONG, SHORT)
    long_paths = make(long_clips, cache, say=say, workers=cores)
    short_paths = make(short_clips, cache, say=say, workers=cores)
    if quick:
        rounds, minutes = 1, 0.5
    notes: list[str] = []

    def files(paths: Sequence[Path], share: float) -> SharedFiles:
        texts = [str(path) for path in paths]
        return SharedFiles(paths=texts, rounds=rounds, budget_s=minutes * 60 * share, say=say, notes=notes)

    with ExitStack() as stack:
        others = other_libraries(cores, stack, notes)
        figures = [
            *long_figures(files(long_paths[:1], 0.5), others, cores, long_clips),
            *short_figures(files(short_paths[: max(1, len(short_paths) // 3)], 0.3), others, cores, short_clips),
        ]
        if cores > 1:
            paths = [str(path) for path in (*short_paths[:10], long_paths[0])]
            figures += _side_by_side(paths, cores, rounds, minutes * 60 * 0.15, say)
    settings = {
        "rounds": rounds, "minutes": minutes, "quick": quick, "long": vars(long_clips), "short": vars(short_clips),
    }  # fmt: skip
    return Report(
        what="decode",
        headline=headline_of(_headline(figures, long_clips, cores), quick=quick),
        figures=tuple(figures),
        environment=where,
        settings=settings,
        notes=tuple(notes),
    )


def _headline(figures: Sequence[Figure], clips: Clips, cores: int) -> str:
    value = {figure.name: short(figure.value) for figure in figures}
    versus = [
        ("decode.exact_vs_torchcodec", "TorchCodec"),
        ("decode.exact_vs_decord", "decord"),
        ("decode.exact_vs_sequential", "decoding everything"),
    ]
    return (
        f"{NUM_FRAMES} exact frames out of {clips.seconds:g} s of {clips.width}x{clips.height} H.264 in "
        f"{value['decode.exact_s']} s on {cores} cores: "
        + ", ".join(f"{value[name]} times as fast as {other}" for name, other in versus if name in value)
        + f"; the nearest keyframes in {value['decode.keyframe_s']} s"
    )


def long_figures(files: SharedFiles, others: dict[str, dict[str, Side]], cores: int, clips: Clips) -> list[Figure]:
    """A long video, where seeking pays."""
    files.say(f"long: {clips.num_frames} frames of {clips.width}x{clips.height}")
    (path,) = files.paths
    equal = _share_equal(path)
    exact, near = planned(path), planned(path, seek="keyframe")
    ours = {"ours": our_reader(cores), "sequential": EVERYTHING, "keyframe": our_reader(cores, seek="keyframe")}
    seconds, modes = in_turn(ours, others, files)
    return [
        *_long_seconds(seconds, modes, exact, near),
        ratio(
            "decode.exact_vs_sequential",
            seconds["sequential"],
            seconds["ours"],
            goal=4.0,
            limit=exact.num_frames / exact.num_decoded,
            about="the limit is the number of frames in the file over the number that must be decoded",
        ),
        ratio(
            "decode.keyframe_vs_sequential",
            seconds["sequential"],
            seconds["keyframe"],
            goal=60.0,
            limit=near.num_frames / near.num_decoded,
            about="the limit is the number of frames in the file over the number of keyframes that are decoded",
        ),
        measured(
            "decode.frames_equal",
            [equal],
            unit="",
            goal=1.0,
            about="this share of the views is bit for bit the same as when everything is decoded",
        ),
        *(
            ratio(
                f"decode.exact_vs_{library}",
                seconds[library],
                seconds["ours"],
                goal=goal,
                about=f"{library} is in its best mode, {modes[library]}",
            )
            for library, goal in (("torchcodec", 1.5), ("decord", None))
            if library in seconds
        ),
    ]


def _long_seconds(
    seconds: dict[str, list[float]], modes: dict[str, str], exact: Planned, near: Planned
) -> list[Figure]:
    """What a long video takes exactly, by its keyframes and when everything is decoded."""
    per_frame_s = float(np.median(seconds["sequential"])) / exact.num_frames
    abouts = {
        "exact": f"{exact.num_decoded} of {exact.num_frames} frames are decoded in {exact.num_groups} groups with "
        f"{modes['ours']}; the limit is those frames at the rate of decoding everything",
        "keyframe": f"{near.num_decoded} frames are decoded with {modes['keyframe']}; the limit is those frames at the "
        "rate of decoding everything",
        "sequential": f"PyAV decodes everything with {modes['sequential']}",
    }
    samples = {"exact": seconds["ours"], "keyframe": seconds["keyframe"], "sequential": seconds["sequential"]}
    limits = {"exact": exact.num_decoded * per_frame_s, "keyframe": near.num_decoded * per_frame_s}
    return [
        measured(f"decode.{name}_s", found, unit="s", goal_is="at_most", limit=limits.get(name), about=abouts[name])
        for name, found in samples.items()
    ]


def _share_equal(path: str) -> float:
    """The share of the wanted frames whose views are the same as when everything is decoded."""
    ours = views(path)
    theirs = [viewer()(frame) for frame in with_pyav(path, NUM_FRAMES)]
    return float(np.mean([np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]))


def short_figures(files: SharedFiles, others: dict[str, dict[str, Side]], cores: int, clips: Clips) -> list[Figure]:
    """Short files, where seeking does not pay."""
    num = len(files.paths)
    files.say(f"short: {num} files of {clips.seconds:g} s, {clips.width}x{clips.height}")
    seconds, modes = in_turn({"ours": our_reader(cores), "sequential": EVERYTHING}, others, files)
    rivals = {name: samples for name, samples in seconds.items() if name != "ours"}
    best = min(rivals, key=lambda name: float(np.median(rivals[name])))
    return [
        measured(
            "decode.short_clips_per_s",
            [num / s for s in seconds["ours"]],
            unit="clips/s",
            about=f"{num} clips are read with {modes['ours']}",
        ),
        ratio(
            "decode.short_vs_best",
            rivals[best],
            seconds["ours"],
            goal=1.0,
            goal_is="no_less",
            about=f"the best of the others is {best}, {modes[best]}",
        ),
        *(
            ratio(f"decode.short_vs_{name}", rivals[name], seconds["ours"], about=f"{name} is in its best mode, {mode}")
            for name, mode in modes.items()
            if name in rivals
        ),
    ]


def _side_by_side(paths: list[str], cores: int, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """Each core reads files of its own, and the others' work may not slow it down."""
    say(f"side by side: {len(paths)} files on each of {cores} cores")
    with process_pool(cores) as pool:

        def read(num_workers: int) -> float:
            waiting = [pool.submit(reading, paths) for _ in range(num_workers)]
            return float(np.mean([future.result() for future in waiting]))

        begun_s = time.monotonic()
        read(cores)
        seconds = take_turns(
            {"alone": lambda: read(1), "together": lambda: read(cores)},
            rounds=rounds,
            budget_s=budget_s - (time.monotonic() - begun_s),
            say=say,
        )
    about = (
        f"the files per second and core with {cores} cores reading over those with one; each reads {len(paths)} files"
    )
    return [
        ratio("decode.side_by_side", seconds["alone"], seconds["together"], goal=1.0, goal_is="no_less", about=about)
    ]
