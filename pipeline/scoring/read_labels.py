"""Reads what is judged: tables of labels, and the boxes of a synthetic archive's truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
_NUMBERS = {
    "stopped_at": np.int64,
    "gmacs": np.float64,
    "gmacs_full": np.float64,
    "frames_total": np.int64,
    "frames_focused": np.int64,
}
"""Columns of one number each, as Predictions has them."""
_BATCH_ROWS = 4096
"""Held at a time beside what is returned."""


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
    classes, so mAP is then a little off and `is_exact` says so. The table is read twice, in batches: all that is held
    of it is what is returned.
    """
    dataset = labels_dataset(Path(labels))
    wanted = [name for name in _COLUMNS if name in dataset.schema.names]
    if missing := {"video_id", "truth", "topk"} - set(wanted):
        raise ConfigError(f"{labels} is no table of labels: it has no column {', '.join(sorted(missing))}")
    try:
        found = _survey(dataset, wanted, truth)
        if not found.num_judged:
            raise ConfigError(
                f"{labels}: {found.num_rows} rows, {found.num_failed} of them failed, and none of the others has a "
                "truth: label with an annotation file, or give one"
            )
        return _predictions(dataset, wanted, truth, found, _class_names(class_names, found))
    except (pa.ArrowException, OSError) as exc:
        raise PipelineError(f"cannot read the labels in {labels}: {exc}") from exc


@dataclass(slots=True)
class _Survey:
    """What a first look through a table says of it."""

    whole: set[str]
    """Columns that no judged row has null; the others are as if they were not there."""
    lists: dict[str, int] = field(default_factory=dict)
    """The longest list of each of these columns."""
    num_rows: int = 0
    num_failed: int = 0
    num_judged: int = 0
    answers: dict[int, str] = field(default_factory=dict)
    """The classes that are among the answers, by their number."""
    true_labels: set[str] = field(default_factory=set)
    """The labels of the truth."""


def _survey(dataset: ds.Dataset, wanted: Sequence[str], truth: Mapping[str, Sequence[str]] | None) -> _Survey:
    found = _Survey(whole=set(wanted))
    for batch, true_labels, num_rows, num_failed in _judged(dataset, wanted, truth):
        found.num_rows += num_rows
        found.num_failed += num_failed
        found.num_judged += len(true_labels)
        found.true_labels.update(*true_labels)
        names, ids, _ = batch["topk"].flatten().flatten()
        pairs = pa.table({"id": ids, "name": names}).group_by(["id", "name"]).aggregate([])
        found.answers |= dict(zip(pairs["id"].to_pylist(), pairs["name"].to_pylist(), strict=True))
        found.whole -= {name for name in wanted if batch[name].null_count}
        for name in found.whole.intersection(("logits", "step_logits", "step_gmacs")):
            longest = pc.max(pc.list_value_length(batch[name])).as_py() or 0
            found.lists[name] = max(found.lists.get(name, 0), longest)
    found.lists = {name: longest for name, longest in found.lists.items() if name in found.whole}
    return found


def _judged(
    dataset: ds.Dataset, columns: Sequence[str], truth: Mapping[str, Sequence[str]] | None
) -> Iterator[tuple[pa.RecordBatch, list[Sequence[str]], int, int]]:
    """The rows that did not fail and have a truth, a batch at a time, with that truth; and of how many rows, and how
    many that failed, they are what is left."""
    for batch in dataset.to_batches(columns=list(columns), batch_size=_BATCH_ROWS, batch_readahead=1):
        num_rows = batch.num_rows
        if "error_code" in columns:
            batch = batch.filter(pc.is_null(batch["error_code"]))
        num_good = batch.num_rows
        true_labels: list[Sequence[str]] = batch["truth"].to_pylist()
        if truth is not None:
            true_labels = [truth.get(name, ()) for name in batch["video_id"].to_pylist()]
        keep = [number for number, row in enumerate(true_labels) if row]
        judged = batch.take(pa.array(keep, pa.int64()))
        yield judged, [true_labels[number] for number in keep], num_rows, num_rows - num_good


def _class_names(given: Sequence[str] | None, found: _Survey) -> tuple[str, ...]:
    """The names in the model's order: as given, or as the table's answers show them."""
    if given is not None:
        for k, name in found.answers.items():
            if not 0 <= k < len(given) or given[k] != name:
                raise ConfigError(
                    f"the table calls class {k} {name!r}, the {len(given)} class names given do not: "
                    "give the names that the labels were made with"
                )
        return tuple(given)
    num_classes = max([found.lists.get("logits", 0), *(k + 1 for k in found.answers)])
    names = [found.answers.get(k, f"class_{k:03d}") for k in range(num_classes)]
    if strange := sorted(found.true_labels - set(names)):
        raise ConfigError(
            f"the truth's label {strange[0]!r} ({len(strange)} such) is among no answer of the table, so its "
            "number is not known: give the class names (--classes FILE)"
        )
    return tuple(names)


