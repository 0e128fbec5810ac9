"""`bench decode`: sixteen frames out of a video, by this project's reader and by others, in turn.

Every side opens the file, finds out what is in it and gives the frames that the published rule names. This project's
reader ends at views; the others end at full-size RGB, which is less work. TorchCodec and decord run in a process of
their own, because each brings or loads FFmpeg libraries of its own.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.media.container import Decoder
from operators.media.decode import FileReader
from operators.media.frame_plan import Sampling, decode_plan, keyframe_plan, sample_indices
from operators.media.indexing import read_table
from operators.media.opening import Limits
from operators.media.view import Viewer
from operators.records import Source, source_id
from pipeline.bench.figures import Figure, Report, environment, measured, ratio, short, take_turns
from pipeline.bench.plain import with_pyav
from pipeline.bench.workloads import CACHE, LONG, QUICK_LONG, QUICK_SHORT, SHORT, Clips, make
from pipeline.plan.placement import this_machine
from pipeline.run.pools import process_pool

NUM_FRAMES = 16
_WORTH_TWICE_S = 2.0
NEEDS = {"torchcodec": " (it wants FFmpeg's libraries from the system: make system-packages)"}
Say = Callable[[str], None]
Side = Callable[[Sequence[str]], float]
"""Reads these files one after another and says how long it took."""


def bench_decode(
    *,
    cache: Path = CACHE,
    say: Say,
    quick: bool = False,
    rounds: int = 9,
    minutes: float = 7.0,
    cores: int | None = None,
) -> Report:
    """`minutes`: rounds are left out when they would take longer."""
    cores = cores or this_machine().num_cores
    where = environment()
    long_clips, short_clips = (QUICK_LONG, QUICK_SHORT) if quick else (LONG, SHORT)
    long_paths = make(long_clips, cache, say=say, workers=cores)
    short_paths = make(short_clips, cache, say=say, workers=cores)
    if quick:
        rounds, minutes = 1, 0.5
    notes: list[str] = []

    def files(paths: Sequence[Path], share: float) -> _Files:
        texts = [str(path) for path in paths]
        return _Files(paths=texts, rounds=rounds, budget_s=minutes * 60 * share, say=say, notes=notes)

    with ExitStack() as stack:
        others = _others(cores, stack, notes)
        figures = [
            *_long(files(long_paths[:1], 0.5), others, cores, long_clips),
            *_short(files(short_paths[: max(1, len(short_paths) // 3)], 0.3), others, cores, short_clips),
        ]
        if cores > 1:
            paths = [str(path) for path in (*short_paths[:10], long_paths[0])]
            figures += _side_by_side(paths, cores, rounds, minutes * 60 * 0.15, say)
    by_name = {figure.name: figure for figure in figures}
    versus = [("decode.exact_vs_torchcodec", "TorchCodec"), ("decode.exact_vs_decord", "decord")]
    parts = [f"{short(by_name[name].value)} times as fast as {other}" for name, other in versus if name in by_name]
    headline = (
        f"{NUM_FRAMES} exact frames out of {long_clips.seconds:g} s of {long_clips.width}x{long_clips.height} H.264 "
        f"in {short(by_name['decode.exact_s'].value)} s on {cores} cores: "
        + ", ".join([*parts, f"{short(by_name['decode.exact_vs_sequential'].value)} times as decoding everything"])
        + f"; the nearest keyframes in {short(by_name['decode.keyframe_s'].value)} s"
    )
    settings = {
        "rounds": rounds,
        "minutes": minutes,
        "quick": quick,
        "long": vars(long_clips),
        "short": vars(short_clips),
    }
    return Report(
        what="decode",
        headline=headline,
        figures=tuple(figures),
        environment=where,
        settings=settings,
        notes=tuple(notes),
    )


# This project's reader


def reading(paths: Sequence[str], *, seek: str = "exact", num_threads: int = 1) -> float:
    begun_s = time.perf_counter()
    for path in paths:
        views(path, seek=seek, num_threads=num_threads)
    return time.perf_counter() - begun_s


def views(path: str, *, seek: str = "exact", num_threads: int = 1) -> np.ndarray:
    """uint8 [F,224,224,3]"""
    reader = FileReader(
        source=Source(source_id=source_id(path), uri=path, video_id=Path(path).stem),
        sampling=Sampling(num_frames=NUM_FRAMES, seek=seek),
        viewer=_viewer(),
        num_threads=num_threads,
        clock=time.time,
    )
    with reader:
        return next(batch for batch in reader.read() if batch is not None).pixels


@functools.cache
def _viewer() -> Viewer:
    return Viewer(resize_px=256, crop_px=224)


def decoding_everything(paths: Sequence[str], *, is_threaded: bool) -> float:
    """PyAV with as many frame threads as it likes, or none; the wanted frames become RGB."""
    begun_s = time.perf_counter()
    for path in paths:
        for _ in with_pyav(path, NUM_FRAMES, is_threaded=is_threaded):
            pass
    return time.perf_counter() - begun_s


class _Counted:
    """A codec context that counts the pictures that come out of it."""

    def __init__(self, context: Any) -> None:
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "num_frames", 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._context, name, value)

    def decode(self, packet: Any) -> Any:
        frames = self._context.decode(packet)
        object.__setattr__(self, "num_frames", self.num_frames + len(frames))
        return frames


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What of a file has to be decoded for its sample."""

    num_frames: int
    """In the file."""
    num_groups: int
    num_decoded: int
    """Pictures that the decoder made."""


