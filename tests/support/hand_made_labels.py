"""Predictions and tables of labels that are made by hand, for tests of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from operators.records import ClipLabel
from operators.table.schema import SCHEMA, LabelStore
from pipeline.scoring.scores import (
    Predictions,
)

NAMES = ("walk", "run", "jump")

# Three clips and their probabilities of three classes; as logits the logarithms do.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.5, 0.3, 0.2]])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
TRUTH = np.array([[0, -1], [0, 1], [1, -1]])
"""The second clip has two labels."""


def predictions(**changes: Any) -> Predictions:
    given: dict[str, Any] = {
        "class_names": NAMES,
        "video_ids": ("a", "b", "c"),
        "truth": TRUTH,
        "logits": LOGITS,
        **changes,
    }
    return Predictions(**given)


def label(video_id: str, probabilities: list[float], truth: tuple[str, ...] | None, **changes: Any) -> ClipLabel:
    order = np.argsort(-np.array(probabilities), kind="stable")
    given: dict[str, Any] = {
        "video_id": video_id,
        "clip_id": video_id,
        "source_uri": f"/archive/{video_id}.mp4",
        "truth": truth,
        "label": NAMES[order[0]],
        "label_id": int(order[0]),
        "score": probabilities[order[0]],
        "topk": tuple((NAMES[k], int(k), probabilities[k]) for k in order),
        "frames_total": 8,
        "stopped_at": 8,
        **changes,
    }
    return ClipLabel(**given)


def table(folder: Path, *labels: ClipLabel) -> Path:
    """OUT with these labels in one part."""
    store = LabelStore(ids=("model", "config"), run_id="run", clock=lambda: 0.0)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    pq.write_table(store.table(list(labels), SCHEMA), folder / "labels" / "part-000.parquet")
    return folder


THREE = (
    label("a", [0.7, 0.2, 0.1], ("walk",)),
    label("b", [0.4, 0.5, 0.1], ("walk", "run")),
    label("c", [0.5, 0.3, 0.2], ("run",)),
)
