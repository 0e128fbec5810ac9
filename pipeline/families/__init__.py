"""The published families of models. A family is one folder here and one line in the table below.

This file imports nothing heavy, so that settings can be checked before torch is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from operators.errors import CheckpointError

if TYPE_CHECKING:
    from pipeline.families.family import Family

_PLACES = {
    "adafocus": "pipeline.families.adafocus.family:ADAFOCUS",
    # Before adafocus_tsm, which takes any other file that is a lone state_dict for its pre-training.
    "adafocus_v2": "pipeline.families.adafocus_v2.family:ADAFOCUS_V2",
    "gfnet": "pipeline.families.gfnet.family:GFNET",
    "adafocus_tsm": "pipeline.families.adafocus_tsm.family:ADAFOCUS_TSM",
}
NAMES = tuple(_PLACES)


def family_named(name: str) -> Family:
    """The family of this name, loaded when it is asked for."""
    if name not in _PLACES:
        raise CheckpointError(f"the family {name} is not known; known are {', '.join(NAMES)}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def every_family() -> list[Family]:
    """All families, in the order in which a foreign checkpoint file is shown to them."""
    return [family_named(name) for name in NAMES]
