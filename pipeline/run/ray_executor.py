"""Workers as Ray actors: where they are placed, how they are made, and how one takes the place of another.

Placement, processes, the object store, the cluster and resources are Ray's; what runs next is not. Payloads stay in
the object store: the driver passes references on and never opens one. Actors are not restarted by Ray and calls not
tried again by it, because only the scheduler knows whose fault a death may be.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.errors import CheckpointError, ClusterGone, PipelineError, StageError
from pipeline.run import ray_cluster
from pipeline.run.nodes import ClusterWatch, free_places, needs, share_of, share_that_fits
from pipeline.run.ray_calls import ActorCalls
from pipeline.run.ray_cluster import LocalRay, one_line
from pipeline.steering.deadlines import Place
from pipeline.steering.executor import Call, Completion, WorkerSpec, make_worker
from pipeline.steering.scheduler import SINK

MAX_STILLBORN = 3
"""How often in a row a worker may die while it is made."""


class _Host:
    """An actor that holds one worker."""

    def where(self) -> tuple[int, str]:
        """The process and the machine that the actor was given."""
        # A terminal's ctrl-C reaches every process of its group; only the driver may act on it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def make(self, factory: str, arguments: Mapping[str, Any]) -> None:
        self._worker = make_worker(factory, arguments)

    def call(self, method: str, requests: tuple[Any, ...], *payloads: Any) -> tuple[Any, Any]:
        return getattr(self._worker, method)(requests, payloads)


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
        self._local: LocalRay | None = None
        self._cluster: ClusterWatch | None = None
        # A cluster may have fewer cores free than the workers' threads add up to. They take turns then, as they do
        # here; an actor that asks for more than there is on any machine would never start.
        self._cpu_share = 1.0
        if address is None:
            self._local = LocalRay(num_cpus=num_cpus, num_gpus=num_gpus, store_bytes=store_bytes)
        else:
            ray_cluster.join(address)
            free = ray_cluster.free_cpus(address)
            self._cluster = ClusterWatch(
                head=ray_cluster.head_address(), list_nodes=ray_cluster.list_nodes
            ).start()
            fits = share_that_fits(sizes, self._cluster.nodes.values())
            self._cpu_share = fits if sizes else min(1.0, free / num_cpus)
        self._node_id = ray.get_runtime_context().get_node_id()
        self._specs: dict[str, WorkerSpec] = {}
        self._actors: dict[Place, Any] = {}
        self._pids: dict[Place, int] = {}
        """The processes of the workers on this machine."""
        self._stillborn: dict[Place, int] = {}
        """How often in a row a worker has died while it was made."""
        self._node_of: dict[Place, str] = {}
        self._placing: dict[Any, Place] = {}
        """Actors that have no process yet, by the reference of their answer where they are."""
        self._making: dict[Any, Place] = {}
        """Workers that are not made yet, by the reference of the answer that they are; some have no process yet."""
        self._put_off: dict[Place, list[tuple[int, Call]]] = {}
        """Workers that will be made when the cluster's head answers, with their calls: Ray would wait for it."""
        self._ended: list[Completion] = []
        """Calls of workers that were killed."""
        self._calls = ActorCalls()
        self._tickets = itertools.count()

    def start(self, spec: WorkerSpec) -> None:
        self._specs[spec.stage] = spec
        for worker in range(spec.count):
            self._make(spec, worker)

    def _make(self, spec: WorkerSpec, worker: int) -> None:
        # Ray shows the name of the class as the title of the process, so that `ps` shows the stages.
        host: Any = ray.remote(type(f"saccade-{spec.stage}", (_Host,), {}))
        actor = host.options(**self._options(spec)).remote()
        place = (spec.stage, worker)
        self._actors[place] = actor
        self._calls.open_line(place)
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
        """The CPUs that a worker asks for: none beside a GPU, since decoders may have all CPUs of that machine."""
        if self._cluster is not None and spec.num_gpus:
            return 0.0
        return share_of(spec.num_cpus, self._cpu_share)

    def wait_ready(self) -> None:
        for ref in list(self._making):
            self._note_made(ref)

    def _note_placed(self, ref: Any) -> None:
        """Notes a worker's process and machine."""
        place = self._placing.pop(ref)
        # Where it died before it could answer, the call that makes the worker reports that.
        with contextlib.suppress(exceptions.RayError):
            pid, self._node_of[place] = ray.get(ref)
            if self._node_of[place] == self._node_id:
                self._pids[place] = pid

    def _note_made(self, ref: Any) -> None:
        """Notes that a worker is made. What its factory raised ends the run: another try would raise it again."""
        place = stage, worker = self._making.pop(ref)
        for waiting in [waiting for waiting, its in self._placing.items() if its == place]:
            self._note_placed(waiting)
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
            # A call that waits reports the death, and the worker is replaced like any other; but not for ever.
            self._stillborn[place] = self._stillborn.get(place, 0) + 1
            if self._stillborn[place] >= MAX_STILLBORN:
                raise StageError(
                    f"{stage} worker {worker} died {MAX_STILLBORN} times while it was made: {one_line(exc)}"
                ) from exc
            if not self._calls.are_owed_by(place):
                self.replace(stage, worker)
            return
        self._stillborn.pop(place, None)

    def is_ready(self, stage: str, worker: int) -> bool:
        return (stage, worker) not in self._put_off and (stage, worker) not in self._making.values()

    def missing(self) -> dict[Place, bool]:
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

    def _address_of(self, place: Place) -> str:
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
        self._calls.submit(self._actors[place], ticket, call)

    def poll(self, timeout_s: float) -> list[Completion]:
        if self._cluster is not None and self._cluster.head_is_gone:
            raise ClusterGone("the cluster's head is gone; the same command goes on where this one ended")
        self._make_what_was_put_off()
        if self._ended:
            ended, self._ended = self._ended, []
            return ended
        pending = [*self._calls.awaited(), *self._placing, *self._making]
        if not pending:
            time.sleep(timeout_s if self._put_off else 0)
            return []
        ready, rest = ray.wait(pending, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready and rest:
            more, _ = ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)
            ready += more
        for ref in ready:
            if ref in self._placing:
                self._note_placed(ref)
            elif ref in self._making:
                self._note_made(ref)
        return self._calls.ended(ready)

    def kill(self, stage: str, worker: int) -> None:
        # ray.kill asks the process to end; one that hangs in native code may not hear it, SIGKILL is heard.
        place = (stage, worker)
        pid = self._pids.pop(place, None)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # Ray's report of the death is not waited for: of a machine that is cut off it comes after a minute.
        self._ended += self._calls.give_up(place)
        self._end(place)

    def _end(self, place: Place) -> None:
        """Has Ray end an actor: one that only seemed to be gone must not go on beside the one in its place."""
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

    def pids(self) -> dict[Place, int]:
        """The processes of the workers on this machine."""
        return dict(self._pids)

    def close(self) -> None:
        self._calls.clear()
        is_gone = self._cluster is not None and (self._cluster.head_is_gone or not self._cluster.head_answers())
        if self._cluster is not None:
            self._cluster.close()
        if is_gone:
            ray_cluster.abandon()
        else:
            self._actors.clear()
            ray_cluster.leave()
        if self._local is not None:
            self._local.close()
