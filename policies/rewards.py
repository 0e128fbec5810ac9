"""The rewards of the location policy: each is a function of the true class's probability, [B,T] -> [B,T]."""

from __future__ import annotations

from typing import Literal

import torch

RewardKind = Literal["random", "previous", "confidence"]


def random_reward(probability: torch.Tensor, random_probability: torch.Tensor) -> torch.Tensor:
    """Rewards a patch by how much it beats one drawn at random in the same frame, from the same state before it."""
    return probability - random_probability


def previous_reward(probability: torch.Tensor) -> torch.Tensor:
    """Rewards a step by how much it raised the probability; the first step is measured against zero."""
    before = torch.cat([torch.zeros_like(probability[:, :1]), probability[:, :-1]], dim=1)
    return probability - before


def confidence_reward(probability: torch.Tensor) -> torch.Tensor:
    """Rewards a step with the probability itself."""
    return probability
