"""A real Ray cluster of three machines, as network namespaces on this one; its machines are cut off and killed.

    python tests/ways/netns_cluster.py [disks] [killed] [cut] [uneven] [head]

Needs root and `ip`. Nothing outside the namespaces is touched, and only processes inside them are ended. Every case
prints what it found and how long it took; the exit code is 1 where one did not hold. Without names all are run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import pyarrow.dataset as ds  # noqa: E402

from operators.media.encode import write_video  # noqa: E402

PORT = 6379


def why_not() -> str | None:
    """The reason why such a cluster cannot be made here; None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "`ip` is missing (iproute2)"
    name = f"sc{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


def messages(err: str) -> list[str]:
    """The lines of a command's stderr that are not progress."""
    return [line for line in err.splitlines() if line.strip() and not line.startswith('{"progress"')]


def wait_until(condition: Callable[[], bool], within_s: float, what: str) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, f"not within {within_s:g} s: {what}"
        time.sleep(0.1)


@dataclass
class Outcome:
    """The end of a command: its exit code, its messages, its time and the rows of its table."""

    code: int
    err: str
    seconds: float
    rows: list[dict] = field(default_factory=list)

    @property
    def codes(self) -> Counter:
        return Counter(row["error_code"] for row in self.rows)

    @property
    def messages(self) -> list[str]:
        return messages(self.err)

    def check_rows(self, number: int) -> None:
        assert len({row["clip_id"] for row in self.rows}) == len(self.rows), "a clip has two rows"
        assert len(self.rows) == number, f"{len(self.rows)} rows of {number}: {self.messages}"
        assert self.codes == {None: number}, f"failed rows: {self.codes}"


class Cluster:
    """Three machines on a bridge, the first one with Ray's head. A context manager."""

    def __init__(self, *, cpus: Sequence[int] = (2, 2, 2), own_disks: bool = False) -> None:
        self._cpus = cpus
        self._own_disks = own_disks
        self._mark = f"sc{os.getpid()}"
        self._stack = contextlib.ExitStack()
        self.folder = Path()

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as stack:
            # Short: names of sockets lie in it.
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sc", dir="/tmp")))
            stack.callback(self._delete)
            self.shared.mkdir()
            self._ip("netns", "add", self._bridge)
            self._ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
            self._ip("-n", self._bridge, "link", "set", "br0", "up")
            for number in (1, 2, 3):
                self._add_machine(number)
            for number in (1, 2, 3):
                self._start_ray(number)
                if number == 1:
                    self._wait_for_ray(1)
            self._wait_for_ray(2)
            self._wait_for_ray(3)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @property
    def shared(self) -> Path:
        """The same path everywhere; a disk of its own on every machine where they are asked for."""
        return self.folder / "shared"

    def disk(self, number: int) -> Path:
        """The folder in which a machine's own disk really lies."""
        return self.folder / f"disk{number}"

    @property
    def _bridge(self) -> str:
        return f"{self._mark}b"

    def _name(self, number: int) -> str:
        return f"{self._mark}n{number}"

    def _ip(self, *arguments: str) -> str:
        return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout

    def _add_machine(self, number: int) -> None:
        name = self._name(number)
        self._ip("netns", "add", name)
        peer = ("peer", "name", f"v{number}", "netns", self._bridge)
        self._ip("-n", name, "link", "add", "eth0", "type", "veth", *peer)
        self._ip("-n", self._bridge, "link", "set", f"v{number}", "master", "br0", "up")
        self._ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
        self._ip("-n", name, "link", "set", "eth0", "up")
        self._ip("-n", name, "link", "set", "lo", "up")
        # By its way out a driver knows its own address, and so which machine it is on.
        self._ip("-n", name, "route", "add", "default", "dev", "eth0")
        self.disk(number).mkdir()

    def start(self, number: int, command: Sequence[object], **options: object) -> subprocess.Popen:
        """Starts a command on a machine, with its disk and a host name of its own."""
        bind = f"mount --bind {self.disk(number)} {self.shared}; " if self._own_disks else ""
        script = f'echo m{number} >/proc/sys/kernel/hostname; {bind}exec "$@"'
        inside = ["ip", "netns", "exec", self._name(number), "unshare", "--uts", "sh", "-c", script, "sh"]
        environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        return subprocess.Popen(
            [*inside, *map(str, command)],
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            **options,  # type: ignore[call-overload]
        )

    def _start_ray(self, number: int) -> None:
        where = ["--head", "--port", str(PORT), "--include-dashboard=false"]
        if number > 1:
            where = ["--address", f"10.77.0.1:{PORT}"]
        temporary = self.folder / str(number)
        temporary.mkdir()
        ray = Path(sys.executable).with_name("ray")
        with self._log(number).open("w") as log:
            self.start(
                number,
                [
                    *(ray, "start", *where, "--block", "--node-ip-address", f"10.77.0.{number}"),
                    *("--num-cpus", self._cpus[number - 1], "--object-store-memory", 160 << 20),
                    *("--temp-dir", temporary, "--disable-usage-stats"),
                ],
                stdout=log,
                stderr=log,
            )

    def _log(self, number: int) -> Path:
        return self.folder / f"ray{number}.log"

    def _wait_for_ray(self, number: int) -> None:
        log = self._log(number)
        wait_until(lambda: "Ray runtime started" in log.read_text(), 90, f"Ray on machine {number}")

    def pids(self, number: int) -> dict[int, str]:
        """The processes of a machine: their command lines by id."""
        found = {}
        for pid in self._ip("netns", "pids", self._name(number)).split():
            with contextlib.suppress(OSError):
                found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def stages(self) -> dict[int, list[str]]:
        """The stages whose workers run on each machine."""
        mark, found = "ray::saccade-", {}
        for number in (1, 2, 3):
            titles = [title for title in self.pids(number).values() if mark in title]
            found[number] = sorted(title.split(mark)[1].split(".")[0].strip() for title in titles)
        return found

    def with_stream(self) -> int:
        """The machine with the stream worker, or the third where that is on the first, with the driver."""
        return next((number for number, stages in self.stages().items() if "stream" in stages and number > 1), 3)

    def kill(self, number: int, *, only: Sequence[str] = ("",)) -> None:
        """Ends what runs on a machine at once; `only`: what has one of these in its command line."""
        # Twice: a process may just be started.
        for _ in range(2):
            for pid, line in self.pids(number).items():
                if any(part in line for part in only):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def cut(self, number: int) -> None:
        self._ip("-n", self._bridge, "link", "set", f"v{number}", "down")

    def heal(self, number: int) -> None:
        self._ip("-n", self._bridge, "link", "set", f"v{number}", "up")

    def _delete(self) -> None:
        there = self._ip("netns", "list").split()
        for number in (1, 2, 3):
            if self._name(number) in there:
                self.kill(number)
                self._ip("netns", "del", self._name(number))
        if self._bridge in there:
            self._ip("netns", "del", self._bridge)


