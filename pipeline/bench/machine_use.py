"""What Linux's /proc says of the machine while something is measured: how busy its cores are, and what memory processes
hold."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")


def machine_seconds() -> tuple[float, float]:
    """(busy, there): seconds of all cores together since the machine was started."""
    values = [int(value) for value in _cpu_lines()[0].split()[1:9]]
    idle, total = values[3] + values[4], sum(values)
    ticks = os.sysconf("SC_CLK_TCK")
    return (total - idle) / ticks, total / ticks


def core_busy_s() -> float:
    """Seconds that an average core has been busy since the machine was started; 0 where that cannot be read."""
    try:
        return machine_seconds()[0] / max(1, len(_cpu_lines()) - 1)
    except OSError:
        return 0.0


def _cpu_lines() -> list[str]:
    """The line of all cores together, and one of each core."""
    return [line for line in (PROC / "stat").read_text().splitlines() if line.startswith("cpu")]


def memory_bytes(pids: Iterable[int]) -> int:
    """The memory of these processes, to which a page that several of them share counts in parts (PSS)."""
    total = 0
    for pid in pids:
        # A process may end meanwhile.
        with contextlib.suppress(OSError):
            for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def tree_pids(root: int, *, besides: int = 0) -> list[int]:
    """A process and all that it started, directly or not, without those below the child `besides`."""
    children: dict[int, list[int]] = {}
    for pid in _all_pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += [child for child in children.get(found[-1], []) if child != besides]
    return found


def marked_pids(variable: str) -> list[int]:
    """The processes with this NAME=VALUE in their environment, also those whose parent has ended."""
    found = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            if variable.encode() in (PROC / str(pid) / "environ").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir(PROC) if name.isdigit())
