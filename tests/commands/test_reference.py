"""The configuration reference says what the schema says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.commands.reference import reference
from pipeline.config import known_settings
from pipeline.config.training_motion import train_synth_motion

DOC = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_reference_in_docs_is_made_from_the_schema() -> None:
    assert DOC.read_text() == reference(), "run: python -m pipeline.commands.reference > docs/configuration.md"


def test_every_setting_is_in_it() -> None:
    text = reference()
    missing = [name for name in known_settings() if name != "train" and f"`{name}`" not in text]
    assert missing == []


def test_every_setting_of_training_is_in_it_with_each_presets_value() -> None:
    text = reference()
    tree = train_synth_motion().model_dump()
    names = list(_names(tree, "train"))
    assert "train.warmup.optimiser.kind" in names and "train.policy_std" in names
    assert [name for name in names if f"| `{name}` |" not in text] == []
    row = next(line for line in text.splitlines() if line.startswith("| `train.policy.epochs` |"))
    assert row.split("|")[3:7] == [" `10` ", " `50` ", " `10` ", " `50` "]
    assert "Learning rate; at 0 a network rests." in text


def _names(tree: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"
