"""`label` in this process, over inputs that cost nothing: exit codes, and what is reported of what was not labelled."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from operators.json_text import json_text
from operators.weights import checkpoints
from pipeline.config import load
from run_pipeline import main

QUICK = (
    *("--config", "demo", "--executor", "inline"),
    *("--set", "compute.precision=fp32", "--set", "compute.compile=off"),
    *("--set", "glance.clips_per_call=1", "--set", "focus.batch_size=1"),
)


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture
def label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs the command into tmp_path/out."""

    def run(*arguments: object, out: Path = tmp_path / "out", is_quiet: bool = True) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["label", *map(str, arguments), "-o", str(out), *QUICK, *(["-q"] if is_quiet else [])])
        printed = capsys.readouterr()
        return Ended(int(ended.value.code or 0), printed.out, printed.err)

    return run


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((40, 60, 3), np.uint8))
    return path


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_what_failed_before_is_reported_again_and_ends_with_3_until_it_is_labelled(label, tmp_path):
    good, bad = image(tmp_path / "good.png"), empty(tmp_path / "bad.png")
    first = label(good, bad, "--json")
    assert (first.code, first.summary["failed"], first.summary["failed_before"]) == (3, 1, 0)
    again = label(good, bad, "--json")
    assert (again.code, again.summary["failed"], again.summary["done_before"]) == (3, 0, 2)
    assert again.summary["failed_before"] == 1
    assert label(good, bad, "--allow-failures").code == 0
    shown = label(good, bad)
    assert "--retry-failed" in shown.out and re.search(r"^labelled before +1$", shown.out, re.M)
    # It was not asked for this time.
    assert label(good, "--json").code == 0
    image(bad)
    mended = label(good, bad, "--retry-failed", "--json")
    assert (mended.code, mended.summary["clips"], mended.summary["failed_before"]) == (0, 1, 0)
    assert label(good, bad).code == 0


def test_a_link_in_a_circle_is_a_row_that_says_missing(label, tmp_path):
    image(tmp_path / "in/good.png")
    (tmp_path / "in/loop.mp4").symlink_to("loop.mp4")
    ended = label(tmp_path / "in", "--json")
    assert (ended.code, ended.summary["clips"], ended.summary["errors"]) == (3, 1, {"missing": 1})


def test_a_run_says_what_it_is_doing_and_what_failed_and_the_end_of_it_how_to_find_all_that_did(label, tmp_path):
    good, bad, out = image(tmp_path / "good.png"), empty(tmp_path / "bad.png"), tmp_path / "it's"
    ended = label(good, bad, out=out, is_quiet=False)
    lines = ended.err.splitlines()
    assert lines[0] == "loading weights" and f"empty {bad}: is empty" in lines
    (query,) = re.findall(r"^all failures +(.+)$", ended.out, re.M)
    ((uri, code, error),) = duckdb.sql(query).fetchall()
    assert (uri, code) == (str(bad), "empty") and "is empty" in error


def test_who_labels_with_the_weights_of_the_synthetic_archive_is_warned_in_the_run_and_in_its_summary(label, tmp_path):
    ended = label(image(tmp_path / "good.png"), "--json", is_quiet=False)
    (warning,) = ended.summary["warnings"]
    assert "10 classes of a synthetic world only" in warning
    assert ended.err.count(warning) == 1
    (name,) = ended.summary["labels_by_class"]
    assert ended.summary["labels_by_class"] == {name: 1} and ended.summary["total_s"] >= ended.summary["wall_s"]


