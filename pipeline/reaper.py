"""Ends what a run started once the run is over, however it ended: a process of its own that outlives the driver.

Ray's own clean-up needs the driver or its raylet to be alive to do it; killed in the wrong moment they leave agents
behind. Every process of a run carries a mark in its environment. This one reads from a pipe that nobody writes to: when
it closes, the driver is done or dead, and whatever carries the mark is ended. It imports nothing, so that it is there
at once and costs nothing.
"""

import os
import shutil
import signal
import sys
import time

MARK = "SACCADE_RUN"


def marked(mark: str) -> list[int]:
    """Processes that carry the mark, this one left out."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environ:
                if wanted in environ.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            continue
    return found


def end_all(mark: str, *, within_s: float = 20.0) -> None:
    """SIGKILL until a second look finds nobody: a process may be starting another one meanwhile."""
    until = time.monotonic() + within_s
    quiet = 0
    while quiet < 2 and time.monotonic() < until:
        found = marked(mark)
        quiet = 0 if found else quiet + 1
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.1)


def main() -> None:
    mark, folder = sys.argv[1], sys.argv[2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.read(0, 1)
    end_all(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
