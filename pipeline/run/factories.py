"""The factories of an archive run's processes: settings and a checkpoint become a stream worker or a focus worker."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from operators.errors import CheckpointError
from operators.networks.tensors import exact_fp32
from operators.weights.checkpoints import Checkpoint
from pipeline.config import Config
from pipeline.families import family_named
from pipeline.families.clip import Gaze, LabelForm
from pipeline.families.files import load_checkpoint_file
from pipeline.families.parts import build_focuser, gaze_parts
from pipeline.families.truth import TruthAt
from pipeline.families.untrained import untrained
from pipeline.run.focus_worker import FocusWorker
from pipeline.run.stream_worker import StreamWorker


@functools.lru_cache(maxsize=1)
def _checkpoint(path: str | None, config_json: str, model_id: str) -> Checkpoint:
    config = Config.model_validate_json(config_json)
    checkpoint = untrained(config) if path is None else load_checkpoint_file(Path(path))
    if checkpoint.model_id != model_id:
        raise CheckpointError(f"{checkpoint.path} is not the same file here as where the run was started")
    return checkpoint


def load_checkpoint(config: Config, model_id: str) -> Checkpoint:
    """The run's checkpoint; the last one is kept, because the stages of one process share it."""
    return _checkpoint(config.model.checkpoint, config.model_dump_json(exclude_unset=True), model_id)


def prepare(num_threads: int, device: str) -> None:
    """Sets in this process how many threads torch takes, and that fp32 is exact."""
    torch.set_num_threads(num_threads)
    exact_fp32(device)


def label_form(config: Config, class_names: tuple[str, ...]) -> LabelForm:
    """The form in which an answer goes into its row, as the settings say."""
    output = config.output
    return LabelForm(
        class_names=class_names, topk=output.topk, logits=output.logits, step_logits=output.step_logits
    )


def build_gaze(
    config: Config, checkpoint: Checkpoint, *, device: str, glance_batch: int = 8, truth_at: TruthAt | None = None
) -> Gaze:
    """The gaze of this checkpoint's family under these settings. `truth_at` is used in place of policy.truth."""
    header = checkpoint.header
    parts = gaze_parts(config, checkpoint, device=device, glance_batch=glance_batch, truth_at=truth_at)
    return family_named(header.family).gaze(parts, config, header)


def stream_worker(
    *,
    config: Mapping[str, Any],
    model_id: str,
    device: str,
    num_threads: int,
    class_names: tuple[str, ...],
    glance_batch: int = 8,
) -> StreamWorker:
    prepare(num_threads, device)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    gaze = build_gaze(settings, checkpoint, device=device, glance_batch=glance_batch)
    return StreamWorker(gaze=gaze, form=label_form(settings, class_names), seed=settings.compute.seed)


def focus_worker(
    *, config: Mapping[str, Any], model_id: str, device: str, num_threads: int, batch_size: int
) -> FocusWorker:
    prepare(num_threads, device)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    focuser = build_focuser(settings, checkpoint, device=device, max_batch=batch_size)
    return FocusWorker(focuser=focuser, round_up=lambda n: sum(rows for *_, rows in focuser.passes(n)))
