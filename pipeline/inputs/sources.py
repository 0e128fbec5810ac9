"""The arguments of a command become a stream of sources: files, folders, globs, lists and annotations.

Everything is walked as it is asked for, so a list of a million lines costs no memory. A path that is given by name and
does not exist is refused at once; an entry of a list that does not exist is a source all the same, and becomes a row
that says `missing`. Nothing is opened here but lists.
"""

from __future__ import annotations

import glob
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

from operators.errors import ConfigError
from operators.passwords import without_password
from operators.records import Media, Source, source_id
from pipeline.inputs.annotations import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    ClassNames,
    Entry,
    is_uri,
    plain_name,
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
from pipeline.inputs.lists import LISTS, ListReader, Located
from pipeline.inputs.tally import InputTally


def sources(
    arguments: Iterable[str],
    *,
    videos: Path | None = None,
    subset: str | None = None,
    class_names: Sequence[str] | None = None,
    stdin: IO[bytes] | IO[str] | None = None,
    tally: InputTally | None = None,
) -> Iterator[Source]:
    """The sources behind a command's arguments, in a fixed order, as a stream.

    `videos`: where the names of an annotation are looked up. `subset`: the one to take of annotations that have
    several. `class_names`: what numbered labels mean. A list that cannot be read is a ConfigError with its file and
    line; a path that does not exist is one before the stream begins.
    """
    arguments = list(arguments)
    check_names(arguments, videos=videos)
    classes = ClassNames(class_names)
    reader = ListReader(subset=subset, classes=classes)
    walk = _Walk(videos=videos, classes=classes, reader=reader, stdin=stdin, tally=tally or InputTally())
    return walk.sources(arguments)


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
        kind = "list" if extension(path) in LISTS else "file or folder"
        raise ConfigError(f"{argument}: there is no such {kind}; correct the path")


@dataclass(kw_only=True, slots=True)
class _Walk:
    """Goes from arguments to sources, through folders and lists."""

    videos: Path | None
    classes: ClassNames
    reader: ListReader
    stdin: IO[bytes] | IO[str] | None
    tally: InputTally
    tree: VideoTree | None = None
    """The files below `videos` by their names, once one is looked up."""

    def sources(self, arguments: Iterable[str]) -> Iterator[Source]:
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
            return self._listed(self.reader.nul_paths(self.stdin, name), base)
        return self._listed(self.reader.lines(self.stdin, name, exists=lambda path: self._place(path, base)[1]), base)

    def _file(self, argument: str) -> Iterator[Source]:
        if extension(argument) in LISTS or _is_pipe(argument):
            yield from self._list(argument)
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
            elif ext in LISTS and pattern.lower().endswith(ext):
                yield from self._list(path)
            else:
                self.tally.skipped[ext or "(none)"] += 1
        if is_empty:
            self.tally.empty_patterns.append(pattern)

    def _folder(
        self,
        folder: str,
        *,
        truth: tuple[str, ...] | None = None,
        is_class: bool = False,
    ) -> Iterator[Source]:
        """The sources in a folder and in those below it. `is_class`: it lies beside folders that also hold nothing but
        still images, so that its name is their label."""
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

    def _list(self, path: str) -> Iterator[Source]:
        base = os.path.dirname(os.path.abspath(path))
        return self._listed(self.reader.file(Path(path), exists=lambda name: self._place(name, base)[1]), base)

    def _listed(self, listed: Iterator[Located], base: str) -> Iterator[Source]:
        for entry, _ in listed:
            yield from self._entry(entry, base)

    def _entry(self, entry: Entry, base: str) -> Iterator[Source]:
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
        """Finds where a path of a list is, and whether anything is there.

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


def _is_pipe(path: str) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError:
        return False
