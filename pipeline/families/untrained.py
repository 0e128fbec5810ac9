"""Networks with seeded random weights, for trying a pipeline out and for tests of everything but accuracy."""

from __future__ import annotations

import torch

from operators.weights.checkpoints import Checkpoint
from pipeline.config import Config
from pipeline.families import family_named
from pipeline.families.parts import modules_of

SMALL = ("small_glance", "small_focus")


def untrained(config: Config) -> Checkpoint:
    """A whole checkpoint of the family and networks that the settings name. The same seed gives the same weights."""
    header = family_named(config.model.family).untrained_header(config)
    state = torch.random.get_rng_state()
    torch.manual_seed(config.compute.seed)
    try:
        modules = modules_of(header)
    finally:
        torch.random.set_rng_state(state)
    parts = {
        "glancer": modules.glancer,
        "focuser": modules.focuser,
        "classifier": modules.classifier,
        "policy": modules.policy,
    }
    sections = {name: module.state_dict() for name, module in parts.items()}
    return Checkpoint(header=header, sections=sections, path="untrained weights")