def planned(path: str, *, seek: str = "exact") -> Planned:
    decoder = Decoder(path, Limits(), _viewer(), num_threads=1)
    try:
        steps = read_table(decoder)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                table = end.value[0]
                break
        wanted = np.unique(sample_indices(table.num_frames, NUM_FRAMES))
        groups = decode_plan(table, wanted) if seek == "exact" else keyframe_plan(table, wanted)[1]
        counted: Any = _Counted(decoder.context)
        decoder.context = counted
        for group in groups:
            for _ in decoder.group(table, group, is_strict=False):
                pass
        return Planned(num_frames=table.num_frames, num_groups=len(groups), num_decoded=counted.num_frames)
    finally:
        decoder.close()


# The others


def torchcodec_seconds(paths: Sequence[str], num_threads: int, mode: Literal["exact", "approximate"]) -> float:
    from torchcodec.decoders import VideoDecoder

    begun_s = time.perf_counter()
    for path in paths:
        decoder = VideoDecoder(path, num_ffmpeg_threads=num_threads, seek_mode=mode, dimension_order="NHWC")
        decoder.get_frames_at(sample_indices(len(decoder), NUM_FRAMES).tolist())
    return time.perf_counter() - begun_s


def decord_seconds(paths: Sequence[str], num_threads: int) -> float:
    import decord

    begun_s = time.perf_counter()
    for path in paths:
        reader = decord.VideoReader(path, num_threads=num_threads)
        reader.get_batch(sample_indices(len(reader), NUM_FRAMES).tolist()).asnumpy()
    return time.perf_counter() - begun_s


def _others(cores: int, stack: ExitStack, notes: list[str]) -> dict[str, dict[str, Side]]:
    """By library, its modes."""
    threads = sorted({1, cores})
    modes: dict[str, dict[str, tuple[Callable[..., float], tuple[Any, ...]]]] = {
        "torchcodec": {
            f"{mode}, {n} threads": (torchcodec_seconds, (n, mode))
            for mode in ("exact", "approximate")
            for n in threads
        },
        "decord": {f"{n} threads": (decord_seconds, (n,)) for n in threads},
    }
    found: dict[str, dict[str, Side]] = {}
    for library, ways in modes.items():
        if importlib.util.find_spec(library) is None:
            notes.append(f"{library} is not installed and was not measured: pip install -e '.[bench]'")
            continue
        pool = stack.enter_context(process_pool(1))
        try:
            # Its import and its first file are not part of any figure.
            pool.submit(importlib.import_module, library).exception()
            pool.submit(_version, library).result()
        except Exception as exc:
            why = " ".join(str(exc).split())[:200]
            notes.append(f"{library} does not work here and was not measured{NEEDS.get(library, '')}: {why}")
            continue
        found[library] = {
            name: functools.partial(_ask, pool, work, arguments) for name, (work, arguments) in ways.items()
        }
    return found


