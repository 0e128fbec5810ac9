"""Stop rules: they decide after each classified step which clips are sure enough. Steps count from 0 here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from operators.errors import ConfigError

Measure = Literal["softmax", "logit"]
"""What confidence is: the leading class's probability (GFNet), or its raw logit (AdaFocus's successors)."""


def confidence(logits: torch.Tensor, measure: Measure) -> torch.Tensor:
    """Returns how sure each row of logits is: [...,K] -> [...]."""
    if measure == "softmax":
        logits = torch.softmax(logits.float(), dim=-1)
    return logits.amax(dim=-1)


class StopRule(Protocol):
    """Decides after each classified step which clips stop. The state is each clip's own number of steps, [B]."""

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
    """Returns the thresholds, one per step; a single number is repeated. Another count is a ConfigError."""
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
    """One row of a calibration: thresholds, and the cost and score that they had where they were searched."""

    gmacs: float
    """The mean per clip."""
    score: float
    """Accuracy or mAP, in percent."""
    thresholds: tuple[float, ...]
    found_by: str = ""


def for_budget(points: Sequence[OperatingPoint], budget_gmacs: float, *, measure: Measure = "softmax") -> Confidence:
    """Returns the rule that spends what was asked for: that of the point whose cost comes closest to the budget.

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
