"""What a person sees: of a training, bars on a terminal and lines of JSON elsewhere; of any command, its table."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from pipeline import report
from pipeline.training.journal import Progress
from run_pipeline import main


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell(stream: io.StringIO, *, quiet: bool = False) -> str:
    with report.training(quiet=quiet, stream=stream) as news:
        news.decoded("train", 120, 2000)
        news.epoch(Progress(stage="1", done=2, total=5, values={"loss": 0.25, "val_accuracy": 81.0}))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())


def test_on_a_terminal_a_training_shows_a_bar_for_each_subset_and_stage() -> None:
    shown = tell(Terminal())
    assert re.search(r"train videos +\S+ 120/2000 decoded", shown)
    assert re.search(r"stage 1 +\S+ +2/5 epochs", shown)
    assert "{" not in shown


def test_elsewhere_every_epoch_is_a_line_of_json() -> None:
    lines = [json.loads(line) for line in tell(io.StringIO()).splitlines()]
    assert lines == [{"progress": {"stage": "1", "done": 2, "total": 5, "loss": 0.25, "val_accuracy": 81.0}}]


def test_a_quiet_training_says_nothing() -> None:
    assert tell(Terminal(), quiet=True) == ""


@pytest.mark.parametrize("path", ["run[v2]/labels", "[/x]/labels", "a/very/long/path/" + 20 * "of/folders/" + "labels"])
def test_a_table_shows_every_path_as_it_is(path: str) -> None:
    shown = io.StringIO()
    report.print_rows([("clips", "3"), ("accuracy", "81 %"), ("labels", path)], stream=shown)
    assert shown.getvalue() == f"clips     3\naccuracy  81 %\nlabels    {path}\n"


def test_names_that_a_terminal_cannot_show_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("run_pipeline.cli.main", lambda *_, **__: report.print_rows([("left out", "1 .\udcff\u00fc")]))
    with pytest.raises(SystemExit) as ended:
        main([])
    sys.stdout.flush()
    assert (ended.value.code, written.getvalue()) == (0, b"left out  1 .\\udcff\\xfc\n")
