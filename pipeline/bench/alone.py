"""Workers of the stages without a run around them: what a stage costs at its best, alone in a process and a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pipeline.steering.executor import WorkerSpec, make_worker
from pipeline.steering.messages import OpenRequest, Slice, StepRequest
from pipeline.steering.scheduler import FOCUS, STREAM

Ask = Callable[..., Any]
"""(stage, method of its worker, arguments...) -> what the worker answers. It may time the call."""


def workers_of(specs: Sequence[WorkerSpec], *, num_threads: int = 1) -> dict[str, Any]:
    """One worker of each stage."""
    return {
        spec.stage: make_worker(
            spec.factory, {k: num_threads if k == "num_threads" else v for k, v in spec.arguments.items()}
        )
        for spec in specs
    }


def label_pieces(
    ask: Ask, pieces: Sequence[tuple[Any, Sequence[str]]], *, clips_per_call: int, rows_per_pass: int
) -> Iterator[Any]:
    """The labels of clips whose frames are there, in calls as large as a run's. A piece is a FrameBatch with the
    ids of its clips."""
    for start in range(0, len(pieces), clips_per_call):
        group = pieces[start : start + clips_per_call]
        requests = tuple(OpenRequest(Slice(0, i, i + 1), tuple(ids)) for i, (_, ids) in enumerate(group))
        reply, patches = ask(STREAM, "open", requests, ([batch for batch, _ in group],))
        while patches is not None:
            yield from (row.label for row in reply.rows if row.label is not None)
            waiting = [row for row in reply.rows if row.label is None]
            features = [
                ask(FOCUS, "focus", (Slice(0, first, last),), (patches,))[1]
                for first, last in passes(len(patches.pixels), rows_per_pass)
            ]
            steps = tuple(StepRequest(row.clip_id, slices(row.start, row.stop, rows_per_pass)) for row in waiting)
            reply, patches = ask(STREAM, "step", steps, tuple(features))
        yield from (row.label for row in reply.rows if row.label is not None)


def passes(num_rows: int, size: int) -> list[tuple[int, int]]:
    """Where the passes of `size` rows begin and end."""
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def slices(start: int, stop: int, size: int) -> tuple[Slice, ...]:
    """The rows start..stop of all patches, as rows of the passes into which they fall."""
    found = []
    for number in range(start // size, -(-stop // size)):
        begin = number * size
        found.append(Slice(number, max(start, begin) - begin, min(stop, begin + size) - begin))
    return tuple(found)
