"""When to stop: rules as values, and the mathematics that finds their thresholds. Steps count from 0 here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from operators.errors import ConfigError

Measure = Literal["softmax", "logit"]
"""What confidence is: the leading class's probability (GFNet), or its raw logit (AdaFocus's successors)."""

NEVER_STOPS = 1e8
"""A threshold that no confidence reaches."""


def confidence(logits: torch.Tensor, measure: Measure) -> torch.Tensor:
    """[...,K] -> [...]"""
    if measure == "softmax":
        logits = torch.softmax(logits.float(), dim=-1)
    return logits.amax(dim=-1)


class StopRule(Protocol):
    """Says after each classified step which clips are sure enough. State is the clip's own number of steps,
    [B].
    """

    def initial_state(self, num_clips: int) -> torch.Tensor: ...

    def stop(self, logits: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [B,K] of the step just classified -> stop bool [B], state. Row i in is row i out."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Never:
    """Every clip takes all its steps."""

    def initial_state(self, num_clips: int) -> torch.Tensor:
        return torch.zeros(num_clips, dtype=torch.int64)

    def stop(self, logits: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(state), dtype=torch.bool), state + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Confidence:
    """A clip stops after the first step whose confidence reaches that step's threshold."""

    thresholds: tuple[float, ...]
    """One number per step, or one for all of them. The last step ends a clip in any case."""
    measure: Measure = "softmax"

    def __post_init__(self) -> None:
        if not self.thresholds:
            raise ConfigError("stop.thresholds is empty: give one number, or one per step")

    def initial_state(self, num_clips: int) -> torch.Tensor:
        return torch.zeros(num_clips, dtype=torch.int64)

    def stop(self, logits: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = torch.tensor(self.thresholds, dtype=torch.float64)
        if len(table) > 1 and bool((state >= len(table)).any()):
            raise ValueError(f"step {int(state.max())} has no threshold: there are {len(table)}")
        threshold = table.expand(len(state)) if len(table) == 1 else table[state]
        sure = confidence(logits, self.measure).detach().cpu().double() >= threshold
        return sure, state + 1


def checked_thresholds(thresholds: Sequence[float], *, num_steps: int) -> tuple[float, ...]:
    """The thresholds, one per step; a single number is repeated. Another count is a ConfigError."""
    values = tuple(float(v) for v in thresholds)
    if len(values) == 1:
        values = values * num_steps
    if len(values) != num_steps:
        raise ConfigError(
            f"stop.thresholds has {len(values)} numbers and a clip has {num_steps} steps: give one, or {num_steps}"
        )
    return values


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """One row of a calibration: thresholds, and what they gave where they were searched."""

    gmacs: float
    """Mean per clip."""
    score: float
    """Accuracy or mAP, in percent."""
    thresholds: tuple[float, ...]
    found_by: str = ""


def for_budget(points: Sequence[OperatingPoint], budget_gmacs: float, *, measure: Measure = "softmax") -> Confidence:
    """The rule that spends what was asked for: the point whose cost comes closest to the budget.

    A budget beyond the dearest point gives that point; one below the cheapest exit is a ConfigError.
    """
    if not points:
        raise ConfigError(
            "stop.kind=budget needs a calibrated checkpoint: run `calibrate`, or use stop.kind=confidence"
        )
    low, high = min(p.gmacs for p in points), max(p.gmacs for p in points)
    if budget_gmacs < low * (1 - 1e-9):
        raise ConfigError(
            f"stop.budget_gmacs={budget_gmacs:g} is below the cheapest exit: "
            f"this checkpoint is calibrated from {low:.4g} to {high:.4g} GMACs per clip"
        )
    best = min(points, key=lambda p: (abs(p.gmacs - budget_gmacs), -p.score))
    return Confidence(thresholds=best.thresholds, measure=measure)


def exit_shares(q: float, num_steps: int) -> np.ndarray:
    """float64 [T]: shares in proportion to q^k, k = 1..T, as published. Small q exits early, large q late."""
    # Divided by the largest power first: q^T overflows for the largest published q and many steps.
    powers = np.arange(1, num_steps + 1) * np.log(q)
    weights = np.exp(powers - powers.max())
    return weights / weights.sum()


def geometric_thresholds(confidences: np.ndarray, q: float) -> np.ndarray:
    """The published search: thresholds [T] at which exits are spread geometrically. confidences [N,T].

    At each step but the last the floor(N w_k) surest of the remaining samples set the threshold, and every remaining
    sample that reaches it leaves. The last threshold lets everything out.
    """
    num_samples, num_steps = confidences.shape
    shares = exit_shares(q, num_steps)
    thresholds = np.full(num_steps, NEVER_STOPS)
    remaining = np.ones(num_samples, dtype=bool)
    for k in range(num_steps - 1):
        wanted = int(np.floor(num_samples * shares[k]))
        order = np.argsort(-confidences[:, k], kind="stable")
        candidates = order[remaining[order]]
        # With fewer left than wanted the published walk never reaches its count, and the threshold stays out
        # of reach.
        if 0 < wanted <= len(candidates):
            thresholds[k] = confidences[candidates[wanted - 1], k]
            remaining &= confidences[:, k] < thresholds[k]
    thresholds[-1] = -NEVER_STOPS
    return thresholds


def exit_steps(confidences: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """int64 [N]: the first step whose confidence reaches its threshold; the last step ends every clip."""
    sure = confidences >= np.asarray(thresholds)[None, :]
    sure[:, -1] = True
    return sure.argmax(axis=1)


def mean_cost(exits: np.ndarray, costs: np.ndarray) -> float:
    """Mean of what was spent up to the exit. costs: cumulative, [T], or [N,T] where clips differ."""
    table = np.broadcast_to(costs, (len(exits), np.shape(costs)[-1]))
    return float(table[np.arange(len(exits)), exits].mean())


def accuracy_at(exits: np.ndarray, correct: np.ndarray) -> float:
    """Percent of clips that are right at their exit. correct: bool [N,T]."""
    return 100.0 * float(correct[np.arange(len(exits)), exits].mean())


def geometric_for_budget(
    confidences: np.ndarray, costs: np.ndarray, budget: float, *, rounds: int = 40
) -> np.ndarray | None:
    """Thresholds of the published form whose mean cost comes closest to the budget from below; None if none
    does.

    The published scripts list a fixed row of q; here q is bisected, so that any budget is met.
    """
    low, high = np.log(1e-3), np.log(1e3)
    best: np.ndarray | None = None
    best_cost = -np.inf
    for _ in range(rounds):
        middle = (low + high) / 2
        thresholds = geometric_thresholds(confidences, float(np.exp(middle)))
        cost = mean_cost(exit_steps(confidences, thresholds), costs)
        if cost <= budget:
            low = middle
            if cost > best_cost:
                best, best_cost = thresholds, cost
        else:
            high = middle
    return best


def constant_for_budget(
    confidences: np.ndarray, costs: np.ndarray, budget: float, *, first_step: int = 0
) -> np.ndarray | None:
    """One threshold for every step from `first_step` on, the highest whose mean cost fits; None if none does.

    Cost grows with the threshold, so it is bisected over the confidences that occur.
    """
    num_steps = confidences.shape[1]

    def table(value: float) -> np.ndarray:
        thresholds = np.full(num_steps, NEVER_STOPS)
        thresholds[first_step:] = value
        thresholds[-1] = -NEVER_STOPS
        return thresholds

    def fits(value: float) -> bool:
        return mean_cost(exit_steps(confidences, table(value)), costs) <= budget

    if fits(NEVER_STOPS):
        return table(NEVER_STOPS)
    values = np.unique(confidences[:, first_step:-1]) if first_step < num_steps - 1 else np.empty(0)
    if not len(values) or not fits(values[0]):
        return None
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(values[middle]):
            low = middle
        else:
            high = middle
    return table(float(values[low]))


def direct_for_budget(
    confidences: np.ndarray, correct: np.ndarray, costs: np.ndarray, budget: float
) -> np.ndarray | None:
    """The best constant threshold over every first step at which stopping is allowed; None if no budget is
    met.

    Two numbers, so little to overfit: with a threshold per step the search data decide more than the clips
    do.
    """
    best: np.ndarray | None = None
    best_score = -np.inf
    for first_step in range(confidences.shape[1]):
        thresholds = constant_for_budget(confidences, costs, budget, first_step=first_step)
        if thresholds is None:
            continue
        score = accuracy_at(exit_steps(confidences, thresholds), correct)
        if score > best_score:
            best, best_score = thresholds, score
    return best
