"""Classifiers: what turns the features of a clip's steps into logits. State is a tensor with one row per clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def join_features(glance: Tensor, focus: Tensor | None, focus_features: int) -> Tensor:
    """[...,C] and [...,D] -> [...,C+D], global first as published; no focus means zeros in its place."""
    if focus is None:
        focus = glance.new_zeros((*glance.shape[:-1], focus_features))
    return torch.cat((glance, focus), dim=-1)


class GRUClassifier(nn.Module):
    """GRU, dropout, linear: the logits of every step know all steps before it."""

    def __init__(self, *, in_features: int, hidden: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features = in_features
        self.hidden = hidden
        self.num_classes = num_classes
        self.gru = nn.GRU(in_features, hidden)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def initial_state(self, n: int) -> Tensor:
        """[n,hidden] of zeros"""
        return self.fc.weight.new_zeros((n, self.hidden))

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """state [B,hidden], x [B,D] -> state [B,hidden], logits [B,K]"""
        logits, state = self(x[:, None], state)
        return state, logits[:, 0]

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All steps at once: [B,T,D] -> logits [B,T,K] and the state after the last. Equal to T steps."""
        states = self._states(x, state)
        return self.fc(self.dropout(states)).transpose(0, 1), states[-1]

    def states(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """[B,T,D] -> the state after each step, [B,T,hidden]"""
        return self._states(x, state).transpose(0, 1)

    def _states(self, x: Tensor, state: Tensor | None) -> Tensor:
        """[T,B,hidden]. Steps lie first: only then does torch multiply those of all clips by the input's weights at
        once (two clips of 16 steps, 3328 features: 21 ms a clip, and 52 where clips lie first)."""
        hidden = None if state is None else state[None].contiguous()
        return self.gru(x.transpose(0, 1).contiguous(), hidden)[0]


class CascadedClassifier(nn.Module):
    """Step k is a linear layer of its own over all k features so far; clips of one call are at the same step."""

    def __init__(self, *, in_features: int, num_steps: int, num_classes: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_steps = num_steps
        self.num_classes = num_classes
        for k in range(1, num_steps + 1):
            setattr(self, f"fc_{k}", nn.Linear(k * in_features, num_classes))

    def initial_state(self, n: int) -> Tensor:
        """[n,0]: the features so far, none"""
        return next(self.parameters()).new_zeros((n, 0))

    def step(self, state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """state [B,(k-1)*D], x [B,D] -> state [B,k*D], logits [B,K]"""
        k = state.shape[1] // self.in_features + 1
        if k > self.num_steps:
            raise ValueError(f"step {k} of a classifier that has {self.num_steps}")
        layer: nn.Linear = getattr(self, f"fc_{k}")
        state = torch.cat((state, x), dim=1)
        return state, layer(state)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B,T,D] -> logits [B,T,K] and the state after the last"""
        state = self.initial_state(len(x)) if state is None else state
        logits = []
        for t in range(x.shape[1]):
            state, step_logits = self.step(state, x[:, t])
            logits.append(step_logits)
        return torch.stack(logits, dim=1), state


class AverageClassifier(nn.Module):
    """Sum of two means: of the glance's own logits over its frames, and of a linear layer over the focused ones."""

    def __init__(self, *, in_features: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_features = in_features
        self.num_classes = num_classes
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(in_features, num_classes)

    def forward(self, glance_logits: Tensor, focus_features: Tensor | None) -> Tensor:
        """[B,T,K] and [B,T',D] -> logits [B,K]; without focused frames the glance's mean alone"""
        logits = glance_logits.mean(1)
        if focus_features is None or focus_features.shape[1] == 0:
            return logits
        return logits + self.fc(self.dropout(focus_features)).mean(1)


class MaxClassifier(nn.Module):
    """Linear, batch norm, ReLU, then each feature's largest value so far; every step has a linear layer of its own.

    The state is those largest values. All clips of one call are at the same step.
    """

    def __init__(
        self, *, in_features: int, hidden: int, num_steps: int, num_classes: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.hidden = hidden
        self.num_steps = num_steps
        self.num_classes = num_classes
        self.mlp = nn.Sequential(nn.Linear(in_features, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(hidden, num_classes) for _ in range(num_steps))

    def initial_state(self, n: int) -> Tensor:
        """[n,hidden] of zeros, which no feature after a ReLU is below"""
        return self.mlp[0].weight.new_zeros((n, self.hidden))  # type: ignore[operator]

    def forward(self, x: Tensor, state: Tensor | None = None, *, first_step: int = 0) -> tuple[Tensor, Tensor]:
        """[B,T,D], the steps from `first_step` on -> logits [B,T,K] and the state after the last"""
        num_clips, num_steps = x.shape[:2]
        if first_step + num_steps > self.num_steps:
            raise ValueError(f"step {first_step + num_steps} of a classifier that has {self.num_steps}")
        state = self.initial_state(num_clips) if state is None else state
        features = self.mlp(x.flatten(0, 1)).unflatten(0, (num_clips, num_steps))
        logits = []
        for t in range(num_steps):
            state = torch.maximum(state, features[:, t])
            logits.append(self.heads[first_step + t](self.dropout(state)))
        return torch.stack(logits, dim=1), state


Classifier = GRUClassifier | CascadedClassifier | AverageClassifier | MaxClassifier


def build_classifier(
    kind: str, *, in_features: int, num_classes: int, hidden: int = 0, num_steps: int = 0, dropout: float = 0.0
) -> Classifier:
    """A classifier with fresh weights: `gru` (`hidden`), `cascaded` (`num_steps`), `average`, or `max` (`hidden`
    and `num_steps`)."""
    match kind:
        case "gru":
            return GRUClassifier(in_features=in_features, hidden=hidden, num_classes=num_classes, dropout=dropout)
        case "cascaded":
            return CascadedClassifier(in_features=in_features, num_steps=num_steps, num_classes=num_classes)
        case "average":
            return AverageClassifier(in_features=in_features, num_classes=num_classes, dropout=dropout)
        case "max":
            return MaxClassifier(
                in_features=in_features, hidden=hidden, num_steps=num_steps, num_classes=num_classes, dropout=dropout
            )
    raise ValueError(f"classifier {kind!r} is not known")
