"""What a person sees: of a training, bars on a terminal and lines of JSON elsewhere; of any command, its table."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from pipeline.commands.live_display import live_progress
from pipeline.commands.terminal import print_rows
from pipeline.commands.training_display import training
from pipeline.live.camera_state import CameraState
from pipeline.live.worker import CameraNews
from pipeline.training.journal import StageProgress
from run_pipeline import main
from tests.support.terminals import Terminal, plain


def shown_training(stream: io.StringIO, *, quiet: bool = False) -> str:
    with training(quiet=quiet, stream=stream) as display:
        display.decoded("train", 120, 2000)
        display.epoch(StageProgress(stage="1", done=2, total=5, values={"loss": 0.25, "val_accuracy": 81.0}))
    return plain(stream.getvalue())


def test_on_a_terminal_a_training_shows_a_bar_for_each_subset_and_stage() -> None:
    shown = shown_training(Terminal())
    assert re.search(r"train videos +\S+ 120/2000 decoded", shown)
    assert re.search(r"stage 1 +\S+ +2/5 epochs", shown)
    assert "{" not in shown


def test_elsewhere_every_epoch_is_a_line_of_json() -> None:
    lines = [json.loads(line) for line in shown_training(io.StringIO()).splitlines()]
    assert lines == [{"progress": {"stage": "1", "done": 2, "total": 5, "loss": 0.25, "val_accuracy": 81.0}}]


def test_a_quiet_training_says_nothing() -> None:
    assert shown_training(Terminal(), quiet=True) == ""


def watched(stream: io.StringIO, **options: bool) -> str:
    with live_progress(stream=stream, every_s=0.0, **options) as show:
        yard = CameraNews(state=CameraState.LIVE, num_looked=30, dropped=2)
        for state in (CameraState.CONNECTING, CameraState.LIVE, CameraState.LOST):
            error = "[no frame]" if state is CameraState.LOST else None
            show({"door": CameraNews(state=state, last_error=error, num_looked=10, waiting=1), "yard": yard})
    return plain(stream.getvalue())


CHANGES = ["door is connecting", "yard is live", "door is live", "door is lost: [no frame]"]


def test_on_a_terminal_cameras_are_a_line_that_changes_and_every_change_of_state_a_line() -> None:
    lines = [line.strip() for line in watched(Terminal(), quiet=False).replace("\r", "\n").splitlines()]
    assert [line for line in lines if " is " in line] == CHANGES
    assert any("1 of 2 camera(s) live, 40 frames analysed, 2 dropped, 1 waiting" in line for line in lines)
    assert not any("{" in line for line in lines)


@pytest.mark.parametrize(("stream", "as_json"), [(io.StringIO(), False), (Terminal(), True)])
def test_elsewhere_and_beside_json_how_cameras_are_is_a_line_of_json(stream: io.StringIO, as_json: bool) -> None:
    lines = watched(stream, quiet=False, as_json=as_json).splitlines()
    assert [line for line in lines if " is " in line] == CHANGES
    shown = json.loads(lines[-1])["progress"]
    assert shown["door"] == {"state": "lost", "analysed": 10, "dropped": 0, "waiting": 1}


def test_quiet_cameras_say_nothing() -> None:
    assert watched(Terminal(), quiet=True) == ""


@pytest.mark.parametrize("path", ["run[v2]/labels", "[/x]/labels", "a/very/long/path/" + 20 * "of/folders/" + "labels"])
def test_a_table_shows_every_path_as_it_is(path: str) -> None:
    shown = io.StringIO()
    print_rows([("clips", "3"), ("accuracy", "81 %"), ("labels", path)], stream=shown)
    assert shown.getvalue() == f"clips     3\naccuracy  81 %\nlabels    {path}\n"


def test_names_that_a_terminal_cannot_show_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("run_pipeline.cli.main", lambda *_, **__: print_rows([("left out", "1 .\udcff\u00fc")]))
    with pytest.raises(SystemExit) as ended:
        main([])
    sys.stdout.flush()
    assert (ended.value.code, written.getvalue()) == (0, b"left out  1 .\\udcff\\xfc\n")
