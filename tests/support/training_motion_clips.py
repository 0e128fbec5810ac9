"""Clips that are made in memory, for tests of AdaFocus-TSM's training: a coloured square whose stripes move right or
left."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from operators.records import Source
from operators.weights import checkpoints
from operators.weights.header import Preprocessing
from pipeline.config.training import Networks, Optimiser, PolicyStage, Stage, Supervised, changed
from pipeline.config.training_motion import MotionSettings
from pipeline.training.clips import FrameTruth
from pipeline.training.frame_cache import ClipFrames, choose_candidates
from pipeline.training.subsets import Surroundings, TrainingData

torch.set_num_threads(1)
VIEW, PATCH, SIDE, FRAMES = 36, 12, 8, 12
GLANCED, FOCUSED = 3, 4
CLASSES = ("right", "left")
ADAMW = Optimiser(kind="adamw", weight_decay=0.01, schedule="step")


def place_of(number: int) -> tuple[int, int, int]:
    rng = np.random.default_rng([number, 1])
    return int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, 6))


def paint(number: int) -> ClipFrames:
    """FRAMES frames of stripes with a period of 6 that move a pixel every third frame, so by one per focus step."""
    rng = np.random.default_rng(number)
    frames = np.full((FRAMES, VIEW, VIEW, 3), 128, np.float32) + rng.normal(0, 4, (FRAMES, VIEW, VIEW, 3))
    top, left, phase = place_of(number)
    step = 1 if number % 2 == 0 else -1
    for t in range(FRAMES):
        wave = np.sin(2 * np.pi / 6 * (np.arange(SIDE) - phase - step * (t // 3) * 1.5))
        frames[t, top : top + SIDE, left : left + SIDE] = (190, 80, 80)
        frames[t, top : top + SIDE, left : left + SIDE] += 60 * wave[None, :, None]
    rows = [choose_candidates(np.arange(FRAMES), FRAMES, num_steps=n, candidates=1) for n in (GLANCED, FOCUSED)]
    return ClipFrames(
        pixels=np.clip(frames, 0, 255).astype(np.uint8),
        frame_index=np.arange(FRAMES),
        num_frames=FRAMES,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
        rows=np.concatenate(rows),
    )


def make_data(folder: Path, train=96, val=16) -> TrainingData:
    def sources(numbers) -> list[Source]:
        return [
            Source(source_id=f"{n:032x}", uri=str(folder / f"{n}"), video_id=str(n), truth=(CLASSES[n % 2],))
            for n in numbers
        ]

    truth = {}
    for n in range(train + val):
        top, left, _ = place_of(n)
        box = np.array([[top / VIEW, left / VIEW, SIDE / VIEW, SIDE / VIEW]] * FRAMES)
        truth[str(n)] = FrameTruth(visible=np.ones(FRAMES, bool), box_yxhw=box)
    held = sources(range(train, train + val))
    return TrainingData(train=sources(range(train)), val=held, class_names=CLASSES, truth=truth)


def make_settings(**changes) -> MotionSettings:
    settings = MotionSettings(
        preset="test",
        num_steps=GLANCED,
        num_focus_steps=FOCUSED,
        candidates=1,
        device="cpu",
        amp="off",
        is_flipped=False,
        is_cropped=False,
        is_glance_cached=True,
        validate_every=100,
        networks=Networks(
            glance="small_glance", glance_px=12, focus="small_focus", patch_px=PATCH, policy_hidden=32, policy_width=8
        ),
        preprocessing=Preprocessing(resize_px=VIEW, crop_px=VIEW, glance_resize="antialias"),
        glance=Supervised(epochs=1, batch_size=16, lr_glance=1e-3, optimiser=ADAMW),
        focus=Supervised(epochs=0, optimiser=ADAMW),
        warmup=Supervised(
            epochs=5, batch_size=16, lr_focus=3e-3, lr_classifier=3e-3, salient_share=0.8, optimiser=ADAMW
        ),
        policy=PolicyStage(epochs=2, batch_size=32, lr=1e-3),
        finetune=Supervised(epochs=2, batch_size=16, lr_focus=1e-3, lr_classifier=1e-3, optimiser=ADAMW),
    )
    return changed(settings, changes)


ALL: tuple[Stage, ...] = ("0a", "0b", "1", "2", "3")
SHORT = {"warmup.epochs": 2, "policy.epochs": 2, "finetune.epochs": 2}


def make_surroundings(folder: Path, **changes) -> Surroundings:
    ticks = itertools.count()
    values: dict[str, Any] = dict(
        out=folder / "out",
        cache=folder / "cache",
        reader=lambda candidates: lambda source: paint(int(source.video_id)),
        clock=lambda: float(next(ticks)),
    )
    return Surroundings(**(values | changes))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    sections = checkpoints.load(path).sections
    return {f"{s}.{k}": v for s, weights in sections.items() for k, v in weights.items()}


class Killed(Exception):
    pass
