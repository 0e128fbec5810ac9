"""Class lists, numbered labels, and the readings of a list's line."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators.errors import ConfigError
from pipeline.inputs.annotations import ClassNames, Subset, line_entry, plain_name, read_class_names


def test_class_names_are_one_per_line_and_a_last_blank_line_is_no_class(tmp_path: Path) -> None:
    path = tmp_path / "classInd.txt"
    path.write_bytes(b"\xef\xbb\xbfArchery\r\n Playing ice hockey \r\n\r\n\n")
    assert read_class_names(path) == ["Archery", "Playing ice hockey"]


@pytest.mark.parametrize(
    ("text", "message"), [("a\n\nb\n", r":2: a class without"), ("\n\n", "without a name")]
)
def test_a_class_without_a_name_is_refused_because_it_shifts_all_that_follow(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_class_names(tmp_path / "c.txt")


def test_a_class_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone.txt: cannot be read .* No such file"):
        read_class_names(tmp_path / "gone.txt")


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (None, ["7", 12, 3.0, "cat"], ("class_007", "class_012", "class_003", "cat")),
        (["a", "b"], ["1", 0, "other"], ("b", "a", "other")),
        (["1", "0"], ["0", "1"], ("0", "1")),
        (["a"], ["a", 0, " a "], ("a",)),
        (["a"], [], None),
    ],
)
def test_numbers_become_names_and_names_stay(
    names: list[str] | None, labels: list[object], expected: tuple[str, ...] | None
) -> None:
    assert ClassNames(names).of(labels, "here") == expected


def test_a_number_beyond_the_class_list_says_so() -> None:
    with pytest.raises(ConfigError, match=r"list.txt:3: label 239, but the class list ends at 238"):
        ClassNames([f"c{n}" for n in range(239)]).of(["239"], "list.txt:3")


@pytest.mark.parametrize(
    ("line", "there", "name", "labels"),
    [
        ("a.mp4", (), "a.mp4", None),
        ("my clip.mp4", (), "my clip.mp4", None),
        ("my clip 3", ("my clip 3",), "my clip 3", None),
        ("my clip 3", ("my clip",), "my clip", ("class_003",)),
        ("my clip 3", (), "my clip", ("class_003",)),
        ("my dir/a b c", ("my dir/a",), "my dir/a", ("b c",)),
        ("a.mp4 b c", (), "a.mp4", ("b c",)),
        ("a.mp4 files/b.mp4 cat", (), "a.mp4 files/b.mp4", ("cat",)),
        ("a, b.mp4", (), "a, b.mp4", None),
        ("a,b", (), "a,b", None),
        ("a,b,30,1,2", (), "a,b", ("class_001", "class_002")),
        ("a, 30, 1", (), "a", ("class_001",)),
        ("a b 30 1", (), "a b", ("class_001",)),
        ("rtsp://me:x@host/a 30 1", (), "rtsp://me:x@host/a", ("class_001",)),
        ("100218;Something falling like a feather", (), "100218", ("Something falling like a feather",)),
        ("a.mp4;cat", (), "a.mp4", ("cat",)),
        ("http://host/a,b;c", (), "http://host/a,b;c", None),
    ],
)
def test_a_line_is_read_by_its_form_and_where_that_leaves_a_choice_by_what_exists(
    line: str, there: tuple[str, ...], name: str, labels: tuple[str, ...] | None
) -> None:
    entry = line_entry(line, classes=ClassNames(None), where="here", exists=lambda path: path in there)
    assert (entry.names, entry.labels) == ((name,), labels)


def test_a_line_without_gaps_is_not_looked_up() -> None:
    def fail(path: str) -> bool:
        raise AssertionError(f"looked for {path}")

    assert line_entry("/a/b", classes=ClassNames(None), where="here", exists=fail).names == ("/a/b",)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v/v_abc.mp4", "v_abc"),
        ("v_abc", "v_abc"),
        ("a/b.2020", "b.2020"),
        ("frames/x/", "x"),
        ("http://host:80/dir/clip.MP4?token=a/b.mp4#t", "clip"),
        ("http://host/", "host"),
    ],
)
def test_a_video_is_called_by_its_file_without_the_extension(path: str, name: str) -> None:
    assert plain_name(path) == name


def test_subsets_are_known_by_their_usual_short_names() -> None:
    subset = Subset("train")
    assert subset.has("Training") and not subset.has("validation")
    subset.check("here")
