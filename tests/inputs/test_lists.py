"""Lists, tables and annotations in every form become sources, in their order, as a stream."""

from __future__ import annotations

import io
import itertools
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import ConfigError
from operators.records import Media
from pipeline.inputs.sources import sources
from tests.support.listed_inputs import below, listed, make, write


def test_an_address_in_a_list_is_taken_as_it_is_and_a_file_address_is_a_path(tmp_path: Path) -> None:
    make(tmp_path, "a b.mp4")
    write(tmp_path / "list.txt", "https://me:secret@host/dir/clip.mp4?x=1\n")
    web, local = listed(tmp_path / "list.txt", f"file://{tmp_path}/a%20b.mp4")
    assert (web.uri, web.video_id) == ("https://me:secret@host/dir/clip.mp4?x=1", "clip")
    assert "secret" not in repr(web)
    assert local.uri == str(tmp_path / "a b.mp4")


def test_a_list_holds_paths_or_paths_and_labels(tmp_path: Path) -> None:
    make(tmp_path, "in/a.mp4", "in/b c.mp4", "in/d")
    write(
        tmp_path / "in/list.txt",
        "\ufeffa.mp4\n"
        "a.mp4 cat\n"
        "\n"
        "b c.mp4\n"
        "b c.mp4 brushing teeth\r\n"
        "gone too.mp4 7\n"
        "d cat\n"
        "with\ttab label\n"
        "/abs/x.mp4,3\n"
        "http://host/x.mp4 cat\n",
    )
    found = listed(tmp_path / "in/list.txt")
    assert [(os.path.relpath(s.uri, tmp_path / "in") if "://" not in s.uri else s.uri, s.truth) for s in found][:7] == [
        ("a.mp4", None),
        ("a.mp4", ("cat",)),
        ("b c.mp4", None),
        ("b c.mp4", ("brushing teeth",)),
        ("gone too.mp4", ("class_007",)),
        ("d", ("cat",)),
        ("with", ("tab label",)),
    ]
    assert [(s.uri, s.truth) for s in found[7:]] == [
        ("/abs/x.mp4", ("class_003",)),
        ("http://host/x.mp4", ("cat",)),
    ]


def test_paths_of_a_list_are_meant_from_the_list_or_from_where_one_stands(tmp_path: Path, monkeypatch: Any) -> None:
    make(tmp_path, "lists/here.mp4", "cwd/there.mp4")
    monkeypatch.chdir(tmp_path / "cwd")
    write(tmp_path / "lists/l.txt", "here.mp4\nthere.mp4\ngone.mp4\n")
    assert below(tmp_path, listed(tmp_path / "lists/l.txt")) == [
        "lists/here.mp4",
        "cwd/there.mp4",
        "lists/gone.mp4",
    ]


def test_names_in_a_list_are_found_below_videos(tmp_path: Path) -> None:
    make(tmp_path, "v/x/one.avi", "v/v_two.mp4", *(f"v/x/three/image_{n:05d}.jpg" for n in (1, 2)))
    write(tmp_path / "l.txt", "one\ntwo 1\nthree\n/their/disk/one.mp4\nfour\n")
    found = listed(tmp_path / "l.txt", videos=tmp_path / "v")
    assert below(tmp_path / "v", found[:3]) == ["x/one.avi", "v_two.mp4", "x/three"]
    assert [s.media for s in found[:3]] == [Media.VIDEO, Media.VIDEO, Media.FRAMES]
    assert below(tmp_path / "v", found[3:]) == ["x/one.avi", "four"]


def test_a_folder_in_a_list_is_one_video_or_is_walked(tmp_path: Path) -> None:
    make(tmp_path, *(f"f/image_{n:05d}.jpg" for n in (1, 2)), "g/a.mp4", "g/b.mp4")
    write(tmp_path / "l.txt", "f cat\ng dog\n")
    assert [(s.video_id, s.media, s.truth) for s in listed(tmp_path / "l.txt")] == [
        ("f", Media.FRAMES, ("cat",)),
        ("a", Media.VIDEO, ("dog",)),
        ("b", Media.VIDEO, ("dog",)),
    ]


