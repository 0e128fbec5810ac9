"""Processes of a pool end with the one that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.support.processes import ROOT, wait_for


def test_processes_that_read_training_videos_end_with_a_parent_that_is_killed():
    # What they read here is a program that prints its process id and then takes its time.
    program = (
        "from pipeline.training.read_clips import ReadInProcesses\n"
        "source = 'import os, time; print(os.getpid(), flush=True); time.sleep(1000)'\n"
        "list(ReadInProcesses(2, timeout_s=1000.0)(exec, [source] * 2))\n"
    )
    pids = []
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        try:
            pids = [int(parent.stdout.readline()) for _ in range(2)]
            parent.kill()
            assert wait_for(lambda: not any(is_alive(pid) for pid in pids), within_s=10)
        finally:
            parent.kill()
            for pid in filter(is_alive, pids):
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
