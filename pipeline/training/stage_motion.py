"""The stages of AdaFocus-TSM: both networks alone (0a, 0b), one random place per clip (1), the place by PPO with a
Gaussian policy (2), fine-tuning where the policy looks (3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.errors import CheckpointError
from operators.networks.backbones import fill
from operators.records import Observation
from operators.weights import checkpoints
from pipeline.config.training import Supervised
from pipeline.config.training_motion import MotionSettings
from pipeline.families.files import load_checkpoint_file
from pipeline.training.clips import (
    Augmentation,
    Clips,
    batches,
    draw_picks,
    load_views,
    normalised,
    num_batches,
    seeded,
)
from pipeline.training.journal import Journal
from pipeline.training.model import Parts, place_on
from pipeline.training.motion import (
    MotionGlances,
    focus_on,
    glance_at_clips,
    motion_score,
    sizes_of,
    split_steps,
)
from pipeline.training.optimise import half_precision, make_optimiser, make_scaler, num_epochs, set_rate, take_step
from pipeline.training.scoring import policy_named
from policies.base import Actions, corners
from policies.ppo import PpoLoss, normalise, ppo_loss


def begin_motion(parts: Parts, settings: MotionSettings) -> None:
    """Weights that the settings name: TSM's pre-training files with their linear layers where the classes are as
    many, or networks without any."""
    for path, section in ((settings.networks.glance_weights, "glancer"), (settings.networks.focus_weights, "focuser")):
        if path is None:
            continue
        try:
            found = load_checkpoint_file(path).sections
        except CheckpointError:
            # No form of a whole model: an image classifier's file, or one that is refused here with its reason.
            spec = parts.header.glance if section == "glancer" else parts.header.focus
            assert spec is not None
            found = {section: checkpoints.load_backbone(path, spec.name)}
        if section not in found:
            raise CheckpointError(f"{path} has no weights of a {section}; it holds {', '.join(found)}")
        wanted = parts.module(section).state_dict()
        head = {key: value for key, value in wanted.items() if key.startswith("head.")}
        given = {key: value for key, value in found[section].items() if key in wanted}
        fits = all(given[key].shape == value.shape for key, value in head.items() if key in given)
        given = head | given if fits else given | head
        fill(parts.module(section), given, f"the {section} of {path}")
        place_on(parts.module(section), parts.device)
        layer = found.get("classifier", {}) if section == "focuser" else {}
        now = parts.classifier.state_dict()
        if layer.keys() == now.keys() and all(layer[key].shape == now[key].shape for key in now):
            fill(parts.classifier, layer, f"the classifier of {path}")


def train_motion(
    stage: str,
    parts: Parts,
    settings: MotionSettings,
    train: Clips,
    val: Clips,
    journal: Journal,
    *,
    train_glances: MotionGlances | None = None,
    val_glances: MotionGlances | None = None,
) -> dict[str, float]:
    """One stage; gives its last scores. Kept glances are of inference's frames."""
    under_way = MotionStage(parts, settings, train, val, journal, train_glances, val_glances)

    def on_patches(spec: Supervised) -> list[tuple[nn.Module, float]]:
        return [(parts.focuser, spec.lr_focus), (parts.classifier, spec.lr_classifier)]

    match stage:
        case "0a":
            rates: list[tuple[nn.Module, float]] = [(parts.glancer, settings.glance.lr_glance)]
            return under_way.supervised(settings.glance, under_way.glance_loss, rates, policy="glance")
        case "0b":
            # The linear layer over focused frames is that of the network's own training.
            both = settings.focus.lr_focus
            rates = [(parts.focuser, both), (parts.classifier, both)]
            return under_way.supervised(settings.focus, under_way.whole_loss, rates, policy=None)
        case "1":
            spec = settings.warmup
            return under_way.supervised(spec, under_way.random_loss, on_patches(spec), policy="random")
        case "2":
            return under_way.policy()
        case "3":
            spec = settings.finetune
            return under_way.supervised(spec, under_way.learned_loss, on_patches(spec), policy="learned")
    raise ValueError(f"AdaFocus-TSM has no stage {stage!r}")


