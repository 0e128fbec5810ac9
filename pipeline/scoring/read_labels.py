"""Reads what is judged: tables of labels, and the boxes of a synthetic archive's truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from operators.errors import ConfigError, PipelineError
from operators.table.schema import part_paths
from pipeline.scoring.looks import ClipLooks
from pipeline.scoring.scores import Predictions

_COLUMNS = (
    "video_id",
    "source_uri",
    "truth",
    "label",
    "label_id",
    "topk",
    "logits",
    "step_logits",
    "step_gmacs",
    "frames_total",
    "frames_focused",
    "stopped_at",
    "gmacs",
    "gmacs_full",
    "error_code",
)


def truth_array(labels: Sequence[Sequence[str]], class_names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """int64 [N,L] filled up with -1, in the order given, and the labels that are no class."""
    ids = {name: k for k, name in enumerate(class_names)}
    unknown: dict[str, None] = {}
    # A label that is no class keeps its place as -1: a first label nobody can give makes the clip wrong.
    width = max([1, *(len(row) for row in labels)])
    truth = np.full((len(labels), width), -1, np.int64)
    for number, row in enumerate(labels):
        for column, name in enumerate(dict.fromkeys(row)):
            truth[number, column] = ids.get(name, -1)
            if name not in ids:
                unknown[name] = None
    return truth, tuple(unknown)


def labels_dataset(labels: Path) -> ds.Dataset:
    """The table under OUT, OUT/labels or in one file."""
    place = labels / "labels" if (labels / "labels").is_dir() else labels
    if not place.exists():
        raise ConfigError(f"{labels} does not exist: give the OUT of `label`, its labels folder or a Parquet file")
    files = [place] if place.is_file() else part_paths(place)
    if not files:
        raise ConfigError(f"{place} holds no labels yet: run `label` first")
    try:
        return ds.dataset([str(path) for path in files], format="parquet")
    except (pa.ArrowException, OSError) as exc:
        raise PipelineError(f"cannot read the labels in {place}: {exc}") from exc


def read_predictions(
    labels: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    truth: Mapping[str, Sequence[str]] | None = None,
) -> Predictions:
    """A labels table. `truth` (by video id) stands in for the table's own; `class_names` in the model's order.

    Without logits the table's top scores make them; the probability that is left is spread over the other
    classes, so mAP is then a little off and `is_exact` says so.
    """
    dataset = labels_dataset(Path(labels))
    wanted = [name for name in _COLUMNS if name in dataset.schema.names]
    if missing := {"video_id", "truth", "topk"} - set(wanted):
        raise ConfigError(f"{labels} is no table of labels: it has no column {', '.join(sorted(missing))}")
    try:
        table = dataset.to_table(columns=wanted)
    except (pa.ArrowException, OSError) as exc:
        raise PipelineError(f"cannot read the labels in {labels}: {exc}") from exc
    num_rows = table.num_rows
    if "error_code" in wanted:
        table = table.filter(pc.is_null(table["error_code"]))
    num_failed = num_rows - table.num_rows
    video_ids = table["video_id"].to_pylist()
    told: list[Sequence[str]]
    told = [truth.get(name, ()) for name in video_ids] if truth is not None else table["truth"].to_pylist()
    keep = [number for number, row in enumerate(told) if row]
    if not keep:
        raise ConfigError(
            f"{labels}: {num_rows} rows, {num_failed} of them failed, and none of the others has a truth: "
            "label with an annotation file, or give one"
        )
    num_without_truth = table.num_rows - len(keep)
    table = table.take(keep)
    topk = table["topk"].to_pylist()
    names = _class_names(class_names, topk, [label for number in keep for label in told[number]], table)
    truth_ids, unknown = truth_array([told[number] for number in keep], names)
    logits, is_exact = _logits(table, topk, len(names))

    def column(name: str, dtype: type) -> np.ndarray | None:
        return np.array(table[name].to_pylist(), dtype) if name in wanted else None

    return Predictions(
        class_names=names,
        video_ids=tuple(video_ids[number] for number in keep),
        truth=truth_ids,
        logits=logits,
        step_logits=_step_logits(table, len(names)),
        step_gmacs=_step_gmacs(table),
        sources=tuple(table["source_uri"].to_pylist()) if "source_uri" in wanted else (),
        stopped_at=column("stopped_at", np.int64),
        gmacs=column("gmacs", np.float64),
        gmacs_full=column("gmacs_full", np.float64),
        frames_total=column("frames_total", np.int64),
        frames_focused=column("frames_focused", np.int64),
        is_exact=is_exact,
        num_failed=num_failed,
        num_without_truth=num_without_truth,
        unknown_labels=unknown,
    )


def _class_names(
    given: Sequence[str] | None, topk: list[list[dict[str, Any]]], told: list[str], table: pa.Table
) -> tuple[str, ...]:
    """The names in the model's order: as given, or as the table's answers show them."""
    seen = {entry["label_id"]: entry["label"] for row in topk for entry in row}
    if given is not None:
        for k, name in seen.items():
            if not 0 <= k < len(given) or given[k] != name:
                raise ConfigError(
                    f"the table calls class {k} {name!r}, the {len(given)} class names given do not: "
                    "give the names that the labels were made with"
                )
        return tuple(given)
    widths = [0]
    if "logits" in table.schema.names:
        widths = pc.unique(pc.list_value_length(table["logits"].drop_null())).to_pylist()
    num_classes = max([0, *widths, *(k + 1 for k in seen)])
    names = [seen.get(k, f"class_{k:03d}") for k in range(num_classes)]
    if strange := sorted(set(told) - set(names)):
        raise ConfigError(
            f"the truth's label {strange[0]!r} ({len(strange)} such) is among no answer of the table, so its "
            "number is not known: give the class names (--classes FILE)"
        )
    return tuple(names)


def _logits(table: pa.Table, topk: list[list[dict[str, Any]]], num_classes: int) -> tuple[np.ndarray, bool]:
    logits = np.empty((table.num_rows, num_classes), np.float32)
    stored = table["logits"] if "logits" in table.schema.names else None
    if stored is not None and not stored.null_count:
        for number, row in enumerate(stored):
            if len(row) != num_classes:
                raise ConfigError(f"the table's logits are of {len(row)} classes, but {num_classes} names are given")
            logits[number] = row.values.to_numpy(zero_copy_only=False)
        _check_finite(logits, table)
        return logits, True
    is_exact = True
    for number, entries in enumerate(topk):
        ids = np.array([entry["label_id"] for entry in entries], np.int64)
        scores = np.array([entry["score"] for entry in entries])
        if len(ids) and ids.max() >= num_classes:
            raise ConfigError(f"the table has a label_id {ids.max()}, but {num_classes} names are given")
        left = num_classes - len(ids)
        is_exact &= left == 0
        row = np.full(num_classes, max(1.0 - scores.sum(), 0.0) / max(left, 1))
        row[ids] = scores
        logits[number] = np.log(np.maximum(row, 1e-30))
    _check_finite(logits, table)
    return logits, is_exact


def _step_logits(table: pa.Table, num_classes: int) -> np.ndarray | None:
    if "step_logits" not in table.schema.names or table["step_logits"].null_count:
        return None
    rows = []
    for row in table["step_logits"]:
        flat = row.values.flatten().to_numpy(zero_copy_only=False)
        if not len(row) or len(flat) != len(row) * num_classes:
            return None
        rows.append(flat.reshape(len(row), num_classes))
    num_steps = max(len(row) for row in rows)
    steps = np.empty((len(rows), num_steps, num_classes), np.float32)
    for number, row in enumerate(rows):
        steps[number, : len(row)] = row
        steps[number, len(row) :] = row[-1]
    _check_finite(steps, table)
    return steps


def _step_gmacs(table: pa.Table) -> np.ndarray | None:
    if "step_gmacs" not in table.schema.names or table["step_gmacs"].null_count:
        return None
    rows = table["step_gmacs"].to_pylist()
    num_steps = max(map(len, rows))
    if not all(rows):
        return None
    return np.array([row + row[-1:] * (num_steps - len(row)) for row in rows], np.float64)


def _check_finite(logits: np.ndarray, table: pa.Table) -> None:
    finite = np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
    if not finite.all():
        name = table["video_id"][int(finite.argmin())].as_py()
        raise PipelineError(f"scores of video {name} are not finite: label it with --set compute.precision=fp32")


def read_looks(dataset: ds.Dataset) -> Iterator[ClipLooks]:
    """The clips of a labels table that did not fail."""
    wanted = ["video_id", "source_uri", "frames_total", "stopped_at", "patches", "error_code"]
    if missing := set(wanted) - set(dataset.schema.names):
        raise ConfigError(f"the table has no column {', '.join(sorted(missing))}: is it a table of labels?")
    try:
        clips_of = Counter(
            uri for batch in dataset.to_batches(columns=["source_uri"]) for uri in batch["source_uri"].to_pylist()
        )
        for batch in dataset.to_batches(columns=wanted):
            for row in batch.to_pylist():
                if row["error_code"] is None:
                    patches = row["patches"]
                    yield ClipLooks(
                        video_id=row["video_id"],
                        frames=np.array([p["frame"] for p in patches], np.int64),
                        boxes=np.array([[p[name] for name in "yxhw"] for p in patches]).reshape(-1, 4),
                        num_steps=row["frames_total"],
                        stopped_at=row["stopped_at"],
                        is_whole=clips_of[row["source_uri"]] == 1,
                    )
    except (pa.ArrowException, OSError) as exc:
        raise PipelineError(f"cannot read the labels' patches: {exc}") from exc
