"""A count of what a listing meets that is no input, for the summary of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class InputTally:
    """Counts the sources that a listing gave and what it met on the way that is none."""

    num_sources: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    """Files in folders that are neither video nor image, by extension."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that cannot be listed, the first hundred."""
    empty_patterns: list[str] = field(default_factory=list)
    """Globs that matched nothing."""

    def cannot_list(self, folder: str) -> None:
        """Notes a folder that cannot be listed."""
        if len(self.unreadable) < 100 and folder not in self.unreadable:
            self.unreadable.append(folder)

    @property
    def problems(self) -> list[str]:
        """A line for the user for everything that was asked for and came to no input."""
        return [
            *(f"nothing matches {pattern}" for pattern in self.empty_patterns),
            *(f"cannot be listed: {folder}" for folder in self.unreadable),
        ]