def _version(library: str) -> str:
    return str(importlib.import_module(library).__version__)


def _ask(
    pool: ProcessPoolExecutor, work: Callable[..., float], arguments: tuple[Any, ...], paths: Sequence[str]
) -> float:
    return pool.submit(work, list(paths), *arguments).result()


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What all libraries read, and how often they may."""

    paths: Sequence[str]
    rounds: int
    budget_s: float
    say: Say
    notes: list[str]
    """What went wrong is added."""
    failed: set[str] = field(default_factory=set)

    def seconds(self, name: str, way: Side, *, may_fail: bool) -> float:
        """NaN where another library failed on them, now or before: that costs its figures and nobody else's."""
        if name in self.failed:
            return math.nan
        try:
            return way(self.paths)
        except Exception as exc:
            if not may_fail:
                raise
            why = " ".join(str(exc).split())[:200] or type(exc).__name__
            self.notes.append(f"{name} failed and was left out: {why}")
            self.say(self.notes[-1])
            self.failed.add(name)
            return math.nan


def _in_turn(
    ours: dict[str, dict[str, Side]], others: dict[str, dict[str, Side]], files: _Files
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each library in its best mode, and which that is. Of the others those that fail are missing.

    Every mode is tried first, which also warms it up; the two best of each library take turns, and the one with the
    lower median counts. One try alone would pick by luck on a machine that has other work.
    """
    begun_s = time.monotonic()
    sides: dict[str, Callable[[], float]] = {}
    for library, ways in {**ours, **others}.items():
        runs = {
            mode: functools.partial(files.seconds, f"{library}, {mode}", way, may_fail=library in others)
            for mode, way in ways.items()
        }
        tried = {mode: run() for mode, run in runs.items()}
        for mode, seconds in tried.items():
            if seconds < _WORTH_TWICE_S:
                tried[mode] = min(seconds, runs[mode]())
        files.say(f"{library}: " + ", ".join(f"{mode} {value:.3g} s" for mode, value in tried.items()))
        tried = {mode: seconds for mode, seconds in tried.items() if f"{library}, {mode}" not in files.failed}
        if not tried:
            continue
        # What takes long and has no rival close by would only cost time.
        kept = [m for m in sorted(tried, key=lambda m: tried[m])[:2] if tried[m] <= 1.5 * min(tried.values())]
        for mode in kept if min(tried.values()) < 2 * _WORTH_TWICE_S else kept[:1]:
            sides[f"{library}, {mode}"] = runs[mode]
    left_s = files.budget_s - (time.monotonic() - begun_s)
    seconds_of = take_turns(sides, rounds=files.rounds, budget_s=left_s, say=files.say)
    best: dict[str, str] = {}
    for library in (*ours, *others):
        modes = [name for name in seconds_of if name.startswith(f"{library}, ") and name not in files.failed]
        if modes:
            best[library] = min(modes, key=lambda name: float(np.median(seconds_of[name])))
    modes_of = {library: name.removeprefix(f"{library}, ") for library, name in best.items()}
    return {library: seconds_of[name] for library, name in best.items()}, modes_of


# The measurements

_EVERYTHING: dict[str, Side] = {
    "frame threads": functools.partial(decoding_everything, is_threaded=True),
    "1 thread": functools.partial(decoding_everything, is_threaded=False),
}


def _ours(cores: int, *, seek: str = "exact") -> dict[str, Side]:
    return {f"{n} threads": functools.partial(reading, seek=seek, num_threads=n) for n in sorted({1, cores})}


def _long(files: _Files, others: dict[str, dict[str, Side]], cores: int, clips: Clips) -> list[Figure]:
    files.say(f"long: {clips.num_frames} frames of {clips.width}x{clips.height}")
    (path,) = files.paths
    equal = _share_equal(path)
    exact, near = planned(path), planned(path, seek="keyframe")
    ours = {"ours": _ours(cores), "sequential": _EVERYTHING, "keyframe": _ours(cores, seek="keyframe")}
    seconds, modes = _in_turn(ours, others, files)
    per_frame_s = float(np.median(seconds["sequential"])) / exact.num_frames
    about = f"{exact.num_decoded} of {exact.num_frames} frames decoded in {exact.num_groups} groups, {modes['ours']}"
    figures = [
        measured(
            "decode.exact_s",
            seconds["ours"],
            unit="s",
            goal_is="at_most",
            limit=exact.num_decoded * per_frame_s,
            about=about + "; limit: those frames at the rate of decoding everything",
        ),
        measured(
            "decode.keyframe_s",
            seconds["keyframe"],
            unit="s",
            goal_is="at_most",
            limit=near.num_decoded * per_frame_s,
            about=f"{near.num_decoded} frames decoded, {modes['keyframe']}",
        ),
        measured(
            "decode.sequential_s",
            seconds["sequential"],
            unit="s",
            goal_is="at_most",
            about=f"PyAV, {modes['sequential']}",
        ),
        ratio(
            "decode.exact_vs_sequential",
            seconds["sequential"],
            seconds["ours"],
            goal=4.0,
            limit=exact.num_frames / exact.num_decoded,
            about="limit: frames of the file over frames that must be decoded",
        ),
        ratio(
            "decode.keyframe_vs_sequential",
            seconds["sequential"],
            seconds["keyframe"],
            goal=60.0,
            limit=near.num_frames / near.num_decoded,
        ),
        measured(
            "decode.frames_equal",
            [equal],
            unit="",
            goal=1.0,
            about="share of the views that are bit for bit those of decoding everything",
        ),
    ]
    for library, goal in (("torchcodec", 1.5), ("decord", None)):
        if library in seconds:
            name, about = f"decode.exact_vs_{library}", f"its best mode: {modes[library]}"
            figures.append(ratio(name, seconds[library], seconds["ours"], goal=goal, about=about))
    return figures


def _share_equal(path: str) -> float:
    """Of the wanted frames, those whose views are the same as when everything is decoded."""
    ours = views(path)
    theirs = [_viewer()(frame) for frame in with_pyav(path, NUM_FRAMES)]
    return float(np.mean([np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)]))


def _short(files: _Files, others: dict[str, dict[str, Side]], cores: int, clips: Clips) -> list[Figure]:
    num = len(files.paths)
    files.say(f"short: {num} files of {clips.seconds:g} s, {clips.width}x{clips.height}")
    seconds, modes = _in_turn({"ours": _ours(cores), "sequential": _EVERYTHING}, others, files)
    rivals = {name: samples for name, samples in seconds.items() if name != "ours"}
    best = min(rivals, key=lambda name: float(np.median(rivals[name])))
    per_s = [num / s for s in seconds["ours"]]
    figures = [
        measured("decode.short_clips_per_s", per_s, unit="clips/s", about=f"{num} clips, {modes['ours']}"),
        ratio(
            "decode.short_vs_best",
            rivals[best],
            seconds["ours"],
            goal=1.0,
            goal_is="no_less",
            about=f"the best of the others is {best}, {modes[best]}",
        ),
    ]
    for name in rivals:
        figures.append(ratio(f"decode.short_vs_{name}", rivals[name], seconds["ours"], about=modes[name]))
    return figures


def _side_by_side(paths: list[str], cores: int, rounds: int, budget_s: float, say: Say) -> list[Figure]:
    """Each core reads files of its own; the others' work may not slow it down."""
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
    about = f"files per second and core, {cores} cores reading over one; {len(paths)} files each"
    return [
        ratio("decode.side_by_side", seconds["alone"], seconds["together"], goal=1.0, goal_is="no_less", about=about)
    ]
