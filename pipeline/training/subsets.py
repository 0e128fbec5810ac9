"""What a training is given: labelled sources and a place to work in; and the subsets of clips that become of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from operators.records import Source
from pipeline.config.training import TrainSettings
from pipeline.training.clips import Clips, FrameTruth, label_numbers, make_clips
from pipeline.training.frame_cache import FrameCache, Read, ReadMany, open_cache
from pipeline.training.journal import StageProgress
from pipeline.training.left_out import left_out, report_left_out


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Labelled sources of each subset, and the truth per frame where one is known."""

    train: Sequence[Source]
    val: Sequence[Source]
    test: Sequence[Source] = ()
    class_names: Sequence[str]
    truth: Mapping[str, FrameTruth] | None = None
    """By video_id."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Surroundings:
    """Where and how a training runs: nothing in it changes the weights."""

    out: Path
    cache: Path
    """Folder of frame caches; several trainings may share it."""
    reader: Callable[[int], Read]
    """What reads a video with so many candidates for each step: as many as the settings say for training, and one,
    the frame that inference takes, for the subsets that are held back."""
    read_many: ReadMany | None = None
    clock: Callable[[], float]
    commit: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the command was given, for the header."""
    progress: Callable[[StageProgress], None] | None = None
    cache_progress: Callable[[str, int, int], None] | None = None
    say: Callable[[str], None] = lambda text: None
    """For what the user should know: videos that are left out."""


@dataclass(eq=False)
class Subsets:
    """The clips that the stages train on and are judged by."""

    train: Clips
    val: Clips
    test: Clips | None
    fingerprint: str
    """It stands for all data that the weights depend on: the cached frames, their labels, the classes' names and
    their order."""
    num_unreadable: int
    glances: dict[str, Any] = field(default_factory=dict)
    """Subset -> what the resting glance network saw of it, as the course keeps it."""


def open_subsets(settings: TrainSettings, data: TrainingData, around: Surroundings) -> Subsets:
    """The clips of all subsets, from their frame caches, which are made where they are not there yet."""
    if not data.train or not data.val:
        raise ConfigError("training needs videos of both subsets, training and validation")
    # All labels before the first frame: decoding may take hours.
    labels = {name: label_numbers(getattr(data, name), data.class_names) for name in ("train", "val", "test")}
    for name in ("train", "val"):
        if not any(labels[name]):
            raise ConfigError(f"none of {len(labels[name])} {name} videos has a label: training needs annotations")
    # A published test subset may come without labels; there is nothing to score then.
    known = [source for source in data.test if source.truth]
    sources = {"train": data.train, "val": data.val} | ({"test": known} if known else {})
    caches = {name: _cache(name, found, settings, around) for name, found in sources.items()}
    clips = {name: make_clips(caches[name], sources[name], data.class_names, data.truth) for name in sources}
    rows = [row for name in sources for row in left_out(name, sources[name], caches[name])]
    report_left_out(rows, around.out, around.cache, around.say)
    prints = [caches[name].fingerprint for name in ("train", "val")]
    facts = [*prints, list(data.class_names), labels["train"], labels["val"]]
    return Subsets(
        train=clips["train"],
        val=clips["val"],
        test=clips.get("test"),
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32],
        num_unreadable=len(caches["train"].errors) + len(caches["val"].errors),
    )


def _cache(name: str, sources: Sequence[Source], settings: TrainSettings, around: Surroundings) -> FrameCache:
    candidates = settings.candidates if name == "train" else 1
    report = around.cache_progress
    return open_cache(
        around.cache,
        sources,
        around.reader(candidates),
        num_steps=settings.cached_steps,
        candidates=candidates,
        size_px=settings.cached_view["crop_px"],
        pad=settings.pad,
        # AdaFocus-TSM's steps are two samples: how many belong to the first counts too.
        look=settings.cached_view | {"family": type(settings).__name__, "num_steps": settings.num_steps},
        max_bytes=int(settings.max_cache_gb * 1e9),
        read_many=around.read_many,
        on_wait=around.say,
        progress=None if report is None else lambda done, total: report(name, done, total),
    )
