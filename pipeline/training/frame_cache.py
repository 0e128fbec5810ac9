"""Videos decoded once: views in one memory-mapped file that training reads and any number of processes share.

For every clip and step it keeps the frame that inference takes and a few others of the same segment. Killed
while it is made, it goes on where it was; a second process that wants the same cache waits for the first.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from operators.durable import write_durably
from operators.errors import ConfigError, SourceError, StageError
from operators.file_lock import take_lock
from operators.records import Source

_SYNC_EVERY = 64
"""The clips between two syncs to disk, which a kill costs at most."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipFrames:
    """The distinct frames that decoding one video gives, in order."""

    pixels: np.ndarray
    """uint8 [F,S,S,3]"""
    frame_index: np.ndarray
    """int64 [F]: numbers in decoder order."""
    num_frames: int
    """The number of frames of the whole video."""
    view_yxhw: tuple[float, float, float, float]
    rows: np.ndarray | None = None
    """int64 [T,k] of the pixels for every step and candidate, where the reader chooses itself."""


Read = Callable[[Source], ClipFrames]


@runtime_checkable
class StepReader(Protocol):
    """A Read that comes back now and then, so that one that is slow differs from one that hangs."""

    def __call__(self, source: Source) -> ClipFrames: ...

    def steps(self, source: Source) -> Iterator[ClipFrames | None]:
        """Yields None for every step on the way, and the frames at last."""


