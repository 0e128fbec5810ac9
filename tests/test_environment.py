"""What a process sets in its environment before libraries are loaded: how torch's threads wait is for cameras only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WATCHED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("policy", os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
"""


def first_line(code: str, *arguments: object, **environment: str) -> str:
    """The first line that a program prints; it says how threads are to wait when torch begins to be loaded."""
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED + code, *map(str, arguments)],
        env={**inherited, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = ended.stdout.splitlines()
    assert lines, ended.stderr
    return lines[0]


MAIN = "from run_pipeline import main; main(sys.argv[1:])"


def test_torchs_threads_sleep_while_they_wait_for_each_other_where_cameras_are_watched(tmp_path: Path) -> None:
    assert first_line(MAIN, "live", "nowhere.mp4", "-o", tmp_path) == "policy passive"


def test_a_policy_that_the_user_has_set_is_kept(tmp_path: Path) -> None:
    assert first_line(MAIN, "live", "nowhere.mp4", "-o", tmp_path, OMP_WAIT_POLICY="active") == "policy active"


def test_torchs_threads_wait_in_torchs_own_way_in_a_run_over_an_archive(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    command = ("label", tmp_path / "empty.mp4", "-o", tmp_path / "out", "--config", "demo", "--executor", "inline")
    assert first_line(MAIN, *command) == "policy None"


@pytest.mark.parametrize("module", ["pipeline.live.watch", "pipeline.live.factories", "pipeline.run.archive"])
def test_importing_a_module_does_not_change_how_threads_wait(module: str) -> None:
    assert first_line(f"import {module}, torch") == "policy None"