def tree(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_dry_run_says_what_was_labelled_before_and_touches_nothing(label, tmp_path):
    good, bad, new = image(tmp_path / "good.png"), empty(tmp_path / "bad.png"), image(tmp_path / "new.png")
    assert label(good, "--dry-run").code == 0
    assert not (tmp_path / "out").exists()
    label(good, bad)
    before = tree(tmp_path / "out")
    figures = label(good, bad, new, "--dry-run", "--json").summary
    assert [figures[name] for name in ("inputs", "done_before", "failed_before", "clips")] == [3, 2, 1, 1]
    shown = label(good, bad, new, "--dry-run").out
    assert "labelled    1 of them before\nfailed      1 of them before; --retry-failed" in shown
    assert label(good, bad, "--dry-run", "--retry-failed", "--json").summary["clips"] == 1
    assert label(good, bad, "--dry-run", "--no-resume", "--json").summary["clips"] == 2
    assert "nothing is left to label" in label(good, bad, "--dry-run").out
    assert tree(tmp_path / "out") == before


def test_a_dry_run_is_refused_where_the_run_would_be(label, tmp_path):
    good, other = image(tmp_path / "good.png"), ("--set", "focus.patch_px=48")
    label(good)
    foreseen, refused = label(good, *other, "--dry-run"), label(good, *other)
    assert foreseen.code == refused.code == 2
    assert foreseen.err == refused.err and "focus.patch_px 32 -> 48" in refused.err
    assert label(good, *other, "--dry-run", "--no-resume").code == 0


def test_a_dry_run_says_why_the_first_inputs_could_not_be_labelled(label, tmp_path):
    bad = empty(tmp_path / "bad.mp4")
    gone = tmp_path / "list.txt"
    gone.write_text("gone.mp4\n")
    ended = label(bad, gone, "--dry-run")
    assert "unknown: none of the first inputs could be labelled" in ended.out
    assert f"error       empty: {bad} " in ended.out and "error       missing: " in ended.out


def test_a_run_leaves_a_log(label, tmp_path):
    ended = label(image(tmp_path / "good.png"), empty(tmp_path / "bad.png"), "--json")
    (log,) = (tmp_path / "out/run").glob("log-*")
    begun, failed, last = map(json.loads, log.read_text().splitlines())
    assert log.name == f"log-{ended.summary['run_id']}.jsonl" and "10 classes" in begun["text"]
    assert (failed["event"], failed["uri"], failed["code"]) == ("failed", str(tmp_path / "bad.png"), "empty")
    assert last["event"] == "ended" and last.items() >= ended.summary.items()


def close_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Closes a folder as chmod 000 does for everybody but root."""
    scandir = os.scandir

    def closed(path: str) -> Any:
        if os.path.abspath(path) == str(folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)


def test_a_folder_that_cannot_be_listed_is_a_failure_wherever_it_is(label, tmp_path, monkeypatch):
    good, shut = image(tmp_path / "in/good.png"), tmp_path / "in/shut"
    image(shut / "x.png")
    close_folder(monkeypatch, shut)
    for arguments in ((tmp_path / "in",), (good, shut), (tmp_path / "in/*/*.png", good)):
        ended = label(*arguments, "--json")
        assert (ended.code, ended.summary["unreadable"]) == (3, [str(shut)])
        assert f"cannot be listed: {shut}" in ended.err
    written = json.loads((tmp_path / f"out/run/summary-{ended.summary['run_id']}.json").read_text())
    assert written["unreadable"] == [str(shut)]
    assert label(good, shut, "--allow-failures").code == 0
    assert label(shut).code == 4


def test_a_pattern_that_matches_nothing_is_a_failure_beside_other_inputs(label, tmp_path):
    good, pattern = image(tmp_path / "good.png"), str(tmp_path / "*.mp4")
    ended = label(good, pattern, "--json")
    assert (ended.code, ended.summary["empty_patterns"], ended.summary["clips"]) == (3, [pattern], 1)
    assert f"nothing matches {pattern}" in ended.err
    assert label(pattern).code == 4


def test_what_leads_to_no_input_leaves_no_folder_and_shows_no_table(label, tmp_path):
    (tmp_path / "in").mkdir()
    for arguments in ((tmp_path / "in",), (tmp_path / "*.mp4",), (image(tmp_path / "a.png"), "--limit", 0)):
        ended = label(*arguments)
        assert (ended.code, ended.out) == (4, "") and "no input found" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_mistyped_path_is_wrong_usage_and_nothing_is_begun(label, tmp_path):
    good = image(tmp_path / "good.png")
    for name in (tmp_path / "goood.png", "https://me:secret@host/x.mp4"):
        ended = label(good, name)
        assert ended.code == 2 and len(ended.err.splitlines()) == 1 and "secret" not in ended.err
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_wrong_usage(label, tmp_path):
    ended = label(image(tmp_path / "good.png"), out=tmp_path / "good.png")
    assert ended.code == 2 and "give another -o" in ended.err


def test_a_command_without_standard_input_labels_all_the_same(label, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert label(image(tmp_path / "good.png")).code == 0
    ended = label("-")
    assert (ended.code, ended.err) == (2, "error: -: there is no standard input to read a list from\n")


def with_nan(section: str, path: Path) -> Path:
    """The demo's checkpoint with a NaN in a bias of one of its parts."""
    good = checkpoints.load(load("demo").model.checkpoint)
    name = next(name for name in good.sections[section] if name.endswith("bias"))
    weights = {**good.sections[section], name: good.sections[section][name].clone().fill_(float("nan"))}
    checkpoints.save(path, replace(good, sections={**good.sections, section: weights}))
    return path


@pytest.mark.parametrize("section", ["glancer", "focuser", "classifier"])
def test_a_checkpoint_with_nan_labels_nothing_and_says_why(label, tmp_path, section):
    checkpoint = with_nan(section, tmp_path / "bad.safetensors")
    ended = label(image(tmp_path / "a.png"), "--json", "--checkpoint", checkpoint)
    assert "NaN" not in ended.out
    assert (ended.code, ended.summary["errors"]) == (3, {"not_finite": 1})
    (row,) = pq.read_table(tmp_path / "out" / "labels").to_pylist()
    assert (row["label"], row["label_id"], row["score"], row["topk"]) == (None, None, None, [])
    assert "not finite" in row["error"]


def test_a_gpu_that_is_not_there_is_a_line_and_exit_code_2(label, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ended = label(image(tmp_path / "a.png"), "--set", "compute.device=cuda")
    assert (ended.code, ended.err) == (2, "error: compute.device=cuda: torch sees no GPU here; take auto or cpu\n")
    assert not (tmp_path / "out" / "labels").exists()


def test_a_table_of_another_checkpoints_normalisation_is_refused(label, tmp_path):
    picture = image(tmp_path / "a.png")
    shipped = checkpoints.load(load("demo").model.checkpoint)
    form = replace(shipped.header.preprocessing, mean=(0.5, 0.5, 0.5))
    checkpoints.save(
        tmp_path / "other.safetensors", replace(shipped, header=replace(shipped.header, preprocessing=form))
    )
    assert label(picture).code == 0
    ended = label(picture, "--checkpoint", tmp_path / "other.safetensors")
    assert ended.code != 0 and ended.err.count("\n") == 1
    assert "checkpoint.mean [0.485, 0.456, 0.406] -> [0.5, 0.5, 0.5]" in ended.err and "--no-resume" in ended.err


def test_json_has_null_where_a_number_is_not_finite():
    values = {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (float("-inf"), 2, "NaN", None)}}
    assert json.loads(json_text(values)) == {"a": None, "b": [1.5, None], "c": {"d": [None, 2, "NaN", None]}}
