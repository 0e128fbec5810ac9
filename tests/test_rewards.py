"""Rewards, by hand."""

from __future__ import annotations

import pytest
import torch

from policies.rewards import (
    confidence_reward,
    leave_one_out,
    previous_reward,
    random_reward,
    skip_return,
)

CHOSEN = torch.tensor([[0.2, 0.5, 0.4]])


def test_against_a_random_patch_only_the_difference_counts():
    assert random_reward(CHOSEN, torch.tensor([[0.3, 0.1, 0.4]]))[0].tolist() == pytest.approx([-0.1, 0.4, 0])


def test_against_the_step_before_the_first_is_measured_from_zero():
    assert previous_reward(CHOSEN)[0].tolist() == pytest.approx([0.2, 0.3, -0.1])


def test_the_confidence_is_its_own_reward():
    assert confidence_reward(CHOSEN).tolist() == CHOSEN.tolist()


def test_each_focus_takes_its_price_from_a_clips_return():
    focus = torch.tensor([[True, False, True], [False, False, False]])
    returns = skip_return(torch.tensor([-0.1, -2.0]), focus, torch.tensor([0.05, 0.05]))
    assert returns.tolist() == pytest.approx([-0.2, -2.0])


def test_a_roll_out_is_measured_against_the_mean_of_the_others():
    # 3 against (1+2)/2, 1 against 2.5, 2 against 2.
    advantages = leave_one_out(torch.tensor([[3.0], [1.0], [2.0]]))
    assert advantages.flatten().tolist() == pytest.approx([1.5, -1.5, 0.0])
    with pytest.raises(ValueError, match="two"):
        leave_one_out(torch.zeros(1, 4))
