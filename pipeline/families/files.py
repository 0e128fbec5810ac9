"""Checkpoint files of any known form: the project's own, and those that the families' authors publish."""

from __future__ import annotations

import os

from operators.errors import CheckpointError
from operators.weights import checkpoints
from operators.weights.checkpoints import Checkpoint
from pipeline.families import NAMES, every_family


def load_checkpoint_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a checkpoint, of this project or as published by its authors; a file that asks to run code is refused."""
    checkpoint = checkpoints.load(path, readers=[family.read_published for family in every_family()])
    if checkpoint.header.family not in NAMES:
        raise CheckpointError(
            f"{checkpoint.path} is of the family {checkpoint.header.family}, which is not known; known are "
            f"{', '.join(NAMES)}"
        )
    return checkpoint
