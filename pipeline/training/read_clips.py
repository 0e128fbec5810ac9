"""Videos -> the frames that the frame cache keeps, here or in several processes. Imports no torch: its workers start
fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from operators.errors import SourceError, StageError
from operators.media.frame_plan import Sampling
from operators.media.view import Viewer
from operators.records import FrameBatch, Source
from pipeline.run.pools import process_pool
from pipeline.training.frame_cache import ClipFrames, Read

if TYPE_CHECKING:
    from operators.media.decode import Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipReader:
    """Reads one video: the frames of inference, and as many others as there are candidates to choose among."""

    num_steps: int
    candidates: int
    viewer: Viewer
    pad: str = "last"
    limits: Limits | None = None
    clock: Callable[[], float] = time.time

    def __call__(self, source: Source) -> ClipFrames:
        # Stages can be trained where there is no decoder, from frames that are there already.
        from operators.media.decode import FileReader

        # Two samples cost one decode: inference's frames, and a denser one to draw from.
        dense = self.num_steps * self.candidates if self.candidates > 1 else None
        sampling = Sampling(num_frames=self.num_steps, num_focus_frames=dense, pad=self.pad)
        with FileReader(
            source=source, sampling=sampling, viewer=self.viewer, clock=self.clock, limits=self.limits
        ) as reader:
            batch = only_batch(reader.read(), source)
        return ClipFrames(
            pixels=batch.pixels,
            frame_index=np.asarray(batch.frame_index, np.int64),
            num_frames=max(batch.facts.num_frames, int(batch.frame_index[-1]) + 1),
            view_yxhw=batch.view_yxhw,
        )


def only_batch(items: Iterator[FrameBatch | None], source: Source) -> FrameBatch:
    batches = [item for item in items if item is not None]
    if len(batches) != 1:
        raise SourceError(f"{source.shown_uri} gave {len(batches)} clips where one was wanted", code="internal")
    return batches[0]


def read_in_processes(
    num_workers: int,
) -> Callable[[Read, Iterable[Source]], Generator[ClipFrames | SourceError, None, None]]:
    """`read_many` for the frame cache: several videos at a time, results in order, a bounded number ahead."""

    def read_many(read: Read, sources: Iterable[Source]) -> Generator[ClipFrames | SourceError, None, None]:
        waiting: list[Future[ClipFrames | SourceError]] = []
        left = iter(sources)
        pool = process_pool(num_workers)
        try:
            for source in islice(left, 4 * num_workers):
                waiting.append(pool.submit(_read_one, read, source))
            while waiting:
                first = waiting.pop(0)
                for source in islice(left, 1):
                    waiting.append(pool.submit(_read_one, read, source))
                yield first.result()
        except BrokenProcessPool as exc:
            raise StageError(
                "a process that decodes training videos died: call again to go on, or with one worker to see which "
                "video it is"
            ) from exc
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return read_many


def _read_one(read: Read, source: Source) -> ClipFrames | SourceError:
    try:
        return read(source)
    except SourceError as exc:
        return exc
