"""Starts Saccade's command as a process of its own, and finds whatever it leaves running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = "SACCADE_TEST_RUN"


class Command:
    """A started command. Every process that comes of it carries a mark in its environment."""

    def __init__(self, *arguments: object, stdin: bytes | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_pipeline.py"), *map(str, arguments)],
            env={**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=False,
            cwd="/",
        )
        self._stdin = stdin

    def wait(self, timeout_s: float = 120) -> tuple[int, str, str]:
        out, err = self.process.communicate(self._stdin, timeout=timeout_s)
        return self.process.returncode, out.decode(), err.decode()

    def family(self) -> dict[int, str]:
        """The command lines of the processes with this command's mark, by their id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                    if state != "Z":
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, IndexError):
                continue
        return found

    def is_gone(self, within_s: float = 20) -> bool:
        """Whether nothing of it runs any more, now or soon."""
        return wait_for(lambda: not self.family(), within_s)


def saccade(*arguments: object, stdin: bytes | None = None, timeout_s: float = 120) -> tuple[int, str, str]:
    """Runs a command to its end and gives its exit code, stdout and stderr."""
    return Command(*arguments, stdin=stdin).wait(timeout_s)


def wait_for(condition: Callable[[], bool], within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
