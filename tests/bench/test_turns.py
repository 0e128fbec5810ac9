"""Sides that are measured in turn."""

from __future__ import annotations

from pipeline.bench.turns import take_turns
from tests.bench.samples import quiet


def test_the_order_of_the_sides_turns_from_round_to_round() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = take_turns(
        {"a": lambda: side("a"), "b": lambda: side("b")}, rounds=3, budget_s=100.0, say=quiet, clock=lambda: 0.0
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert samples == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_a_round_that_would_not_fit_is_not_begun() -> None:
    now_s = 0.0

    def side() -> float:
        nonlocal now_s
        now_s += 4.0
        return 4.0

    samples = take_turns({"a": side}, rounds=9, budget_s=11.0, say=quiet, clock=lambda: now_s)
    assert samples == {"a": [4.0, 4.0]}
    now_s = 0.0
    samples = take_turns({"a": side}, rounds=9, budget_s=1.0, say=quiet, clock=lambda: now_s)
    assert samples == {"a": [4.0]}, "at least one round is measured"
