"""How good the networks under training are on a subset, with any choice of places: what validation and the
header report. The pipeline's own evaluation decodes files and counts costs; this one reads the frame cache
and is fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from operators.networks.classify import join_features
from pipeline.config.training import TrainSettings
from pipeline.training.clips import Augmentation, Clips, batches, cut, load_views, normalised
from pipeline.training.model import Glances, Parts, glance_at
from pipeline.training.optimise import half_precision
from policies.base import Policy, act_all, corners
from policies.kinds import KINDS, fixed_policy


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetScore:
    """How good the networks are on a subset, in percent."""

    accuracy: float
    """The accuracy after the last step."""
    per_step: tuple[float, ...]
    hits: float | None = None
    """The share of the focused frames with evidence whose patch holds the evidence's centre."""
    whole_hits: float | None = None
    """The share of the same frames whose patch holds all of the evidence's box."""

    def values(self, prefix: str = "") -> dict[str, float]:
        out = {f"{prefix}accuracy": self.accuracy}
        if self.hits is not None and self.whole_hits is not None:
            out |= {f"{prefix}hits": self.hits, f"{prefix}whole_hits": self.whole_hits}
        return out


@dataclass(frozen=True, eq=False)
class Looks:
    """What every step of every clip of a subset looks like to classifier and skip head, places being decided."""

    glances: Tensor
    """[V,T,C]"""
    focuses: Tensor
    """[V,T,D]; zero where nothing is focused."""
    contexts: Tensor | None
    """[V,T,hidden]: the policy's state."""
    places: np.ndarray
    """int64 [V,T,2]: upper left corners in pixels of the view."""
    focused: np.ndarray
    """bool [V,T]"""


def policy_named(name: str, parts: Parts) -> Policy:
    """`learned`, `center`, `random`, `glance` or `oracle`."""
    assert parts.header.focus is not None and parts.header.focus.size_px is not None
    share = parts.header.focus.size_px / parts.header.preprocessing.crop_px
    if KINDS[name].is_learned:
        return parts.policy
    spec = parts.header.policy
    assert spec is not None
    return fixed_policy(name, patch_share=share, num_actions=spec.num_actions if spec.kind == "grid" else None)


def truth_of(clips: Clips, rows: np.ndarray, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(visible bool [B,T], box float64 [B,T,4] in units of the view), if there is a truth."""
    if clips.visible is None or clips.box_yxhw is None:
        return None
    index = (rows[:, None], np.arange(clips.num_steps)[None, :], picks)
    return clips.visible[index], clips.box_yxhw[index]


@torch.no_grad()
def gather_looks(
    parts: Parts,
    settings: TrainSettings,
    clips: Clips,
    policy: Policy,
    *,
    glances: Glances | None = None,
    draw: np.random.Generator | None = None,
    batch_size: int = 32,
) -> Looks:
    """Every clip once, without augmentation; `draw` chooses among the candidates of each step."""
    parts.freeze()
    assert parts.header.focus is not None and parts.header.focus.size_px is not None
    view_px, patch_px = parts.header.preprocessing.crop_px, parts.header.focus.size_px
    augmentation = Augmentation(crop_px=view_px)
    found: list[tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]] = []
    for rows in batches(len(clips), batch_size, None, drop_last=False):
        shape = (len(rows), clips.num_steps)
        picks = np.zeros(shape, np.int64) if draw is None else draw.integers(clips.candidates, size=shape)
        views = load_views(clips, rows, picks, augmentation=augmentation, rng=None)
        if glances is None:
            with half_precision(settings):
                maps, features = glance_at(parts, views)
            maps, features = (x.float().unflatten(0, shape) for x in (maps, features))
        else:
            maps, features = glances.take(rows, picks, parts.device)
        truth = truth_of(clips, rows, picks)
        centres = None
        if truth is not None:
            boxes = np.where(truth[0][..., None], truth[1], np.nan)
            centres = torch.from_numpy(boxes[..., :2] + boxes[..., 2:] / 2).float().to(parts.device)
        # Its own draws for every clip, so that a score does not depend on how clips are batched.
        generators = [torch.Generator().manual_seed(int(row)) for row in rows]
        actions, _ = act_all(policy, maps, policy.initial_state(len(rows)), generators=generators, truth_yx=centres)
        places = corners(actions.offsets, view_px=view_px, patch_px=patch_px).cpu()
        local = torch.zeros((*shape, parts.focuser.num_features), device=parts.device)
        if bool(actions.focus.any()):
            patches = cut(views, places.numpy(), patch_px)
            with half_precision(settings):
                _, feature = parts.focuser(normalised(patches, parts.normalisation, parts.device))
            local = feature.float().unflatten(0, shape) * actions.focus.unsqueeze(-1)
        found.append((features, local, actions.context, places, actions.focus.cpu()))
    columns = list(zip(*found, strict=True))
    contexts = None if columns[2][0] is None else torch.cat(columns[2])
    return Looks(
        torch.cat(columns[0]),
        torch.cat(columns[1]),
        contexts,
        torch.cat(columns[3]).numpy(),
        torch.cat(columns[4]).numpy(),
    )


@torch.no_grad()
def score_places(
    parts: Parts,
    settings: TrainSettings,
    clips: Clips,
    policy: Policy,
    *,
    glances: Glances | None = None,
) -> SubsetScore:
    looks = gather_looks(parts, settings, clips, policy, glances=glances)
    logits, _ = parts.classifier(join_features(looks.glances, looks.focuses, parts.focuser.num_features))
    return score_of(parts, clips, logits, looks)


def score_of(parts: Parts, clips: Clips, logits: Tensor, looks: Looks) -> SubsetScore:
    """logits [V,T,K] of all clips in order. A clip of several labels is right with any of them."""
    best = logits.argmax(dim=-1).cpu().numpy()
    right = np.array([[label in clips.labels[v] for label in best[v]] for v in range(len(clips))])
    per_step = tuple(float(100 * share) for share in right.mean(axis=0))
    hits = whole = None
    truth = truth_of(clips, np.arange(len(clips)), np.zeros((len(clips), clips.num_steps), np.int64))
    if truth is not None:
        assert parts.header.focus is not None and parts.header.focus.size_px is not None
        counted = np.logical_and(truth[0], looks.focused)
        if counted.any():
            places = looks.places / parts.header.preprocessing.crop_px
            side = parts.header.focus.size_px / parts.header.preprocessing.crop_px
            centre = truth[1][..., :2] + truth[1][..., 2:] / 2
            start, stop = truth[1][..., :2], truth[1][..., :2] + truth[1][..., 2:]
            inside = np.all((centre >= places) & (centre <= places + side), axis=-1)
            box_inside = np.all((start >= places) & (stop <= places + side), axis=-1)
            hits = 100 * float(inside[counted].mean())
            whole = 100 * float(box_inside[counted].mean())
    return SubsetScore(accuracy=per_step[-1], per_step=per_step, hits=hits, whole_hits=whole)


def blank(focuses: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """[B,T,D]: in `share` of the clips each step's feature is zeroed at a rate that is drawn for the clip."""
    if share <= 0:
        return focuses
    clips, steps = focuses.shape[:2]
    rates = np.where(rng.random(clips) < share, rng.random(clips), 0.0)
    kept = rng.random((clips, steps)) >= rates[:, None]
    return focuses * torch.from_numpy(kept).to(focuses.device, focuses.dtype).unsqueeze(-1)
