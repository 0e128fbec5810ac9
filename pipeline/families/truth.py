"""Where the evidence is: the truth that the synthetic archive comes with, for the oracle and for scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from operators.errors import ConfigError
from operators.records import FrameBatch

TruthAt = Callable[[FrameBatch, int], tuple[float, float]]
"""Where the evidence is in a row of a FrameBatch, in units of the view; NaN where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TruthBoxes:
    """One video's evidence, frame by frame from frame 0."""

    visible: np.ndarray
    """bool [F]"""
    boxes: np.ndarray
    """float64 [F,4]: y, x, h, w in units of the frame; nan where not visible."""


def read_truth(path: Path) -> dict[str, TruthBoxes]:
    """The synthetic archive's truth.parquet, by video."""
    # Whoever labels without an oracle does not wait for this library.
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["video_id", "frame", "visible", "y", "x", "h", "w"]
    try:
        table = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError, KeyError) as exc:
        raise ConfigError(f"{path} is no table of truth boxes ({exc}): give the truth.parquet of `synth`") from exc
    if missing := set(names) - set(table.schema.names):
        raise ConfigError(f"{path} has no column {', '.join(sorted(missing))}: give the truth.parquet of `synth`")
    table = table.sort_by([("video_id", "ascending"), ("frame", "ascending")])
    visible = table["visible"].to_numpy()
    boxes = np.stack([table[name].to_numpy().astype(np.float64) for name in "yxhw"], axis=1)
    videos = table["video_id"].combine_chunks().dictionary_encode()
    starts = np.flatnonzero(np.diff(videos.indices.to_numpy(), prepend=-1))
    ends = [*starts[1:].tolist(), len(visible)]
    return {
        videos.dictionary[number].as_py(): TruthBoxes(visible=visible[start:end], boxes=boxes[start:end])
        for number, (start, end) in enumerate(zip(starts.tolist(), ends, strict=True))
    }


def read_truth_at(path: str | None) -> TruthAt:
    """Reads where the evidence is from the table that `synth` writes."""
    if path is None:
        raise ConfigError("policy.kind=oracle needs policy.truth: the truth.parquet of `synth`")
    videos = read_truth(Path(path))

    def truth_at(frames: FrameBatch, row: int) -> tuple[float, float]:
        known, frame = videos.get(frames.source.video_id), int(frames.frame_index[row])
        if known is None or frame >= len(known.visible) or not known.visible[frame]:
            return math.nan, math.nan
        y, x, h, w = known.boxes[frame]
        top, left, height, width = frames.view_yxhw
        return float((y + h / 2 - top) / height), float((x + w / 2 - left) / width)

    return truth_at
