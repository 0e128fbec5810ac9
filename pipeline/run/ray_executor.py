"""Workers as Ray actors: the only file that knows Ray.

Placement, processes, the object store, the cluster and resources are Ray's; what runs next is not. Payloads stay in
the object store: the driver passes references on and never opens one. Actors are not restarted by Ray and calls not
tried again by it, because only the scheduler knows whose fault a death may be.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers niceness 15, which on a machine that does anything else starves them.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import exceptions
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker

from operators.errors import ConfigError, PipelineError, StageError
from pipeline.run.reaper import MARK
from pipeline.steering.executor import Call, Completion, WorkerSpec, make_worker

CODE = Path(__file__).resolve().parents[2]
"""The folder of our packages: a checkout, or where the program was installed, beside much that is not ours."""
_OUR_CODE: dict[str, Any] = {
    "py_modules": [str(CODE / name) for name in ("operators", "pipeline", "policies")],
    "excludes": ["**/__pycache__"],
}
"""What goes to the machines of a cluster."""
MAX_STILLBORN = 3
_ANSWER_S = 5.0
_DEAD = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
)
_LOST = (exceptions.ObjectLostError, exceptions.OwnerDiedError, exceptions.ObjectFetchTimedOutError)


class _Host:
    """An actor that holds one worker."""

    def make(self, factory: str, arguments: Mapping[str, Any]) -> tuple[int, str]:
        # A terminal's ctrl-C reaches every process of its group; only the driver may act on it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._worker = make_worker(factory, arguments)
        return os.getpid(), ray.util.get_node_ip_address()

    def call(self, method: str, requests: tuple[Any, ...], *payloads: Any) -> tuple[Any, Any]:
        return getattr(self._worker, method)(requests, payloads)


@contextlib.contextmanager
def _left_alone() -> Iterator[None]:
    """Keeps Ray from taking over the driver's signals, whose first one is to drain, and its standard output, which is
    for results: Ray would tell there of every worker that died.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # Its own would end the driver in the middle of a start, with a code of its own.
    ray_utils.set_sigterm_handler = lambda handler: None
    ray_worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)


