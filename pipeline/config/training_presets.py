"""The `train` section of a config -> the settings of the training stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from operators.errors import ConfigError
from pipeline.config.training import PRESETS, TrainSettings, changed
from pipeline.config.training_motion import MOTION_PRESETS

ALL_PRESETS: Mapping[str, Callable[[], TrainSettings]] = PRESETS | MOTION_PRESETS


def settings_of(train: Mapping[str, Any]) -> TrainSettings:
    """A preset's settings, with what differs from it by dotted names or nested groups. The preset decides which family
    is trained, and with it which settings there are."""
    values = dict(train)
    preset = values.pop("preset", None)
    if preset not in ALL_PRESETS:
        raise ConfigError(
            f"train.preset={preset}: give --config train_synth or train_activitynet, or one of {', '.join(ALL_PRESETS)}"
        )
    return changed(ALL_PRESETS[preset](), values)
