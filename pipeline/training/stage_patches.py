"""Stages 1 and 3, and the comparison `full`: focus network and classifier on patches, cross entropy after
every step.

They differ in where the patches lie: anywhere, independently for every frame (1), or mostly where the glance
network sees the class if so set; where the trained policy looks (3); or they are the whole views (full). The
glance network rests in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.networks.classify import join_features
from pipeline.config.training import Supervised, TrainSettings
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
from pipeline.training.scoring import blank, policy_named, score_places
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
    """Trains one stage on patches and gives its last scores. glance_head [K,C]: stage 0a's, for `salient_share`."""
    parts.classifier.dropout.p = stage.dropout
    epochs = num_epochs(stage)
    if epochs == 0:
        return {}
    under_way = _prepared(parts, settings, stage, train, journal, where, glance_head, train_glances)
    start = journal.resume(**under_way.kept)
    values: dict[str, float] = {}
    for epoch in range(start, epochs):
        values = under_way.epoch(epoch)
        if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == epochs:
            policy = policy_named({"random": "random", "learned": "learned", "whole": "center"}[where], parts)
            values |= score_places(parts, settings, val, policy, glances=val_glances).values("val_")
        journal.save(done=epoch + 1, **under_way.kept)
        journal.log(done=epoch + 1, total=epochs, asked=stage.epochs, **values)
    return values