class Label:
    """`saccade label` on the first machine."""

    def __init__(self, cluster: Cluster, videos: Path) -> None:
        self._out = cluster.shared / "out"
        self._disk = cluster.disk(1) / "out" if cluster._own_disks else self._out
        self._begun_s = time.monotonic()
        command = [sys.executable, ROOT / "run_pipeline.py", "label", videos, "-o", self._out, "--config", "demo"]
        command += ["--ray-address", f"10.77.0.1:{PORT}", "--set", "output.part_age_s=2"]
        self.err = cluster.folder / f"err{time.monotonic_ns()}"
        with self.err.open("w") as err:
            self.process = cluster.start(1, command, stdout=err, stderr=err)

    def rows(self) -> list[dict]:
        if not (self._disk / "labels").is_dir():
            return []
        return ds.dataset(str(self._disk / "labels"), format="parquet").to_table().to_pylist()

    def wait_for_rows(self, number: int, within_s: float = 120) -> None:
        until = time.monotonic() + within_s
        while len(self.rows()) < number:
            text = messages(self.err.read_text())
            assert self.process.poll() is None, f"it ended before: {text}"
            assert time.monotonic() < until, f"not {number} rows within {within_s:g} s: {text}"
            time.sleep(0.2)

    def wait(self, within_s: float) -> Outcome:
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not over within {within_s:g} s: {messages(self.err.read_text())}") from None
        return Outcome(code, self.err.read_text(), time.monotonic() - self._begun_s, self.rows())


