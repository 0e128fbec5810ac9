"""Files, folders and patterns become sources, in a fixed order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from operators.errors import ConfigError
from operators.records import Media, source_id
from pipeline.inputs.sources import sources
from pipeline.inputs.tally import InputTally
from tests.support.listed_inputs import below, listed, make, write


def test_a_file_is_a_source_with_its_absolute_path_and_its_name(tmp_path: Path, monkeypatch: Any) -> None:
    make(tmp_path, "a/v_one.two.MP4")
    monkeypatch.chdir(tmp_path / "a")
    (source,) = listed("../a/v_one.two.MP4")
    path = str(tmp_path / "a/v_one.two.MP4")
    assert (source.uri, source.source_id, source.video_id) == (path, source_id(path), "v_one.two")
    assert (source.media, source.truth) == (Media.VIDEO, None)


@pytest.mark.parametrize("name", ["gone.mp4", "nowhere", "deep/er"])
def test_a_path_that_does_not_exist_is_refused_before_the_first_source_is_listed(tmp_path: Path, name: str) -> None:
    make(tmp_path, "here.mp4")
    for form in (tmp_path / name, f"file://{tmp_path / name}"):
        with pytest.raises(ConfigError, match=rf"{name}: there is no such file or folder; correct the path"):
            sources([str(tmp_path / "here.mp4"), str(form)])


def test_an_address_given_by_name_is_refused_without_its_password() -> None:
    with pytest.raises(ConfigError, match="is not a local file; download it first") as refused:
        sources(["https://me:secret@host/dir/clip.mp4?x=1"])
    assert "secret" not in str(refused.value) and "host/dir/clip.mp4" in str(refused.value)


def test_what_a_list_names_and_what_a_link_points_to_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").symlink_to(tmp_path / "nothing")
    write(tmp_path / "list.txt", "gone.mp4\n")
    assert below(tmp_path, listed(tmp_path / "list.txt", tmp_path / "broken.mp4")) == ["gone.mp4", "broken.mp4"]


def test_a_file_of_an_unknown_kind_is_left_to_the_reader_when_it_is_named(tmp_path: Path) -> None:
    make(tmp_path, "page.html")
    assert listed(tmp_path / "page.html")[0].media is Media.VIDEO


def test_a_folder_is_read_recursively_in_the_order_of_names_and_the_rest_is_counted(tmp_path: Path) -> None:
    make(
        tmp_path,
        "b.mp4",
        "a/z.webm",
        "a/b/c.MKV",
        "c.png",
        "notes.md",
        "a/x.md",
        "README",
        ".hid/x.mp4",
        "._b.mp4",
    )
    tally = InputTally()
    assert below(tmp_path, listed(tmp_path, tally=tally)) == ["a/b/c.MKV", "a/z.webm", "b.mp4", "c.png"]
    assert tally.skipped == {".md": 2, "(none)": 1}
    assert tally.num_sources == 4


def test_still_images_are_clips_of_one_frame(tmp_path: Path) -> None:
    make(tmp_path, "a.jpg", "b.JPEG", "c.png")
    assert [(s.video_id, s.media) for s in listed(tmp_path)] == [(name, Media.IMAGE) for name in "abc"]


def test_a_folder_of_numbered_images_is_one_video(tmp_path: Path) -> None:
    make(tmp_path, *(f"frames/{video}/image_{n:05d}.jpg" for video in ("v1", "v2") for n in range(1, 12)))
    for argument in (tmp_path, tmp_path / "frames"):
        found = listed(argument)
        assert below(tmp_path, found) == ["frames/v1", "frames/v2"]
        assert [(s.video_id, s.media, s.truth) for s in found] == [
            ("v1", Media.FRAMES, None),
            ("v2", Media.FRAMES, None),
        ]
    assert [s.media for s in listed(tmp_path / "frames/v1")] == [Media.FRAMES]


@pytest.mark.parametrize(
    ("names", "is_video"),
    [
        (["00001.jpg", "00002.jpg"], True),
        (["000000.png", "000001.png", "000003.png"], True),
        (["image_00001.jpg"], True),
        (["IMG_0532.jpg"], False),
        (["1.jpg", "2.jpg", "3.jpg"], False),
        (["n01_18.JPEG", "n01_36.JPEG"], False),
        (["val_00000007.JPEG", "val_00012345.JPEG"], False),
        (["a_001.jpg", "b_002.jpg"], False),
        (["a_001.jpg", "a_002.png"], False),
        (["a_001.jpg", "a_002.jpg", "cover.jpg"], False),
    ],
)
def test_numbers_make_a_video_only_where_they_count_frames(tmp_path: Path, names: list[str], is_video: bool) -> None:
    make(tmp_path, *names)
    assert len(listed(tmp_path)) == (1 if is_video else len(names))
    assert {s.media for s in listed(tmp_path)} == {Media.FRAMES if is_video else Media.IMAGE}


def test_folders_of_images_by_class_give_their_truth(tmp_path: Path) -> None:
    make(tmp_path, "val/n01/x_18.JPEG", "val/n01/x_7.JPEG", "val/n02/y_3.JPEG", "val/n02/list.txt")
    assert [(s.video_id, s.truth) for s in listed(tmp_path / "val")] == [
        ("x_18", ("n01",)),
        ("x_7", ("n01",)),
        ("y_3", ("n02",)),
    ]


def test_a_class_folder_named_by_number_is_that_class(tmp_path: Path) -> None:
    make(tmp_path, "0/a.png", "1/b.png")
    assert [s.truth for s in listed(tmp_path, class_names=["cat", "dog"])] == [("cat",), ("dog",)]


def test_folders_that_hold_other_things_too_are_no_classes(tmp_path: Path) -> None:
    make(tmp_path, "mixed/a/x.png", "mixed/b/y.mp4", "loose/a/x.png", "loose/y.png")
    assert [s.truth for s in listed(tmp_path / "mixed", tmp_path / "loose")] == [None] * 4


def test_a_link_that_leads_up_ends(tmp_path: Path) -> None:
    make(tmp_path, "a/x.mp4", "other/y.mp4")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/across").symlink_to(tmp_path / "other")
    assert below(tmp_path, listed(tmp_path / "a")) == ["a/across/y.mp4", "a/x.mp4"]


def test_a_broken_link_is_a_source_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").symlink_to(tmp_path / "gone")
    assert below(tmp_path, listed(tmp_path)) == ["x.mp4"]


def test_a_link_in_a_circle_costs_only_itself(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "b/c.mp4")
    for name in ("loop", "loop.mp4", "b/loop.png"):
        (tmp_path / name).symlink_to(tmp_path / name)
    tally = InputTally()
    assert below(tmp_path, listed(tmp_path, tally=tally)) == ["a.mp4", "b/c.mp4", "b/loop.png", "loop.mp4"]
    assert (tally.skipped, tally.unreadable) == ({"(none)": 1}, [])
    assert below(tmp_path, listed(tmp_path / "*.mp4")) == ["a.mp4", "loop.mp4"]


def test_an_empty_folder_has_no_sources(tmp_path: Path) -> None:
    tally = InputTally()
    assert listed(tmp_path, tally=tally) == []
    assert tally.num_sources == 0


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["a.mp4", "b.mp4"]),
        ("?.m*", ["a.mp4", "b.mp4"]),
        ("**/*.mp4", ["a.mp4", "b.mp4", "x/c.mp4", "x/y/d.mp4"]),
        ("x/**", ["x/c.mp4", "x/y/d.mp4"]),
        ("[x-z]/*", ["x/c.mp4", "x/y/d.mp4"]),
        ("*/c.mp4", ["x/c.mp4"]),
        ("*.avi", []),
    ],
)
def test_globs(tmp_path: Path, monkeypatch: Any, pattern: str, expected: list[str]) -> None:
    make(tmp_path, "b.mp4", "a.mp4", "x/c.mp4", "x/y/d.mp4", "m.txt")
    for argument in (str(tmp_path / pattern), pattern):
        monkeypatch.chdir(tmp_path)
        tally = InputTally()
        assert below(tmp_path, listed(argument, tally=tally)) == expected
        assert tally.empty_patterns == ([] if expected else [argument])


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    make(tmp_path, "a[1].mp4", "a1.mp4")
    assert below(tmp_path, listed(tmp_path / "a[1].mp4")) == ["a[1].mp4"]