@dataclass(frozen=True, eq=False, kw_only=True)
class _PatchStage:
    """One stage under way."""

    parts: Parts
    settings: TrainSettings
    stage: Supervised
    train: Clips
    journal: Journal
    where: Where
    glance_head: Tensor | None
    glances: Glances | None
    head: nn.Linear
    """Names the class from one patch alone: a second, weaker task for the focus network. It is not kept."""
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    patch_px: int

    @property
    def trains_focus(self) -> bool:
        return self.stage.lr_focus > 0

    @property
    def has_head(self) -> bool:
        return self.trains_focus and self.stage.patch_head_weight > 0

    @property
    def trained(self) -> list[nn.Module]:
        return [self.parts.classifier, self.parts.focuser] if self.trains_focus else [self.parts.classifier]

    @property
    def kept(self) -> dict[str, Any]:
        """What a state of the stage consists of."""
        return {
            "classifier": self.parts.classifier, "focuser": self.parts.focuser, "head": self.head,
            "optimiser": self.optimiser, "scaler": self.scaler,
        }  # fmt: skip

    def epoch(self, epoch: int) -> dict[str, float]:
        """Every training clip once; gives the mean losses."""
        rng = seeded(self.settings.seed, self.journal.stage, epoch)
        # Dropout draws from torch's own generator.
        torch.manual_seed(int(rng.integers(2**62)))
        self.parts.freeze(*self.trained)
        sums = np.zeros(2)
        steps = num_batches(len(self.train), self.stage.batch_size)
        for step, rows in enumerate(batches(len(self.train), self.stage.batch_size, rng)):
            set_rate(self.optimiser, self.stage, epoch, step, steps)
            loss, *summed = self.losses(rows, rng)
            sums += summed
            take_step(
                loss,
                self.optimiser,
                self.scaler,
                where=f"stage {self.journal.stage}, epoch {epoch}, step {step}",
                last_good=str(self.journal.state_path),
            )
        values = {"loss": float(sums[0] / steps), "lr": self.optimiser.param_groups[0]["lr"]}
        if self.has_head:
            values["patch_loss"] = float(sums[1] / steps)
        return values

    def losses(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, float, float]:
        """Computes of one batch what is minimised, the classifier's loss, and that from single patches. Every step is
        supervised."""
        augmentation = Augmentation(
            crop_px=self.settings.preprocessing.crop_px,
            is_flipped=self.settings.is_flipped,
            is_cropped=self.settings.is_cropped,
        )
        picks = draw_picks(rows, self.train, rng)
        views = load_views(self.train, rows, picks, augmentation=augmentation, rng=rng)
        labels = self.train.draw_labels(rows, rng).to(self.parts.device)
        with torch.no_grad():
            maps, glance = self.glance(rows, picks, views)
            places = self.places(maps, labels, views.shape[:2], rng)
        local, logits = self.classify(views, places, glance, rng)
        every_step = labels.repeat_interleave(views.shape[1])
        loss = F.cross_entropy(logits.flatten(0, 1), every_step)
        first = float(loss.detach())
        if not self.has_head:
            return loss, first, 0.0
        second = F.cross_entropy(self.head(local), every_step)
        return loss + self.stage.patch_head_weight * second, first, float(second.detach())

    def glance(self, rows: np.ndarray, picks: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """Maps [B,T,C,h,w] and features [B,T,C] of the resting glance network."""
        if self.glances is not None:
            return self.glances.take(rows, picks, self.parts.device)
        with half_precision(self.settings):
            maps, glance = glance_at(self.parts, views)
        return maps.float().unflatten(0, views.shape[:2]), glance.float().unflatten(0, views.shape[:2])

    def places(self, maps: Tensor, labels: Tensor, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """int64 [B,T,2]: upper left corners of the patches."""
        sides = {"view_px": self.settings.preprocessing.crop_px, "patch_px": self.patch_px}
        if self.where == "whole":
            return np.zeros((*shape, 2), np.int64)
        if self.where == "learned":
            policy = self.parts.policy
            actions, _ = act_all(policy, maps, policy.initial_state(shape[0]))
            return corners(actions.offsets, **sides).cpu().numpy()
        places = random_corners(shape, sides["view_px"] - self.patch_px, rng)
        if self.glance_head is not None:
            seen = salient_corners(maps, self.glance_head, labels, rng=rng, **sides)
            is_salient = rng.random(shape) < self.stage.salient_share
            places = np.where(is_salient[..., None], seen, places)
        return places

    def classify(
        self, views: np.ndarray, places: np.ndarray, glance: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Features of the patches [B*T,D] and the classifier's logits [B,T,K]."""
        parts = self.parts
        patches = normalised(cut(views, places, self.patch_px), parts.normalisation, parts.device)
        with torch.set_grad_enabled(self.trains_focus), half_precision(self.settings):
            _, local = parts.focuser(patches)
        local = local.float()
        focuses = blank(local.unflatten(0, views.shape[:2]), self.stage.blank_share, rng)
        logits, _ = parts.classifier(join_features(glance, focuses, parts.focuser.num_features))
        return local, logits


def _prepared(
    parts: Parts,
    settings: TrainSettings,
    stage: Supervised,
    train: Clips,
    journal: Journal,
    where: Where,
    glance_head: Tensor | None,
    glances: Glances | None,
) -> _PatchStage:
    """The stage before its first epoch: what is trained, and at which rates."""
    assert parts.header.classifier is not None
    assert parts.header.focus is not None and parts.header.focus.size_px is not None
    torch.manual_seed(settings.seed)
    head = nn.Linear(parts.focuser.num_features, parts.header.classifier.num_classes).to(parts.device)
    groups: list[tuple[nn.Module, float]] = [(parts.classifier, stage.lr_classifier)]
    if stage.lr_focus > 0:
        groups.append((parts.focuser, stage.lr_focus))
        if stage.patch_head_weight > 0:
            groups.append((head, stage.lr_focus))
    parts.freeze(*[module for module, _ in groups if module is not head])
    return _PatchStage(
        parts=parts,
        settings=settings,
        stage=stage,
        train=train,
        journal=journal,
        where=where,
        glance_head=glance_head,
        glances=glances,
        head=head,
        optimiser=make_optimiser(stage.optimiser, groups),
        scaler=make_scaler(settings),
        patch_px=parts.header.focus.size_px,
    )