def make_videos(folder: Path, number: int) -> Path:
    """Small videos under so many names."""
    folder.mkdir()
    for index in range(min(number, 10)):
        noise = np.random.default_rng(index).integers(0, 256, (14, 17, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        write_video(folder / f"{index}.mp4", (np.roll(noise, t, 1) for t in range(24)), fps=12)
    for index in range(10, number):
        os.link(folder / f"{index % 10}.mp4", folder / f"{index}.mp4")
    return folder


@contextlib.contextmanager
def videos(number: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scv", dir="/tmp") as folder:
        yield make_videos(Path(folder) / "videos", number)


def disks(number: int = 80) -> str:
    """With a disk on every machine, labels are on the driver's, and a second run has nothing to do."""
    with videos(number) as folder, Cluster(own_disks=True) as cluster:
        first = Label(cluster, folder).wait(240)
        first.check_rows(number)
        second = Label(cluster, folder).wait(240)
        second.check_rows(number)
        others = [path for machine in (2, 3) for path in cluster.disk(machine).rglob("*.parquet")]
        assert (first.code, second.code, others) == (0, 0, []), (first.code, second.code, others, second.messages)
        return f"{number} rows on the driver's disk after two runs, none elsewhere; {first.seconds:.0f} s the first"


def killed(number: int = 400) -> str:
    """A machine dies under the default plan: nothing is lost and the run ends by itself."""
    with videos(number) as folder, Cluster() as cluster:
        run = Label(cluster, folder)
        run.wait_for_rows(number // 8)
        there, machine = cluster.stages(), cluster.with_stream()
        cluster.kill(machine)
        died_s = time.monotonic()
        done = run.wait(240)
        done.check_rows(number)
        assert done.code == 0, (done.code, done.messages)
        return f"{there}, {machine} died: ended {time.monotonic() - died_s:.0f} s later, {done.seconds:.0f} s in all"


def cut(number: int = 400, seconds: float = 30.0) -> str:
    """A machine is cut off for half a minute: no clip is failed for that, and the run ends by itself."""
    with videos(number) as folder, Cluster() as cluster:
        run = Label(cluster, folder)
        run.wait_for_rows(number // 8)
        there, machine = cluster.stages(), cluster.with_stream()
        cluster.cut(machine)
        time.sleep(seconds)
        cluster.heal(machine)
        healed_s = time.monotonic()
        done = run.wait(300)
        done.check_rows(number)
        assert done.code == 0, (done.code, done.messages)
        ended_s = time.monotonic() - healed_s
        return f"{there}, {machine} cut: ended {ended_s:.0f} s after healing, {done.seconds:.0f} s in all"


def uneven(number: int = 30) -> str:
    """Machines of 1, 1 and 2 CPUs: every worker finds a place."""
    with videos(number) as folder, Cluster(cpus=(1, 1, 2)) as cluster:
        done = Label(cluster, folder).wait(120)
        done.check_rows(number)
        assert done.code == 0, (done.code, done.messages)
        return f"{number} rows in {done.seconds:.0f} s"


def head(number: int = 400) -> str:
    """The head's Ray dies, the driver on the same machine lives: one line, and the next run does the rest.

    A driver on another machine cannot be tried here: Ray looks for its own machine among the processes that it sees,
    and namespaces of the network share those.
    """
    with videos(number) as folder:
        with Cluster() as cluster:
            run = Label(cluster, folder)
            run.wait_for_rows(number // 8)
            cluster.kill(1, only=("gcs_server", "raylet/raylet", "ray start", "bin/ray"))
            died_s = time.monotonic()
            done = run.wait(60)
            seconds = time.monotonic() - died_s
            assert done.code == 1, (done.code, done.messages)
            assert [line for line in done.messages if "head is gone" in line] == done.messages[-1:], done.messages
            before = len({row["clip_id"] for row in done.rows})
            assert before == len(done.rows) and set(done.codes) == {None}, done.codes
            kept = Path(tempfile.mkdtemp(prefix="sck", dir="/tmp"))
            shutil.copytree(cluster.shared / "out", kept / "out")
        try:
            with Cluster() as cluster:
                shutil.copytree(kept / "out", cluster.shared / "out")
                again = Label(cluster, folder).wait(240)
                again.check_rows(number)
                assert again.code == 0, (again.code, again.messages)
        finally:
            shutil.rmtree(kept)
        return f"ended {seconds:.0f} s after the death with {before} of {number} rows; then all; {done.messages[-1]}"


CASES = {
    "disks": disks,
    "killed": killed,
    "cut": cut,
    "uneven": uneven,
    "head": head,
}


def main(names: Sequence[str]) -> int:
    if unknown := [name for name in names if name not in CASES]:
        print(f"{', '.join(unknown)}: the cases are {', '.join(CASES)}", file=sys.stderr)
        return 2
    if (reason := why_not()) is not None:
        print(reason, file=sys.stderr)
        return 2
    has_failed = False
    for name in names or CASES:
        begun_s = time.monotonic()
        try:
            said = f"holds: {CASES[name]()}"
        except AssertionError as exc:
            has_failed, said = True, f"DOES NOT HOLD: {exc}"
        print(f"{name}: {said} ({time.monotonic() - begun_s:.0f} s with its cluster)", flush=True)
    return int(has_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