ReadMany = Callable[[Read, Iterable[Source]], Generator[ClipFrames | SourceError, None, None]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameCache:
    """The finished cache. Arrays are read-only views of files."""

    pixels: np.ndarray
    """uint8 [V,T,k,S,S,3]: clip, step, candidate. Candidate 0 is what inference takes."""
    frame_index: np.ndarray
    """int32 [V,T,k]"""
    num_frames: np.ndarray
    """int32 [V]; 0 where the video could not be read."""
    view_yxhw: np.ndarray
    """float64 [V,4]: the view in units of the displayed frame."""
    errors: dict[int, str]
    """Clip -> why it could not be read."""
    fingerprint: str
    """32 hex digits that stand for the files, their order and the way they are viewed; labels change no pixel."""

    @property
    def readable(self) -> np.ndarray:
        """int64: the clips that can be trained on."""
        return np.flatnonzero(self.num_frames > 0)


def choose_candidates(
    frame_index: np.ndarray, num_frames: int, *, num_steps: int, candidates: int, pad: str = "last"
) -> np.ndarray:
    """Chooses rows of the decoded frames for every step and candidate: int64 [T,k].

    Candidate 0 is the validation frame int(n/T/2 + n/T*i). The others are spread over the step's segment i*d
    .. i*d+d-1, d = n // T, from which the published training draws. A video of at most T frames has its
    frames in order and repeats the last one (`pad` first: the first one at every step).
    """
    rows = np.zeros((num_steps, candidates), np.int64)
    at = np.searchsorted(frame_index, np.arange(num_frames)).clip(0, len(frame_index) - 1)
    for i in range(num_steps):
        if num_frames > num_steps:
            wanted = [int(num_frames / num_steps / 2 + num_frames / num_steps * i)]
            segment = num_frames // num_steps
            wanted += [i * segment + int((j + 0.5) / (candidates - 1) * segment) for j in range(candidates - 1)]
        else:
            wanted = [0 if pad == "first" else min(i, num_frames - 1)] * candidates
        # Where only a sample of the frames was decoded, the nearest of them stands in.
        for j, frame in enumerate(wanted):
            row = int(at[frame])
            before = max(row - 1, 0)
            if abs(int(frame_index[before]) - frame) < abs(int(frame_index[row]) - frame):
                row = before
            rows[i, j] = row
    return rows


def data_fingerprint(sources: Sequence[Source], view: dict[str, Any]) -> str:
    """32 hex digits that stand for what is decoded and how: paths, sizes and times of the files, and the view's
    settings."""
    digest = hashlib.sha256(json.dumps(view, sort_keys=True).encode())
    for source in sources:
        try:
            facts = os.stat(source.uri)
            digest.update(f"{source.uri}:{facts.st_size}:{facts.st_mtime_ns};".encode("utf-8", "surrogateescape"))
        except OSError:
            digest.update(f"{source.uri}:missing;".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def cache_bytes(num_clips: int, *, num_steps: int, candidates: int, size_px: int) -> int:
    return num_clips * num_steps * candidates * size_px * size_px * 3


def open_cache(
    folder: Path,
    sources: Sequence[Source],
    read: Read,
    *,
    num_steps: int,
    candidates: int,
    size_px: int,
    pad: str = "last",
    look: Mapping[str, Any] | None = None,
    max_bytes: int = 64 << 30,
    read_many: ReadMany | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> FrameCache:
    """Opens the cache of these sources below `folder`, and makes it first where it is not there.

    A video that cannot be read is left out and named in `errors`. `look`: whatever else the pixels depend on, so
    that trainings share a cache only where `read` gives both the same. `read_many` gives the sources' frames in
    order, or the error of each; None reads one after the other here. `on_wait` is called once where another process
    makes the same cache, with a message that names it.
    """
    if candidates < 1 or num_steps < 1:
        raise ValueError(f"{num_steps} steps, {candidates} candidates")
    sizes = {"steps": num_steps, "candidates": candidates, "size_px": size_px, "pad": pad}
    view = {**sizes, "look": dict(look or {}), "form": 2}
    fingerprint = data_fingerprint(sources, view)
    num_bytes = cache_bytes(len(sources), num_steps=num_steps, candidates=candidates, size_px=size_px)
    if num_bytes > max_bytes:
        raise ConfigError(
            f"the frame cache of {len(sources)} videos would take {num_bytes / 1e9:.1f} GB, more than the "
            f"{max_bytes / 1e9:.1f} GB allowed: allow more with train.max_cache_gb, or take fewer frames per step "
            "with train.candidates"
        )
    home = folder / fingerprint
    home.mkdir(parents=True, exist_ok=True)
    shape = (len(sources), num_steps, candidates, size_px, size_px, 3)
    if not (home / "done.json").exists():
        # Whoever comes second waits here, and then finds the cache finished.
        lock = take_lock(home / "lock", folder=home, on_wait=on_wait)
        try:
            if not (home / "done.json").exists():
                _fill(home, sources, read, read_many or _one_by_one, shape, pad, progress)
        finally:
            os.close(lock)
    return _open(home, shape, fingerprint)


def _one_by_one(read: Read, sources: Iterable[Source]) -> Generator[ClipFrames | SourceError, None, None]:
    for source in sources:
        try:
            yield read(source)
        except SourceError as exc:
            yield exc


def _maps(home: Path, shape: tuple[int, ...], mode: Any) -> dict[str, np.ndarray]:
    def array(name: str, kind: type, size: tuple[int, ...]) -> np.ndarray:
        path = home / name
        num_bytes = int(np.prod(size)) * np.dtype(kind).itemsize
        if mode == "r+":
            with open(path, "ab") as file:
                # Of full size at once: a full disk then fails here, as an OSError, and not as a bus error
                # later.
                if file.tell() < num_bytes:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
        if num_bytes == 0:
            return np.zeros(size, kind)
        return np.memmap(path, kind, mode, shape=size)

    clips, steps, candidates = shape[:3]
    return {
        "pixels": array("pixels.u8", np.uint8, shape),
        "frame_index": array("frame_index.i4", np.int32, (clips, steps, candidates)),
        "num_frames": array("num_frames.i4", np.int32, (clips,)),
        "view_yxhw": array("view.f8", np.float64, (clips, 4)),
    }


def _fill(
    home: Path,
    sources: Sequence[Source],
    read: Read,
    read_many: ReadMany,
    shape: tuple[int, ...],
    pad: str,
    progress: Callable[[int, int], None] | None,
) -> None:
    try:
        maps = _maps(home, shape, "r+")
    except OSError as exc:
        raise StageError(f"cannot make the frame cache in {home}: {exc.strerror}") from exc
    position = home / "position.json"
    start, errors = 0, {}
    if position.exists():
        state = json.loads(position.read_text())
        start, errors = state["done"], state["errors"]
    with closing(read_many(read, sources[start:])) as results:
        for i, clip in enumerate(results, start=start):
            if isinstance(clip, SourceError):
                maps["num_frames"][i] = 0
                errors[str(i)] = str(clip)
            else:
                rows = clip.rows
                if rows is None:
                    rows = choose_candidates(
                        clip.frame_index, clip.num_frames, num_steps=shape[1], candidates=shape[2], pad=pad
                    )
                maps["pixels"][i] = clip.pixels[rows]
                maps["frame_index"][i] = clip.frame_index[rows]
                maps["num_frames"][i] = clip.num_frames
                maps["view_yxhw"][i] = clip.view_yxhw
            if progress is not None:
                progress(i + 1, len(sources))
            if (i + 1) % _SYNC_EVERY == 0:
                _sync(maps)
                write_durably(position, json.dumps({"done": i + 1, "errors": errors}).encode())
    _sync(maps)
    write_durably(home / "done.json", json.dumps({"errors": errors}).encode())
    position.unlink(missing_ok=True)


def _sync(maps: dict[str, np.ndarray]) -> None:
    for array in maps.values():
        if isinstance(array, np.memmap):
            array.flush()


def _write(path: Path, value: Any) -> None:
    write_durably(path, json.dumps(value).encode())


def _open(home: Path, shape: tuple[int, ...], fingerprint: str) -> FrameCache:
    maps = _maps(home, shape, "r")
    errors = json.loads((home / "done.json").read_text())["errors"]
    cache = FrameCache(
        pixels=maps["pixels"],
        frame_index=maps["frame_index"],
        num_frames=maps["num_frames"],
        view_yxhw=maps["view_yxhw"],
        errors={int(k): v for k, v in errors.items()},
        fingerprint=fingerprint,
    )
    if shape[0] and not len(cache.readable):
        first = next(iter(cache.errors.values()), "")
        raise StageError(f"none of {shape[0]} videos can be read; the first: {first}")
    return cache
