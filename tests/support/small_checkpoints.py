"""Checkpoints of every family with random weights, and what a run of settings that do not fit them is refused with."""

from __future__ import annotations

import dataclasses

import pytest

from operators.errors import CheckpointError, ConfigError
from operators.weights import checkpoints
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import Header, SkipSpec
from pipeline.config import CONFIGS, Config, parse
from pipeline.families import family_named
from pipeline.families.untrained import untrained
from pipeline.plan.compatibility import check
from pipeline.plan.placement import Machine
from tests.support.looking import make_config

MACHINE = Machine(num_cores=2, memory_bytes=8 << 30)
SHIPPED = CONFIGS / "weights" / "small_synth.safetensors"
GFNET = {
    "model__family": "gfnet",
    "model__glance_backbone": "small_focus",
    "glance__size_px": 24,
    "sampling__num_frames": 1,
}
TSM = {"model__family": "adafocus_tsm", "sampling__num_frames": 4, "sampling__num_focus_frames": 6}
BUDGET = {"stop__kind": "budget", "stop__budget_gmacs": 0.06}
SKIP = SkipSpec(
    policy_hidden=256, classifier_hidden=128, price_tables={"glance": ((0.01, 0.8), (0.1, 0.2)), "classifier": ()}
)


def refused(checkpoint: Checkpoint | None = None, **settings: object) -> str:
    """What a run of these settings is refused with."""
    config = make_config(**settings)
    with pytest.raises((ConfigError, CheckpointError)) as error:
        check(config, checkpoint or untrained(config))
    text = str(error.value)
    assert "\n" not in text
    return text


def with_header(checkpoint: Checkpoint, **fields: object) -> Checkpoint:
    return Checkpoint(header=dataclasses.replace(checkpoint.header, **fields), sections=checkpoint.sections)


def trained(**settings: object) -> Checkpoint:
    return untrained(make_config(**settings))


def shipped(**settings: object) -> tuple[Config, Header]:
    """The checkpoint that ships, under the settings of its preset."""
    header = checkpoints.load(SHIPPED).header
    given = {name.replace("__", "."): value for name, value in settings.items()}
    config = parse({"model.checkpoint": str(SHIPPED), **given})
    return config.filled_in(family_named(header.family).settings_of(header)), header
