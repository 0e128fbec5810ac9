"""`bench archive --sweep`: what a clip costs as the work grows: more clips, more decoders, larger patches, more frames.

Every setting is a run of its own on the short clips, with the networks of the preset. The runs of growing length (3 of
10 clips, one of 100, one of 1,000) are with small networks, because their 1,130 clips would take those more than
seven minutes. The other 11 runs (of 12 settings, two being the preset's own) are of 58 clips, of which 18 are timed.
11 to 20 minutes on two cores.

What was measured is kept after every setting, so that a run that fails costs its own figure and no other.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from operators.errors import PipelineError
from operators.records import Source
from pipeline.bench.environment import environment
from pipeline.bench.figures import Figure, Report, headline_of, measured, short
from pipeline.bench.quick import QUICK_SETTINGS, SMALL_NETWORKS
from pipeline.bench.session import Burst, Session
from pipeline.bench.workloads import CACHE, QUICK_SHORT, SHORT, Clips, make
from pipeline.config import Config
from pipeline.plan.placement import this_machine

Say = Callable[[str], None]
CLIPS = ((10, 3), (100, 1), (1000, 1))
"""(how many clips a run has, how often it is run)"""
DECODERS = (1, 2)
PATCHES_PX = (96, 128, 160, 192)
FRAMES = (1, 4, 8, 16, 32, 64)
STRETCH, STRETCHES = 6, 3
SMALL = {**SMALL_NETWORKS, "sampling.num_frames": 8}
"""The settings of the runs of growing length, with networks of the sizes that ship."""
PREFIX = "archive.sweep_"


def bench_sweep(
    config: Config,
    *,
    cache: Path = CACHE,
    say: Say,
    quick: bool = False,
    keep: Callable[[Report], None] = lambda report: None,
    make_session: Callable[[Config], Session] = Session,
) -> Report:
    """Measures every setting; `keep` is given what there is after each of them."""
    where, kind = environment(), QUICK_SHORT if quick else SHORT
    if quick:
        config = config.replaced(QUICK_SETTINGS)
    paths = make(kind, cache, say=say, workers=this_machine().num_cores)
    figures: list[Figure] = []
    notes: list[str] = []
    # Settings that are the preset's own are one run.
    known: dict[str, tuple[Sequence[float], str]] = {}

    def so_far() -> Report:
        return _report(config, where, kind, figures, notes, quick=quick)

    begun_s = time.monotonic()
    try:
        figures += _sizes(make_session(config.replaced(SMALL)), paths, ((2, 2), (4, 1)) if quick else CLIPS, say)
    except PipelineError as exc:
        notes.append(_failed("growing runs", exc, say))
    else:
        keep(so_far())
    for name, settings in _ways(quick):
        changed = config.replaced(settings)
        key = json.dumps(changed.identity()) if not {"run.source_workers"} & set(settings) else name
        try:
            if key not in known:
                known[key] = _steady(make_session(changed), paths, quick=quick)
        except PipelineError as exc:
            notes.append(_failed(name, exc, say))
            continue
        seconds, about = known[key]
        figures.append(_seconds(name, seconds, about))
        say(f"{name}: {figures[-1].value:.4f} s per clip; {time.monotonic() - begun_s:.0f} s so far")
        keep(so_far())
    if not figures:
        raise PipelineError(f"nothing of the sweep could be measured: {'; '.join(notes)}")
    return so_far()


def _ways(quick: bool) -> list[tuple[str, Mapping[str, Any]]]:
    if quick:
        return [("frames_2", {"sampling.num_frames": 2}), ("frames_4", {"sampling.num_frames": 4})]
    return [
        *((f"decoders_{n}", {"run.source_workers": n}) for n in DECODERS),
        *((f"patch_{px}", {"focus.patch_px": px}) for px in PATCHES_PX),
        *((f"frames_{n}", {"sampling.num_frames": n}) for n in FRAMES),
    ]


def _sizes(session: Session, paths: Sequence[Path], sizes: Sequence[tuple[int, int]], say: Say) -> list[Figure]:
    """Measures whole runs of growing length, apart from the start: filling and emptying is what is not linear."""
    found: dict[int, list[float]] = {}

    def script(session: Session) -> Generator[Source, None, None]:
        yield from session.through(list(paths[:4]))
        for size, repeats in sizes:
            for _ in range(repeats):
                whole_s = yield from session.through(list(itertools.islice(itertools.cycle(paths), size)))
                found.setdefault(size, []).append(whole_s / size)
                say(f"{size} clips: {whole_s / size:.4f} s per clip")

    session.run(script)
    about = (
        "with small networks, from the first file to the last label; "
        f"the start took {session.start_s:.1f} s before that, once a run"
    )
    return [_seconds(f"clips_{size}", seconds, about) for size, seconds in found.items()]


def _steady(session: Session, paths: Sequence[Path], *, quick: bool) -> tuple[Sequence[float], str]:
    found: list[Burst] = []
    stretch = 2 if quick else STRETCH

    def script(session: Session) -> Generator[Source, None, None]:
        yield from session.through(list(paths[:4]))
        found.append((yield from session.timed(paths, stretch=stretch, count=STRETCHES, period=min(4, stretch))))

    session.run(script)
    busy = ", ".join(f"{stage} {share:.0%}" for stage, share in found[0].busy.items())
    return found[0].stretches, f"in the steady state, with {stretch} clips in a sample; workers were busy: {busy}"


def _seconds(name: str, seconds: Sequence[float], about: str) -> Figure:
    return measured(f"{PREFIX}{name}_s", seconds, unit="s", goal_is="at_most", about=f"a clip takes so long {about}")


def _failed(name: str, exc: PipelineError, say: Say) -> str:
    text = f"{name} was not measured: {exc}"
    say(text)
    return text


def _report(
    config: Config,
    where: Mapping[str, Any],
    kind: Clips,
    figures: Sequence[Figure],
    notes: Sequence[str],
    *,
    quick: bool,
) -> Report:
    def found(start: str) -> str:
        some = [f for f in figures if f.name.startswith(f"{PREFIX}{start}")]
        return ", ".join(f"{short(f.value)} s ({f.name.removeprefix(PREFIX).split('_')[1]})" for f in some)

    axes = [("clips", "in a run of so many clips"), ("decoders", "with so many decoders")]
    axes += [("patch", "with patches of so many px"), ("frames", "with so many frames")]
    parts = [f"{found(start)} {words}" for start, words in axes if found(start)]
    line = f"a clip of {kind.seconds:g} s takes " + "; ".join(parts) if parts else "nothing measured yet"
    return Report(
        what="archive",
        headline=headline_of(line, quick=quick),
        figures=tuple(figures),
        environment=where,
        settings={"quick": quick, "sweep": True, "config": config.given(), "short": vars(kind)},
        notes=tuple(notes),
    )
