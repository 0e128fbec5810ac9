"""What AdaFocus-TSM's networks see of a clip while they are trained, and how good they are.

A cached clip's steps are the glance's frames followed by the focus's. One place serves a whole clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from operators.networks.glance import resize_views
from operators.records import Observation
from pipeline.config.training_motion import MotionSettings
from pipeline.training.clips import Augmentation, Clips, batches, cut, load_views, normalised
from pipeline.training.model import Parts
from pipeline.training.optimise import half_precision
from pipeline.training.scoring import SubsetScore, truth_of
from policies.base import Policy, corners


def sizes_of(parts: Parts) -> tuple[int, int, int]:
    """Side of the view, side of a patch, frames glanced at."""
    header = parts.header
    assert header.focus is not None and header.focus.size_px is not None
    return header.preprocessing.crop_px, header.focus.size_px, header.num_steps


def split_steps(parts: Parts, views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B,T+T',...] -> the glance's frames [B,T,...] and the focus's [B,T',...]"""
    num_glance = parts.header.num_steps
    return views[:, :num_glance], views[:, num_glance:]


@dataclass(frozen=True, eq=False)
class MotionGlances:
    """What the glance network saw of clips."""

    maps: Tensor
    """[V,T*C,h,w]: a clip's maps joined along channels, frame after frame; half precision where kept."""
    logits: Tensor
    """float32 [V,T,K]"""

    def take(self, rows: np.ndarray, device: torch.device) -> MotionGlances:
        index = torch.from_numpy(rows)
        return MotionGlances(self.maps[index].to(device).float(), self.logits[index].to(device))


def glance_at_clips(parts: Parts, views: np.ndarray, *, dropout: float = 0.0) -> MotionGlances:
    """uint8 [B,T,S,S,3], with the glance network as it stands (train or eval)."""
    header = parts.header
    assert header.glance is not None and header.glance.size_px is not None and parts.glancer.head is not None
    x = normalised(views, parts.normalisation, parts.device)
    x = resize_views(x, header.glance.size_px, header.preprocessing.glance_resize)
    maps, feature = parts.glancer(x)
    feature = nn.functional.dropout(feature, dropout, training=parts.glancer.training)
    shape = views.shape[:2]
    logits = parts.glancer.head(feature).float().unflatten(0, shape)
    return MotionGlances(maps.unflatten(0, shape).flatten(1, 2), logits)


@torch.no_grad()
def glance_once(parts: Parts, clips: Clips) -> MotionGlances:
    """Every clip at the frames that inference takes."""
    parts.glancer.eval()
    found = []
    for rows in batches(len(clips), 32, None, drop_last=False):
        seen = glance_at_clips(parts, split_steps(parts, _inference_views(parts, clips, rows))[0])
        found.append((seen.maps.half().cpu(), seen.logits.cpu()))
    return MotionGlances(torch.cat([maps for maps, _ in found]), torch.cat([logits for _, logits in found]))


def _inference_views(parts: Parts, clips: Clips, rows: np.ndarray) -> np.ndarray:
    picks = np.zeros((len(rows), clips.num_steps), np.int64)
    augmentation = Augmentation(crop_px=parts.header.preprocessing.crop_px)
    return load_views(clips, rows, picks, augmentation=augmentation, rng=None)


def focus_on(parts: Parts, settings: MotionSettings, views: np.ndarray, places: np.ndarray) -> Tensor:
    """float32 [B,T',D] of one patch per clip: views uint8 [B,T',S,S,3], places int64 [B,2]."""
    _, patch_px, _ = sizes_of(parts)
    everywhere = np.broadcast_to(places[:, None], (*views.shape[:2], 2))
    with half_precision(settings):
        _, feature = parts.focuser(normalised(cut(views, everywhere, patch_px), parts.normalisation, parts.device))
    return feature.float().unflatten(0, views.shape[:2])


@torch.no_grad()
def motion_score(
    parts: Parts,
    settings: MotionSettings,
    clips: Clips,
    policy: Policy,
    *,
    glances: MotionGlances | None = None,
    batch_size: int = 32,
) -> SubsetScore:
    """Every clip once, at the frames that inference takes. Hits count focused frames that show the evidence."""
    parts.freeze()
    view_px, patch_px, num_glance = sizes_of(parts)
    right, inside, whole = [], [], []
    for rows in batches(len(clips), batch_size, None, drop_last=False):
        glance_views, focus_views = split_steps(parts, _inference_views(parts, clips, rows))
        seen = glances.take(rows, parts.device) if glances else glance_at_clips(parts, glance_views)
        truth = truth_of(clips, rows, np.zeros((len(rows), clips.num_steps), np.int64))
        visible = boxes = centre = None
        if truth is not None:
            visible, boxes = truth[0][:, num_glance:], truth[1][:, num_glance:]
            middles = np.where(visible[..., None], boxes[..., :2] + boxes[..., 2:] / 2, np.nan)
            centre = torch.from_numpy(middles).nanmean(1).float().to(parts.device)
        # Its own draws for every clip, so that a score does not depend on how clips are batched.
        generators = [torch.Generator().manual_seed(int(row)) for row in rows]
        actions, _ = policy.act(
            Observation(feature_map=seen.maps.float(), truth_yx=centre),
            policy.initial_state(len(rows)),
            generators=generators,
        )
        places = corners(actions.offsets, view_px=view_px, patch_px=patch_px).cpu().numpy()
        local = focus_on(parts, settings, focus_views, places) if bool(actions.focus.all()) else None
        best = parts.classifier(seen.logits, local).argmax(dim=-1).tolist()
        right += [label in clips.labels[row] for label, row in zip(best, rows.tolist(), strict=True)]
        if local is not None and visible is not None and boxes is not None:
            start = places[:, None] / view_px
            stop = start + patch_px / view_px
            middle, end = boxes[..., :2] + boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:]
            inside.append(np.all((middle >= start) & (middle <= stop), axis=-1)[visible])
            whole.append(np.all((boxes[..., :2] >= start) & (end <= stop), axis=-1)[visible])
    accuracy = 100 * float(np.mean(right))
    if not inside or not sum(map(len, inside)):
        return SubsetScore(accuracy=accuracy, per_step=(accuracy,))
    return SubsetScore(
        accuracy=accuracy,
        per_step=(accuracy,),
        hits=100 * float(np.concatenate(inside).mean()),
        whole_hits=100 * float(np.concatenate(whole).mean()),
    )
