"""The commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import run_pipeline
from operators.errors import ConfigError
from pipeline.bench.commands import measure_and_keep
from pipeline.bench.figures import measured
from pipeline.bench.record import read
from pipeline.bench.rivals import Files
from tests.bench.samples import report


def test_a_report_says_how_long_it_all_took(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    measure_and_keep(lambda **options: report(measured("a", [1.0], unit="s")), path, None, True)
    assert read(path).settings["lasted_s"] >= 0


def kept(tmp_path: Path, measure: Any, **options: Any) -> int:
    return measure_and_keep(measure, tmp_path / "a.json", options.pop("plot_file", None), True, **options)


def test_the_table_is_printed_where_there_is_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = report(measured("a", [1.0], unit="s"), what="archive")
    assert kept(tmp_path, lambda **options: found, plot_file=tmp_path / "a.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fast enough" and lines[-1].startswith("nothing to draw")
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("plot_file", ["a.doc", "", "a.json/a.png"])
def test_files_that_cannot_be_written_are_refused_before_anything_is_measured(tmp_path: Path, plot_file: str) -> None:
    (tmp_path / "a.json").touch()
    with pytest.raises(ConfigError):
        kept(tmp_path, lambda **options: pytest.fail("measured"), plot_file=tmp_path / plot_file)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def code_of(*arguments: object) -> int:
    """The exit code of `saccade bench`."""
    with pytest.raises(SystemExit) as end:
        run_pipeline.main(["bench", *map(str, arguments)])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_bench_decode_and_compare_as_commands(files: Files, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, cache = tmp_path / "decode.json", files.short[0].parent.parent
    assert code_of("decode", "--quick", "-q", "--json", path, "--plot", tmp_path / "a.png", "--cache", cache) == 0
    found = read(path)
    names = {figure.name for figure in found.figures}
    assert {"decode.exact_vs_sequential", "decode.keyframe_vs_sequential", "decode.short_vs_best"} <= names
    assert "decode.exact_vs_torchcodec" in names or any(note.startswith("torchcodec") for note in found.notes)
    goals = {figure.name: figure.goal for figure in found.figures if figure.goal is not None}
    assert goals["decode.exact_vs_sequential"] == 4.0 and goals["decode.keyframe_vs_sequential"] == 60.0
    assert found.figure("decode.frames_equal").value == 1.0  # type: ignore[union-attr]
    assert found.settings["lasted_s"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith(found.headline) and found.headline.startswith("QUICK")
    assert "goal" not in printed and "≥" not in printed
    assert (tmp_path / "a.png").exists()

    assert code_of("compare", path, path) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == f"A is {path}, B is {path}"
    assert len(rows) == 2 + len(found.figures) and "cannot say: A has 1 of the 6 samples that it takes" in rows[2]
    assert code_of("compare", path, tmp_path / "nothing.json") == 2
    assert "nothing.json is no JSON file of `bench`" in capsys.readouterr().err
    assert code_of("decode", "--quick", "--json", tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_no_time_at_all_is_a_wrong_option(capsys: pytest.CaptureFixture) -> None:
    for arguments in (["live", "--seconds", "0"], ["decode", "--minutes", "-1"]):
        assert code_of(*arguments, "--json", "a.json") == 2
        assert "is not in the range x>0" in capsys.readouterr().err
