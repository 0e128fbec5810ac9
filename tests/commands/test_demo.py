"""The demo, stopped: it ends with the signal's code, whatever it was at."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from operators.errors import StageError
from pipeline.commands import demo
from run_pipeline import main


def run(folder: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "-o", str(folder), "-q"])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("dies", [False, True])
def test_stopped_while_the_archive_is_made_it_labels_nothing(number, code, dies, tmp_path, monkeypatch):
    videos: list[int] = []

    def generate(folder: Path, settings: Any, *, progress: Callable[[int, int], None], workers: int) -> None:
        for done in range(1, settings.videos + 1):
            videos.append(done)
            if done == 3:
                os.kill(os.getpid(), number)
                if dies:
                    raise StageError("a process that made videos died")
            progress(done, settings.videos)

    monkeypatch.setattr(demo, "generate", generate)
    monkeypatch.setattr(demo, "label_archive", lambda *_, **__: pytest.fail("it labels"))
    assert (run(tmp_path), len(videos)) == (code, 3)


def test_stopped_before_a_label_was_made_it_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def label_archive(*_: object, **__: object) -> SimpleNamespace:
        os.kill(os.getpid(), signal.SIGTERM)
        return SimpleNamespace(interrupted=True)

    monkeypatch.setattr(demo, "generate", lambda *_, **__: None)
    monkeypatch.setattr(demo, "label_archive", label_archive)
    assert run(tmp_path) == 143
    assert "run the same command again" in capsys.readouterr().err
