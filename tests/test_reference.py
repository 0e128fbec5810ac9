"""The configuration reference says what the schema says."""

from __future__ import annotations

from pathlib import Path

from pipeline.config import known_settings
from pipeline.reference import reference

DOC = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


def test_the_reference_in_docs_is_made_from_the_schema() -> None:
    assert DOC.read_text() == reference(), "run: python -m pipeline.reference > docs/configuration.md"


def test_every_setting_is_in_it() -> None:
    text = reference()
    missing = [name for name in known_settings() if name != "train" and f"`{name}`" not in text]
    assert missing == []
