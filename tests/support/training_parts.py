"""Fresh networks for tests of training, made as a stage makes them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.training import TrainSettings
from pipeline.training.course import course_of
from pipeline.training.model import Parts, new_parts


def fresh_parts(settings: TrainSettings, class_names: Sequence[str]) -> Parts:
    return new_parts(course_of(settings.family).new_header(settings, class_names, "1"), settings)
