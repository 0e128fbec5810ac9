"""`label` and `live` as processes, in one process each: signals, a closed pipe, cameras that never live, probes."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from pipeline.commands.options import StoppedAtOnce, stop_on_signals
from tests.support.numbered_h264 import write_numbered
from tests.support.processes import ROOT, Command

QUICK = ("--executor", "inline", "--set", "live.window_s=1", "--set", "live.stride_s=0.5", "--set", "run.threads=1")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numbered(tmp_path_factory.mktemp("video") / "a.mp4", num_frames=15 * 60, fps=15, gop=15)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Another run seems to write to this folder."""
    (out / "run").mkdir(parents=True)
    with (out / "run" / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lines_until(stream: IO[bytes] | None, is_it: Callable[[str], bool]) -> list[str]:
    """The lines of a stream up to the one that was waited for."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line.decode())
        if is_it(lines[-1]):
            return lines
    pytest.fail(f"the command ended with {lines}")


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


def status(port: str, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def test_the_commands_are_known_before_anything_heavy_is_imported():
    heavy = {"cv2", "numpy", "pyarrow", "pydantic", "ray", "rich", "torch"}
    query = f"import sys, run_pipeline; print(*{heavy} & sys.modules.keys())"
    shown = subprocess.run([sys.executable, "-c", query], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert shown.split() == []


@pytest.mark.parametrize("command", ["label", "live"])
def test_a_second_signal_stops_at_once_with_its_own_code(command, video, tmp_path):
    preset = ("--config", "demo") if command == "label" else ()
    with locked(tmp_path / "out"):
        run = Command(command, video, "-o", tmp_path / "out", *preset, *QUICK)
        lines_until(run.process.stderr, lambda line: line.startswith("waiting for the lock"))
        # Both come while it sleeps, so that it cannot end by the first one alone however busy the machine is. Python
        # handles them in the order of their numbers.
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            run.process.send_signal(number)
        ended, _, err = run.wait(60)
    assert ended == 143
    assert err.split("\n") == [
        "stopping: committing what is done; once more to stop at once", "", "stopped at once", ""
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_is_raised_with_its_number(number):
    stop = stop_on_signals()
    signal.raise_signal(number)
    assert stop.is_set and stop.signal_number == number
    with pytest.raises(StoppedAtOnce) as stopped:
        signal.raise_signal(number)
    assert stopped.value.signal_number == number


def test_a_run_that_waits_for_the_lock_is_alive_and_not_ready_until_a_camera_is_live(video, tmp_path):
    with locked(tmp_path / "out"):
        run = Command("live", video, "-o", tmp_path / "out", "--metrics-port", 0, "--json", *QUICK)
        said = lines_until(run.process.stderr, lambda line: line.startswith("waiting for the lock"))
        (port,) = re.findall(r"metrics on port (\d+)", "".join(said))
        assert (status(port, "healthz"), status(port, "readyz"), status(port, "metrics")) == (200, 503, 200)
    lines_until(run.process.stdout, lambda line: line.startswith("{"))
    assert (status(port, "healthz"), status(port, "readyz")) == (200, 200)
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30)[0] == 143


def test_cameras_that_never_lived_are_named_and_end_a_watch_with_3(tmp_path):
    address = f"rtsp://eve:s3cret@127.0.0.1:{unused_port()}/"
    ended, _, err = Command("live", address, "-o", tmp_path, "--for", 2, *QUICK).wait(60)
    assert ended == 3 and "s3cret" not in err
    assert re.search(r"^camera_1 has never been live: rtsp://eve:\*\*\*@127\.0\.0\.1:\d+/: .*refused$", err, re.M)


def test_who_closes_the_pipe_of_the_labels_ends_the_run_quietly_and_what_was_labelled_is_there(video, tmp_path):
    run = Command("live", video, "-o", tmp_path, "--json", "-q", *QUICK)
    assert run.process.stdout is not None and run.process.stderr is not None
    label = json.loads(run.process.stdout.readline())
    run.process.stdout.close()
    err = run.process.stderr.read().decode()
    assert run.process.wait(30) == 128 + signal.SIGPIPE
    assert err.splitlines() == [
        "stopping: whoever read the labels from standard output has closed it; committing what is done"
    ]
    query = f"import pyarrow.dataset as ds; print(ds.dataset({str(tmp_path / 'labels')!r}).to_table()['clip_id'])"
    ids = subprocess.run([run.process.args[0], "-c", query], capture_output=True, text=True, check=True).stdout
    assert label["clip_id"] in ids
