"""AdaFocus-TSM under training: its networks, what they see of a clip, and how good they are.

A cached clip's steps are the glance's frames followed by the focus's. One place serves a whole clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from operators.networks.backbones import build
from operators.networks.classify import AverageClassifier
from operators.networks.glance import resize_views
from operators.records import Observation
from operators.weights import checkpoints
from operators.weights.header import ClassifierSpec, Header, NetworkSpec, PolicySpec
from pipeline.config.training_motion import MotionSettings
from pipeline.training.clips import Augmentation, Clips, batches, cut, load_views, normalised
from pipeline.training.model import Parts, place_on, preprocessing_of
from pipeline.training.optimise import half_precision
from pipeline.training.scoring import Score, truth_of
from policies.base import Policy, corners
from policies.recurrent import RecurrentPolicy


def new_motion_parts(settings: MotionSettings, class_names: tuple[str, ...]) -> Parts:
    """Fresh networks; the same seed gives the same weights."""
    sizes = settings.networks
    num_classes = settings.num_classes or len(class_names)
    torch.manual_seed(settings.seed)
    segments = (settings.num_steps, settings.num_focus_steps) if settings.is_shifted else (0, 0)
    glancer = build(sizes.glance, num_segments=segments[0], num_classes=num_classes)
    focuser = build(sizes.focus, num_segments=segments[1])
    with torch.no_grad():
        blank = torch.zeros(settings.num_steps, 3, sizes.glance_px, sizes.glance_px)
        side = int(glancer.eval().feature_map(blank).shape[-1])
    spec = PolicySpec(
        kind="continuous",
        encoder="clip",
        map_channels=settings.num_steps * glancer.map_channels,
        map_side=side,
        hidden=sizes.policy_hidden,
        width=sizes.policy_width,
        std=settings.policy_std,
    )
    policy = RecurrentPolicy(
        kind="continuous",
        encoder="clip",
        map_channels=spec.map_channels,
        map_side=side,
        hidden=spec.hidden,
        width=spec.width,
        std=spec.std,
    )
    header = Header(
        family="adafocus_tsm",
        glance=NetworkSpec(
            name=sizes.glance, size_px=sizes.glance_px, num_segments=segments[0], num_classes=num_classes
        ),
        focus=NetworkSpec(name=sizes.focus, size_px=sizes.patch_px, num_segments=segments[1]),
        classifier=ClassifierSpec(kind="average", num_classes=num_classes, in_features=focuser.num_features),
        policy=spec,
        preprocessing=preprocessing_of(settings),
        num_steps=settings.num_steps,
        num_focus_steps=settings.num_focus_steps,
        pad="first",
        class_names=tuple(class_names),
    )
    parts = Parts(
        glancer=glancer,
        focuser=focuser,
        # The stages of this form take no other.
        classifier=cast(Any, AverageClassifier(in_features=focuser.num_features, num_classes=num_classes)),
        policy=policy,
        skip=cast(Any, nn.Identity()),
        header=header,
        device=torch.device(settings.device),
    )
    for section in checkpoints.SECTIONS:
        place_on(parts.module(section), parts.device)
    return parts


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
) -> Score:
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
        return Score(accuracy=accuracy, per_step=(accuracy,))
    return Score(
        accuracy=accuracy,
        per_step=(accuracy,),
        hits=100 * float(np.concatenate(inside).mean()),
        whole_hits=100 * float(np.concatenate(whole).mean()),
    )
