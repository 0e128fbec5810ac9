"""`eval` and `calibrate` as a user runs them: what went wrong with the labelling is printed and is an exit code."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from operators.errors import ConfigError
from operators.media.encode import write_video
from run_pipeline import cli
from tests.support.processes import saccade

FAST = ("--config", "demo", "--executor", "inline", "-q")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two that can be read and one that cannot, with a list of their labels."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        write_video(folder / f"{number}.mp4", (np.roll(noise, t, 1) for t in range(12)), fps=12)
    (folder / "broken.mp4").write_text("no video")
    (folder / "all.txt").write_text("0.mp4 red-000\n1.mp4 no-such-class\nbroken.mp4 red-000\n")
    (folder / "broken.txt").write_text("broken.mp4 red-000\n")
    return folder


def run(*words: object) -> int:
    return cli.main([str(word) for word in words], standalone_mode=False)


def test_eval_says_what_is_in_no_figure_and_exits_with_3(videos, tmp_path, capsys):
    assert run("eval", videos / "all.txt", "-o", tmp_path, *FAST) == 3
    printed = capsys.readouterr()
    assert "1 clips failed and are in no figure" in printed.out
    assert "no class, which count as wrong: no-such-class" in printed.out
    assert "1 items failed (1 not_media)" in printed.err
    again = ("eval", videos / "all.txt", "-o", tmp_path / "again", *FAST, "--json", "--allow-failures")
    assert run(*again) == 0
    found = json.loads(capsys.readouterr().out)["learned"]
    assert (found["scores"]["num_clips"], found["num_failed"]) == (2, 1)
    assert run("eval", videos / "all.txt", "-o", tmp_path, *FAST) == 3, "the second time as the first"
    assert "1 items failed (1 in an earlier run)" in capsys.readouterr().err


def give_standard_input(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"{videos}/{number}.mp4 red-000\n" for number in range(2))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))


@pytest.mark.parametrize("policies", [["learned"], ["center", "random"]])
def test_eval_reads_inputs_from_standard_input_for_every_policy(policies, videos, tmp_path, monkeypatch, capsys):
    give_standard_input(videos, monkeypatch)
    assert run("eval", "-", "-o", tmp_path, *FAST, "--compare", ",".join(policies), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: e["scores"]["num_clips"] for name, e in found.items()} == dict.fromkeys(policies, 2)


def test_calibrate_reads_inputs_from_standard_input(videos, tmp_path, monkeypatch):
    give_standard_input(videos, monkeypatch)
    with pytest.raises(ConfigError, match="2 clips are too few to calibrate on"):
        run("calibrate", "-", "-o", tmp_path, *FAST)


def test_eval_and_calibrate_say_that_standard_input_is_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    for command in ("eval", "calibrate"):
        with pytest.raises(ConfigError, match="-: there is no standard input to read a list from"):
            run(command, "-", "-o", tmp_path, *FAST)


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_where_every_input_fails_there_are_no_figures_and_it_exits_with_3(command, videos, tmp_path, capsys):
    assert run(command, videos / "broken.txt", "-o", tmp_path, *FAST) == 3
    printed = capsys.readouterr()
    assert "1 items failed (1 not_media)" in printed.err and not printed.out


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_where_there_is_no_input_it_exits_with_4(command, tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    assert run(command, tmp_path / "nothing", "-o", tmp_path / "out", *FAST) == 4
    assert f"no input found: {tmp_path / 'nothing'}" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_wrong_usage(tmp_path):
    code, _, err = saccade("eval", tmp_path, "-o", tmp_path / "out", "--checkpoint", tmp_path / "mistyped.pth")
    assert code == 2
    assert "mistyped.pth cannot be read" in err
