"""`train`: from a config and annotated videos to the stages' settings and data."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from operators.errors import ConfigError, NoSubsetError
from operators.media.decode import ReadLimits
from operators.media.view import Viewer
from operators.records import Source
from pipeline.config import Config, Decode
from pipeline.config.training import FULL, STAGES, Stage, TrainSettings
from pipeline.config.training_motion import STAGES_OF_MOTION, MotionSettings
from pipeline.families.truth import read_truth
from pipeline.inputs import sources as inputs
from pipeline.plan.placement import this_machine
from pipeline.training import sequence
from pipeline.training.clips import FrameTruth
from pipeline.training.frame_cache import Read
from pipeline.training.journal import Progress
from pipeline.training.model import with_device
from pipeline.training.read_clips import ClipReader, ReadInProcesses
from pipeline.training.read_motion import MotionReader

TEST_SUBSETS = ("test", "testing")


def _wanted(names: str, settings: TrainSettings) -> list[Stage]:
    """The stages that `names` asks for, in their order: `all`, or some separated by commas."""
    if names == "all":
        return list(STAGES_OF_MOTION if isinstance(settings, MotionSettings) else STAGES)
    asked = [name.strip() for name in names.split(",")]
    unknown = set(asked) - {*STAGES, FULL}
    if unknown:
        raise ConfigError(f"there is no stage {sorted(unknown)[0]!r}; there are {', '.join((*STAGES, FULL))}, all")
    return [stage for stage in (*STAGES, FULL) if stage in asked]


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
    on_progress: Callable[[Progress], None] | None = None,
    on_cache: Callable[[str, int, int], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Trains the stages; gives each one's record. `say` gets what the user should know of the data."""
    settings = with_device(config.training())
    if "family" in config.model.model_fields_set and config.model.family != settings.family:
        raise ConfigError(
            f"model.family={config.model.family}: train.preset={settings.preset} trains {settings.family}"
        )
    num_threads = config.run.threads or this_machine().num_cores
    torch.set_num_threads(num_threads)
    if config.model.classes is None:
        raise ConfigError("training needs the class names in the model's order: --classes FILE")
    names = inputs.read_class_names(Path(config.model.classes))

    def sources(subset: str) -> list[Source]:
        found = list(inputs.sources(listing, videos=videos, subset=subset, class_names=names))
        return found if limit is None else found[:limit]

    data = sequence.TrainingData(
        train=sources(subsets[0]),
        val=sources(subsets[1]),
        test=_test_sources(sources, say),
        class_names=names,
        truth=None if truth is None else _frame_truth(truth),
    )
    setting = sequence.Setting(
        out=out,
        cache=cache or out / "cache",
        read=_reader(settings, config.decode),
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
    return sequence.run(_wanted(stages, settings), settings=settings, data=data, setting=setting)


def _reader(settings: TrainSettings, decode: Decode) -> Read:
    """What reads a video, as these settings sample it."""
    viewer = Viewer(**settings.cached_view)
    limits = ReadLimits(**decode.model_dump(include={"max_pixels", "max_duration_s", "max_streams"}))
    if isinstance(settings, MotionSettings):
        return MotionReader(
            num_glance=settings.num_steps,
            num_focus=settings.num_focus_steps,
            candidates=settings.candidates,
            viewer=viewer,
            limits=limits,
        )
    return ClipReader(num_steps=settings.num_steps, candidates=settings.candidates, viewer=viewer, limits=limits)


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
        told = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
