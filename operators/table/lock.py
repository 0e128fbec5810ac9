"""One writer at a time for an output folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable
from pathlib import Path

from operators.errors import SinkError


def take_lock(
    path: Path,
    *,
    holder: str,
    timeout_s: float | None,
    on_wait: Callable[[str], None] | None,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> int:
    """Waits until nobody else holds the lock file and returns its descriptor; closing that, or dying, gives it back.

    `on_wait` is told once who holds it. The file itself stays for ever: who unlinks a lock file lets two others lock
    two different ones. A try every 0.2 s, and not one call that waits: it can be given up, and interrupted.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        started_s, is_told = clock(), False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                other = os.pread(descriptor, 1000, 0).decode("utf-8", "replace") or "another run"
            if on_wait is not None and not is_told:
                on_wait(f"waiting for the lock: {other} writes to {path.parent.parent}")
            is_told = True
            if timeout_s is not None and clock() - started_s >= timeout_s:
                raise SinkError(
                    f"{path.parent.parent}: {other} writes there and did not end within {timeout_s:g} s; wait for it,"
                    " or write to another folder with -o"
                )
            sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder}, process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
