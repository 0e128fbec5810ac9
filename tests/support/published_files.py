"""Checkpoint files in the published forms whose tensors are all zero: full-size names and shapes in a few kilobytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.parity.files import keys

Weights = dict[str, torch.Tensor]


def on_zero_memory(shapes: dict[str, list[int]]) -> Weights:
    """Makes tensors of these shapes that together are a few bytes in a file: every value is one and the same zero."""
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def adafocus_file(path: Path, *, stage: int = 3, **changes: Any) -> Path:
    shapes = keys("adafocus_actnet")
    focuser = shapes["focuser"] if stage >= 2 else shapes["_focuser_when_saved_with_random_patch_true"]
    content: dict[str, Any] = {
        "epoch": 3,
        "model_state_dict": {},
        "glancer": on_zero_memory(shapes["glancer"]),
        "focuser": on_zero_memory(focuser),
        "fc": on_zero_memory(shapes["fc"]),
        "policy": on_zero_memory(shapes["policy"]) if stage >= 2 else None,
        "scaler": None,
        "acc": torch.tensor(70.0),
        "best_acc": torch.tensor([71.0]),
        "optimizer": None,
    }
    torch.save(content | changes, path)
    return path
