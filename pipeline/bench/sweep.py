"""What a clip costs as the work grows: more clips, more decoders, larger patches, more frames. An option of
`bench archive`, because it takes many runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from operators.records import Source
from pipeline.bench.figures import Figure, measured
from pipeline.bench.session import Burst, Session
from pipeline.config import Config

CLIPS = (10, 100, 1000)
DECODERS = (1, 2)
PATCHES_PX = (96, 128, 160, 192)
FRAMES = (1, 4, 8, 16, 32, 64)


def sweep(config: Config, paths: Sequence[Path], *, say: Callable[[str], None], quick: bool = False) -> list[Figure]:
    """Seconds per clip of short clips, each setting in a run of its own."""
    if quick:
        return _sizes(config, paths, (2, 4), say)
    figures = _sizes(config, paths, CLIPS, say)
    ways: list[tuple[str, Mapping[str, Any]]] = [
        *((f"decoders_{n}", {"run.source_workers": n}) for n in DECODERS),
        *((f"patch_{px}", {"focus.patch_px": px}) for px in PATCHES_PX),
        *((f"frames_{n}", {"sampling.num_frames": n}) for n in FRAMES),
    ]
    for name, settings in ways:
        burst = _steady(config.replaced(settings), paths)
        say(f"{name}: {burst.seconds_per_clip:.4f} s per clip")
        about = "steady state; busy: " + ", ".join(f"{stage} {share:.0%}" for stage, share in burst.busy.items())
        figures.append(_seconds(f"archive.sweep_{name}_s", burst.seconds_per_clip, about))
    return figures


def _sizes(config: Config, paths: Sequence[Path], sizes: Sequence[int], say: Callable[[str], None]) -> list[Figure]:
    """Whole runs of growing length, apart from the start: what is not linear is the filling and the emptying."""
    found: list[tuple[int, Burst]] = []

    def script(session: Session) -> Generator[Source, None, None]:
        yield from session.through(list(paths[:4]))
        for size in sizes:
            burst = yield from session.burst(list(itertools.islice(itertools.cycle(paths), size)), lead=0, tail=0)
            found.append((size, burst))
            say(f"{size} clips: {burst.whole_s / size:.4f} s per clip")

    session = Session(config)
    session.run(script)
    about = f"from the first file to the last label; before it, once a run, {session.start_s:.1f} s of start"
    return [_seconds(f"archive.sweep_clips_{size}_s", burst.whole_s / size, about) for size, burst in found]


def _steady(config: Config, paths: Sequence[Path]) -> Burst:
    found: list[Burst] = []

    def script(session: Session) -> Generator[Source, None, None]:
        yield from session.through(list(paths[:4]))
        found.append((yield from session.steady(paths)))

    Session(config).run(script)
    return found[0]


def _seconds(name: str, seconds: float, about: str) -> Figure:
    return measured(name, [seconds], unit="s", goal_is="at_most", about=f"per clip; {about}")