def moving_places(views: np.ndarray, *, patch_px: int, rng: np.random.Generator) -> np.ndarray:
    """uint8 [B,T',S,S,3] -> int64 [B,2]: patches about cells that are drawn by how much changes in them from frame to
    frame. A twelfth of the view is a cell's step, an eighth its side."""
    side = views.shape[2]
    grey = torch.from_numpy(np.ascontiguousarray(views)).float().mean(-1)
    change = (grey[:, 1:] - grey[:, :-1]).abs().mean(1, keepdim=True)
    cell, step = max(2, side // 8), max(1, side // 24)
    energy = F.avg_pool2d(change, cell, step).squeeze(1)
    # In units of the spread, so that calm and busy clips draw alike. On the synthetic archive of motions 2 puts 29% of
    # the patches on the whole evidence, where 6% of those from anywhere lie.
    sharpened = (2 * energy / energy.flatten(1).std(1).clamp_min(1e-6)[:, None, None]).flatten(1).numpy()
    drawn = (sharpened + rng.gumbel(size=sharpened.shape)).argmax(axis=1)
    corner = np.stack([drawn // energy.shape[2], drawn % energy.shape[2]], axis=-1) * step
    centre = corner + cell / 2 + rng.uniform(-step / 2, step / 2, corner.shape)
    return np.clip(centre - patch_px / 2, 0, side - patch_px).astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Batch:
    views: np.ndarray
    """uint8 [B,T+T',S,S,3]"""
    labels: Tensor
    """int64 [B]"""
    glances: MotionGlances | None
    """Where the glance network rests."""
    rng: np.random.Generator


class MotionStage:
    """One stage under way."""

    def __init__(
        self,
        parts: Parts,
        settings: MotionSettings,
        train: Clips,
        val: Clips,
        journal: Journal,
        train_glances: MotionGlances | None,
        val_glances: MotionGlances | None,
    ) -> None:
        self.parts = parts
        self.settings = settings
        self.train = train
        self.val = val
        self.journal = journal
        self.train_glances = train_glances
        self.val_glances = val_glances
        self.view_px, self.patch_px, _ = sizes_of(parts)
        self.augmentation = Augmentation(
            crop_px=self.view_px, is_flipped=settings.is_flipped, is_cropped=settings.is_cropped
        )

    def supervised(
        self,
        stage: Supervised,
        loss_of: Callable[[_Batch, Supervised], Tensor],
        rates: list[tuple[nn.Module, float]],
        *,
        policy: str | None,
    ) -> dict[str, float]:
        """Cross entropy. `policy` says where validation looks; None: nowhere, there is nothing to validate yet."""
        parts, settings, journal = self.parts, self.settings, self.journal
        epochs = num_epochs(stage)
        if epochs == 0:
            return {}
        parts.classifier.dropout.p = stage.dropout
        trained = [module for module, rate in rates if rate > 0]
        parts.freeze(*trained)
        optimiser = make_optimiser(stage.optimiser, rates)
        scaler = make_scaler(settings)
        kept: dict[str, Any] = {name: parts.module(name) for name in ("glancer", "focuser", "classifier")}
        kept |= {"optimiser": optimiser, "scaler": scaler}
        start = journal.resume(**kept)
        steps = num_batches(len(self.train), stage.batch_size)
        values: dict[str, float] = {}
        for epoch in range(start, epochs):
            rng = seeded(settings.seed, journal.stage, epoch)
            # Dropout draws from torch's own generator.
            torch.manual_seed(int(rng.integers(2**62)))
            total = 0.0
            for step, rows in enumerate(batches(len(self.train), stage.batch_size, rng)):
                set_rate(optimiser, stage, epoch, step, steps)
                batch = self.read(rows, rng, is_glanced=parts.glancer not in trained and journal.stage != "0b")
                parts.freeze(*trained)
                total += take_step(
                    loss_of(batch, stage),
                    optimiser,
                    scaler,
                    where=f"stage {journal.stage}, epoch {epoch}, step {step}",
                    last_good=str(journal.state_path),
                )
            values = {"loss": total / steps, "lr": optimiser.param_groups[0]["lr"]}
            if policy is not None and ((epoch + 1) % settings.validate_every == 0 or epoch + 1 == epochs):
                values |= self.validate(policy)
            journal.save(done=epoch + 1, **kept)
            journal.log(done=epoch + 1, total=epochs, asked=stage.epochs, **values)
        return values

    def read(self, rows: np.ndarray, rng: np.random.Generator, *, is_glanced: bool = True) -> _Batch:
        """The clips' frames, drawn and augmented, and what the resting glance network sees of them."""
        views = load_views(self.train, rows, draw_picks(rows, self.train, rng), augmentation=self.augmentation, rng=rng)
        labels = self.train.draw_labels(rows, rng).to(self.parts.device)
        seen = None
        if is_glanced and self.train_glances is not None:
            seen = self.train_glances.take(rows, self.parts.device)
        elif is_glanced:
            self.parts.freeze()
            with torch.no_grad(), half_precision(self.settings):
                found = glance_at_clips(self.parts, split_steps(self.parts, views)[0])
            seen = MotionGlances(found.maps.float(), found.logits)
        return _Batch(views, labels, seen, rng)

    def validate(self, policy: str) -> dict[str, float]:
        where = policy_named(policy, self.parts)
        return motion_score(self.parts, self.settings, self.val, where, glances=self.val_glances).values("val_")

    def glance_loss(self, batch: _Batch, stage: Supervised) -> Tensor:
        """0a: the glance network's own logits, averaged over its frames."""
        with half_precision(self.settings):
            seen = glance_at_clips(self.parts, split_steps(self.parts, batch.views)[0], dropout=stage.dropout)
        return F.cross_entropy(seen.logits.float().mean(1), batch.labels)

    def whole_loss(self, batch: _Batch, stage: Supervised) -> Tensor:
        """0b: the focus network alone, on whole views."""
        views = split_steps(self.parts, batch.views)[1]
        with half_precision(self.settings):
            _, feature = self.parts.focuser(normalised(views, self.parts.normalisation, self.parts.device))
        logits = self.parts.classifier(self._nothing(len(views)), feature.float().unflatten(0, views.shape[:2]))
        return F.cross_entropy(logits, batch.labels)

    def _nothing(self, num_clips: int) -> Tensor:
        return torch.zeros(num_clips, 1, self.parts.classifier.num_classes, device=self.parts.device)

    def random_loss(self, batch: _Batch, stage: Supervised) -> Tensor:
        """1: one place for all frames of a clip.

        Not the best of several draws as the networks are: they then learn to answer differently at every place, and
        the loss falls while the evidence's own place stays at chance (four draws, five epochs).
        """
        places = self.draw_places(len(batch.labels), batch.rng)
        if stage.salient_share > 0:
            views = split_steps(self.parts, batch.views)[1]
            moving = moving_places(views, patch_px=self.patch_px, rng=batch.rng)
            is_salient = batch.rng.random(len(places)) < stage.salient_share
            places = np.where(is_salient[:, None], moving, places)
        return self.patch_loss(batch, places, is_trained=stage.lr_focus > 0)

    def learned_loss(self, batch: _Batch, stage: Supervised) -> Tensor:
        """3: where the policy looks."""
        assert batch.glances is not None
        policy = self.parts.policy
        with torch.no_grad():
            actions, _ = policy.act(
                Observation(feature_map=batch.glances.maps), policy.initial_state(len(batch.labels))
            )
        return self.patch_loss(batch, self.places(actions.offsets), is_trained=stage.lr_focus > 0)

    def patch_loss(self, batch: _Batch, places: np.ndarray, *, is_trained: bool) -> Tensor:
        with torch.set_grad_enabled(is_trained):
            local = focus_on(self.parts, self.settings, split_steps(self.parts, batch.views)[1], places)
        assert batch.glances is not None
        return F.cross_entropy(self.parts.classifier(batch.glances.logits, local), batch.labels)

    def probability(self, batch: _Batch, places: np.ndarray) -> Tensor:
        """[B]: of the true class, with everything as it stands."""
        local = focus_on(self.parts, self.settings, split_steps(self.parts, batch.views)[1], places)
        assert batch.glances is not None
        logits = self.parts.classifier(batch.glances.logits, local)
        return torch.softmax(logits, dim=-1).gather(-1, batch.labels[:, None]).squeeze(-1)

    def places(self, offsets: Tensor) -> np.ndarray:
        return corners(offsets, view_px=self.view_px, patch_px=self.patch_px).cpu().numpy()

    def draw_places(self, num_clips: int, rng: np.random.Generator) -> np.ndarray:
        """int64 [B,2]: floor of uniform draws, as published for this form."""
        return self.places(torch.from_numpy(rng.random((num_clips, 2), np.float32)))

    def policy(self) -> dict[str, float]:
        """2: one roll-out is one decision per clip, so returns are rewards. The published one is how much likelier the
        true class becomes than at a random place; `confidence` takes the probability alone, which has the same mean
        gradient, less noise, and half the cost."""
        stage, parts, journal = self.settings.policy, self.parts, self.journal
        if stage.epochs == 0:
            return {}
        policy = parts.policy
        parts.freeze(policy)
        optimiser = torch.optim.Adam(policy.parameters(), lr=stage.lr, betas=(0.9, 0.999))
        start = journal.resume(policy=policy, optimiser=optimiser)
        values: dict[str, float] = {}
        for epoch in range(start, stage.epochs):
            values = self.policy_epoch(epoch, optimiser)
            if (epoch + 1) % self.settings.validate_every == 0 or epoch + 1 == stage.epochs:
                values |= self.validate("learned")
            journal.save(done=epoch + 1, policy=policy, optimiser=optimiser)
            journal.log(done=epoch + 1, total=stage.epochs, asked=stage.epochs, **values)
        return values

    def policy_epoch(self, epoch: int, optimiser: torch.optim.Optimizer) -> dict[str, float]:
        """A roll-out and its updates for every batch of the training clips; gives their means."""
        stage, journal = self.settings.policy, self.journal
        rng = seeded(self.settings.seed, journal.stage, epoch)
        # Places are drawn from torch's own generator.
        torch.manual_seed(int(rng.integers(2**62)))
        sums = np.zeros(3)
        for step, rows in enumerate(batches(len(self.train), stage.batch_size, rng)):
            batch = self.read(rows, rng)
            assert batch.glances is not None
            self.parts.freeze(self.parts.policy)
            actions, reward = self.roll_out(batch)
            returns = normalise(reward[:, None])
            # Batch norm runs on the batch's statistics, here as in the roll-out.
            for _ in range(stage.passes):
                loss = self.policy_loss(batch.glances.maps, actions, returns)
                take_step(
                    loss.total,
                    optimiser,
                    where=f"stage {journal.stage}, epoch {epoch}, step {step}",
                    last_good=str(journal.state_path),
                )
            sums += [float(loss.total.detach()), float(reward.mean()), 1]
        return dict(zip(("loss", "reward"), (sums[:2] / sums[2]).tolist(), strict=True))

    @torch.no_grad()
    def roll_out(self, batch: _Batch) -> tuple[Actions, Tensor]:
        """A place for each clip, drawn by the policy, and its reward [B]."""
        assert batch.glances is not None
        num_clips, policy = len(batch.labels), self.parts.policy
        seen = Observation(feature_map=batch.glances.maps)
        actions, _ = policy.act(seen, policy.initial_state(num_clips), greedy=False)
        reward = self.probability(batch, self.places(actions.offsets))
        if self.settings.policy.reward == "random":
            reward = reward - self.probability(batch, self.draw_places(num_clips, batch.rng))
        return actions, reward

    def policy_loss(self, maps: Tensor, actions: Actions, returns: Tensor) -> PpoLoss:
        stage = self.settings.policy
        assert actions.choice is not None and actions.log_prob is not None
        log_prob, entropy, value = self.parts.policy.evaluate_choices(maps[:, None], actions.choice[:, None])
        return ppo_loss(
            log_prob=log_prob,
            old_log_prob=actions.log_prob[:, None],
            value=value,
            entropy=entropy,
            returns=returns,
            clip=stage.clip,
            value_weight=stage.value_weight,
            entropy_weight=stage.entropy_weight,
        )