class RayExecutor:
    """Starts Ray on this machine, or joins a cluster, for as long as it is open."""

    def __init__(self, *, address: str | None = None, num_cpus: int, num_gpus: int = 0, store_bytes: int) -> None:
        self._is_ours = address is None
        self._reaper: subprocess.Popen[bytes] | None = None
        # It would tell of its token in two lines at every start; what goes wrong is raised.
        logging.getLogger("ray").setLevel(logging.ERROR)
        self._temporary: str | None = None
        try:
            if self._is_ours:
                # Socket paths are limited to 107 bytes, so the folder has to lie high up.
                self._temporary = tempfile.mkdtemp(prefix="saccade-", dir="/tmp")
                self._reaper = _start_reaper(self._temporary)
                with _left_alone():
                    ray.init(
                        address="local",
                        num_cpus=num_cpus,
                        num_gpus=num_gpus,
                        object_store_memory=store_bytes,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        configure_logging=False,
                        _temp_dir=self._temporary,
                    )
            else:
                assert address is not None
                # Whoever asked first what the cluster has free has joined it already.
                if not ray.is_initialized():
                    _join(address, runtime_env=_OUR_CODE)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as exc:
            self._reap()
            raise StageError(f"Ray does not start on this machine: {_one_line(exc)}") from exc
        # A cluster may have fewer cores free than the workers' threads add up to. They take turns then, as they do
        # here; an actor that asks for more than there is would never start.
        self._cpu_share = 1.0 if self._is_ours else min(1.0, _free_cpus(address) / num_cpus)
        self._specs: dict[str, WorkerSpec] = {}
        self._actors: dict[tuple[str, int], Any] = {}
        self._pids: dict[tuple[str, int], int] = {}
        self._stillborn: dict[tuple[str, int], int] = {}
        self._making: dict[Any, tuple[str, int]] = {}
        self._running: dict[Any, tuple[int, Any, deque[Any]]] = {}
        """Of a call's reply: its ticket, what it hands on, and the line that it stands in."""
        self._lines: dict[tuple[str, int], deque[Any]] = {}
        """The replies that a worker owes, in their order."""
        self._early: set[Any] = set()
        """Replies that are there before one that was asked for earlier: Ray tells of one call in twenty too soon."""
        self._tickets = itertools.count()

    def start(self, spec: WorkerSpec) -> None:
        self._specs[spec.stage] = spec
        for worker in range(spec.count):
            self._make(spec, worker)

    def _make(self, spec: WorkerSpec, worker: int) -> None:
        options = {
            "num_cpus": share_of(spec.num_cpus, self._cpu_share),
            "max_restarts": 0,
            "max_task_retries": 0,
            # Ray's head would keep 4 KB of every call, up to 100,000 of them: cameras would seem to leak for hours.
            "enable_task_events": False,
        }
        if spec.num_gpus:
            options["num_gpus"] = spec.num_gpus
        # Ray shows the class's name as the process's title: one looks at `ps` and sees the stages.
        host: Any = ray.remote(type(f"saccade-{spec.stage}", (_Host,), {}))
        actor = host.options(**options).remote()
        self._actors[spec.stage, worker] = actor
        self._lines[spec.stage, worker] = deque()
        self._making[actor.make.remote(spec.factory, dict(spec.arguments))] = (spec.stage, worker)

    def wait_ready(self) -> None:
        for ref in list(self._making):
            self._made(ref)

    def _made(self, ref: Any) -> None:
        """Notes a worker's process. What its factory raised ends the run: another try would raise it again."""
        stage, worker = self._making.pop(ref)
        try:
            pid, address = ray.get(ref)
        except exceptions.RayTaskError as exc:
            if isinstance(exc.cause, PipelineError):
                raise exc.cause from None
            raise StageError(f"{stage} worker {worker} cannot be made: {exc.cause!r}") from exc
        except exceptions.RayError as exc:
            # The first call tells of the death, and the worker is replaced like any other; but not for ever.
            self._stillborn[stage, worker] = self._stillborn.get((stage, worker), 0) + 1
            if self._stillborn[stage, worker] >= MAX_STILLBORN:
                raise StageError(
                    f"{stage} worker {worker} died {MAX_STILLBORN} times while it was made: {_one_line(exc)}"
                ) from exc
            return
        self._stillborn.pop((stage, worker), None)
        if address == ray.util.get_node_ip_address():
            self._pids[stage, worker] = pid

    def is_ready(self, stage: str, worker: int) -> bool:
        return (stage, worker) not in self._making.values()

    def submit(self, call: Call) -> int:
        actor = self._actors[call.stage, call.worker]
        reply, payload = actor.call.options(num_returns=2).remote(call.method, call.requests, *call.payloads)
        ticket = next(self._tickets)
        line = self._lines[call.stage, call.worker]
        line.append(reply)
        self._running[reply] = (ticket, payload, line)
        return ticket

    def poll(self, timeout_s: float) -> list[Completion]:
        pending = [*(ref for ref in self._running if ref not in self._early), *self._making]
        if not pending:
            return []
        ready, rest = ray.wait(pending, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            ready += more
        completions = []
        for ref in ready:
            if ref in self._making:
                self._made(ref)
                continue
            self._early.add(ref)
            line = self._running[ref][2]
            while line and line[0] in self._early:
                first = line.popleft()
                self._early.remove(first)
                ticket, payload, _ = self._running.pop(first)
                completions.append(_completion(ticket, first, payload))
        return completions

    def kill(self, stage: str, worker: int) -> None:
        # ray.kill asks the process to end; one that hangs in native code may not hear it, SIGKILL is heard.
        pid = self._pids.pop((stage, worker), None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ray.kill(self._actors[stage, worker], no_restart=True)

    def replace(self, stage: str, worker: int) -> None:
        for ref in [ref for ref, place in self._making.items() if place == (stage, worker)]:
            del self._making[ref]
        # The next one may be on another machine; this process id may soon be anybody's here.
        self._pids.pop((stage, worker), None)
        self._make(self._specs[stage], worker)

    def pids(self) -> dict[tuple[str, int], int]:
        """The processes of the workers on this machine."""
        return dict(self._pids)

    def close(self) -> None:
        self._running.clear()
        self._early.clear()
        self._actors.clear()
        ray.shutdown()
        self._reap()

    def _reap(self) -> None:
        """Has whatever Ray left behind ended, and its folder removed."""
        if self._reaper is not None:
            os.environ.pop(MARK, None)
            assert self._reaper.stdin is not None
            self._reaper.stdin.close()
            self._reaper.wait()
            self._reaper = None


@contextlib.contextmanager
def joined(address: str) -> Iterator[dict[str, float]]:
    """Joins a running cluster with our code, and gives what is free there, by Ray's names."""
    _join(address, runtime_env=_OUR_CODE)
    try:
        yield dict(ray.available_resources())
    finally:
        ray.shutdown()


def cluster_resources(address: str) -> dict[str, float]:
    """What is free in a running cluster, by Ray's names. The cluster is left again."""
    _join(address)
    try:
        return dict(ray.available_resources())
    finally:
        ray.shutdown()


def _join(address: str, **options: Any) -> None:
    if "://" in address:
        raise ConfigError(f"--ray-address {address}: give HOST:PORT of the cluster's head, or auto")
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local") and not (host and port.isdigit()):
        raise ConfigError(f"--ray-address {address}: give HOST:PORT of the cluster's head, or auto")
    try:
        if host:
            # Ray would try for half a minute where nobody listens.
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except OSError as exc:
        raise StageError(f"no Ray cluster answers at {address}: {exc}") from exc
    try:
        with _left_alone():
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as exc:
        raise StageError(f"no Ray cluster answers at {address}: {_one_line(exc)}{_token_hint()}") from exc


def _token_hint() -> str:
    """Ray's clusters want a token unless they were started without; to an address that is named, none is sent."""
    if os.environ.get("RAY_AUTH_MODE"):
        return ""
    return "; if it asks for a token, set RAY_AUTH_MODE=token (the token is in RAY_AUTH_TOKEN or ~/.ray/auth_token)"


def _free_cpus(address: str | None) -> float:
    free = float(ray.available_resources().get("CPU", 0.0))
    if free <= 0:
        ray.shutdown()
        raise StageError(f"the Ray cluster at {address} has no CPU free; try again when other work there has ended")
    return free


def share_of(num_cpus: float, share: float) -> float:
    """What an actor asks of a cluster: Ray takes parts of one CPU, and of more whole numbers only."""
    wanted = num_cpus * share
    return float(math.floor(wanted)) if wanted >= 1 else math.floor(100 * wanted) / 100


def _completion(ticket: int, ref: Any, payload: Any) -> Completion:
    try:
        return Completion(ticket=ticket, outcome="done", reply=ray.get(ref), payload=payload)
    except exceptions.RayTaskError as exc:
        if isinstance(exc.cause, PipelineError):
            raise exc.cause from None
        if isinstance(exc.cause, _LOST):
            return Completion(ticket=ticket, outcome="lost", error=_one_line(exc.cause))
        text = "".join(traceback.format_exception_only(exc.cause)) if exc.cause else str(exc)
        return Completion(ticket=ticket, outcome="failed", error=f"{exc}\n{text}")
    except _LOST as exc:
        return Completion(ticket=ticket, outcome="lost", error=_one_line(exc))
    except _DEAD as exc:
        return Completion(ticket=ticket, outcome="died", error=_one_line(exc))
    except exceptions.RayError as exc:
        raise StageError(f"Ray failed: {_one_line(exc)}") from exc


def _start_reaper(folder: str) -> subprocess.Popen[bytes]:
    """From here on every process that this one starts carries the mark by which the reaper knows it."""
    mark = uuid.uuid4().hex
    reaper = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).with_name("reaper.py")), mark, folder, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    os.environ[MARK] = mark
    return reaper


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:500]
