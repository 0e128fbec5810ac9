"""Clips through the stream and focus workers, without a scheduler: small networks with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import numpy as np

from operators.networks.focus import Focuser
from operators.records import ClipLabel, FrameBatch, PatchBatch, Source, SourceFacts, Window
from operators.weights.checkpoints import Checkpoint
from pipeline.config import Config, parse
from pipeline.families.clip import LabelForm
from pipeline.families.truth import TruthAt
from pipeline.families.untrained import untrained
from pipeline.run.factories import build_gaze
from pipeline.run.focus_worker import FocusWorker
from pipeline.run.stream_worker import StreamWorker
from pipeline.steering.messages import OpenRequest, Slice, StepRequest

SIDE = 64
NUM_CLASSES = 7
NAMES = tuple(f"class {i}" for i in range(NUM_CLASSES))


def make_config(**settings: object) -> Config:
    """Small networks on views of 64 px: glances of 32, patches of 24, six frames. `__` stands for the dot."""
    small = {
        "sampling.num_frames": 6,
        "view.resize_px": SIDE,
        "view.crop_px": SIDE,
        "model.untrained": True,
        "model.glance_backbone": "small_glance",
        "model.focus_backbone": "small_focus",
        "model.num_classes": NUM_CLASSES,
        "model.num_actions": 9,
        "glance.size_px": 32,
        "focus.patch_px": 24,
        "compute.precision": "fp32",
    }
    return parse({**small, **{name.replace("__", "."): value for name, value in settings.items()}})


def make_checkpoint(config: Config) -> Checkpoint:
    """Random weights, of which what all inputs share is taken away: clips differ in place and in confidence."""
    checkpoint = untrained(config)
    for section in ("policy", "classifier"):
        for name, weight in checkpoint.sections[section].items():
            if weight.dim() > 1 and "hh" not in name:
                weight -= weight.mean(dim=tuple(range(1, weight.dim())), keepdim=True)
                weight *= 8
    return checkpoint


def make_frames(
    num_frames: int = 6,
    *,
    seed: int = 0,
    glance_rows: Sequence[Sequence[int]] | None = None,
    focus_rows: Sequence[Sequence[int]] | None = None,
    view_yxhw: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
) -> FrameBatch:
    """Random frames numbered 0, 10, 20, ...; one window over all of them, or one for each of `glance_rows`."""
    rng = np.random.default_rng(seed)
    # Coarse structure besides noise: networks average pure noise away, and all frames would look alike.
    coarse = rng.integers(0, 200, (num_frames, 4, 4, 3)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    pixels = (coarse + rng.integers(0, 56, (num_frames, SIDE, SIDE, 3))).astype(np.uint8)
    glance_rows = glance_rows or [range(num_frames)]
    focus_rows = focus_rows or glance_rows
    source = Source(source_id=f"source{seed}", uri=f"/videos/{seed}.mp4", video_id=f"video{seed}")
    windows = tuple(
        Window(
            clip_id=f"clip{seed}.{number}",
            start_s=float(number),
            end_s=float(number + 1),
            glance_rows=np.array(glance, np.int64),
            candidate_rows=np.array(focus, np.int64),
        )
        for number, (glance, focus) in enumerate(zip(glance_rows, focus_rows, strict=True))
    )
    return FrameBatch(
        source=source,
        pixels=pixels,
        pts_s=np.arange(num_frames) / 2,
        frame_index=np.arange(num_frames) * 10,
        view_yxhw=view_yxhw,
        facts=SourceFacts(width=128, height=64),
        windows=windows,
        decode_s=0.5,
        opened_unix_s=1e9,
    )


@dataclass
class Look:
    """What happened: labels by clip, and the patches that the focus network was asked about, call by call."""

    labels: dict[str, ClipLabel] = field(default_factory=dict)
    patches: list[PatchBatch] = field(default_factory=list)

    @property
    def only(self) -> ClipLabel:
        (label,) = self.labels.values()
        return label


def make_workers(
    config: Config, checkpoint: Checkpoint, *, truth_at: TruthAt | None = None
) -> tuple[StreamWorker, FocusWorker]:
    gaze = build_gaze(config, checkpoint, device="cpu", truth_at=truth_at)
    form = LabelForm(class_names=NAMES, logits=True, step_logits=True)
    reads_patches = checkpoint.header.policy is not None and checkpoint.header.policy.reads == "patch"
    focuser = Focuser(
        network=checkpoint.focus_network(), feature_maps=reads_patches and config.policy.kind == "learned"
    )
    stream = StreamWorker(gaze=gaze, form=form, seed=config.compute.seed, unix_clock=lambda: 1e9 + 100.0)
    return stream, FocusWorker(focuser=focuser)


def look(
    config: Config,
    batches: Sequence[FrameBatch],
    *,
    checkpoint: Checkpoint | None = None,
    clips_per_call: int = 1000,
    truth_at: TruthAt | None = None,
) -> Look:
    """Labels all clips with the small networks; see `drive`."""
    stream, focus = make_workers(config, checkpoint or make_checkpoint(config), truth_at=truth_at)
    return drive(stream, focus, batches, clips_per_call=clips_per_call)


def drive(
    stream: StreamWorker, focus: FocusWorker, batches: Sequence[FrameBatch], *, clips_per_call: int = 1000
) -> Look:
    """Labels all clips. `clips_per_call`: how many FrameBatches are opened, and clips stepped, in one call."""
    seen = Look()
    waiting: list[tuple[PatchBatch, str, int, int]] = []

    def take(reply, patches) -> None:
        for row in reply.rows:
            if row.label is not None:
                seen.labels[row.clip_id] = row.label
            else:
                waiting.append((patches, row.clip_id, row.start, row.stop))

    for start in range(0, len(batches), clips_per_call):
        opened = list(batches[start : start + clips_per_call])
        requests = tuple(
            OpenRequest(frames=Slice(0, i, i + 1), clip_ids=tuple(w.clip_id for w in frames.windows))
            for i, frames in enumerate(opened)
        )
        take(*stream.open(requests, (opened,)))
    while waiting:
        part, waiting[:] = waiting[:clips_per_call], waiting[clips_per_call:]
        payloads = tuple(patches for patches, *_ in part)
        seen.patches += [
            PatchBatch(pixels=p.pixels[a:b], shifts=None if p.shifts is None else p.shifts[a:b]) for p, _, a, b in part
        ]
        _, features = focus.focus(tuple(Slice(i, a, b) for i, (_, _, a, b) in enumerate(part)), payloads)
        steps, begin = [], 0
        for _, clip_id, a, b in part:
            steps.append(StepRequest(clip_id=clip_id, features=(Slice(0, begin, begin + b - a),)))
            begin += b - a
        take(*stream.step(tuple(steps), (features,)))
    return seen


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def assert_same(one: Look, other: Look) -> None:
    """The same answers, and the same places looked at."""
    assert one.labels.keys() == other.labels.keys() and one.labels
    for clip_id, label in one.labels.items():
        twin = other.labels[clip_id]
        np.testing.assert_allclose(label.step_logits, twin.step_logits, atol=1e-4)
        assert (label.stopped_at, label.frames_focused, label.frames_skipped, label.gmacs, label.gmacs_full) == (
            twin.stopped_at,
            twin.frames_focused,
            twin.frames_skipped,
            twin.gmacs,
            twin.gmacs_full,
        )
        # A place between pixels follows from a network's last bits; where places are whole pixels, none is so near.
        ours, theirs = (np.array([astuple(place) for place in one.patches]) for one in (label, twin))
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
