"""Ways to get a sample of frames out of videos: this project's reader, decoding everything, and other libraries."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from operators.media.decode import FileReader
from operators.media.sampling import SamplingRule, sample_indices
from operators.media.view import Viewer
from operators.records import Source, source_id
from pipeline.bench.plain import with_pyav
from pipeline.run.pools import process_pool

NUM_FRAMES = 16
NEEDS = {"torchcodec": " (it wants FFmpeg's libraries from the system: make system-packages)"}
Side = Callable[[Sequence[str]], float]
"""Reads these files one after another and says how long it took."""


def reading(paths: Sequence[str], *, seek: str = "exact", num_threads: int = 1) -> float:
    """The seconds that this project's reader takes for the files."""
    begun_s = time.perf_counter()
    for path in paths:
        views(path, seek=seek, num_threads=num_threads)
    return time.perf_counter() - begun_s


def views(path: str, *, seek: str = "exact", num_threads: int = 1) -> np.ndarray:
    """The views of the sample that this project's reader gives, uint8 [F,224,224,3]."""
    reader = FileReader(
        source=Source(source_id=source_id(path), uri=path, video_id=Path(path).stem),
        sampling=SamplingRule(num_frames=NUM_FRAMES, seek=seek),
        viewer=viewer(),
        num_threads=num_threads,
        clock=time.time,
    )
    with reader:
        return next(batch for batch in reader.read() if batch is not None).pixels


@functools.cache
def viewer() -> Viewer:
    """What makes views as a run with the published settings makes them."""
    return Viewer(resize_px=256, crop_px=224)


def decoding_everything(paths: Sequence[str], *, is_threaded: bool) -> float:
    """The seconds that PyAV takes with as many frame threads as it likes, or none; the wanted frames become RGB."""
    begun_s = time.perf_counter()
    for path in paths:
        for _ in with_pyav(path, NUM_FRAMES, is_threaded=is_threaded):
            pass
    return time.perf_counter() - begun_s


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


def other_libraries(cores: int, stack: ExitStack, notes: list[str]) -> dict[str, dict[str, Side]]:
    """The other libraries that work here, with their modes. What does not work here is noted."""
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


EVERYTHING: dict[str, Side] = {
    "frame threads": functools.partial(decoding_everything, is_threaded=True),
    "1 thread": functools.partial(decoding_everything, is_threaded=False),
}
"""The modes of decoding everything."""


def our_reader(cores: int, *, seek: str = "exact") -> dict[str, Side]:
    """This project's reader with its modes."""
    return {f"{n} threads": functools.partial(reading, seek=seek, num_threads=n) for n in sorted({1, cores})}
