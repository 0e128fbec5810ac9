"""Rewards of the location policy: each a function of the true class's probability. [B,T] in, [B,T] out."""

from __future__ import annotations

from typing import Literal

import torch

RewardKind = Literal["random", "previous", "confidence"]


def random_reward(probability: torch.Tensor, random_probability: torch.Tensor) -> torch.Tensor:
    """By how much the chosen patch beats one drawn at random in the same frame, from the same state before
    it.
    """
    return probability - random_probability


def previous_reward(probability: torch.Tensor) -> torch.Tensor:
    """By how much a step raised the probability; the first step is measured against zero."""
    before = torch.cat([torch.zeros_like(probability[:, :1]), probability[:, :-1]], dim=1)
    return probability - before


def confidence_reward(probability: torch.Tensor) -> torch.Tensor:
    """The probability itself."""
    return probability


def skip_return(final_log_probability: torch.Tensor, focus: torch.Tensor, price: torch.Tensor) -> torch.Tensor:
    """[B]: what a clip's skipping was worth: how well it ends less what its focuses cost. Own design.

    final_log_probability [B] of the true class after the last step, focus bool [B,T], price [B] per focused
    frame.
    """
    return final_log_probability - price * focus.sum(dim=1)


def leave_one_out(returns: torch.Tensor) -> torch.Tensor:
    """[R,B] returns of R roll-outs of the same clips -> advantages against the mean of the other R - 1."""
    rollouts = returns.shape[0]
    if rollouts < 2:
        raise ValueError("the leave-one-out baseline needs at least two roll-outs")
    return (returns - returns.mean(dim=0, keepdim=True)) * (rollouts / (rollouts - 1))
