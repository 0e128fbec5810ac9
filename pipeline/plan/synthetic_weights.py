"""Whether a checkpoint knows only the classes of the synthetic archive, so that its labels of footage mean nothing."""

from __future__ import annotations

import re

from operators.weights.header import Header

_NEEDLE = re.compile(r"(red|blue|yellow|green|purple|teal)-\d{3}")
_DIRECTIONS = frozenset(("right", "up-right", "up", "up-left", "left", "down-left", "down", "down-right"))


def knows_only_synthetic(header: Header) -> bool:
    """Whether the checkpoint was trained by a preset of the synthetic archive, for classes named as that names them.

    The preset alone is no proof, since people train on their own videos with it; nor are names like `left` and `right`.
    """
    names = header.class_names or ()
    if not names or not str(header.training.get("preset", "")).startswith("train_synth"):
        return False
    return all(_NEEDLE.fullmatch(name) for name in names) or _DIRECTIONS.issuperset(names)


def synthetic_warning(header: Header) -> str:
    """The sentence that a user of such a checkpoint should read."""
    return (
        f"these weights know {header.num_classes} classes of a synthetic world only: labels of real footage mean "
        "nothing; give a published checkpoint, or train one (see the README)"
    )
