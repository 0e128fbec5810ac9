"""The mathematics of proximal policy optimisation. Time runs along the second axis: [B,T]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


def discounted_returns(rewards: torch.Tensor, *, gamma: float) -> torch.Tensor:
    """Returns R_t = r_t + gamma R_{t+1}: [B,T] -> [B,T]."""
    out = torch.empty_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = rewards[:, t] + gamma * running
        out[:, t] = running
    return out


def normalise(returns: torch.Tensor) -> torch.Tensor:
    """Shifts and scales the returns to zero mean and unit spread over all values; the spread is the unbiased one."""
    if returns.numel() < 2:
        raise ValueError("the unbiased spread of fewer than two returns does not exist")
    return (returns - returns.mean()) / (returns.std(unbiased=True) + 1e-5)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PpoLoss:
    """The loss and its parts, each a scalar."""

    total: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor
    entropy: torch.Tensor


def ppo_loss(
    *,
    log_prob: torch.Tensor,
    old_log_prob: torch.Tensor,
    value: torch.Tensor,
    entropy: torch.Tensor,
    returns: torch.Tensor,
    clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
) -> PpoLoss:
    """Returns the loss: clipped surrogate, squared error of the value, entropy bonus.

    All tensors have one shape, and the returns are normalised already.
    The advantage is the return less the value, and carries no gradient.
    """
    advantage = (returns - value).detach()
    ratio = torch.exp(log_prob - old_log_prob.detach())
    clipped = ratio.clamp(1 - clip, 1 + clip)
    policy = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = torch.mean((value - returns) ** 2)
    bonus = entropy.mean()
    total = policy + value_weight * value_loss - entropy_weight * bonus
    return PpoLoss(total=total, policy=policy, value=value_loss, entropy=bonus)


def categorical_log_prob(logits: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
    """Returns the log-probability of the chosen actions: logits [...,A], choice int64 [...] -> [...]."""
    return torch.log_softmax(logits, dim=-1).gather(-1, choice.unsqueeze(-1)).squeeze(-1)


def categorical_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Returns the entropy in nats: logits [...,A] -> [...]."""
    log_probability = torch.log_softmax(logits, dim=-1)
    return -(log_probability.exp() * log_probability).sum(dim=-1)


def gaussian_log_prob(mean: torch.Tensor, action: torch.Tensor, *, std: float) -> torch.Tensor:
    """Returns the log-density of independent normals of the same spread: [...,2] -> [...].

    `std` is a standard deviation, not a variance.
    The action is the clipped one, as published, although the density is that of the unclipped draw.
    """
    distance = ((action - mean) / std) ** 2
    return (-0.5 * distance - math.log(std) - 0.5 * math.log(2 * math.pi)).sum(dim=-1)


def gaussian_entropy(mean: torch.Tensor, *, std: float) -> torch.Tensor:
    """Returns the entropy, [...,2] -> [...]: it depends on the spread alone, so it only shifts the loss."""
    each = 0.5 + 0.5 * math.log(2 * math.pi) + math.log(std)
    return torch.full_like(mean[..., 0], each * mean.shape[-1])
