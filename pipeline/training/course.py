"""What a course is: everything that the stages of one family's training do in a way of their own."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from operators.errors import ConfigError
from operators.weights.header import Header
from pipeline.config.training import Settings, Stage
from pipeline.families import NAMES, family_named
from pipeline.training.clips import Clips
from pipeline.training.frame_cache import Read
from pipeline.training.journal import Journal
from pipeline.training.model import Parts
from pipeline.training.scoring import SubsetScore
from pipeline.training.subsets import Subsets
from policies.base import Policy

if TYPE_CHECKING:
    from operators.media.decode import ReadLimits


class Course(ABC, Generic[Settings]):
    """One family's training. `sequence.py` runs its stages one after another and knows no family."""

    family: str
    stages: tuple[Stage, ...]
    """What `all` trains, in the order in which the stages build on one another."""
    comparisons: tuple[Stage, ...] = ()
    """Stages that are trained only where they are asked for by name; nothing is built on them."""
    sections_after: ClassVar[Mapping[Stage, tuple[str, ...]]]
    """The sections of a checkpoint that are trained, or at least begun, when a stage is over."""

    @abstractmethod
    def reader(self, settings: Settings, limits: ReadLimits, candidates: int) -> Read:
        """What reads the frames of a video that the stages see, with so many candidates for each step."""

    @abstractmethod
    def new_header(self, settings: Settings, class_names: Sequence[str], stage: Stage) -> Header:
        """The header of a checkpoint after all stages; the fresh networks of a stage are made from it."""

    @abstractmethod
    def begin(self, parts: Parts, settings: Settings) -> None:
        """Fills fresh networks with the weights that the settings name as a beginning."""

    @abstractmethod
    def train_stage(
        self, stage: Stage, parts: Parts, settings: Settings, subsets: Subsets, journal: Journal
    ) -> dict[str, float]:
        """Trains one stage, from its saved state where there is one, and gives its last scores."""

    @abstractmethod
    def glances_of(self, parts: Parts, settings: Settings, clips: Clips) -> Any:
        """Everything that the resting glance network sees of the clips, to be kept for the later stages."""

    @abstractmethod
    def score(self, parts: Parts, settings: Settings, clips: Clips, policy: Policy, glances: Any) -> SubsetScore:
        """How good the networks are on the clips where this policy looks. `glances`: those kept, or None."""

    def ordered(self, stages: Iterable[str]) -> list[Stage]:
        """The stages asked for, in their order. One that the course does not have raises ConfigError."""
        there = (*self.stages, *self.comparisons)
        asked = list(stages)
        if unknown := [name for name in asked if name not in there]:
            raise ConfigError(f"{self.family} has no stage {unknown[0]!r}; there are {', '.join(there)}, all")
        return [stage for stage in there if stage in asked]


def course_of(family: str) -> Course[Any]:
    """The course by which a family is trained; ConfigError where it has none."""
    place = family_named(family).training
    if place is None:
        trained = [name for name in NAMES if family_named(name).training is not None]
        raise ConfigError(
            f"{family} cannot be trained here, its published weights are used as they are: "
            f"train {' or '.join(trained)}"
        )
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
