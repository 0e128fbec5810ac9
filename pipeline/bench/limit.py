"""What the stages of a run take alone, in one process and one thread: nothing that does their work can take less."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import PipelineError
from pipeline.bench.alone import label_pieces, workers_of
from pipeline.bench.workloads import as_sources
from pipeline.steering.executor import WorkerSpec, make_worker
from pipeline.steering.messages import ReadRequest, WriteRequest
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages take alone."""

    seconds: dict[str, float]
    """CPU seconds per clip of source, stream, focus and sink."""
    sources: tuple[float, ...]
    """CPU seconds of the source for each file; the other stages do the same for all files."""

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    def total_with_s(self, sources: Sequence[float]) -> float:
        """CPU seconds of all stages per clip, where the sources are those of some of the files only."""
        return self.total_s - self.seconds[SOURCE] + sum(sources) / len(sources)


_alone: dict[str, dict[str, Any]] = {}
"""The workers of the process that measures stages, kept from one time to the next."""


def stage_seconds(specs: Sequence[WorkerSpec], sizes: tuple[int, int], paths: Sequence[str]) -> Stages:
    """Runs source, stream, focus and sink one after another in this process.

    `sizes`: clips per call of the stream worker and patches per pass of the focus worker, as the run has them.
    """
    key = repr(specs)
    if key not in _alone:
        _alone[key] = workers_of(specs)
    workers = _alone[key]
    spent = dict.fromkeys((SOURCE, STREAM, FOCUS, SINK), 0.0)

    def timed(stage: str, method: str, *arguments: Any) -> Any:
        begun_s = time.process_time()
        answer = getattr(workers[stage], method)(*arguments)
        spent[stage] += time.process_time() - begun_s
        return answer

    pieces: list[tuple[Any, list[str]]] = []
    sources: list[float] = []
    for source in as_sources([Path(path) for path in paths], lap=0):
        before_s, is_done, num_clips = spent[SOURCE], False, 0
        while not is_done:
            reply, batches = timed(SOURCE, "read", (ReadRequest(source=source, first_window=num_clips),), ())
            row = reply.rows[0]
            if row.failed is not None:
                raise PipelineError(f"{source.uri}: {row.failed.error}")
            pieces += [(batches[info.row], [clip.clip_id for clip in info.clips]) for info in row.pieces]
            num_clips += sum(len(info.clips) for info in row.pieces)
            is_done = row.is_done
        sources.append(spent[SOURCE] - before_s)
    clips_per_call, rows_per_pass = sizes
    labels = list(label_pieces(timed, pieces, clips_per_call=clips_per_call, rows_per_pass=rows_per_pass))
    spent[SINK] = sink_seconds(labels)
    per_clip = {stage: seconds / len(paths) for stage, seconds in spent.items()}
    return Stages(seconds=per_clip, sources=tuple(sources))


def sink_seconds(labels: Sequence[Any]) -> float:
    """The CPU seconds that the sink takes for these labels within a part of the usual size."""
    with tempfile.TemporaryDirectory() as out:
        sink = make_worker(
            "pipeline.run.sink_worker:sink_worker",
            {"out": out, "run_id": "limit", "resume": False, "retry_failed": False},
        )
        sink.open((), ())
        sink.begin(({},), ())
        # A part of a real run holds hundreds; its own cost must not fall on a handful.
        many = list(labels) * max(1, 512 // len(labels))
        begun_s = time.process_time()
        sink.write((WriteRequest(sequence=0, labels=tuple(many)),), ())
        spent_s = time.process_time() - begun_s
        sink.finish((), ())
    return spent_s * len(labels) / len(many)
