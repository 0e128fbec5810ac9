"""The table of labels as Parquet: its schema, how labels become rows, and how a part is written and read.

The sink decides which parts there are, when they are written, and what they are called.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from operators.durable import replaced_durably, sync_folder
from operators.errors import SinkError
from operators.passwords import without_password
from operators.records import ClipLabel

_TOPK = pa.struct([("label", pa.string()), ("label_id", pa.int32()), ("score", pa.float32())])
_PATCH = pa.struct(
    [("frame", pa.int32()), ("pts_s", pa.float64())] + [(name, pa.float32()) for name in ("y", "x", "h", "w")]
)
_TIME = pa.timestamp("us", tz="UTC")
SCHEMA_VERSION = 2
"""The version is raised when a column means something else, or the identity of a table holds more or less than
before. Version 1, which no table names, had zeros where a failed row now has nulls, and an identity that left out what
only the checkpoint says."""
_VERSION_KEY = b"saccade.schema"
SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("clip_id", pa.string()),
        ("source_uri", pa.string()),
        ("truth", pa.list_(pa.string())),
        ("camera", pa.string()),
        ("received_at", _TIME),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("label", pa.string()),
        ("label_id", pa.int32()),
        ("score", pa.float32()),
        ("topk", pa.list_(_TOPK)),
        ("logits", pa.list_(pa.float32())),
        ("step_logits", pa.list_(pa.list_(pa.float32()))),
        ("frames_total", pa.int32()),
        ("frames_focused", pa.int32()),
        ("frames_skipped", pa.int32()),
        ("stopped_at", pa.int32()),
        ("patches", pa.list_(_PATCH)),
        ("gmacs", pa.float64()),
        ("gmacs_full", pa.float64()),
        ("step_gmacs", pa.list_(pa.float64())),
        ("decode_s", pa.float64()),
        ("latency_s", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rotation", pa.int32()),
        ("num_corrupt", pa.int32()),
        ("coverage", pa.float64()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("model_id", pa.string()),
        ("config_id", pa.string()),
        ("run_id", pa.string()),
        ("committed_at", _TIME),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION)},
)
"""Every part of an archive has this schema, from the first on."""
LIVE_SCHEMA = SCHEMA.remove(SCHEMA.get_field_index("camera"))
"""A camera's name is in the path, so it is not in the file."""

FAILED = "failed-"
"""The beginning of the name of a part of failed clips."""
RETRY = "_retry-"
"""The beginning of the name of a part of failed clips while a run tries them again. Readers do not see such a file."""
_BATCH_ROWS = 65_536


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TableSummary:
    """The counts and sums of a table of labels."""

    num_clips: int
    num_failed: int
    errors: dict[str, int]
    """The number of failed clips by error_code, the commonest first."""
    frames_total: int
    frames_focused: int
    frames_skipped: int
    gmacs: float
    gmacs_full: float


class LabelStore:
    """Turns labels into rows, stamped with who made them and when, and parts of rows into one part."""

    def __init__(self, *, ids: tuple[str, str], run_id: str, clock: Callable[[], float]) -> None:
        self._stamps = {"model_id": ids[0], "config_id": ids[1], "run_id": run_id}
        self._clock = clock

    def table(self, labels: Sequence[ClipLabel], schema: pa.Schema = LIVE_SCHEMA) -> pa.Table:
        stamps: dict[str, Any] = self._stamps | {"committed_at": datetime.fromtimestamp(self._clock(), UTC)}
        columns = []
        for column in schema:
            if column.name in stamps:
                columns.append(pa.repeat(pa.scalar(stamps[column.name], column.type), len(labels)))
            else:
                columns.append(_column(column, [getattr(label, column.name) for label in labels]))
        return pa.table(columns, schema=schema)

    def write(self, path: Path, tables: Sequence[pa.Table]) -> None:
        write_part(path, pa.concat_tables(tables))

    def merge(self, paths: Sequence[Path], path: Path) -> None:
        write_part(path, pa.concat_tables([_read(part) for part in paths]).sort_by("start_s"))

    def clip_ids(self, path: Path) -> Iterator[str]:
        for clips in clip_ids(path):
            yield from clips


def part_paths(labels: Path) -> list[Path]:
    """Returns the finished parts below a labels folder.

    Only names are listed: a part that is removed before it is opened is an error of whoever opens it, and never a part
    that is silently missing.
    """
    found = []
    for folder, names, files in os.walk(labels):
        names[:] = [name for name in names if not name.startswith(("_", "."))]
        found += [Path(folder, n) for n in files if n.endswith(".parquet") and not n.startswith(("_", "."))]
    return sorted(found)


def summarize(labels: Path) -> TableSummary:
    """Counts and adds up a table; the memory this takes does not grow with it."""
    num_clips = 0
    errors: Counter[str] = Counter()
    columns = ["frames_total", "frames_focused", "frames_skipped", "gmacs", "gmacs_full"]
    totals = dict.fromkeys(columns, 0.0)
    for part in part_paths(labels):
        for batch in _batches(part, [*columns, "error_code"]):
            num_clips += batch.num_rows
            errors.update(code for code in batch.column("error_code").to_pylist() if code is not None)
            for name in columns:
                totals[name] += pc.sum(batch.column(name)).as_py() or 0
    return TableSummary(
        num_clips=num_clips,
        num_failed=errors.total(),
        errors=dict(errors.most_common()),
        frames_total=int(totals["frames_total"]),
        frames_focused=int(totals["frames_focused"]),
        frames_skipped=int(totals["frames_skipped"]),
        gmacs=totals["gmacs"],
        gmacs_full=totals["gmacs_full"],
    )