def test_standard_input_is_a_list_in_bytes_or_text(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for stdin in (io.BytesIO(b"a.mp4\ncaf\xe9.mp4 cat\n"), io.StringIO("a.mp4\ncaf\udce9.mp4 cat\n")):
        found = listed("-", stdin=stdin)
        assert [(os.path.basename(s.uri), s.truth) for s in found] == [
            ("a.mp4", None),
            ("caf\udce9.mp4", ("cat",)),
        ]


def test_paths_on_standard_input_may_be_separated_by_nul_bytes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(make(tmp_path, "d/x.mp4"))
    given = b"a b.mp4 cat\0two\nlines.mp4\0caf\xe9.mp4\0d\0last.mp4"
    found = listed("-", stdin=io.BufferedReader(io.BytesIO(given)))  # type: ignore[arg-type]
    names = ["a b.mp4 cat", "two\nlines.mp4", "caf\udce9.mp4", "d/x.mp4", "last.mp4"]
    assert [(os.path.relpath(s.uri), s.truth) for s in found] == [(name, None) for name in names]


def test_a_video_on_standard_input_is_no_list(tmp_path: Path) -> None:
    video = io.BufferedReader(io.BytesIO(b"\0\0\0\x20ftypisom"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="standard input: path 1 is empty, between two NUL bytes"):
        listed("-", stdin=video)


def test_a_path_in_a_list_may_stand_in_quotes(tmp_path: Path) -> None:
    make(tmp_path, "b c.mp4", '"real".mp4', "d e")
    write(tmp_path / "l.txt", '"b c.mp4"\n\'b c.mp4\' brushing teeth\n"d e", 3\n"real".mp4\n"not, there" 7\n')
    assert [(os.path.relpath(s.uri, tmp_path), s.truth) for s in listed(tmp_path / "l.txt")] == [
        ("b c.mp4", None),
        ("b c.mp4", ("brushing teeth",)),
        ("d e", ("class_003",)),
        ('"real".mp4', None),
        ("not, there", ("class_007",)),
    ]


def test_a_list_of_millions_stays_a_stream() -> None:
    def lines() -> Iterator[str]:
        for number in itertools.count():
            yield f"/videos/{number:09d}.mp4\n"

    stream = sources(["-"], stdin=lines())  # type: ignore[arg-type]
    assert next(stream).video_id == "000000000"
    tracemalloc.start()
    last = next(itertools.islice(stream, 49_999, None))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert last.video_id == "000050000"
    assert peak < 500_000


@pytest.mark.parametrize("form", ["csv", "semicolon", "tsv", "jsonl", "json", "parquet"])
def test_a_table_has_a_path_and_may_have_labels_and_ids(tmp_path: Path, form: str) -> None:
    table: list[dict[str, Any]] = [
        {"Path": "a.mp4", "label": "cat", "video_id": "A"},
        {"Path": "b, c.mp4", "label": "3", "video_id": None},
        {"Path": "/abs/d.mp4", "label": None, "video_id": None},
    ]
    match form:
        case "csv" | "semicolon" | "tsv":
            mark = {"csv": ",", "semicolon": ";", "tsv": "\t"}[form]
            lines = [f'"{row["Path"]}"{mark}{row["label"] or ""}{mark}{row["video_id"] or ""}' for row in table]
            path = tmp_path / f"t.{'tsv' if form == 'tsv' else 'csv'}"
            write(path, "\n".join([f"Path{mark}label{mark}video_id", *lines, ""]))
        case "jsonl":
            path = write(tmp_path / "t.jsonl", "\n\n".join(map(json.dumps, table)))
        case "json":
            path = write(tmp_path / "t.json", json.dumps(table))
        case _:
            path = tmp_path / "t.parquet"
            pq.write_table(pa.Table.from_pylist(table), path)
    found = listed(path)
    assert [(s.uri, s.truth, s.video_id) for s in found] == [
        (f"{tmp_path}/a.mp4", ("cat",), "A"),
        (f"{tmp_path}/b, c.mp4", ("class_003",), "b, c"),
        ("/abs/d.mp4", None, "d"),
    ]


def test_several_labels_of_a_row_all_go_into_the_truth(tmp_path: Path) -> None:
    rows = [{"uri": "s3://b/a.mp4", "labels": ["x", "y", "x"]}, {"uri": "s3://b/b.mp4", "labels": []}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    write(tmp_path / "t.csv", "uri,labels\ns3://b/a.mp4,x|y\n")
    found = listed(tmp_path / "t.parquet", tmp_path / "t.csv")
    assert [(s.uri, s.truth) for s in found] == [
        ("s3://b/a.mp4", ("x", "y")),
        ("s3://b/b.mp4", None),
        ("s3://b/a.mp4", ("x", "y")),
    ]


def test_a_table_of_labels_can_be_labelled_again_without_taking_predictions_for_truth(tmp_path: Path) -> None:
    rows = [
        {"source_uri": "/v/a.mp4", "truth": ["cat"], "label": "dog"},
        {"source_uri": "/v/b.mp4", "truth": None, "label": "dog"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert [s.truth for s in listed(tmp_path / "t.parquet")] == [("cat",), None]


def activitynet(tmp_path: Path) -> Path:
    make(tmp_path, "v/train/v_-aa.mp4", "v/test/v_bb.mkv", "v/test/cc.webm")
    labels = [{"label": "Archery", "segment": [0, 1]}, {"label": "Ballet"}, {"label": "Archery"}]
    database = {
        "-aa": {"subset": "training", "annotations": labels},
        "bb": {"subset": "validation", "annotations": labels[1:2]},
        "cc": {"subset": "testing", "annotations": []},
        "dd": {"subset": "testing", "annotations": labels[1:2]},
    }
    return write(tmp_path / "net.json", json.dumps({"version": "1.3", "database": database}))


def test_activitynet_ids_are_found_below_videos_and_keep_all_labels(tmp_path: Path) -> None:
    found = listed(activitynet(tmp_path), videos=tmp_path / "v")
    assert [(s.video_id, os.path.relpath(s.uri, tmp_path / "v"), s.truth) for s in found] == [
        ("-aa", "train/v_-aa.mp4", ("Archery", "Ballet")),
        ("bb", "test/v_bb.mkv", ("Ballet",)),
        ("cc", "test/cc.webm", None),
        ("dd", "dd", ("Ballet",)),
    ]


@pytest.mark.parametrize(("subset", "ids"), [("validation", ["bb"]), ("val", ["bb"]), ("test", ["cc", "dd"])])
def test_one_subset_is_taken(tmp_path: Path, subset: str, ids: list[str]) -> None:
    assert [s.video_id for s in listed(activitynet(tmp_path), videos=tmp_path / "v", subset=subset)] == ids


def test_a_subset_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no subset 'tset'; there are testing, training, validation"):
        listed(activitynet(tmp_path), videos=tmp_path / "v", subset="tset")
    with pytest.raises(ConfigError, match="has no subsets; leave --subset val out"):
        listed(write(tmp_path / "l.txt", "a.mp4\n"), subset="val")


def test_kinetics_csv_finds_the_clip_by_the_name_that_downloaders_give(tmp_path: Path) -> None:
    make(tmp_path, "v/abseiling/abc_000010_000020.mp4", "v/def.mp4")
    path = write(
        tmp_path / "k.csv",
        "label,youtube_id,time_start,time_end,split\n"
        "abseiling,abc,10,20,val\n"
        '"air, drumming",def,0,10,val\n'
        "zumba,ghi,5,15,train\n",
    )
    found = listed(path, videos=tmp_path / "v")
    assert [(s.video_id, os.path.relpath(s.uri, tmp_path / "v"), s.truth) for s in found] == [
        ("abc", "abseiling/abc_000010_000020.mp4", ("abseiling",)),
        ("def", "def.mp4", ("air, drumming",)),
        ("ghi", "ghi", ("zumba",)),
    ]
    assert [s.video_id for s in listed(path, videos=tmp_path / "v", subset="train")] == ["ghi"]


def test_split_files_of_fcvid_and_activitynet(tmp_path: Path) -> None:
    make(tmp_path, *(f"d/frames/v_x/image_{n:05d}.jpg" for n in (1, 2, 3)), "d/sub/y.mp4")
    path = write(tmp_path / "val.txt", "v_x,300,1\nsub/y,120,2,0,-1\nz,90,0\n")
    found = listed(path, videos=tmp_path / "d", class_names=["a", "b", "c"])
    assert [(s.video_id, os.path.relpath(s.uri, tmp_path / "d"), s.media, s.truth) for s in found] == [
        ("v_x", "frames/v_x", Media.FRAMES, ("b",)),
        ("y", "sub/y.mp4", Media.VIDEO, ("c", "a")),
        ("z", "z", Media.VIDEO, ("a",)),
    ]
    assert listed(path, videos=tmp_path / "d")[0].truth == ("class_001",)


def test_lists_of_mini_kinetics_and_something_something(tmp_path: Path) -> None:
    make(tmp_path, *(f"d/riding a bike/x y/image_{n:05d}.jpg" for n in (1, 2)), "d/78687.webm")
    path = write(tmp_path / "val_videofolder.txt", "riding a bike/x y 250 5\n78687 42 173\n")
    assert [(os.path.relpath(s.uri, tmp_path / "d"), s.truth) for s in listed(path, videos=tmp_path / "d")] == [
        ("riding a bike/x y", ("class_005",)),
        ("78687.webm", ("class_173",)),
    ]


def test_something_something_v2_json_gives_the_template_as_label(tmp_path: Path) -> None:
    make(tmp_path, "d/78687.webm")
    rows = [
        {"id": "78687", "label": "holding potato", "template": "Holding [something] next to [something]"},
        {"id": "1"},
    ]
    found = listed(write(tmp_path / "v.json", json.dumps(rows)), videos=tmp_path / "d")
    assert [(s.video_id, s.truth) for s in found] == [
        ("78687", ("Holding something next to something",)),
        ("1", None),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "name,kind\na,b\n", r"t.csv:1: no column path, uri or youtube_id; there are name,kind"),
        ("t.csv", "path,label\na.mp4,x\n,y\n", r"t.csv:3: no path in this row"),
        ("t.csv", "label,youtube_id,time_start,time_end\nx,a,now,then\n", r"t.csv:2: now to then"),
        ("t.jsonl", '{"path": "a.mp4"}\n{"path": \n', r"t.jsonl:2: not JSON"),
        ("t.jsonl", '{"path": "a.mp4"}\n{"file": "b"}\n', r"t.jsonl:2: no path in this row"),
        ("t.json", '{\n"database": {]', r"t.json:2: cannot be read as JSON"),
        ("t.json", '{"a": 1}', r"t.json: neither an ActivityNet JSON"),
        ("t.json", '{"database": {"x": {"annotations": [{}]}}}', r"t.json: x: an annotation without a label"),
        ("t.json", "[3]", r"t.json: item 0: '3' is neither"),
        ("t.parquet", "no parquet", r"t.parquet: cannot be read as Parquet"),
        ("t.txt", "a.mp4\n\0\0\n", r"t.txt:2: holds NUL bytes, which are no text"),
        ("t.txt", "a.mp4 1\nb.mp4 2\n", r"t.txt:2: label 2, but the class list ends at 1"),
    ],
)
def test_a_list_that_cannot_be_read_is_told_with_its_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed(write(tmp_path / name, text), class_names=["a", "b"])


def test_a_list_that_does_not_exist_is_no_missing_video(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"videos.csv: there is no such list"):
        listed(tmp_path / "videos.csv")


def test_videos_must_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--videos .*nowhere: not a folder"):
        sources([], videos=tmp_path / "nowhere")
