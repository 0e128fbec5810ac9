"""A lock file by which one process at a time writes to a folder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from operators.errors import SinkError


def take_lock(
    path: Path,
    *,
    folder: Path,
    holder: str = "",
    timeout_s: float | None = None,
    on_wait: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Waits until nobody else holds the lock file and returns its descriptor; closing that, or dying, gives it back.

    `folder` is what the lock is for, and `holder` who takes it: messages name both. `on_wait` is called once, with a
    message that names its holder; a `timeout_s` of None waits for ever. The file itself stays for ever: a
    process that unlinked a lock file would let two others lock two different ones. The lock is tried every 0.2 s
    instead of with one call that waits, so that the wait can be given up and interrupted.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        started_s, is_announced = clock(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                other = os.pread(descriptor, 1000, 0).decode("utf-8", "replace") or "another run"
            if on_wait is not None and not is_announced:
                on_wait(f"waiting for the lock: {other} writes to {folder}")
            is_announced = True
            if timeout_s is not None and clock() - started_s >= timeout_s:
                raise SinkError(
                    f"{folder}: {other} writes there and did not end within {timeout_s:g} s; wait for it,"
                    " or write to another folder with -o"
                )
            sleep(0.2)
        who = f"{holder}, process {os.getpid()}" if holder else f"process {os.getpid()}"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{who} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