def write_part(path: Path, table: pa.Table) -> None:
    """Writes a part whole or not at all. The caller syncs the folder, once for all parts of a batch."""
    with replaced_durably(path, syncs_folder=False) as aside:
        pq.write_table(table, aside, compression="zstd", compression_level=1)


def _column(column: pa.Field, values: list[Any]) -> pa.Array:
    match column.name:
        case "topk":
            flat = [entry for entries in values for entry in entries]
            names, ids, scores = zip(*flat, strict=True) if flat else ((), (), ())
            return _lists(column.type, values, [[_text(name) for name in names], ids, scores])
        case "patches":
            flat = [place for places in values for place in places]
            parts = [[getattr(place, item.name) for place in flat] for item in column.type.value_type]
            return _lists(column.type, values, parts)
        case "truth":
            values = [None if labels is None else [_text(label) for label in labels] for labels in values]
        case "step_logits":
            values = [None if steps is None else list(np.asarray(steps, np.float32)) for steps in values]
        case "logits":
            values = [None if logits is None else np.asarray(logits, np.float32) for logits in values]
        case _ if column.type == pa.string():
            values = [None if text is None else _text(text) for text in values]
    return pa.array(values, column.type)


def _lists(kind: pa.DataType, rows: list[Sequence[Any]], parts: Sequence[Sequence[Any]]) -> pa.Array:
    """Makes lists of structs from their fields, laid end to end: several times faster than from dicts."""
    struct = kind.value_type
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int32)
    arrays = [pa.array(part, item.type) for part, item in zip(parts, struct, strict=True)]
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.StructArray.from_arrays(arrays, fields=list(struct)), kind
    )


def _text(text: str) -> str:
    """Returns the text as UTF-8, which a file name need not be and a column must, and without a password."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return without_password(text) if "://" in text else text


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as part:
            yield part
    except FileNotFoundError as exc:
        raise SinkError(f"{path}: is gone; it has been replaced meanwhile, read the folder again") from exc
    except (pa.ArrowException, OSError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise SinkError(
            f"{path}: not a readable part of a table ({reason}); move it away, and its clips are labelled again"
        ) from exc


def _read(path: Path) -> pa.Table:
    with _opened(path) as part:
        return part.read()


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with _opened(path) as part:
        absent = sorted(set(columns) - set(part.schema_arrow.names))
        if absent:
            raise SinkError(
                f"{path}: not a part of a table of labels: it has no column {absent[0]}; move it away"
            )
        yield from part.iter_batches(batch_size=_BATCH_ROWS, columns=columns)


def num_rows(path: Path) -> int:
    with _opened(path) as part:
        return int(part.metadata.num_rows)


def ids_of(path: Path) -> dict[str, Any] | None:
    """Returns model_id and config_id of a part's first row, and the version of its schema."""
    with _opened(path) as part:
        version = (part.schema_arrow.metadata or {}).get(_VERSION_KEY, b"1")
    for batch in _batches(path, ["model_id", "config_id"]):
        for row in batch.slice(0, 1).to_pylist():
            return {**row, "schema": int(version) if version.isdigit() else 0}
    return None


def clip_ids(path: Path) -> Iterator[list[str]]:
    """Yields a part's clip_ids, a bounded number at a time."""
    for batch in _batches(path, ["clip_id"]):
        yield batch.column(0).to_pylist()


def clip_keys(path: Path) -> Iterator[np.ndarray]:
    """Yields a part's clip_ids as uint64 [n,2], the two halves of each, a bounded number at a time."""
    for clips in clip_ids(path):
        try:
            raw = bytes.fromhex("".join(clips))
        except (ValueError, TypeError):
            raw = b""
        if len(raw) != 16 * len(clips):
            raise SinkError(
                f"{path}: not a part of a table of labels: a clip_id is not 32 hex digits; move it away"
            )
        yield np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


def parts_keys(parts: Sequence[Path]) -> np.ndarray:
    """Returns the two halves of every clip_id of the parts, uint64 [N,2]."""
    keys = np.empty((sum(map(num_rows, parts)), 2), np.uint64)
    start = 0
    for part in parts:
        for batch in clip_keys(part):
            keys[start : start + len(batch)] = batch
            start += len(batch)
    return keys


def keep_rows(path: Path, target: Path, clips: Collection[str]) -> int:
    """Moves those rows of a part whose clip_id is in `clips` to `target`; the others are dropped.

    Returns how many are kept. The part itself is gone afterwards; if the process is killed in between, both are there.
    """
    table = _read(path)
    kept = [clip in clips for clip in table["clip_id"].to_pylist()]
    if all(kept):
        os.replace(path, target)
    else:
        if any(kept):
            write_part(target, table.filter(pa.array(kept)))
            sync_folder(target.parent)
        path.unlink()
    return sum(kept)
