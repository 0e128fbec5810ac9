"""Where a policy looked, against boxes that say where the evidence was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from operators.errors import ConfigError
from operators.media.sampling import sample_indices
from pipeline.families.truth import TruthBoxes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipLooks:
    """What one clip focused on."""

    video_id: str
    frames: np.ndarray
    """int64 [M]: the frame of each patch."""
    boxes: np.ndarray
    """float64 [M,4]: y, x, h, w in units of the frame."""
    num_steps: int
    """Frames sampled."""
    stopped_at: int
    """Steps used: later ones were neither focused nor skipped."""
    is_whole: bool = True
    """The clip is its whole video, so that the sampled frames follow from their number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookScores:
    """Shares in percent, None where there is nothing to divide by."""

    num_clips: int
    num_patches: int
    """On frames that show the evidence."""
    evidence_in_patch: float | None
    """Patches that hold all of the evidence's box, of those patches."""
    centre_in_patch: float | None
    """Patches that hold its centre."""
    num_visible: int
    """Sampled frames that show the evidence, until the stop."""
    visible_focused: float | None
    num_empty: int
    empty_skipped: float | None
    num_unsampled_clips: int = 0
    """Clips whose sampled frames are not known (pieces of a video, or sought by keyframe): only their patches count."""


def contains(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """bool [M]: whether the boxes [M,4] (y, x, h, w) `outer` hold `inner` whole. Float noise is forgiven."""
    slack = 1e-6
    starts = (outer[:, :2] <= inner[:, :2] + slack).all(axis=1)
    return starts & (outer[:, :2] + outer[:, 2:] >= inner[:, :2] + inner[:, 2:] - slack).all(axis=1)


def look_scores(clips: Iterable[ClipLooks], truth: Mapping[str, TruthBoxes]) -> LookScores:
    """Clips of videos that the truth does not know are left out; none at all is a ConfigError."""
    num_clips = num_unsampled = num_patches = num_whole = num_centre = 0
    num_visible = num_visible_focused = num_empty = num_empty_skipped = 0
    for clip in clips:
        known = truth.get(clip.video_id)
        if known is None:
            continue
        num_clips += 1
        num_frames = len(known.visible)
        if len(clip.frames) and not 0 <= clip.frames.min() <= clip.frames.max() < num_frames:
            raise ConfigError(
                f"video {clip.video_id} has a patch on frame {clip.frames.max()}, the truth has {num_frames} frames: "
                "is it the truth of another archive?"
            )
        shows = known.visible[clip.frames]
        patches, evidence = clip.boxes[shows], known.boxes[clip.frames[shows]]
        num_patches += len(patches)
        num_whole += int(contains(patches, evidence).sum())
        centres = np.concatenate([evidence[:, :2] + evidence[:, 2:] / 2, np.zeros((len(evidence), 2))], axis=1)
        num_centre += int(contains(patches, centres).sum())
        sampled = sample_indices(num_frames, clip.num_steps, "last")[: clip.stopped_at] if clip.is_whole else ()
        if not clip.is_whole or not np.isin(clip.frames, sampled).all():
            num_unsampled += 1
            continue
        # A short video shows some frames twice: they count once.
        frames = np.unique(sampled)
        focused = np.isin(frames, clip.frames)
        visible = known.visible[frames]
        num_visible += int(visible.sum())
        num_visible_focused += int((visible & focused).sum())
        num_empty += int((~visible).sum())
        num_empty_skipped += int((~visible & ~focused).sum())
    if not num_clips:
        raise ConfigError("the truth knows none of the labelled videos: is it the truth of another archive?")

    def percent(part: int, whole: int) -> float | None:
        return 100.0 * part / whole if whole else None

    return LookScores(
        num_clips=num_clips,
        num_patches=num_patches,
        evidence_in_patch=percent(num_whole, num_patches),
        centre_in_patch=percent(num_centre, num_patches),
        num_visible=num_visible,
        visible_focused=percent(num_visible_focused, num_visible),
        num_empty=num_empty,
        empty_skipped=percent(num_empty_skipped, num_empty),
        num_unsampled_clips=num_unsampled,
    )
