"""Stages 1 and 3, and the comparison `full`: focus network and classifier on patches, cross entropy after
every step.

They differ in where the patches lie: anywhere, independently for every frame (1), or mostly where the glance
network sees the class if so set; where the trained policy looks (3); or they are the whole views (full). The
glance network rests in all of them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.networks.classify import join_features
from pipeline.training.clips import (
    Augmentation,
    Clips,
    batches,
    cut,
    draw_picks,
    load_views,
    normalised,
    num_batches,
    random_corners,
    salient_corners,
    seeded,
)
from pipeline.training.journal import Journal
from pipeline.training.model import Glances, Parts, glance_at
from pipeline.training.optimise import half_precision, make_optimiser, make_scaler, num_epochs, set_rate, take_step
from pipeline.training.scoring import blank, policy_named, score
from pipeline.training.settings import Supervised, TrainSettings
from policies.base import act_all, corners

Where = Literal["random", "learned", "whole"]


def train_on_patches(
    parts: Parts,
    settings: TrainSettings,
    stage: Supervised,
    train: Clips,
    val: Clips,
    journal: Journal,
    *,
    where: Where,
    glance_head: Tensor | None = None,
    train_glances: Glances | None = None,
    val_glances: Glances | None = None,
) -> dict[str, float]:
    """Gives the last scores. glance_head [K,C]: stage 0a's, for `salient_share`."""
    assert parts.header.classifier is not None
    assert parts.header.focus is not None and parts.header.focus.size_px is not None
    view_px, patch_px = settings.preprocessing.crop_px, parts.header.focus.size_px
    trains_focus = stage.lr_focus > 0
    trained = [parts.classifier, parts.focuser] if trains_focus else [parts.classifier]
    parts.classifier.dropout.p = stage.dropout
    epochs = num_epochs(stage)
    if epochs == 0:
        return {}

    # A second, weaker task for the focus network: the class from one patch alone. It is not kept.
    torch.manual_seed(settings.seed)
    head = nn.Linear(parts.focuser.num_features, parts.header.classifier.num_classes).to(parts.device)
    has_head = trains_focus and stage.patch_head_weight > 0

    parts.freeze(*trained)
    groups: list[tuple[nn.Module, float]] = [(parts.classifier, stage.lr_classifier)]
    if trains_focus:
        groups.append((parts.focuser, stage.lr_focus))
    if has_head:
        groups.append((head, stage.lr_focus))
    optimiser = make_optimiser(stage.optimiser, groups)
    scaler = make_scaler(settings)
    kept = {
        "classifier": parts.classifier, "focuser": parts.focuser, "head": head, "optimiser": optimiser,
        "scaler": scaler,
    }  # fmt: skip
    start = journal.resume(**kept)
    steps = num_batches(len(train), stage.batch_size)
    augmentation = Augmentation(crop_px=view_px, is_flipped=settings.is_flipped, is_cropped=settings.is_cropped)

    values: dict[str, float] = {}
    for epoch in range(start, epochs):
        rng = seeded(settings.seed, journal.stage, epoch)
        # Dropout draws from torch's own generator.
        torch.manual_seed(int(rng.integers(2**62)))
        parts.freeze(*trained)
        sums = np.zeros(2)
        for step, rows in enumerate(batches(len(train), stage.batch_size, rng)):
            set_rate(optimiser, stage, epoch, step, steps)

            # Data.
            picks = draw_picks(rows, train, rng)
            views = load_views(train, rows, picks, augmentation=augmentation, rng=rng)
            labels = train.draw_labels(rows, rng).to(parts.device)
            shape = views.shape[:2]

            # Glances, and where to look.
            with torch.no_grad():
                if train_glances is not None:
                    maps, glance = train_glances.take(rows, picks, parts.device)
                else:
                    with half_precision(settings):
                        maps, glance = glance_at(parts, views)
                    maps, glance = (x.float().unflatten(0, shape) for x in (maps, glance))
                if where == "random":
                    places = random_corners(shape, view_px - patch_px, rng)
                    if glance_head is not None:
                        seen = salient_corners(maps, glance_head, labels, view_px=view_px, patch_px=patch_px, rng=rng)
                        is_salient = rng.random(shape) < stage.salient_share
                        places = np.where(is_salient[..., None], seen, places)
                elif where == "learned":
                    actions, _ = act_all(parts.policy, maps, parts.policy.initial_state(len(rows)))
                    places = corners(actions.offsets, view_px=view_px, patch_px=patch_px).cpu().numpy()
                else:
                    places = np.zeros((*shape, 2), np.int64)

            # Focus and classify.
            patches = normalised(cut(views, places, patch_px), parts.normalisation, parts.device)
            with torch.set_grad_enabled(trains_focus), half_precision(settings):
                _, local = parts.focuser(patches)
            local = local.float()
            focuses = blank(local.unflatten(0, shape), stage.blank_share, rng)
            logits, _ = parts.classifier(join_features(glance, focuses, parts.focuser.num_features))

            # Losses: every step is supervised.
            every_step = labels.repeat_interleave(shape[1])
            loss = F.cross_entropy(logits.flatten(0, 1), every_step)
            sums[0] += float(loss.detach())
            if has_head:
                second = F.cross_entropy(head(local), every_step)
                sums[1] += float(second.detach())
                loss = loss + stage.patch_head_weight * second
            take_step(
                loss,
                optimiser,
                scaler,
                where=f"stage {journal.stage}, epoch {epoch}, step {step}",
                last_good=str(journal.state_path),
            )

        values = {"loss": float(sums[0] / steps), "lr": optimiser.param_groups[0]["lr"]}
        if has_head:
            values["patch_loss"] = float(sums[1] / steps)
        if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == epochs:
            policy = policy_named({"random": "random", "learned": "learned", "whole": "center"}[where], parts)
            values |= score(parts, settings, val, policy, glances=val_glances).values("val_")
        journal.save(done=epoch + 1, **kept)
        journal.log(done=epoch + 1, total=epochs, **values)
    return values
