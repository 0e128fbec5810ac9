"""The search for the thresholds of a stop rule, on tables of what every step of N clips said and cost.

The tables are confidences [N,T], correct [N,T] and cumulative costs; steps count from 0.
"""

from __future__ import annotations

import numpy as np

NEVER_STOPS = 1e8
"""A threshold that no confidence reaches."""


def exit_shares(q: float, num_steps: int) -> np.ndarray:
    """Returns the share of clips that leaves at each step, float64 [T]: in proportion to q^k, k = 1..T, as published.

    A small q exits early, a large one late.
    """
    # Divided by the largest power first: q^T overflows for the largest published q and many steps.
    powers = np.arange(1, num_steps + 1) * np.log(q)
    weights = np.exp(powers - powers.max())
    return weights / weights.sum()


def geometric_thresholds(confidences: np.ndarray, q: float) -> np.ndarray:
    """Returns the thresholds [T] at which exits are spread geometrically, as published, for confidences [N,T].

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
        # With fewer left than wanted the published walk never reaches its count, and the threshold stays out of reach.
        if 0 < wanted <= len(candidates):
            thresholds[k] = confidences[candidates[wanted - 1], k]
            remaining &= confidences[:, k] < thresholds[k]
    thresholds[-1] = -NEVER_STOPS
    return thresholds


def exit_steps(confidences: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns the first step whose confidence reaches its threshold, int64 [N]; the last step ends every clip."""
    sure = confidences >= np.asarray(thresholds)[None, :]
    sure[:, -1] = True
    return sure.argmax(axis=1)


def mean_cost(exits: np.ndarray, costs: np.ndarray) -> float:
    """Returns the mean of what was spent up to the exit. costs: cumulative, [T], or [N,T] where clips differ."""
    table = np.broadcast_to(costs, (len(exits), np.shape(costs)[-1]))
    return float(table[np.arange(len(exits)), exits].mean())


def accuracy_at(exits: np.ndarray, correct: np.ndarray) -> float:
    """Returns the percentage of clips that are right at their exit. correct: bool [N,T]."""
    return 100.0 * float(correct[np.arange(len(exits)), exits].mean())


def geometric_for_budget(
    confidences: np.ndarray, costs: np.ndarray, budget: float, *, rounds: int = 40
) -> np.ndarray | None:
    """Returns thresholds of the published form whose mean cost comes closest to the budget from below, if any do.

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
    """Returns the highest threshold for all steps from `first_step` on whose mean cost fits; None if none does.

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
    """Returns the best constant threshold over every first step at which stopping is allowed; None if none fits.

    It searches two numbers, so there is little to overfit: with a threshold per step the search data decide more than
    the clips do.
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
