"""What the user names -> a stream of sources: files, folders, globs, lists and annotations.

Everything is walked as it is asked for, so a list of a million lines costs no memory. A path that is given by name and
does not exist is refused at once; an entry of a list that does not exist is a source all the same, and becomes a row
that says `missing`. Nothing is opened here but lists.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from operators.errors import ConfigError
from operators.passwords import without_password
from operators.records import Media, Source, source_id
from pipeline.inputs.annotations import (
    IMAGE_EXTENSIONS,
    TABLE_COLUMNS,
    VIDEO_EXTENSIONS,
    ClassNames,
    Entry,
    Subset,
    has_location,
    is_list_line,
    is_uri,
    json_entries,
    line_entry,
    plain_name,
    read_class_names,
    table_entry,
)
from pipeline.inputs.folders import (
    MEDIA_EXTENSIONS,
    VideoTree,
    entries,
    extension,
    holds_images,
    holds_only_stills,
    is_numbered,
    matching,
)

__all__ = ["IMAGE_EXTENSIONS", "VIDEO_EXTENSIONS", "Tally", "VideoTree", "check_names", "read_class_names", "sources"]

_TABLES = frozenset((".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"))
_LISTS = _TABLES | {".json", ".txt", ".lst", ".list"}


@dataclass(kw_only=True, slots=True)
class Tally:
    """What was met on the way, for the summary."""

    num_sources: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Files in folders that are neither video nor image, by extension."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that cannot be listed, the first hundred."""
    empty_patterns: list[str] = field(default_factory=list)
    """Globs that matched nothing."""

    def cannot_list(self, folder: str) -> None:
        if len(self.unreadable) < 100 and folder not in self.unreadable:
            self.unreadable.append(folder)

    @property
    def problems(self) -> list[str]:
        """Of what was asked for, all that came to no input."""
        return [
            *(f"nothing matches {pattern}" for pattern in self.empty_patterns),
            *(f"cannot be listed: {folder}" for folder in self.unreadable),
        ]


def sources(
    arguments: Iterable[str],
    *,
    videos: Path | None = None,
    subset: str | None = None,
    class_names: Sequence[str] | None = None,
    stdin: IO[bytes] | IO[str] | None = None,
    tally: Tally | None = None,
) -> Iterator[Source]:
    """The sources behind a command's arguments, in a fixed order, as a stream.

    videos: where the names of an annotation are looked up. subset: the one to take of annotations that have several.
    class_names: what numbered labels mean. A list that cannot be read is a ConfigError with its file and line; a path
    that does not exist is one before the stream begins.
    """
    arguments = list(arguments)
    check_names(arguments, videos=videos)
    listing = _Listing(
        videos=videos, subset=subset, classes=ClassNames(class_names), stdin=stdin, tally=tally or Tally()
    )
    return listing.of(arguments)


def check_names(arguments: Iterable[str], *, videos: Path | None = None) -> None:
    """Refuses what is given by name and cannot be there: mistyped paths and addresses. Nothing is read."""
    if videos is not None and not videos.is_dir():
        raise ConfigError(f"--videos {videos}: not a folder")
    for argument in arguments:
        path = _path_of(argument) if argument.startswith("file://") else argument
        if is_uri(path):
            raise ConfigError(f"{without_password(path)} is not a local file; download it first")
        if path == "-" or os.path.lexists(path) or glob.has_magic(path):
            continue
        kind = "list" if extension(path) in _LISTS else "file or folder"
        raise ConfigError(f"{argument}: there is no such {kind}; correct the path")


