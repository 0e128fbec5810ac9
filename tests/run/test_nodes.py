"""Machines of a cluster: whether workers fit, and whether they answer. No Ray; time and sockets are the test's."""

from __future__ import annotations

import itertools
import socket

import pytest

from pipeline.run.nodes import ClusterWatch, Node, answers, free_places, needs, share_of, share_that_fits


def nodes(*cpus: float) -> list[Node]:
    return [
        Node(node_id=f"id{number}", address=f"10.0.0.{number}", port=number, free={"CPU": free}, total={"CPU": 8.0})
        for number, free in enumerate(cpus, 1)
    ]


def fits_in_any_order(sizes: list[float], rooms: list[float]) -> bool:
    """Whether every worker finds a place whoever chooses one among those that have room."""
    if not sizes:
        return True
    choices = [number for number, room in enumerate(rooms) if room >= sizes[0] - 1e-9]
    return bool(choices) and all(
        fits_in_any_order(sizes[1:], [room - sizes[0] * (n == number) for n, room in enumerate(rooms)])
        for number in choices
    )


@pytest.mark.parametrize("sizes", [[1.0] * 5, [1.0] * 6, [3.0, 1.0, 1.0], [2.0, 2.0, 1.0, 1.0]])
@pytest.mark.parametrize("cpus", [(2, 2, 2), (1, 1, 2), (4, 1), (2,), (0.5, 3), (1, 1, 1, 1)])
def test_workers_find_a_place_in_any_order_on_any_machines(sizes: list[float], cpus: tuple[float, ...]) -> None:
    share = share_that_fits(sizes, nodes(*cpus))
    assert share > 0
    for order in set(itertools.permutations(share_of(size, share) for size in sizes)):
        assert fits_in_any_order(list(order), list(cpus))


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_any_of_three_like_machines_may_be_lost_and_the_workers_still_fit(lost: int) -> None:
    asked = share_of(1.0, share_that_fits([1.0] * 6, nodes(2, 2, 2)))
    rooms = [2.0, 2.0, 2.0]
    del rooms[lost]
    assert fits_in_any_order([asked] * 6, rooms)


def test_where_one_machine_is_most_of_the_cluster_its_cores_are_counted() -> None:
    # Sixty-six workers that all fit two cores would crowd there.
    assert share_that_fits([1.0] * 66, nodes(64, 2)) > 0.9


def test_a_machine_that_is_dead_has_no_room() -> None:
    dead = Node(node_id="dead", address="10.0.0.1", is_alive=False, free={"CPU": 64.0})
    assert share_that_fits([1.0] * 4, [dead, *nodes(2)]) == 0.5


def test_what_a_worker_waits_for_is_said_with_what_is_free() -> None:
    assert needs(1.0, 0.5) == "1 CPU and 0.5 GPU"
    assert free_places(nodes(0.25, 2)) == "10.0.0.1 0.25 of 8 CPU; 10.0.0.2 2 of 8 CPU"


class Machines:
    """A world of machines, in which a test says which of them answer and what time it is."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.silent: set[str] = set()
        self.listed = nodes(2, 2)
        self.watch = ClusterWatch(
            head=("head", 6379), list_nodes=lambda: self.listed, is_there=self.is_there, clock=lambda: self.now_s
        )

    def is_there(self, address: str, port: int) -> bool:
        return address not in self.silent

    def go_on(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 3.0
            self.watch.check_all()


def test_a_machine_that_was_cut_off_for_a_moment_has_not_answered_all_the_time() -> None:
    world = Machines()
    world.go_on(60)
    assert world.watch.has_answered("id2", for_s=30)
    world.silent = {"10.0.0.2"}
    world.go_on(6)
    assert not world.watch.has_answered("id2", for_s=0)
    world.silent = set()
    world.go_on(12)
    assert world.watch.has_answered("id2", for_s=0)
    assert not world.watch.has_answered("id2", for_s=30), "a call of 30 s may have lost its answer"
    assert world.watch.has_answered("id1", for_s=30)


def test_nothing_is_placed_on_a_machine_that_does_not_answer_and_that_ray_counts_on() -> None:
    world = Machines()
    world.silent = {"10.0.0.2"}
    world.go_on(3)
    assert world.watch.lost() == ["id2"]
    world.listed = [world.listed[0], Node(node_id="id2", address="10.0.0.2", is_alive=False)]
    world.go_on(3)
    assert world.watch.lost() == [], "Ray knows by itself"


def test_a_head_that_is_silent_for_long_is_gone_and_one_that_comes_back_is_not() -> None:
    world = Machines()
    world.silent = {"head"}
    world.go_on(15)
    assert not world.watch.head_is_gone
    world.silent = set()
    world.go_on(3)
    world.silent = {"head"}
    world.go_on(18)
    assert not world.watch.head_is_gone
    world.go_on(6)
    assert world.watch.head_is_gone


def test_a_port_answers_where_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert answers("127.0.0.1", port)
    assert not answers("127.0.0.1", port)
