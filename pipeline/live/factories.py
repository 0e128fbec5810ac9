"""Settings and a checkpoint become a live worker, in the process that watches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.families.parts import build_focuser, gaze_parts
from pipeline.live.camera_state import CameraLimits
from pipeline.live.gaze import LiveGaze
from pipeline.live.worker import LiveWorker
from pipeline.run.factories import label_form, load_checkpoint, prepare


def live_worker(
    *,
    config: Mapping[str, Any],
    model_id: str,
    device: str,
    num_threads: int,
    class_names: tuple[str, ...],
    batch_size: int,
    glance_batch: int = 8,
) -> LiveWorker:
    """Makes a worker that watches cameras with all networks in one process; a later call says which cameras."""
    prepare(num_threads, device)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    live = settings.live
    gaze = LiveGaze(
        gaze_parts(settings, checkpoint, device=device, glance_batch=glance_batch),
        focuser=build_focuser(settings, checkpoint, device=device, max_batch=batch_size),
        seed=settings.compute.seed,
    )
    return LiveWorker(
        gaze=gaze,
        form=label_form(settings, class_names),
        limits=CameraLimits(
            open_s=live.open_timeout_s,
            silence_s=live.watchdog_s,
            keyframe_s=live.keyframe_timeout_s,
            backoff_s=live.backoff_s,
            max_backoff_s=live.max_backoff_s,
        ),
        max_waiting=live.max_waiting_frames,
        max_batch=batch_size,
    )