@dataclass(kw_only=True, slots=True)
class _Listing:
    videos: Path | None
    subset: str | None
    classes: ClassNames
    stdin: IO[bytes] | IO[str] | None
    tally: Tally
    tree: VideoTree | None = None

    def of(self, arguments: Iterable[str]) -> Iterator[Source]:
        for argument in arguments:
            for source in self._argument(argument):
                self.tally.num_sources += 1
                yield source

    def _argument(self, argument: str) -> Iterator[Source]:
        if argument == "-":
            return self._standard_input()
        path = _path_of(argument) if argument.startswith("file://") else argument
        if os.path.isdir(path):
            return self._folder(os.path.abspath(path))
        if not os.path.lexists(path) and glob.has_magic(path):
            return self._glob(path)
        return self._file(path)

    def _standard_input(self) -> Iterator[Source]:
        name, base = "standard input", os.getcwd()
        if self.stdin is None:
            raise ConfigError("-: there is no standard input to read a list from")
        if isinstance(self.stdin, io.BufferedReader) and b"\0" in self.stdin.peek():
            return self._paths_between_nuls(self.stdin, name, base)
        return self._lines(self.stdin, name, base)

    def _file(self, argument: str) -> Iterator[Source]:
        if extension(argument) in _LISTS or _is_pipe(argument):
            yield from self._list(Path(argument))
        else:
            yield _source(os.path.abspath(argument))

    def _glob(self, pattern: str) -> Iterator[Source]:
        is_empty = True
        for path in matching(pattern, on_closed=self.tally.cannot_list):
            is_empty = False
            ext = extension(path)
            if os.path.isdir(path):
                yield from self._folder(os.path.abspath(path))
            elif ext in MEDIA_EXTENSIONS:
                yield _source(os.path.abspath(path))
            elif ext in _LISTS and pattern.lower().endswith(ext):
                yield from self._list(Path(path))
            else:
                self.tally.skipped[ext or "(none)"] += 1
        if is_empty:
            self.tally.empty_patterns.append(pattern)

    # Folders -------------------------------------------------------------------------------------------------

    def _folder(
        self,
        folder: str,
        *,
        truth: tuple[str, ...] | None = None,
        is_class: bool = False,
    ) -> Iterator[Source]:
        """`is_class`: beside folders that likewise hold nothing but still images, so that its name is their label."""
        try:
            files, folders = entries(folder, must_list=True)
        except OSError:
            self.tally.cannot_list(folder)
            return
        images = [name for name in files if extension(name) in IMAGE_EXTENSIONS]
        moving = [name for name in files if extension(name) in VIDEO_EXTENSIONS]
        if not moving and is_numbered(images):
            yield _source(folder, media=Media.FRAMES, truth=truth)
            images = []
        if is_class and not folders and truth is None:
            truth = self.classes.of([os.path.basename(folder)], folder)
        holds_classes = (
            bool(folders)
            and not images
            and not moving
            and all(holds_only_stills(os.path.join(folder, name)) for name in folders)
        )
        media, below = {*images, *moving}, set(folders)
        for name in sorted([*files, *folders]):
            path = os.path.join(folder, name)
            if name in media:
                yield _source(path, truth=truth)
            elif name in below:
                yield from self._folder(path, truth=truth, is_class=holds_classes)
            elif extension(name) not in IMAGE_EXTENSIONS:
                self.tally.skipped[extension(name) or "(none)"] += 1

    # Lists ---------------------------------------------------------------------------------------------------

    def _list(self, path: Path) -> Iterator[Source]:
        base = os.path.dirname(os.path.abspath(path))
        try:
            match path.suffix.lower():
                case ".json":
                    chosen = Subset(self.subset)
                    for entry in json_entries(path, classes=self.classes, subset=chosen):
                        yield from self._entry(entry, base, str(path))
                case ".jsonl" | ".ndjson":
                    yield from self._jsonl(path, base)
                case ".parquet":
                    yield from self._parquet(path, base)
                case ".csv" | ".tsv":
                    yield from self._csv(path, base)
                case _:
                    with path.open("rb") as file:
                        yield from self._lines(file, str(path), base)
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read as a list: {exc.strerror}") from exc

    def _paths_between_nuls(self, file: IO[bytes], name: str, base: str) -> Iterator[Source]:
        """The paths of `find -print0`: nothing but a NUL byte ends one, and nothing is a label."""
        if self.subset is not None:
            Subset(self.subset).check(name)
        for number, path in enumerate(_between_nuls(file), 1):
            where = f"{name}: path {number}"
            if not path:
                raise ConfigError(f"{where} is empty, between two NUL bytes; is it a list of paths?")
            yield from self._entry(Entry(names=(os.fsdecode(path),)), base, where)

    def _lines(self, file: Iterable[bytes] | Iterable[str], name: str, base: str) -> Iterator[Source]:
        if self.subset is not None:
            Subset(self.subset).check(name)
        for number, line in enumerate(file, 1):
            text = line.decode("utf-8", "surrogateescape") if isinstance(line, bytes) else str(line)
            text = text.removeprefix("\ufeff").strip() if number == 1 else text.strip()
            where = f"{name}:{number}"
            if "\0" in text:
                raise ConfigError(f"{where}: holds NUL bytes, which are no text; is it a list of paths, one per line?")
            if text:
                entry = line_entry(
                    text, classes=self.classes, where=where, exists=lambda path: self._place(path, base)[1]
                )
                yield from self._entry(entry, base, where)

    def _csv(self, path: Path, base: str) -> Iterator[Source]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first = file.readline()
            if not first.strip():
                return
            for delimiter in ("\t",) if path.suffix.lower() == ".tsv" else (",", ";", "\t"):
                columns = [
                    name.strip().lower() for name in next(csv.reader([first], delimiter=delimiter), [])
                ]
                if has_location(columns):
                    break
            else:
                # The published split files are CSV without a header.
                if not is_list_line(first.strip()):
                    raise ConfigError(
                        f"{path}:1: no column path, uri or youtube_id; there are {first.strip()}"
                    )
                file.seek(0)
                yield from self._lines(file, str(path), base)
                return
            chosen = Subset(self.subset)
            rows = csv.DictReader(file, columns, delimiter=delimiter)
            try:
                for row in rows:
                    where = f"{path}:{rows.line_num + 1}"
                    row.pop(None, None)  # type: ignore[call-overload]
                    entry = table_entry(row, classes=self.classes, subset=chosen, where=where)
                    if entry is not None:
                        yield from self._entry(entry, base, where)
            except csv.Error as exc:
                raise ConfigError(f"{path}:{rows.line_num + 1}: {exc}") from exc
            chosen.check(str(path))

    def _jsonl(self, path: Path, base: str) -> Iterator[Source]:
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
                    yield from self._entry(Entry(names=(row,)), base, where)
                    continue
                if not isinstance(row, dict):
                    raise ConfigError(f"{where}: {str(row)[:60]!r} is neither a path nor a row with a path")
                row = {key.lower(): value for key, value in row.items()}
                if entry := table_entry(row, classes=self.classes, subset=chosen, where=where):
                    yield from self._entry(entry, base, where)
        chosen.check(str(path))

    def _parquet(self, path: Path, base: str) -> Iterator[Source]:
        chosen = Subset(self.subset)
        try:
            with pq.ParquetFile(path) as table:
                there = table.schema_arrow.names
                if not has_location(there):
                    raise ConfigError(
                        f"{path}: no column path, uri or youtube_id; there are {', '.join(there)}"
                    )
                wanted = [name for name in there if name.lower() in TABLE_COLUMNS]
                number = 0
                for batch in table.iter_batches(batch_size=4096, columns=wanted):
                    for row in batch.to_pylist():
                        number += 1
                        where = f"{path}: row {number}"
                        row = {name.lower(): value for name, value in row.items()}
                        if entry := table_entry(row, classes=self.classes, subset=chosen, where=where):
                            yield from self._entry(entry, base, where)
        except pa.ArrowException as exc:
            raise ConfigError(
                f"{path}: cannot be read as Parquet: {' '.join(str(exc).split())[:200]}"
            ) from exc
        chosen.check(str(path))

    # Entries -------------------------------------------------------------------------------------------------

    def _entry(self, entry: Entry, base: str, where: str) -> Iterator[Source]:
        if entry.is_name:
            path = self._by_name(entry, base)
        elif entry.names[0].startswith("file://"):
            path = _path_of(entry.names[0])
        elif is_uri(entry.names[0]):
            yield _source(entry.names[0], truth=entry.labels, video_id=entry.video_id)
            return
        else:
            path, is_there = self._place(entry.names[0], base)
            if not is_there and self.videos is not None:
                path = self._by_name(entry, base)
        if extension(path) in MEDIA_EXTENSIONS or not os.path.isdir(path):
            yield _source(path, truth=entry.labels, video_id=entry.video_id)
        elif holds_images(path):
            yield _source(path, media=Media.FRAMES, truth=entry.labels, video_id=entry.video_id)
        else:
            yield from self._folder(path, truth=entry.labels)

    def _place(self, path: str, base: str) -> tuple[str, bool]:
        """Where a path of a list is, and whether anything is there.

        A relative path is meant from --videos, else from the list's folder, else from where the command was started.
        """
        if os.path.isabs(path):
            return os.path.normpath(path), os.path.lexists(path)
        places = dict.fromkeys([*([] if self.videos is None else [str(self.videos)]), base, os.getcwd()])
        paths = [os.path.abspath(os.path.join(place, path)) for place in places]
        return next(((there, True) for there in paths if os.path.lexists(there)), (paths[0], False))

    def _by_name(self, entry: Entry, base: str) -> str:
        if self.tree is None:
            self.tree = VideoTree(self.videos or Path(base))
        for name in entry.names:
            if found := self.tree.find(name):
                return found
        return os.path.abspath(os.path.join(self.videos or base, entry.names[-1]))


def _source(
    uri: str,
    *,
    media: Media | None = None,
    truth: tuple[str, ...] | None = None,
    video_id: str | None = None,
) -> Source:
    if media is None:
        media = Media.IMAGE if extension(uri) in IMAGE_EXTENSIONS else Media.VIDEO
    name = (
        (os.path.basename(uri) if media is Media.FRAMES else plain_name(uri))
        if video_id is None
        else video_id
    )
    return Source(source_id=source_id(uri), uri=uri, video_id=name or uri, media=media, truth=truth)


def _path_of(uri: str) -> str:
    return os.path.abspath(
        unquote(uri.removeprefix("file://").removeprefix("localhost"), errors="surrogateescape")
    )


def _between_nuls(file: IO[bytes]) -> Iterator[bytes]:
    """What NUL bytes separate, as it comes."""
    rest = b""
    while chunk := file.read1(1 << 16):  # type: ignore[attr-defined]
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
    if rest:
        yield rest


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False
