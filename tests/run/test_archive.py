"""A run over an archive before its first clip: the plan, and the table that it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from operators.errors import RefusedError
from operators.records import Media, Source, source_id
from operators.table.schema import summarize
from pipeline import config as configuration
from pipeline.plan.network_choice import Choice
from pipeline.plan.run_plan import RunPlan
from pipeline.run import archive
from pipeline.run.archive import RunReports, label_archive
from pipeline.run.sink_worker import SinkOpened


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[Mapping[str, Any] | None]:
    """The settings of an earlier run that each resolving of a plan was given. No measurement is made."""
    given: list[Mapping[str, Any] | None] = []
    resolve = archive.resolve

    def watched(*arguments: Any, remembered: Mapping[str, Any] | None, **options: Any) -> RunPlan:
        given.append(remembered)
        return resolve(*arguments, remembered=remembered, **options)

    def measured(*arguments: Any, precision: str, **options: Any) -> Choice:
        precision = "fp32" if precision == "auto" else precision
        form = {"precision": precision, "compile": "off", "glance_batch": 8, "focus_batch": 16}
        return Choice(**form, how="cut short", seconds={})

    monkeypatch.setattr(archive, "resolve", watched)
    monkeypatch.setattr("pipeline.plan.resolve.choose", measured)
    return given


def label(out: Path, *settings: str, missing: int = 1, **options: Any) -> str:
    """Labels so many files that are not there, which costs nothing, and gives what the run says of itself."""
    lines: list[str] = []
    reports = RunReports(started=lambda plan: lines.append(plan.opening_line()))
    config = configuration.load("demo", settings=("run.executor=inline", *settings))
    paths = [f"/nowhere/{number}.mp4" for number in range(missing)]
    sources = [
        Source(source_id=source_id(path), uri=path, video_id=path, media=Media.VIDEO, truth=None) for path in paths
    ]
    label_archive(config, lambda names: iter(sources), out=out, reports=reports, **options)
    return "".join(lines)


@pytest.mark.parametrize("earlier", [None, "bf16"])
def test_a_run_resolves_and_measures_once_and_says_that_it_did(asked, tmp_path, earlier):
    if earlier:
        label(tmp_path, f"compute.precision={earlier}")
        asked.clear()
    line = label(tmp_path, missing=2)
    assert len(asked) == 1 and "cut short" in line and f"networks in {earlier or 'fp32'}" in line


def test_what_another_run_left_while_this_one_waited_for_the_table_counts(asked, tmp_path, monkeypatch):
    let_another_run_go_first(monkeypatch, tmp_path, "compute.precision=bf16")
    assert "networks in bf16" in label(tmp_path, missing=2)
    own, others, again = asked
    assert own is others is None and again["compute.precision"] == "bf16"


def test_a_table_that_another_run_began_with_other_settings_meanwhile_is_refused(asked, tmp_path, monkeypatch):
    let_another_run_go_first(monkeypatch, tmp_path, "focus.patch_px=48")
    with pytest.raises(RefusedError, match=r"focus\.patch_px 48 -> 32"):
        label(tmp_path, missing=2)
    assert summarize(tmp_path / "labels").num_clips == 1, "nothing of this run is in the table"


def let_another_run_go_first(monkeypatch: pytest.MonkeyPatch, out: Path, *settings: str) -> None:
    """Another run has the table when the next one asks for its lock, and ends before that one gets it."""
    open_sink = archive.open_sink

    def opened(*arguments: Any) -> SinkOpened | None:
        monkeypatch.setattr(archive, "open_sink", open_sink)
        label(out, *settings)
        return open_sink(*arguments)

    monkeypatch.setattr(archive, "open_sink", opened)


@pytest.fixture
def no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "make_executor", lambda *_: pytest.fail("an executor is made"))


def test_settings_other_than_the_tables_are_refused_before_any_worker_is_made(asked, tmp_path, request):
    label(tmp_path)
    request.getfixturevalue("no_worker")
    with pytest.raises(RefusedError, match=r"made with other settings: focus\.patch_px 32 -> 48"):
        label(tmp_path, "focus.patch_px=48")


@pytest.mark.parametrize("name", ["file", "file/below/it"])
def test_an_output_that_is_no_folder_is_refused_before_anything_is_resolved(asked, no_worker, tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match=r"cannot be opened: Not a directory .*; give another -o"):
        label(tmp_path / name)
    assert not asked


def test_a_run_without_inputs_leaves_no_folder(asked, no_worker, tmp_path):
    label(tmp_path / "out", missing=0)
    assert not (tmp_path / "out").exists()


def test_where_every_input_has_its_row_no_worker_is_made(asked, tmp_path, request):
    label(tmp_path, missing=3)
    request.getfixturevalue("no_worker")
    label(tmp_path, missing=2)
    newest = max((tmp_path / "run").glob("summary-*.json"), key=lambda path: path.stat().st_mtime_ns)
    summary = json.loads(newest.read_text())
    assert (summary["clips"], summary["done_before"], summary["failed_before"]) == (0, 2, 2)


@pytest.mark.parametrize(
    ("settings", "options"),
    [((), {"missing": 4}), ((), {"retry_failed": True}), ((), {"resume": False}), (("sampling.kind=window",), {})],
)
def test_where_anything_may_be_left_to_do_workers_are_made(asked, tmp_path, settings, options):
    label(tmp_path, *settings, missing=3)
    assert label(tmp_path, *settings, **{"missing": 3, **options})


def test_rows_that_a_killed_retry_put_aside_are_brought_back_although_every_input_has_its_row(asked, tmp_path):
    label(tmp_path)
    (failed,) = (tmp_path / "labels").glob("failed-*.parquet")
    failed.rename(failed.with_name(f"_retry-{failed.stem}"))
    assert label(tmp_path)
    assert summarize(tmp_path / "labels").num_clips == 1 and not list((tmp_path / "labels").glob("_retry-*"))
