"""The calls of Ray actors that are under way: they come back in the order in which each worker was given them."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Collection
from typing import Any

import ray
from ray import exceptions

from operators.errors import PipelineError, StageError
from pipeline.run.ray_cluster import one_line
from pipeline.steering.deadlines import Place
from pipeline.steering.executor import Call, Completion

_DEAD = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
)
_LOST = (exceptions.ObjectLostError, exceptions.OwnerDiedError, exceptions.ObjectFetchTimedOutError)


class ActorCalls:
    """Every call that an actor was given and whose end has not been reported."""

    def __init__(self) -> None:
        self._running: dict[Any, tuple[int, Any, deque[Any]]] = {}
        """By the reference of a call's reply: its ticket, the reference of its payload, and the line that it is in."""
        self._lines: dict[Place, deque[Any]] = {}
        """The references of the replies that a worker owes, in their order."""
        self._early: set[Any] = set()
        """Replies that came before one that was asked for earlier: Ray reports one call in twenty too soon."""

    def open_line(self, place: Place) -> None:
        """Begins the line of a worker that is made, in the place of another or as the first one there."""
        self._lines[place] = deque()

    def submit(self, actor: Any, ticket: int, call: Call) -> None:
        reply, payload = actor.call.options(num_returns=2).remote(call.method, call.requests, *call.payloads)
        line = self._lines[call.stage, call.worker]
        line.append(reply)
        self._running[reply] = (ticket, payload, line)

    def are_owed_by(self, place: Place) -> bool:
        return bool(self._lines[place])

    def awaited(self) -> list[Any]:
        """The references that are still to be waited for."""
        return [ref for ref in self._running if ref not in self._early]

    def ended(self, ready: Collection[Any]) -> list[Completion]:
        """The calls that are over now that these replies are there; what came too soon is held back."""
        completions = []
        for ref in ready:
            if ref not in self._running:
                continue
            self._early.add(ref)
            line = self._running[ref][2]
            while line and line[0] in self._early:
                first = line.popleft()
                self._early.remove(first)
                ticket, payload, _ = self._running.pop(first)
                completions.append(_completion(ticket, first, payload))
        return completions

    def give_up(self, place: Place) -> list[Completion]:
        """Ends all calls of a worker as died, whether or not their answers would still come."""
        tickets = []
        for ref in self._lines.get(place, ()):
            tickets.append(self._running.pop(ref)[0])
            self._early.discard(ref)
        self._lines[place] = deque()
        return [Completion(ticket=ticket, outcome="died", error="it was ended") for ticket in tickets]

    def clear(self) -> None:
        self._running.clear()
        self._early.clear()


def _completion(ticket: int, ref: Any, payload: Any) -> Completion:
    """How a call ended, by what Ray raises when its reply is asked for."""
    try:
        return Completion(ticket=ticket, outcome="done", reply=ray.get(ref), payload=payload)
    except exceptions.RayTaskError as exc:
        if isinstance(exc.cause, PipelineError):
            raise exc.cause from None
        if isinstance(exc.cause, _LOST):
            return Completion(ticket=ticket, outcome="lost", error=one_line(exc.cause))
        text = "".join(traceback.format_exception_only(exc.cause)) if exc.cause else str(exc)
        return Completion(ticket=ticket, outcome="failed", error=f"{exc}\n{text}")
    except _LOST as exc:
        return Completion(ticket=ticket, outcome="lost", error=one_line(exc))
    except _DEAD as exc:
        return Completion(ticket=ticket, outcome="died", error=one_line(exc))
    except exceptions.RayError as exc:
        raise StageError(f"Ray failed: {one_line(exc)}") from exc
