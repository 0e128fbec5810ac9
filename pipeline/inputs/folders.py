"""Folders of videos and images: what is in them, and where a name is."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.inputs.annotations import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS, plain_name

MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS
_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<ext>\.[A-Za-z]+)")


class VideoTree:
    """Finds videos by name below a folder.

    The likely places are tried first; only when a name is not there is the tree listed, once. It is kept as one sorted
    list of strings, about 120 bytes a video.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.abspath(root)
        self._names: list[str] | None = None

    def find(self, name: str) -> str | None:
        """The path of NAME.*, v_NAME.* or a folder of that name; NAME may also be a path below the root."""
        if not name.strip("/."):
            return None
        folder, _, last = name.rpartition("/")
        stem = plain_name(last)
        likely = [os.path.join(self._root, name)] if extension(name) in MEDIA_EXTENSIONS else []
        for prefix in ("", "v_"):
            likely += [os.path.join(self._root, folder, prefix + stem + ext) for ext in (".mp4", ".mkv", ".webm")]
        for path in likely:
            if os.path.isfile(path):
                return path
        for place in (name, os.path.join("frames", name)):
            if holds_images(os.path.join(self._root, place)):
                return os.path.join(self._root, place)
        names = self._listed()
        for wanted in (stem, f"v_{stem}"):
            position = bisect_left(names, wanted + "\0")
            if position < len(names) and names[position].startswith(wanted + "\0"):
                return os.path.join(self._root, names[position].partition("\0")[2])
        return None

    def _listed(self) -> list[str]:
        """`name NUL path below the root`, sorted."""
        if self._names is None:
            self._names = sorted(self._walk(""))
        return self._names

    def _walk(self, below: str) -> Iterator[str]:
        files, folders = entries(os.path.join(self._root, below))
        images = [name for name in files if extension(name) in IMAGE_EXTENSIONS]
        if is_numbered(images):
            yield f"{os.path.basename(below)}\0{below}"
            images = []
        for name in [*images, *(name for name in files if extension(name) in VIDEO_EXTENSIONS)]:
            yield f"{plain_name(name)}\0{os.path.join(below, name)}"
        for name in folders:
            yield from self._walk(os.path.join(below, name))


def is_numbered(images: Sequence[str]) -> bool:
    """Whether the images of a folder are the frames of one video: image_00001.jpg and so on.

    One name, one extension, numbers of one width with leading zeros, and not much missing between the first and the
    last: the photographs of a data set are numbered too, but far apart, or without zeros.
    """
    matches = [_NUMBERED.fullmatch(name) for name in images]
    if not matches or any(match is None for match in matches):
        return False
    parts = [(match["prefix"], match["ext"], match["number"]) for match in matches if match]
    numbers = {int(number) for _, _, number in parts}
    return (
        len({(prefix, ext) for prefix, ext, _ in parts}) == 1
        and len({len(number) for _, _, number in parts}) == 1
        and len(parts[0][2]) >= 3
        and any(number.startswith("0") for _, _, number in parts)
        and max(numbers) - min(numbers) < 2 * len(numbers)
        and (len(numbers) > 1 or numbers <= {0, 1})
    )


def entries(folder: str, *, must_list: bool = False) -> tuple[list[str], list[str]]:
    """The names of files and of folders, sorted. Hidden ones are none of ours: ._x.mp4 is no video."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as found:
            for entry in found:
                if entry.name.startswith("."):
                    continue
                if not _is_folder(entry):
                    files.append(entry.name)
                elif not entry.is_symlink() or not _leads_up(entry.path, folder):
                    folders.append(entry.name)
    except OSError:
        if must_list:
            raise
    return sorted(files), sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link in a circle, or into a closed folder, is none: whoever reads it says what is wrong."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _leads_up(link: str, folder: str) -> bool:
    """Whether a link leads to a folder that it is in, which would never end."""
    target = os.path.realpath(link)
    above = Path(os.path.abspath(folder))
    return any(os.path.realpath(place) == target for place in (above, *above.parents))


def holds_images(folder: str) -> bool:
    try:
        with os.scandir(folder) as found:
            return any(extension(entry.name) in IMAGE_EXTENSIONS for entry in found)
    except OSError:
        return False


def holds_only_stills(folder: str) -> bool:
    """By its first 64 entries: a data set may have a thousand classes of a thousand images."""
    has_image = False
    try:
        with os.scandir(folder) as found:
            for _, entry in zip(range(64), found, strict=False):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry) or extension(entry.name) in VIDEO_EXTENSIONS:
                    return False
                has_image |= extension(entry.name) in IMAGE_EXTENSIONS
    except OSError:
        return False
    return has_image


def matching(pattern: str, *, on_closed: Callable[[str], None] = lambda folder: None) -> Iterator[str]:
    """Yields the paths that a glob matches, sorted folder by folder and not all at once. `on_closed` is called
    with folders on its way that cannot be listed."""

    def names_in(folder: str) -> tuple[list[str], list[str]]:
        try:
            return entries(folder or ".", must_list=True)
        except (FileNotFoundError, NotADirectoryError):
            return [], []
        except OSError:
            on_closed(os.path.abspath(folder))
            return [], []

    return _expand([""] if not pattern.startswith("/") else ["/"], pattern.strip("/").split("/"), names_in)


def _expand(
    folders: Iterable[str], parts: list[str], names_in: Callable[[str], tuple[list[str], list[str]]]
) -> Iterator[str]:
    for folder in folders:
        if not parts:
            yield folder
        elif parts[0] == "**":
            yield from _expand_at_any_depth(folder, parts, names_in)
        else:
            files, below = names_in(folder) if glob.has_magic(parts[0]) else ([], [])
            there = _paths_named(folder, parts[0], [*files, *below], must_be_folder=len(parts) > 1)
            yield from _expand(there, parts[1:], names_in)


def _expand_at_any_depth(
    folder: str, parts: list[str], names_in: Callable[[str], tuple[list[str], list[str]]]
) -> Iterator[str]:
    """Yields what `**`, the first of `parts`, and the parts after it match below a folder."""
    if len(parts) == 1:
        # A folder is walked as a whole, so `**` at the end is the folder itself.
        yield folder or "."
        return
    yield from _expand([folder], parts[1:], names_in)
    for name in names_in(folder)[1]:
        yield from _expand_at_any_depth(os.path.join(folder, name), parts, names_in)


def _paths_named(folder: str, part: str, names: Sequence[str], *, must_be_folder: bool) -> Iterator[str]:
    """The paths in a folder that one part of a pattern matches; `names`: what is there, for a part with wildcards."""
    if not glob.has_magic(part):
        path = os.path.join(folder, part)
        if os.path.lexists(path):
            yield path
        return
    for name in fnmatch.filter(sorted(names), part):
        path = os.path.join(folder, name)
        if not must_be_folder or os.path.isdir(path):
            yield path


def extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()
