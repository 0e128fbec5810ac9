"""The forms in which people list videos and their labels. Text in, entries out; sources.py finds the files.

Numbered labels are class numbers and become names: of the class list where there is one, else class_000, class_001.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, NoSubsetError

VIDEO_EXTENSIONS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".mpe", ".m2v"),
        *(".vob", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".mxf", ".divx", ".mjpeg", ".mjpg"),
        *(".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".y4m"),
    )
)
IMAGE_EXTENSIONS = frozenset((".png", ".jpg", ".jpeg"))
_MEDIA = "|".join(sorted(ext[1:] for ext in VIDEO_EXTENSIONS | IMAGE_EXTENSIONS))

_COMMA_SPLIT = re.compile(r"(?P<name>.+?),\s*\d+(?P<labels>(?:,\s*-?\d+)+)")
"""FCVID and ActivityNet: path,num_frames,label[,label]"""
_SPACE_SPLIT = re.compile(r"(?P<name>.+?)\s+\d+\s+(?P<labels>\d+)")
"""Mini-Kinetics and Something-Something: path num_frames label; the path may hold spaces."""
_NUMBER_AND_LABEL = re.compile(r"(?P<name>\d+);(?P<labels>.+)")
"""Something-Something V1: id;label"""
_MEDIA_AND_LABEL = re.compile(rf"(?P<name>.+\.(?:{_MEDIA}))[\s,;]+(?P<labels>.+)", re.IGNORECASE)
_MEDIA_AT_END = re.compile(rf"\.(?:{_MEDIA})$", re.IGNORECASE)
_QUOTED = re.compile(r"""(?P<quote>["'])(?P<name>.+?)(?P=quote)(?:[\s,;]+(?P<labels>.+))?""")
"""A path in quotes, as a shell would want it, with or without a label."""
_LAST_WORD = re.compile(r"(?P<name>.*\S)\s+(?P<labels>\S+)")

_LOCATIONS = ("path", "uri", "source_uri")
_LABELS = ("truth", "labels", "label")
"""The columns of labels, the first one taken first: in a table of ours `label` is what was predicted."""
_SUBSETS = ("subset", "split")
TABLE_COLUMNS = (*_LOCATIONS, *_LABELS, *_SUBSETS, "video_id", "youtube_id", "time_start", "time_end")
_SAME_SUBSET = {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One video as a list names it."""

    names: tuple[str, ...]
    """Paths or names to look for, the likeliest first; the last is what it is called when none is found."""
    is_name: bool = False
    """A name to be found as NAME.*, v_NAME.* or a folder; else a path or a URI."""
    labels: tuple[str, ...] | None = None
    video_id: str | None = None


class ClassNames:
    """Labels as an annotation writes them -> class names."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self._names = names
        self._known = frozenset(names or ())

    def of(self, labels: Sequence[object], where: str) -> tuple[str, ...] | None:
        """The class names of labels in the order given, each once; None where there are none."""
        return tuple(dict.fromkeys(self._one(label, where) for label in labels)) or None

    def _one(self, label: object, where: str) -> str:
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        text = str(label).strip()
        if text in self._known or not (text.isascii() and text.isdigit()):
            return text
        number = int(text)
        if self._names is None:
            return f"class_{number:03d}"
        if number >= len(self._names):
            raise ConfigError(
                f"{where}: label {number}, but the class list ends at {len(self._names) - 1}; is it of this data set?"
            )
        return self._names[number]


class Subset:
    """Chooses one subset of an annotation and knows which ones there were."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self._seen: dict[str, None] = {}
        self._has_any = False

    def has(self, subset: object) -> bool:
        if self.wanted is None:
            return True
        self._seen[str(subset)] = None
        is_wanted = _plain_subset(str(subset)) == _plain_subset(self.wanted)
        self._has_any |= is_wanted
        return is_wanted

    def check(self, where: str) -> None:
        """To be called at the end of an annotation: a subset that does not exist is no empty one."""
        if self.wanted is not None and not self._has_any:
            there = ", ".join(sorted(self._seen.keys() - {"None"})[:10])
            if not there:
                raise NoSubsetError(f"{where}: has no subsets; leave --subset {self.wanted} out")
            raise NoSubsetError(f"{where}: has no subset {self.wanted!r}; there are {there}")


def read_class_names(path: Path) -> list[str]:
    """One name per line; its line number is the class number. Blank lines at the end are no classes."""
    try:
        lines = path.read_text("utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read as a list of class names: {_reason(exc)}") from exc
    names = [line.strip() for line in lines]
    if not names or "" in names:
        where = f"{path}:{names.index('') + 1}" if names else str(path)
        raise ConfigError(f"{where}: a class without a name; give one name per line")
    return names


def line_entry(line: str, *, classes: ClassNames, where: str, exists: Callable[[str], bool]) -> Entry:
    """A line of a list: `path`, `path label`, `"path" label`, or a line of one of the published split files.

    A path may hold spaces and commas, so where a line can be read in several ways, what exists decides; a line without
    any is not looked up, because a list may have a million of them.
    """
    if (match := _QUOTED.fullmatch(line)) and not exists(line):
        labels = None if match["labels"] is None else classes.of([match["labels"]], where)
        return Entry(names=(match["name"],), labels=labels)
    if not re.search(r"[\s,;]", line) or _MEDIA_AT_END.search(line) or exists(line):
        return Entry(names=(line,))
    if "\t" in line:
        name, label = line.split("\t", 1)
        return Entry(names=(name.strip(),), labels=classes.of([label], where))
    for form in (_COMMA_SPLIT, _SPACE_SPLIT, _NUMBER_AND_LABEL):
        if match := form.fullmatch(line):
            words = match["labels"].strip(", ").split(",") if form is _COMMA_SPLIT else [match["labels"]]
            # -1 fills up a fixed number of columns.
            labels = classes.of([word.strip() for word in words if not word.strip().startswith("-")], where)
            name = match["name"]
            return Entry(names=(name,), is_name=not is_uri(name), labels=labels, video_id=plain_name(name))
    match = _MEDIA_AND_LABEL.fullmatch(line) or _longest_there(line, exists) or _LAST_WORD.fullmatch(line)
    if match is None:
        return Entry(names=(line,))
    return Entry(names=(match["name"],), labels=classes.of([match["labels"]], where))


def is_list_line(line: str) -> bool:
    """Whether a line reads as a path or a split file's, and not as the header of a table."""
    forms = (_COMMA_SPLIT, _SPACE_SPLIT, _NUMBER_AND_LABEL, _MEDIA_AND_LABEL)
    return bool(_MEDIA_AT_END.search(line) or any(form.fullmatch(line) for form in forms))


def table_entry(row: Mapping[str, Any], *, classes: ClassNames, subset: Subset, where: str) -> Entry | None:
    """A row of a CSV, JSONL or Parquet table, its column names in lower case. None: of another subset."""
    if subset.wanted is not None:
        there = [row[name] for name in _SUBSETS if row.get(name)]
        if not subset.has(there[0] if there else None):
            return None
    found = next((row[name] for name in _LABELS if name in row), None)
    match found:
        case str():
            # Several labels in one field, as CSV has no lists; `label` is one, whatever is in it.
            words: Sequence[object] = [found] if "labels" not in row else found.split("|")
        case list() | tuple():
            words = found
        case _:
            words = [found]
    labels = classes.of([word for word in words if not _is_nothing(word)], where)
    if not _is_nothing(row.get("youtube_id")):
        return _kinetics(row, labels, where)
    location = next((row[name] for name in _LOCATIONS if not _is_nothing(row.get(name))), None)
    if not isinstance(location, str):
        columns = " or ".join(name for name in ("path", "uri") if name in row) or "path"
        raise ConfigError(f"{where}: no {columns} in this row; every row needs one")
    given = row.get("video_id")
    return Entry(names=(location,), labels=labels, video_id=None if _is_nothing(given) else str(given))


def has_location(columns: Sequence[str]) -> bool:
    """Whether the header is one of a table that `table_entry` reads."""
    return bool({*_LOCATIONS, "youtube_id"} & {name.strip().lower() for name in columns})


def json_entries(path: Path, *, classes: ClassNames, subset: Subset) -> Iterator[Entry]:
    """ActivityNet's JSON, Something-Something V2's, or a list of paths or of rows."""
    match _json_document(path):
        case {"database": dict() as videos}:
            yield from _activitynet(path, videos, classes, subset)
        case list() as rows:
            for number, row in enumerate(rows):
                if entry := _json_entry(row, classes=classes, subset=subset, where=f"{path}: item {number}"):
                    yield entry
        case _:
            raise ConfigError(
                f"{path}: neither an ActivityNet JSON (an object with `database`) nor a list of paths, rows or ids"
            )
    subset.check(str(path))


def _json_document(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as exc:
        line = f":{exc.lineno}" if isinstance(exc, json.JSONDecodeError) else ""
        raise ConfigError(f"{path}{line}: cannot be read as JSON: {_reason(exc)}") from exc


def _json_entry(row: object, *, classes: ClassNames, subset: Subset, where: str) -> Entry | None:
    """An item of a JSON list: a path, a video of Something-Something V2, or a row. None: it is of another subset."""
    if isinstance(row, str):
        return Entry(names=(row,))
    if not isinstance(row, dict):
        raise ConfigError(f"{where}: {str(row)[:60]!r} is neither a path nor a row with a path or an id")
    if "id" in row and not has_location(list(row)):
        return _something(str(row["id"]), row, classes, where)
    lowered = {key.lower(): value for key, value in row.items()}
    return table_entry(lowered, classes=classes, subset=subset, where=where)


def _activitynet(path: Path, videos: dict[str, Any], classes: ClassNames, subset: Subset) -> Iterator[Entry]:
    for name, facts in videos.items():
        where = f"{path}: {name}"
        if not isinstance(facts, dict) or not isinstance(facts.get("annotations", []), list):
            raise ConfigError(f"{where}: not an ActivityNet entry, which has `subset` and a list of `annotations`")
        if not subset.has(facts.get("subset")):
            continue
        try:
            labels = [annotation["label"] for annotation in facts.get("annotations", [])]
        except (KeyError, TypeError) as exc:
            raise ConfigError(f"{where}: an annotation without a label") from exc
        yield Entry(names=(name,), is_name=True, labels=classes.of(labels, where), video_id=name)


def _something(name: str, facts: Mapping[str, Any], classes: ClassNames, where: str) -> Entry:
    # The class is the template without its brackets; `label` has the things filled in that this video shows.
    template = facts.get("template") or facts.get("label")
    labels = None if template is None else classes.of([re.sub(r"[\[\]]", "", str(template))], where)
    return Entry(names=(name,), is_name=True, labels=labels, video_id=name)


def _kinetics(row: Mapping[str, Any], labels: tuple[str, ...] | None, where: str) -> Entry:
    name = str(row["youtube_id"])
    times = (row.get("time_start"), row.get("time_end"))
    if any(_is_nothing(time) for time in times):
        return Entry(names=(name,), is_name=True, labels=labels, video_id=name)
    try:
        start_s, end_s = (int(float(time)) for time in times if time is not None)
    except ValueError as exc:
        raise ConfigError(f"{where}: {times[0]} to {times[1]} is no time in seconds") from exc
    # The name under which the usual downloaders save the clip; else the bare id.
    return Entry(names=(f"{name}_{start_s:06d}_{end_s:06d}", name), is_name=True, labels=labels, video_id=name)


def is_uri(text: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def plain_name(path: str) -> str:
    """The last part of a path or URI, without a media file's extension."""
    if is_uri(path):
        path = re.sub(r"[?#].*", "", path.split("://", 1)[1])
    name = path.rstrip("/").rsplit("/", 1)[-1]
    stem = _MEDIA_AT_END.sub("", name)
    return stem or name


def _longest_there(line: str, exists: Callable[[str], bool]) -> re.Match[str] | None:
    for gap in reversed(list(re.finditer(r"\s+", line))):
        if exists(line[: gap.start()]):
            return re.compile(rf"(?s)(?P<name>.{{{gap.start()}}})\s+(?P<labels>.+)").fullmatch(line)
    return None


def _is_nothing(value: object) -> bool:
    return value is None or value == "" or value != value


def _plain_subset(name: str) -> str:
    name = name.strip().lower()
    return _SAME_SUBSET.get(name, name)


def _reason(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or getattr(exc, "msg", None) or " ".join(str(exc).split())[:200]
