"""Workers as Ray actors: the only file that knows Ray.

Placement, processes, the object store, the cluster and resources are Ray's; what runs next is not. Payloads stay in
the object store: the driver passes references on and never opens one. Actors are not restarted by Ray and calls not
tried again by it, because only the scheduler knows whose fault a death may be.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray gives its workers niceness 15, which on a machine that does anything else starves them.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# It would write of every answer that nobody waits for any more, in colours, between our lines of progress.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")

import ray
from ray import exceptions
from ray._private import state as ray_state
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.errors import CheckpointError, ClusterGone, ConfigError, PipelineError, StageError
from pipeline.run.nodes import ClusterWatch, Node, free_places, needs, share_of, share_that_fits
from pipeline.run.reaper import MARK
from pipeline.steering.executor import Call, Completion, WorkerSpec, make_worker
from pipeline.steering.scheduler import SINK

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

    def where(self) -> tuple[int, str]:
        """The process and the machine that it was given."""
        # A terminal's ctrl-C reaches every process of its group; only the driver may act on it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def make(self, factory: str, arguments: Mapping[str, Any]) -> None:
        self._worker = make_worker(factory, arguments)

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

    def __init__(
        self,
        *,
        address: str | None = None,
        num_cpus: int,
        num_gpus: int = 0,
        store_bytes: int,
        sizes: Sequence[float] = (),
    ) -> None:
        """`sizes`: the threads of every worker that will be started, for what they ask of a cluster."""
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
        # here; an actor that asks for more than there is on any machine would never start.
        self._cpu_share = 1.0
        self._node_id = ray.get_runtime_context().get_node_id()
        self._cluster: ClusterWatch | None = None
        if not self._is_ours:
            free = _free_cpus(address)
            host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
            self._cluster = ClusterWatch(head=(host.strip("[]"), int(port)), look=_look).start()
            fits = share_that_fits(sizes, self._cluster.nodes.values())
            self._cpu_share = fits if sizes else min(1.0, free / num_cpus)
        self._specs: dict[str, WorkerSpec] = {}
        self._actors: dict[tuple[str, int], Any] = {}
        self._pids: dict[tuple[str, int], int] = {}
        self._stillborn: dict[tuple[str, int], int] = {}
        self._node_of: dict[tuple[str, int], str] = {}
        self._placing: dict[Any, tuple[str, int]] = {}
        """Actors that have no process yet."""
        self._making: dict[Any, tuple[str, int]] = {}
        """Those, and the ones whose worker is being made."""
        self._put_off: dict[tuple[str, int], list[tuple[int, Call]]] = {}
        """Workers that will be made when the cluster's head answers, with their calls: Ray would wait for it."""
        self._ended: list[Completion] = []
        """Calls of workers that were killed."""
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
        # Ray shows the class's name as the process's title: one looks at `ps` and sees the stages.
        host: Any = ray.remote(type(f"saccade-{spec.stage}", (_Host,), {}))
        actor = host.options(**self._options(spec)).remote()
        place = (spec.stage, worker)
        self._actors[place] = actor
        self._lines[place] = deque()
        self._placing[actor.where.remote()] = place
        self._making[actor.make.remote(spec.factory, dict(spec.arguments))] = place

    def _options(self, spec: WorkerSpec) -> dict[str, Any]:
        options: dict[str, Any] = {
            "num_cpus": self._cpus(spec),
            "max_restarts": 0,
            "max_task_retries": 0,
            # Ray's head would keep 4 KB of every call, up to 100,000 of them: cameras would seem to leak for hours.
            "enable_task_events": False,
        }
        if spec.num_gpus:
            options["num_gpus"] = spec.num_gpus
        if self._cluster is None:
            return options
        if spec.stage == SINK:
            # Ray puts an actor that asks for no CPU on any machine. Labels, their lock and what resume goes by have to
            # be on the disk where the driver looks for them.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self._node_id, soft=False)
            return options
        if not spec.num_gpus:
            # By itself Ray would fill half of the driver's machine first: all decoders were on one of three.
            options["scheduling_strategy"] = "SPREAD"
        if lost := self._cluster.lost():
            # Until Ray has noticed, up to 65 s later, it would go on placing actors there.
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(lost)})"}
        return options

    def _cpus(self, spec: WorkerSpec) -> float:
        """Where its GPU is, decoders may have all the CPUs; it would never be placed if it asked for one too."""
        if self._cluster is not None and spec.num_gpus:
            return 0.0
        return share_of(spec.num_cpus, self._cpu_share)

    def wait_ready(self) -> None:
        for ref in list(self._making):
            self._made(ref)

    def _placed(self, ref: Any) -> None:
        """Notes a worker's process and machine."""
        place = self._placing.pop(ref)
        # Where it died before it could answer, what makes the worker tells of that.
        with contextlib.suppress(exceptions.RayError):
            pid, self._node_of[place] = ray.get(ref)
            if self._node_of[place] == self._node_id:
                self._pids[place] = pid

    def _made(self, ref: Any) -> None:
        """Notes a worker. What its factory raised ends the run: another try would raise it again."""
        place = stage, worker = self._making.pop(ref)
        for waiting in [waiting for waiting, its in self._placing.items() if its == place]:
            self._placed(waiting)
        try:
            ray.get(ref)
        except exceptions.RayTaskError as exc:
            if isinstance(exc.cause, CheckpointError) and not self.is_here(stage, worker):
                raise CheckpointError(
                    f"{exc.cause} (on {self._address_of(place)}: every machine of the cluster needs the checkpoint "
                    "under the same path)"
                ) from None
            if isinstance(exc.cause, PipelineError):
                raise exc.cause from None
            raise StageError(f"{stage} worker {worker} cannot be made: {exc.cause!r}") from exc
        except exceptions.RayError as exc:
            # A call that waits tells of the death, and the worker is replaced like any other; but not for ever.
            self._stillborn[place] = self._stillborn.get(place, 0) + 1
            if self._stillborn[place] >= MAX_STILLBORN:
                raise StageError(
                    f"{stage} worker {worker} died {MAX_STILLBORN} times while it was made: {_one_line(exc)}"
                ) from exc
            if not self._lines[place]:
                self.replace(stage, worker)
            return
        self._stillborn.pop(place, None)

    def is_ready(self, stage: str, worker: int) -> bool:
        return (stage, worker) not in self._put_off and (stage, worker) not in self._making.values()

    def missing(self) -> dict[tuple[str, int], bool]:
        waiting = set(self._placing.values())
        return {place: False for place in self._put_off} | {
            place: place not in waiting for place in self._making.values()
        }

    def why_missing(self, stage: str) -> str:
        spec = self._specs[stage]
        wanted = needs(self._cpus(spec), spec.num_gpus)
        return wanted + (f"; free: {free_places(self._cluster.nodes.values())}" if self._cluster else "")

    def is_here(self, stage: str, worker: int) -> bool:
        return self._cluster is None or self._node_of.get((stage, worker)) == self._node_id

    def machine_answered(self, stage: str, worker: int, for_s: float) -> bool:
        node_id = self._node_of.get((stage, worker), self._node_id)
        return self._cluster is None or node_id == self._node_id or self._cluster.has_answered(node_id, for_s)

    def _address_of(self, place: tuple[str, int]) -> str:
        node = self._cluster.nodes.get(self._node_of.get(place, "")) if self._cluster else None
        return node.address if node else "another machine"

    def submit(self, call: Call) -> int:
        ticket = next(self._tickets)
        self._submit(ticket, call)
        return ticket

    def _submit(self, ticket: int, call: Call) -> None:
        place = (call.stage, call.worker)
        if place in self._put_off:
            self._put_off[place].append((ticket, call))
            return
        if place not in self._actors:
            self._ended.append(Completion(ticket=ticket, outcome="died", error="its worker was ended before"))
            return
        actor = self._actors[place]
        reply, payload = actor.call.options(num_returns=2).remote(call.method, call.requests, *call.payloads)
        line = self._lines[place]
        line.append(reply)
        self._running[reply] = (ticket, payload, line)

    def poll(self, timeout_s: float) -> list[Completion]:
        if self._cluster is not None and self._cluster.head_is_gone:
            raise ClusterGone("the cluster's head is gone; the same command goes on where this one ended")
        self._make_what_was_put_off()
        if self._ended:
            ended, self._ended = self._ended, []
            return ended
        pending = [*(ref for ref in self._running if ref not in self._early), *self._placing, *self._making]
        if not pending:
            time.sleep(timeout_s if self._put_off else 0)
            return []
        ready, rest = ray.wait(pending, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            ready += more
        completions = []
        for ref in ready:
            if ref in self._placing:
                self._placed(ref)
            elif ref in self._making:
                self._made(ref)
            elif ref in self._running:
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
        place = (stage, worker)
        pid = self._pids.pop(place, None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Nobody waits for word of the death: a machine that is cut off gives none for a minute.
        for ref in self._lines.get(place, ()):
            ticket = self._running.pop(ref)[0]
            self._early.discard(ref)
            self._ended.append(Completion(ticket=ticket, outcome="died", error="it was ended"))
        self._lines[place] = deque()
        self._end(place)

    def _end(self, place: tuple[str, int]) -> None:
        """Has Ray end an actor. One that only seemed to be gone must not go on beside the one in its place."""
        actor = self._actors.pop(place, None)
        if actor is not None and self._head_answers():
            with contextlib.suppress(exceptions.RayError, ValueError):
                ray.kill(actor, no_restart=True)

    def replace(self, stage: str, worker: int) -> None:
        place = (stage, worker)
        for refs in (self._placing, self._making):
            for ref in [ref for ref, its in refs.items() if its == place]:
                del refs[ref]
        # The next one may be on another machine; this process id may soon be anybody's here.
        self._pids.pop(place, None)
        self._node_of.pop(place, None)
        self._end(place)
        if self._head_answers():
            self._make(self._specs[stage], worker)
        else:
            self._put_off.setdefault(place, [])

    def _head_answers(self) -> bool:
        return self._cluster is None or self._cluster.head_answers()

    def _make_what_was_put_off(self) -> None:
        if self._put_off and self._head_answers():
            waiting, self._put_off = self._put_off, {}
            for (stage, worker), calls in waiting.items():
                self._make(self._specs[stage], worker)
                for ticket, call in calls:
                    self._submit(ticket, call)

    def pids(self) -> dict[tuple[str, int], int]:
        """The processes of the workers on this machine."""
        return dict(self._pids)

    def close(self) -> None:
        self._running.clear()
        self._early.clear()
        is_gone = self._cluster is not None and (self._cluster.head_is_gone or not self._cluster.head_answers())
        if self._cluster is not None:
            self._cluster.close()
        if is_gone:
            # Ray would wait a minute for its head, and then end this process with a text of its own.
            atexit.unregister(ray_worker.shutdown)
        else:
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
    except ClusterGone:
        # Leaving would wait a minute for the head.
        atexit.unregister(ray_worker.shutdown)
        raise
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _look() -> list[Node]:
    """The machines of the cluster, as Ray's head lists them."""
    free = ray_state.available_resources_per_node()
    return [
        Node(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            port=node["NodeManagerPort"],
            is_alive=node["Alive"],
            free=free.get(node["NodeID"], {}),
            total=node.get("Resources", {}),
        )
        for node in ray.nodes()
    ]


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
