"""Files that list videos become a stream of entries: text, CSV, JSON, JSON lines, Parquet, and paths between NULs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import ConfigError
from pipeline.inputs.annotations import (
    TABLE_COLUMNS,
    ClassNames,
    Entry,
    Subset,
    has_location,
    is_list_line,
    json_entries,
    line_entry,
    table_entry,
)

_TABLES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
LISTS = _TABLES | {".json", ".txt", ".lst", ".list"}
"""The extensions of files that are read as lists."""

Located = tuple[Entry, str]
"""An entry, and where it stands: `file:line`, for messages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ListReader:
    """Reads lists as a stream, so that a list of a million lines costs no memory. What is wrong in one is a ConfigError
    with its file and line."""

    subset: str | None
    """The subset to take of annotations that have several."""
    classes: ClassNames

    def file(self, path: Path, *, exists: Callable[[str], bool]) -> Iterator[Located]:
        """The entries of a file, read as its extension says. `exists`: whether a path of the list leads anywhere."""
        try:
            match path.suffix.lower():
                case ".json":
                    for entry in json_entries(path, classes=self.classes, subset=Subset(self.subset)):
                        yield entry, str(path)
                case ".jsonl" | ".ndjson":
                    yield from self._jsonl(path)
                case ".parquet":
                    yield from self._parquet(path)
                case ".csv" | ".tsv":
                    yield from self._csv(path, exists)
                case _:
                    with path.open("rb") as file:
                        yield from self.lines(file, str(path), exists=exists)
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read as a list: {exc.strerror}") from exc

    def nul_paths(self, file: IO[bytes], name: str) -> Iterator[Located]:
        """The paths of `find -print0`: nothing but a NUL byte ends one, and nothing is a label."""
        if self.subset is not None:
            Subset(self.subset).check(name)
        for number, path in enumerate(_between_nuls(file), 1):
            where = f"{name}: path {number}"
            if not path:
                raise ConfigError(f"{where} is empty, between two NUL bytes; is it a list of paths?")
            yield Entry(names=(os.fsdecode(path),)), where

    def lines(
        self, file: Iterable[bytes] | Iterable[str], name: str, *, exists: Callable[[str], bool]
    ) -> Iterator[Located]:
        """The entries of a text: a path or a name a line, with or without a label."""
        if self.subset is not None:
            Subset(self.subset).check(name)
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else str(line)
            text = text.removeprefix("\ufeff").strip() if number == 1 else text.strip()
            where = f"{name}:{number}"
            if "\0" in text:
                raise ConfigError(f"{where}: holds NUL bytes, which are no text; is it a list of paths, one per line?")
            if text:
                yield line_entry(text, classes=self.classes, where=where, exists=exists), where

    def _csv(self, path: Path, exists: Callable[[str], bool]) -> Iterator[Located]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            if not first.strip():
                return
            found = _csv_head(first, (",", ";", "\t") if path.suffix.lower() == ".csv" else ("\t",))
            if found is None:
                # The published split files are CSV without a header.
                if not is_list_line(first.strip()):
                    raise ConfigError(f"{path}:1: no column path, uri or youtube_id; there are {first.strip()}")
                file.seek(0)
                yield from self.lines(file, str(path), exists=exists)
                return
            columns, delimiter = found
            chosen = Subset(self.subset)
            rows = csv.DictReader(file, columns, delimiter=delimiter)
            try:
                for row in rows:
                    where = f"{path}:{rows.line_num + 1}"
                    row.pop(None, None)  # type: ignore[call-overload]
                    if entry := table_entry(row, classes=self.classes, subset=chosen, where=where):
                        yield entry, where
            except csv.Error as exc:
                raise ConfigError(f"{path}:{rows.line_num + 1}: {exc}") from exc
            chosen.check(str(path))

    def _jsonl(self, path: Path) -> Iterator[Located]:
        chosen = Subset(self.subset)
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}:{number}"
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as exc:
                    raise ConfigError(f"{where}: not JSON: {exc}") from exc
                if isinstance(row, str):
                    yield Entry(names=(row,)), where
                    continue
                if not isinstance(row, dict):
                    raise ConfigError(f"{where}: {str(row)[:60]!r} is neither a path nor a row with a path")
                row = {key.lower(): value for key, value in row.items()}
                if entry := table_entry(row, classes=self.classes, subset=chosen, where=where):
                    yield entry, where
        chosen.check(str(path))

    def _parquet(self, path: Path) -> Iterator[Located]:
        chosen = Subset(self.subset)
        for number, row in enumerate(_parquet_rows(path), 1):
            where = f"{path}: row {number}"
            if entry := table_entry(row, classes=self.classes, subset=chosen, where=where):
                yield entry, where
        chosen.check(str(path))


def _csv_head(line: str, delimiters: tuple[str, ...]) -> tuple[list[str], str] | None:
    """The columns of a header and what separates them; None where the line is no header."""
    for delimiter in delimiters:
        columns = [name.strip().lower() for name in next(csv.reader([line], delimiter=delimiter), [])]
        if has_location(columns):
            return columns, delimiter
    return None


def _parquet_rows(path: Path) -> Iterator[dict[str, object]]:
    """The rows of a table, of the columns that say something here, with their names in lower case."""
    try:
        with pq.ParquetFile(path) as table:
            there = table.schema_arrow.names
            if not has_location(there):
                raise ConfigError(f"{path}: no column path, uri or youtube_id; there are {', '.join(there)}")
            wanted = [name for name in there if name.lower() in TABLE_COLUMNS]
            for batch in table.iter_batches(batch_size=4096, columns=wanted):
                for row in batch.to_pylist():
                    yield {name.lower(): value for name, value in row.items()}
    except pa.ArrowException as exc:
        raise ConfigError(f"{path}: cannot be read as Parquet: {' '.join(str(exc).split())[:200]}") from exc


def _between_nuls(file: IO[bytes]) -> Iterator[bytes]:
    """Yields what NUL bytes separate, as it comes."""
    rest = b""
    while chunk := file.read1(1 << 16):  # type: ignore[attr-defined]
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
    if rest:
        yield rest
