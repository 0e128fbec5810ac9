"""What /proc says of the machine while something is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench import machine_use
from pipeline.bench.machine_use import core_busy_s, machine_seconds, marked_pids, memory_bytes, tree_pids


def test_a_core_is_busy_whenever_it_is_not_idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # user, nice, system, idle, iowait, irq, softirq, steal: 400 ticks of two cores are idle or wait for a disk.
    core = "100 0 50 150 50 10 20 20 0 0"
    (tmp_path / "stat").write_text(f"cpu 200 0 100 300 100 20 40 40 0 0\ncpu0 {core}\ncpu1 {core}\nintr 7\n")
    monkeypatch.setattr(machine_use, "PROC", tmp_path)
    ticks = os.sysconf("SC_CLK_TCK")
    assert machine_seconds() == (400 / ticks, 800 / ticks)
    assert core_busy_s() == 200 / ticks
    (tmp_path / "stat").unlink()
    assert core_busy_s() == 0.0


def test_memory_is_that_of_the_process_and_its_children_without_the_one_that_does_not_count() -> None:
    hold = "x = bytearray(64 << 20); print('ready', flush=True); input()"
    alone = memory_bytes(tree_pids(os.getpid()))
    mark = {"SACCADE_TEST_MARK": "held"}
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **mark}
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        both, besides = (memory_bytes(tree_pids(os.getpid(), besides=pid)) for pid in (0, child.pid))
        marked = marked_pids("SACCADE_TEST_MARK=held")
        child.kill()
    assert marked == [child.pid]
    assert both - besides > 64 << 20
    assert abs(besides - alone) < 16 << 20
