"""`train`: from a config and annotated videos to the stages' settings and data."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from operators.errors import ConfigError, NoSubsetError
from operators.media.decode import ReadLimits
from operators.records import Source
from pipeline.config import Config
from pipeline.config.training import TrainSettings
from pipeline.families.truth import read_truth
from pipeline.inputs import sources as inputs
from pipeline.inputs.annotations import read_class_names
from pipeline.plan.placement import this_machine
from pipeline.training import sequence
from pipeline.training.clips import FrameTruth
from pipeline.training.course import Course, course_of
from pipeline.training.journal import StageProgress
from pipeline.training.model import with_device
from pipeline.training.read_clips import ReadInProcesses
from pipeline.training.subsets import Surroundings, TrainingData

TEST_SUBSETS = ("test", "testing")


def train(
    config: Config,
    listing: Sequence[str],
    *,
    videos: Path | None,
    out: Path,
    cache: Path | None = None,
    stages: str = "all",
    truth: Path | None = None,
    subsets: tuple[str, str] = ("train", "val"),
    limit: int | None = None,
    on_progress: Callable[[StageProgress], None] | None = None,
    on_cache: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Trains the stages; gives each one's record. `say` gets what the user should know of the data."""
    settings = with_device(config.training())
    course = _course(config, settings)
    num_threads = config.run.threads or this_machine().num_cores
    torch.set_num_threads(num_threads)
    if config.model.classes is None:
        raise ConfigError("training needs the class names in the model's order: --classes FILE")
    names = read_class_names(Path(config.model.classes))

    def sources(subset: str) -> list[Source]:
        found = list(inputs.sources(listing, videos=videos, subset=subset, class_names=names))
        return found if limit is None else found[:limit]

    data = TrainingData(
        train=sources(subsets[0]),
        val=sources(subsets[1]),
        test=_test_sources(sources, say),
        class_names=names,
        truth=None if truth is None else _frame_truth(truth),
    )
    limits = ReadLimits(**config.decode.model_dump(include={"max_pixels", "max_duration_s", "max_streams"}))
    around = Surroundings(
        out=out,
        cache=cache or out / "cache",
        reader=partial(course.reader, settings, limits),
        read_many=ReadInProcesses(
            num_threads, timeout_s=config.decode.timeout_s, max_total_s=config.decode.max_total_s
        ),
        clock=time.monotonic,
        commit=_commit(),
        config=config.given(),
        progress=on_progress,
        cache_progress=on_cache,
        say=say,
    )
    wanted = course.stages if stages == "all" else [name.strip() for name in stages.split(",")]
    return sequence.run(wanted, settings=settings, data=data, around=around)


def _course(config: Config, settings: TrainSettings) -> Course[Any]:
    """The course of the family that is trained; ConfigError where the settings name another one than the preset."""
    named = config.model.family if "family" in config.model.model_fields_set else settings.family
    course = course_of(named)
    if named != settings.family:
        raise ConfigError(f"model.family={named}: train.preset={settings.preset} trains {settings.family}")
    return course


def _test_sources(sources: Callable[[str], list[Source]], say: Callable[[str], None]) -> list[Source]:
    """The test subset. Training goes on without one, but not without a word."""
    for name in TEST_SUBSETS:
        try:
            return sources(name)
        except NoSubsetError:
            continue
    say(f"the annotations have no subset {' or '.join(TEST_SUBSETS)}: stages are trained without test scores")
    return []


def _frame_truth(path: Path) -> dict[str, FrameTruth]:
    return {name: FrameTruth(visible=boxes.visible, box_yxhw=boxes.boxes) for name, boxes in read_truth(path).items()}


def _commit() -> str:
    """The code's commit, where it is a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()
