"""Clips that are made in memory, for tests of training: a coloured square on a grey ground, with stripes on it.

The class is the colour, which is seen at glance resolution, and the direction of the stripes, which is not.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch

from operators.records import Source
from operators.weights import checkpoints
from operators.weights.header import Preprocessing
from pipeline.config.training import (
    Networks,
    Optimiser,
    PolicyStage,
    SkipStage,
    Supervised,
    TrainSettings,
    changed,
)
from pipeline.training.clips import FrameTruth
from pipeline.training.frame_cache import ClipFrames
from pipeline.training.subsets import Surroundings, TrainingData

torch.set_num_threads(1)
VIEW, PATCH, STEPS, SIDE = 36, 12, 4, 8
CLASSES = ("red across", "red down", "blue across", "blue down")
ADAMW = Optimiser(kind="adamw", weight_decay=0.01, schedule="step")


def paint(number: int) -> ClipFrames:
    """STEPS frames; the evidence lies at one place per clip and is shown in every frame but one."""
    rng = np.random.default_rng(number)
    frames = np.full((STEPS, VIEW, VIEW, 3), 128, np.float32) + rng.normal(0, 6, (STEPS, VIEW, VIEW, 3))
    top, left, phase = place_of(number)
    stripes = (((np.arange(SIDE) + phase) // 2) % 2) * 2 - 1
    pattern = np.repeat(stripes[:, None], SIDE, axis=1)
    if number % 2:
        pattern = pattern.T
    for t in range(STEPS):
        frames[t, top : top + SIDE, left : left + SIDE] = (200, 60, 60) if number % 4 < 2 else (60, 60, 200)
        if t != number // 4 % STEPS:
            frames[t, top : top + SIDE, left : left + SIDE] += 50 * pattern[:, :, None]
    return ClipFrames(
        pixels=np.clip(frames, 0, 255).astype(np.uint8),
        frame_index=np.arange(STEPS),
        num_frames=STEPS,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
    )


def place_of(number: int) -> tuple[int, int, int]:
    rng = np.random.default_rng([number, 1])
    return int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, 4))


def read(source: Source) -> ClipFrames:
    return paint(int(source.video_id))


def make_data(folder: Path, train=240, val=60) -> TrainingData:
    def sources(numbers) -> list[Source]:
        return [
            Source(source_id=f"{n:032x}", uri=str(folder / f"{n}"), video_id=str(n), truth=(CLASSES[n % 4],))
            for n in numbers
        ]

    truth = {}
    for n in range(train + val):
        top, left, _ = place_of(n)
        visible = np.array([t != n // 4 % STEPS for t in range(STEPS)])
        box = np.array([[top / VIEW, left / VIEW, SIDE / VIEW, SIDE / VIEW]] * STEPS)
        truth[str(n)] = FrameTruth(visible=visible, box_yxhw=box)
    return TrainingData(
        train=sources(range(train)), val=sources(range(train, train + val)), class_names=CLASSES, truth=truth
    )


def make_settings(**changes) -> TrainSettings:
    settings = TrainSettings(
        preset="test",
        num_steps=STEPS,
        candidates=1,
        device="cpu",
        amp="off",
        is_flipped=False,
        is_cropped=False,
        is_glance_cached=True,
        networks=Networks(
            glance="small_glance",
            glance_px=12,
            focus="small_focus",
            patch_px=PATCH,
            classifier_hidden=16,
            policy_hidden=32,
            policy_width=8,
            num_actions=25,
            skip_hidden=8,
        ),
        preprocessing=Preprocessing(resize_px=VIEW, crop_px=VIEW, glance_resize="antialias"),
        glance=Supervised(epochs=3, batch_size=16, lr_glance=3e-3, optimiser=ADAMW),
        focus=Supervised(epochs=0),
        warmup=Supervised(
            epochs=6, batch_size=16, lr_focus=2e-3, lr_classifier=2e-3, patch_head_weight=1.0,
            salient_share=0.7, optimiser=ADAMW
        ),
        policy=PolicyStage(epochs=30, batch_size=40, lr=2e-3),
        finetune=Supervised(
            epochs=2, batch_size=16, lr_focus=5e-4, lr_classifier=1e-3, blank_share=0.4, dropout=0.2,
            optimiser=ADAMW,
        ),
        skip=SkipStage(updates=480, batch_size=40),
    )  # fmt: skip
    return changed(settings, changes)


def make_surroundings(folder: Path, **changes) -> Surroundings:
    ticks = itertools.count()
    values = dict(
        out=folder / "out",
        cache=folder / "cache",
        reader=lambda candidates: read,
        clock=lambda: float(next(ticks)),
    )
    return Surroundings(**(values | changes))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    sections = checkpoints.load(path).sections
    return {f"{s}.{k}": v for s, weights in sections.items() for k, v in weights.items()}


class Killed(BaseException):
    pass


def short_settings() -> TrainSettings:
    return make_settings(
        **{
            "glance.epochs": 2,
            "warmup.epochs": 3,
            "warmup.dropout": 0.3,
            "policy.epochs": 3,
            "finetune.epochs": 2,
            "skip.updates": 12,
        }
    )
