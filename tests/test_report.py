"""What a person sees of a training: bars on a terminal, lines of JSON elsewhere."""

from __future__ import annotations

import io
import json
import re

from pipeline import report
from pipeline.training.journal import Progress


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