def _predictions(
    dataset: ds.Dataset,
    wanted: Sequence[str],
    truth: Mapping[str, Sequence[str]] | None,
    found: _Survey,
    names: tuple[str, ...],
) -> Predictions:
    """The second look: arrays of their final size are filled a batch at a time."""
    num, num_classes = found.num_judged, len(names)
    logits = np.empty((num, num_classes), np.float32)
    numbers = {name: np.empty(num, kind) for name, kind in _NUMBERS.items() if name in found.whole}
    truth_ids: list[np.ndarray] = []
    unknown: dict[str, None] = {}
    video_ids: list[str] = []
    sources: list[str] = []
    steps = _Steps(num, found.lists.get("step_logits", 0), num_classes)
    gmacs = _Steps(num, found.lists.get("step_gmacs", 0))
    is_exact, start = True, 0
    for batch, true_labels, _, _ in _judged(dataset, wanted, truth):
        if not true_labels:
            continue
        rows = slice(start, start + len(true_labels))
        start = rows.stop
        video_ids += batch["video_id"].to_pylist()
        sources += batch["source_uri"].to_pylist() if "source_uri" in found.whole else ()
        ids, strange = truth_array(true_labels, names)
        truth_ids.append(ids)
        unknown |= dict.fromkeys(strange)
        for name, values in numbers.items():
            values[rows] = batch[name].to_numpy(zero_copy_only=False)
        if found.lists.get("logits"):
            logits[rows] = _stored_logits(batch["logits"], num_classes)
        else:
            logits[rows], is_whole = _logits_of_scores(batch["topk"], num_classes)
            is_exact &= is_whole
        steps.put(rows, batch, "step_logits")
        gmacs.put(rows, batch, "step_gmacs")
        for values in (logits[rows], *(() if steps.values is None else (steps.values[rows],))):
            _check_finite(values, video_ids[rows])
    width = max(ids.shape[1] for ids in truth_ids)
    return Predictions(
        class_names=names,
        video_ids=tuple(video_ids),
        truth=np.concatenate(
            [np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=-1) for ids in truth_ids]
        ),
        logits=logits,
        step_logits=steps.values,
        step_gmacs=gmacs.values,
        sources=tuple(sources),
        **numbers,
        is_exact=is_exact,
        num_failed=found.num_failed,
        num_without_truth=found.num_rows - found.num_failed - num,
        unknown_labels=tuple(unknown),
    )


def _stored_logits(column: pa.ListArray, num_classes: int) -> np.ndarray:
    """float32 [n,K]"""
    for length in pc.unique(pc.list_value_length(column)).to_pylist():
        if length != num_classes:
            raise ConfigError(f"the table's logits are of {length} classes, but {num_classes} names are given")
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), num_classes)


def _logits_of_scores(column: pa.ListArray, num_classes: int) -> tuple[np.ndarray, bool]:
    """float32 [n,K] from the best answers, and whether these are all that there are."""
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(column)), lengths)
    _, ids, scores = (part.to_numpy(zero_copy_only=False) for part in column.flatten().flatten())
    if len(ids) and ids.max() >= num_classes:
        raise ConfigError(f"the table has a label_id {ids.max()}, but {num_classes} names are given")
    left = num_classes - lengths
    rest = np.maximum(1.0 - np.bincount(rows, weights=scores, minlength=len(column)), 0.0) / np.maximum(left, 1)
    probabilities = np.repeat(rest[:, None], num_classes, axis=1)
    probabilities[rows, ids] = scores
    return np.log(np.maximum(probabilities, 1e-30)).astype(np.float32), not left.any()


class _Steps:
    """What a column has of every step, with the last one repeated where a clip stopped early: float32 [N,T,K] of lists
    of lists, float64 [N,T] of lists of numbers. None where the table does not have it of every clip."""

    def __init__(self, num_clips: int, num_steps: int, num_classes: int | None = None) -> None:
        self._num_classes = num_classes
        self.values: np.ndarray | None = None
        if num_steps:
            of_step = () if num_classes is None else (num_classes,)
            self.values = np.empty((num_clips, num_steps, *of_step), np.float32 if of_step else np.float64)

    def put(self, rows: slice, batch: pa.RecordBatch, name: str) -> None:
        if self.values is None:
            return
        column = batch[name]
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        flat = column.flatten()
        is_whole = bool(lengths.all())
        if self._num_classes is not None:
            is_whole &= pc.all(pc.equal(pc.list_value_length(flat), self._num_classes)).as_py() is not False
            flat = flat.flatten()
        if not is_whole:
            self.values = None
            return
        steps = flat.to_numpy(zero_copy_only=False).reshape(-1, *self.values.shape[2:])
        starts = np.cumsum(lengths) - lengths
        nth = np.minimum(np.arange(self.values.shape[1]), lengths[:, None] - 1)
        self.values[rows] = steps[starts[:, None] + nth]


def _check_finite(logits: np.ndarray, video_ids: Sequence[str]) -> None:
    finite = np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
    if not finite.all():
        name = video_ids[int(finite.argmin())]
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
