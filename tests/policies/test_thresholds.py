"""The search for thresholds, on tables small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from policies.thresholds import (
    NEVER_STOPS,
    accuracy_at,
    constant_for_budget,
    direct_for_budget,
    exit_shares,
    exit_steps,
    geometric_for_budget,
    geometric_thresholds,
    mean_cost,
)

# Five clips, three steps.
CONFIDENCES = np.array(
    [
        [0.9, 0.95, 0.99],
        [0.8, 0.85, 0.90],
        [0.3, 0.70, 0.80],
        [0.2, 0.40, 0.60],
        [0.1, 0.60, 0.70],
    ]
)
CORRECT = np.array(
    [
        [True, True, True],
        [False, True, True],
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
)
COSTS = np.array([1.0, 2.0, 4.0])


def test_exit_shares_are_geometric():
    assert exit_shares(0.5, 3).tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert exit_shares(1.0, 4).tolist() == pytest.approx([0.25] * 4)
    assert np.isfinite(exit_shares(4e6, 100)).all()


def test_the_published_search_on_a_table_worked_out_by_hand():
    # q=1: shares 1/3 each, floor(5/3) = 1 clip per step. Step 0: clip 0 sets 0.9 and leaves. Step 1: of the
    # rest clip 1 is surest and sets 0.85. The last step lets everything out.
    assert geometric_thresholds(CONFIDENCES, 1.0).tolist() == [0.9, 0.85, -NEVER_STOPS]


def test_no_clip_leaves_at_a_step_whose_share_is_less_than_one_clip():
    # q=4: shares 1/21, 4/21, 16/21, so 0 clips, then floor(20/21) = 0 clips.
    assert geometric_thresholds(CONFIDENCES, 4.0).tolist() == [NEVER_STOPS, NEVER_STOPS, -NEVER_STOPS]


def test_a_tie_leaves_together():
    tied = np.array([[0.9, 0.9, 1], [0.9, 0.8, 1], [0.1, 0.3, 1]])
    # One clip per step, but both clips at 0.9 leave, so the third sets step 1.
    assert geometric_thresholds(tied, 1.0)[:2].tolist() == [0.9, 0.3]


def test_exits_cost_and_accuracy_of_a_table():
    exits = exit_steps(CONFIDENCES, np.array([0.9, 0.7, 0.99]))
    assert exits.tolist() == [0, 1, 1, 2, 2]
    assert mean_cost(exits, COSTS) == pytest.approx((1 + 2 + 2 + 4 + 4) / 5)
    assert accuracy_at(exits, CORRECT) == pytest.approx(80.0)


def test_costs_may_differ_from_clip_to_clip():
    costs = np.stack([COSTS * k for k in (1, 1, 2, 1, 1)])
    assert mean_cost(np.array([0, 1, 1, 2, 2]), costs) == pytest.approx((1 + 2 + 4 + 4 + 4) / 5)


def test_one_constant_threshold_is_the_highest_that_fits_the_budget():
    # At 0.7: exits 0 0 1 2 2, cost (1+1+2+4+4)/5 = 2.4. At 0.8: exits 0 0 2 2 2, cost 2.8 - too dear for 2.5.
    thresholds = constant_for_budget(CONFIDENCES, COSTS, 2.5)
    assert thresholds is not None
    assert thresholds.tolist() == [0.7, 0.7, -NEVER_STOPS]


def test_a_budget_that_nothing_fits_has_no_threshold():
    assert constant_for_budget(CONFIDENCES, COSTS, 0.9) is None
    assert geometric_for_budget(CONFIDENCES, COSTS, 0.9) is None
    assert direct_for_budget(CONFIDENCES, CORRECT, COSTS, 0.9) is None


def test_a_budget_for_everything_never_stops_before_the_last_step():
    thresholds = direct_for_budget(CONFIDENCES, CORRECT, COSTS, 4.0)
    assert thresholds is not None
    assert exit_steps(CONFIDENCES, thresholds).tolist() == [2] * 5


def test_the_direct_search_forbids_a_first_step_that_is_sure_and_wrong():
    # From step 0 on, the highest threshold that fits 2.6 is 0.7: clip 1 leaves at once and is wrong, 3 of 5
    # right. From step 1 on, 0.60 fits: exits 1 1 1 2 1, cost (2+2+2+4+2)/5 = 2.4: clips 0 to 3 are right.
    thresholds = direct_for_budget(CONFIDENCES, CORRECT, COSTS, 2.6)
    assert thresholds is not None
    assert thresholds.tolist() == [NEVER_STOPS, 0.6, -NEVER_STOPS]
    assert accuracy_at(exit_steps(CONFIDENCES, thresholds), CORRECT) == pytest.approx(80.0)


def test_on_many_clips_both_searches_meet_the_budget_closely():
    rng = np.random.default_rng(0)
    easy = rng.random((3000, 1))
    confidences = np.clip(easy + np.linspace(0, 0.4, 8) + rng.normal(0, 0.1, (3000, 8)), 0, 1.5)
    costs = np.arange(1, 9, dtype=float)
    for budget in (2.0, 4.0, 6.0):
        for thresholds in (
            geometric_for_budget(confidences, costs, budget),
            constant_for_budget(confidences, costs, budget),
        ):
            assert thresholds is not None
            cost = mean_cost(exit_steps(confidences, thresholds), costs)
            assert 0.97 * budget <= cost <= budget
