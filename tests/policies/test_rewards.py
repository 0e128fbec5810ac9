"""Rewards, by hand."""

from __future__ import annotations

import pytest
import torch

from policies.rewards import confidence_reward, previous_reward, random_reward

CHOSEN = torch.tensor([[0.2, 0.5, 0.4]])


def test_against_a_random_patch_only_the_difference_counts():
    assert random_reward(CHOSEN, torch.tensor([[0.3, 0.1, 0.4]]))[0].tolist() == pytest.approx([-0.1, 0.4, 0])


def test_against_the_step_before_the_first_is_measured_from_zero():
    assert previous_reward(CHOSEN)[0].tolist() == pytest.approx([0.2, 0.3, -0.1])


def test_the_confidence_is_its_own_reward():
    assert confidence_reward(CHOSEN).tolist() == CHOSEN.tolist()
