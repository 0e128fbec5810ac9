"""The machines of a cluster that was joined: what is free on each, whether workers fit there, and whether it answers.

Ray notices after 15 to 65 s that a machine is gone; the watch here asks each of them itself, every few seconds. Ray's
own list of them is passed in: this file knows sockets and no Ray.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

EVERY_S = 3.0
HEAD_GONE_S = 20.0
"""Ray ends the driver with a text of its own when the head has been silent for 60 s: labels are committed before."""
_ANSWER_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster. Dead ones stay in Ray's list and may share their address with one that lives."""

    node_id: str
    address: str
    port: int = 0
    is_alive: bool = True
    free: Mapping[str, float] = field(default_factory=dict)
    total: Mapping[str, float] = field(default_factory=dict)


def share_of(num_cpus: float, share: float) -> float:
    """The CPUs that an actor asks of a cluster: Ray takes parts of one CPU, and of more only whole numbers."""
    wanted = num_cpus * share
    return float(math.floor(wanted)) if wanted >= 1 else math.floor(100 * wanted) / 100


def share_that_fits(sizes: Sequence[float], nodes: Collection[Node]) -> float:
    """The largest share of its threads that every worker may ask for as CPUs, so that all of them find a place.

    The sum of what is free says too little: five workers of 0.8 do not fit machines of 1, 1 and 2 CPUs. An actor of
    size a finds no place only where every machine has less than a left; so if all together are no more than what the
    machines have beyond the largest actor, plus that actor, each finds one in whatever order Ray places them. The
    largest machine is left out where the others have half of all: any one may then be lost and its workers made again.
    Where one machine is most of the cluster, workers that all fit the others would crowd there.
    """
    rooms = sorted(node.free.get("CPU", 0.0) for node in nodes if node.is_alive)
    if len(rooms) > 1 and sum(rooms[:-1]) >= rooms[-1]:
        del rooms[-1]
    for hundredths in range(100, 0, -1):
        asked = [share_of(size, hundredths / 100) for size in sizes]
        most = max(asked, default=0.0)
        beyond = sum(max(0.0, room - most) for room in rooms)
        if max(rooms, default=0.0) >= most and sum(asked) <= beyond + most + 1e-9:
            return hundredths / 100
    return 0.0


def needs(num_cpus: float, num_gpus: float) -> str:
    """The words for what a worker asks for."""
    wanted = [f"{num_cpus:g} CPU"] if num_cpus else []
    wanted += [f"{num_gpus:g} GPU"] if num_gpus else []
    return " and ".join(wanted) or "a machine"


def free_places(nodes: Collection[Node]) -> str:
    """The words for what is free on each machine that is alive."""
    places = []
    for node in nodes:
        if node.is_alive:
            parts = [
                f"{node.free.get(name, 0.0):g} of {node.total[name]:g} {name}"
                for name in ("CPU", "GPU")
                if node.total.get(name)
            ]
            places.append(f"{node.address} {', '.join(parts) or 'no CPU'}")
    return "; ".join(places) or "nothing"


def answers(address: str, port: int, timeout_s: float = _ANSWER_S) -> bool:
    """Whether somebody listens at this address and port."""
    try:
        socket.create_connection((address, port), timeout=timeout_s).close()
    except OSError:
        return False
    return True


class ClusterWatch:
    """A thread that asks the head and every machine whether they are there.

    Asking Ray's head for its list can take a minute when it is gone, so only this thread waits for it: a head that
    keeps the thread waiting counts as one that does not answer.
    """

    def __init__(
        self,
        *,
        head: tuple[str, int],
        list_nodes: Callable[[], Sequence[Node]],
        every_s: float = EVERY_S,
        is_there: Callable[[str, int], bool] = answers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`list_nodes` gives the machines as the head lists them."""
        self._head = head
        self._list_nodes = list_nodes
        self._every_s = every_s
        self._is_there = is_there
        self._clock = clock
        self._head_heard_s = clock()
        self._missed_s: dict[str, float] = {}
        """When a machine last did not answer."""
        self.nodes: dict[str, Node] = {node.node_id: node for node in list_nodes()}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._walk, name="cluster", daemon=True)

    def start(self) -> ClusterWatch:
        self._thread.start()
        return self

    def close(self) -> None:
        self._is_over.set()

    def _walk(self) -> None:
        while not self._is_over.wait(self._every_s):
            try:
                self.check_all()
            except Exception:
                # Whatever Ray raises here means that its head has given no list; the silence is what counts.
                continue

    def check_all(self) -> None:
        """Asks the head and every machine once whether they are there."""
        for node in list(self.nodes.values()):
            if node.is_alive and not self._is_there(node.address, node.port):
                self._missed_s[node.node_id] = self._clock()
        if self._is_there(*self._head):
            self.nodes = {node.node_id: node for node in self._list_nodes()}
            self._head_heard_s = self._clock()

    @property
    def head_is_gone(self) -> bool:
        return self._clock() - self._head_heard_s > HEAD_GONE_S

    def head_answers(self) -> bool:
        return self._is_there(*self._head)

    def has_answered(self, node_id: str, for_s: float) -> bool:
        """Whether a machine answers, and has answered every time for so many seconds."""
        node = self.nodes.get(node_id)
        if node is None or not node.is_alive:
            return False
        if not self._is_there(node.address, node.port):
            self._missed_s[node_id] = self._clock()
        missed_s = self._missed_s.get(node_id)
        return missed_s is None or self._clock() - missed_s > for_s + self._every_s

    def lost(self) -> list[str]:
        """The machines that Ray still counts on but that did not answer a moment ago: nothing is to be placed there."""
        now_s = self._clock()
        return [
            node_id
            for node_id, missed_s in self._missed_s.items()
            if now_s - missed_s <= 3 * self._every_s and node_id in self.nodes and self.nodes[node_id].is_alive
        ]
