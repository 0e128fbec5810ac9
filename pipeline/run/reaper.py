"""The reaper: a process that outlives the driver and ends what a run started, once the run is over, however it ended.

Ray's own clean-up needs the driver or its raylet to be alive to do it; killed in the wrong moment they leave agents
behind. Every process of a run carries a mark in its environment, or has a file open in the run's own folder: one that
gives itself a title may overwrite its environment, but Ray's write their logs there. The reaper reads from a pipe that
nobody writes to: when it closes, the driver is done or dead, and the rest of the run is ended. It imports nothing of
ours, so that it is there at once and costs nothing.
"""

import os
import shutil
import signal
import sys
import time

MARK = "SACCADE_RUN"


def marked(mark: str, folder: str, driver: int) -> list[int]:
    """The processes of the run, except for this one and the driver."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in (os.getpid(), driver):
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environ:
                is_marked = wanted in environ.read().split(b"\0")
            if is_marked or _has_open(name, folder):
                found.append(int(name))
        except OSError:
            continue
    return found


def _has_open(name: str, folder: str) -> bool:
    for descriptor in os.listdir(f"/proc/{name}/fd"):
        try:
            if os.readlink(f"/proc/{name}/fd/{descriptor}").startswith(f"{folder}/"):
                return True
        except OSError:
            continue
    return False


def end_all(mark: str, folder: str, driver: int, *, within_s: float = 20.0) -> None:
    """Kills the run's processes until a second look finds none: one of them may be starting another meanwhile."""
    until = time.monotonic() + within_s
    quiet = 0
    while quiet < 2 and time.monotonic() < until:
        found = marked(mark, folder, driver)
        quiet = 0 if found else quiet + 1
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        time.sleep(0.1)


def main() -> None:
    mark, folder, driver = sys.argv[1], sys.argv[2], int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.read(0, 1)
    end_all(mark, folder, driver)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
