"""The settings of a synthetic archive, and the videos that follow from them: names, classes, sizes and seeds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.errors import ConfigError
from pipeline.synthetic.scene import ASPECTS, COLOURS, ArchiveKind, SceneLook, VideoPlan

SUBSETS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthSettings:
    """The settings of an archive. Equal ones give equal pixels."""

    kind: ArchiveKind = "needle"
    """What says the class. needle: a glyph's orientation and its carrier's hue. motion: where a texture moves to."""
    videos: int = 300
    """How many there are in all subsets together."""
    shares: tuple[float, float, float] = (0.6, 0.15, 0.25)
    """The shares of train, val and test, in any unit: (2000, 500, 1000) with 3500 videos gives just these numbers."""
    classes: int = 10
    """needle: a multiple of `hues`; motion: 2, 4 or 8 directions."""
    hues: int = 2
    """Colours of the carrier that belong to classes: the coarse cue. By it alone hues/classes can be right."""
    size: int = 192
    """Typical short side in pixels; each video's is within 20% of it."""
    fps: float = 12.0
    """Typical frame rate; each video has 0.8, 1 or 1.25 times this, rounded."""
    seconds: float = 3.0
    """Typical length; each video's is within 30% of it."""
    visible: float = 0.4
    """Share of the frames that show the evidence. motion needs nearly all of them: a gap hides the motion."""
    clutter: float = 1.0
    """How much else there is; 0: nothing but noise."""
    crf: int = 20
    """Quality of the H.264 files. At 20 the glyph's luma correlates .99 with what was painted, at 28 .97."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_classes()
        if self.videos < 1:
            raise ConfigError(f"videos must be at least 1, not {self.videos}")
        if len(self.shares) != 3 or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ConfigError(f"shares must be three numbers for train, val and test, not {self.shares}")
        if not 128 <= self.size <= 2160:
            raise ConfigError(f"size must be 128 (less blurs the glyph) to 2160 pixels, not {self.size}")
        if not 1 <= self.fps <= 240:
            raise ConfigError(f"fps must be 1 to 240, not {self.fps:g}")
        if self.seconds * self.fps < 16 or self.seconds > 3600:
            raise ConfigError(
                f"seconds={self.seconds:g} at {self.fps:g} fps: give at least 16 frames and at most an hour"
            )
        if not 0.05 <= self.visible <= 1:
            raise ConfigError(f"visible must be 0.05 to 1, not {self.visible:g}")
        if not 0 <= self.clutter <= 10:
            raise ConfigError(f"clutter must be 0 to 10, not {self.clutter:g}")
        if not 0 <= self.crf <= 40:
            raise ConfigError(f"crf must be 0 to 40, not {self.crf}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, it is {self.seed}")

    def _check_classes(self) -> None:
        if self.kind not in ("needle", "motion"):
            raise ConfigError(f"kind {self.kind!r} is not known: needle or motion")
        if self.kind == "motion":
            if self.classes not in (2, 4, 8):
                raise ConfigError(f"a motion archive has 2, 4 or 8 classes (directions), not {self.classes}")
        else:
            if not 1 <= self.hues < len(COLOURS) - 1:
                raise ConfigError(f"hues must be 1 to {len(COLOURS) - 2}, not {self.hues}; the rest distract")
            if self.classes < 2 or self.classes % self.hues or self.classes // self.hues > 18:
                raise ConfigError(
                    f"classes must be a multiple of hues={self.hues}, at most 18 per hue, not {self.classes}"
                )

    @classmethod
    def motion(cls, **changes: Any) -> SynthSettings:
        """The motion archive as it is meant: four directions, always visible."""
        return cls(**{"kind": "motion", "classes": 4, "hues": 1, "visible": 1.0, **changes})

    @property
    def look(self) -> SceneLook:
        return SceneLook(
            kind=self.kind,
            num_classes=self.classes,
            num_hues=self.hues,
            visible=self.visible,
            clutter=self.clutter,
        )


def split_counts(videos: int, shares: tuple[float, float, float]) -> tuple[int, int, int]:
    """How many videos each subset gets: whole numbers by largest remainder."""
    exact = [videos * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(3), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: videos - sum(counts)]:
        counts[i] += 1
    return counts[0], counts[1], counts[2]


def plan_videos(settings: SynthSettings) -> Iterator[VideoPlan]:
    """Every video of the archive. Classes come in shuffled rounds, so that a subset's beginning is balanced too."""
    counts = split_counts(settings.videos, settings.shares)
    for number, subset in enumerate(SUBSETS):
        for index in range(counts[number]):
            turn, place = divmod(index, settings.classes)
            # A fourth number keeps the rounds' seeds apart from the videos'.
            order = np.random.default_rng((settings.seed, number, turn, 1)).permutation(settings.classes)
            rng = np.random.default_rng((settings.seed, number, index))
            short = settings.size * rng.uniform(0.8, 1.2)
            aspect = float(rng.choice(ASPECTS))
            fps = max(1, round(settings.fps * float(rng.choice((0.8, 1.0, 1.25)))))
            height, width = short * max(1, 1 / aspect), short * max(1, aspect)
            yield VideoPlan(
                name=f"{subset}_{index:05d}",
                subset=subset,
                label_id=int(order[place]),
                # 4:2:0 wants even sides.
                width=2 * round(width / 2),
                height=2 * round(height / 2),
                fps=fps,
                num_frames=max(16, round(settings.seconds * rng.uniform(0.7, 1.3) * fps)),
                seed=(settings.seed, number, index, 2),
            )
