"""Stage 2: where to look, learned by PPO. Everything but the policy rests.

One batch of clips is one roll-out of all their steps. The policy reads glances only, so its steps come first
and all patches go through the focus network together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from operators.networks.classify import join_features
from pipeline.config.training import PolicyStage, TrainSettings
from pipeline.training.clips import (
    Augmentation,
    Clips,
    batches,
    cut,
    draw_picks,
    load_views,
    normalised,
    random_corners,
    seeded,
)
from pipeline.training.journal import Journal
from pipeline.training.model import Glances, Parts, glance_at
from pipeline.training.optimise import half_precision, take_step
from pipeline.training.scoring import score_places
from policies.base import act_all, corners
from policies.ppo import PpoLoss, discounted_returns, normalise, ppo_loss
from policies.rewards import confidence_reward, previous_reward, random_reward


def train_policy(
    parts: Parts,
    settings: TrainSettings,
    train: Clips,
    val: Clips,
    journal: Journal,
    *,
    train_glances: Glances | None = None,
    val_glances: Glances | None = None,
) -> dict[str, float]:
    """Trains the stage and gives its last scores."""
    stage: PolicyStage = settings.policy
    if stage.epochs == 0:
        return {}
    policy = parts.policy
    parts.freeze(policy)
    optimiser = torch.optim.Adam(policy.parameters(), lr=stage.lr, betas=(0.9, 0.999))
    start = journal.resume(policy=policy, optimiser=optimiser)
    values: dict[str, float] = {}
    for epoch in range(start, stage.epochs):
        values = _epoch(epoch, parts, settings, train, journal, optimiser, train_glances)
        if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == stage.epochs:
            values |= score_places(parts, settings, val, policy, glances=val_glances).values("val_")
        journal.save(done=epoch + 1, policy=policy, optimiser=optimiser)
        journal.log(done=epoch + 1, total=stage.epochs, asked=stage.epochs, **values)
    return values


def _epoch(
    epoch: int,
    parts: Parts,
    settings: TrainSettings,
    train: Clips,
    journal: Journal,
    optimiser: torch.optim.Optimizer,
    glances: Glances | None,
) -> dict[str, float]:
    """A roll-out and its updates for every batch of the training clips; gives their means."""
    stage = settings.policy
    rng = seeded(settings.seed, journal.stage, epoch)
    # Places are drawn from torch's own generator.
    torch.manual_seed(int(rng.integers(2**62)))
    parts.freeze(parts.policy)
    sums = np.zeros(4)
    for step, rows in enumerate(batches(len(train), stage.batch_size, rng)):
        rolled = _roll_out(parts, settings, train, rows, rng, glances)
        for _ in range(stage.passes):
            loss = _loss(parts, stage, rolled)
            take_step(
                loss.total,
                optimiser,
                where=f"stage {journal.stage}, epoch {epoch}, step {step}",
                last_good=str(journal.state_path),
            )
        sums += [float(loss.total.detach()), float(rolled.rewards.mean()), float(loss.entropy.detach()), 1]
    return dict(zip(("loss", "reward", "entropy"), (sums[:3] / sums[3]).tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class _RollOut:
    maps: Tensor
    """[B,T,C,h,w]"""
    choice: Tensor
    """[B,T]: the places that were drawn, and below how likely they were then."""
    log_prob: Tensor
    rewards: Tensor
    """[B,T]"""


@torch.no_grad()
def _roll_out(
    parts: Parts,
    settings: TrainSettings,
    train: Clips,
    rows: np.ndarray,
    rng: np.random.Generator,
    glances: Glances | None,
) -> _RollOut:
    """All steps of a batch of clips where the policy draws its places, and what each was worth."""
    assert parts.header.focus is not None and parts.header.focus.size_px is not None
    view_px, patch_px = settings.preprocessing.crop_px, parts.header.focus.size_px
    augmentation = Augmentation(crop_px=view_px, is_flipped=settings.is_flipped, is_cropped=settings.is_cropped)
    picks = draw_picks(rows, train, rng)
    views = load_views(train, rows, picks, augmentation=augmentation, rng=rng)
    labels = train.draw_labels(rows, rng).to(parts.device)
    shape = views.shape[:2]
    if glances is not None:
        maps, glance = glances.take(rows, picks, parts.device)
    else:
        maps, glance = (x.unflatten(0, shape) for x in glance_at(parts, views))
    policy = parts.policy
    actions, _ = act_all(policy, maps, policy.initial_state(len(rows)), greedy=False)
    assert actions.choice is not None and actions.log_prob is not None
    places = corners(actions.offsets, view_px=view_px, patch_px=patch_px).cpu().numpy()
    other = random_corners(shape, view_px - patch_px, rng)
    rewards = _rewards(parts, settings, views, labels, glance, places=places, other=other)
    return _RollOut(maps, actions.choice, actions.log_prob, rewards)


def _rewards(
    parts: Parts,
    settings: TrainSettings,
    views: np.ndarray,
    labels: Tensor,
    glance: Tensor,
    *,
    places: np.ndarray,
    other: np.ndarray,
) -> Tensor:
    """[B,T] of the patches at `places`. `other`: random places, for the reward that compares with them."""
    assert parts.header.focus is not None and parts.header.focus.size_px is not None
    patch_px, kind = parts.header.focus.size_px, settings.policy.reward
    chosen = _features(parts, settings, views, places, patch_px)
    logits, states = _classify(parts, join_features(glance, chosen, parts.focuser.num_features))
    probability = _probability(logits, labels)
    if kind == "previous":
        return previous_reward(probability)
    if kind == "confidence":
        return confidence_reward(probability)
    by_chance = _features(parts, settings, views, other, patch_px)
    beside = join_features(glance, by_chance, parts.focuser.num_features)
    # All steps at once: each from the state that the chosen patches before it led to.
    _, other_logits = parts.classifier.step(states.flatten(0, 1), beside.flatten(0, 1))
    return random_reward(probability, _probability(other_logits.unflatten(0, views.shape[:2]), labels))


def _loss(parts: Parts, stage: PolicyStage, rolled: _RollOut) -> PpoLoss:
    """The advantage follows in the loss, from the value as it is now."""
    log_prob, entropy, value = parts.policy.evaluate_choices(rolled.maps, rolled.choice)
    return ppo_loss(
        log_prob=log_prob,
        old_log_prob=rolled.log_prob,
        value=value,
        entropy=entropy,
        returns=normalise(discounted_returns(rolled.rewards, gamma=stage.gamma)),
        clip=stage.clip,
        value_weight=stage.value_weight,
        entropy_weight=stage.entropy_weight,
    )


def _features(parts: Parts, settings: TrainSettings, views: np.ndarray, places: np.ndarray, patch_px: int) -> Tensor:
    """[B,T,D] of the patches at these corners. bf16 on a CPU; full precision on a GPU, as published."""
    patches = normalised(cut(views, places, patch_px), parts.normalisation, parts.device)
    if parts.device.type == "cpu":
        with half_precision(settings):
            _, feature = parts.focuser(patches)
    else:
        _, feature = parts.focuser(patches)
    return feature.float().unflatten(0, views.shape[:2])


def _classify(parts: Parts, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B,T,K] of the steps of [B,T,D], and the classifier's state before each, [B,T,hidden]."""
    after = parts.classifier.states(inputs)
    before = torch.cat((torch.zeros_like(after[:, :1]), after[:, :-1]), dim=1)
    return parts.classifier.fc(after), before


def _probability(logits: Tensor, labels: Tensor) -> Tensor:
    """[B,T]: of the true class."""
    index = labels[:, None, None].expand(*logits.shape[:2], 1)
    return torch.softmax(logits.float(), dim=-1).gather(-1, index).squeeze(-1)
