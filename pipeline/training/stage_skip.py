"""The stage after the published ones: whether a frame is worth a focus. Own design; everything else rests.

REINFORCE: a clip is rolled out several times at a price per focus drawn for it, and each roll-out is judged
against the others. Half of the clips see the classifier's state and half do not, so one head learns both.
Patches do not depend on what is skipped, so all features are computed beforehand and an update costs a few
recurrent steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.classify import join_features
from pipeline.training.clips import Clips, batches, seeded
from pipeline.training.journal import Journal
from pipeline.training.model import Glances, Parts
from pipeline.training.optimise import take_step
from pipeline.training.scoring import Looks, look
from pipeline.training.settings import SkipStage, TrainSettings
from policies.recurrent import Sees
from policies.rewards import leave_one_out, skip_return

_EPOCHS = 6
"""Times that the features are computed anew, from other candidate frames; the updates are spread over
them."""

TABLE_PRICES = (0.001, 0.002, 0.003, 0.005, 0.008, 0.012, 0.02, 0.03, 0.05, 0.08, 0.12)
"""Prices at which the finished head is measured."""


def train_skip(
    parts: Parts,
    settings: TrainSettings,
    train: Clips,
    val: Clips,
    journal: Journal,
    *,
    train_glances: Glances | None = None,
    val_glances: Glances | None = None,
) -> dict[str, float]:
    """Gives the last scores."""
    stage: SkipStage = settings.skip
    if stage.updates == 0:
        return {}
    head = parts.skip
    parts.freeze(head)
    optimiser = torch.optim.Adam(head.parameters(), lr=stage.lr)
    start = journal.resume(skip=head, optimiser=optimiser)
    per_epoch = math.ceil(stage.updates / _EPOCHS)
    val_looks = look(parts, settings, val, parts.policy, glances=val_glances)

    values: dict[str, float] = {}
    for epoch in range(start, _EPOCHS):
        rng = seeded(settings.seed, journal.stage, epoch)
        torch.manual_seed(int(rng.integers(2**62)))
        looks = look(parts, settings, train, parts.policy, glances=train_glances, draw=rng)
        labels = train.draw_labels(np.arange(len(train)), rng).to(parts.device)
        parts.freeze(head)
        for group in optimiser.param_groups:
            group["lr"] = stage.lr * 0.5 * (1 + math.cos(math.pi * epoch / _EPOCHS))
        sums = np.zeros(3)
        for update in range(per_epoch):
            rows = torch.from_numpy(next(batches(len(train), stage.batch_size, rng)))
            clips = len(rows)
            drawn = rng.uniform(math.log(stage.price_low), math.log(stage.price_high), clips)
            price = torch.from_numpy(np.exp(drawn)).float()
            is_seeing = torch.from_numpy(rng.random(clips) < 0.5)

            # Roll-outs: every clip several times, in one batch.
            index = rows.repeat(stage.rollouts)
            prices, seeing = (x.repeat(stage.rollouts).to(parts.device) for x in (price, is_seeing))
            focus, log_prob, logits = roll_out(parts, looks, index, prices, seeing, is_sampled=True)
            final = torch.log_softmax(logits[:, -1].detach(), dim=-1)
            final = final.gather(-1, labels[index].unsqueeze(-1)).squeeze(-1)

            # Returns, advantages, update.
            returns = skip_return(final, focus, prices)
            advantages = leave_one_out(returns.unflatten(0, (stage.rollouts, clips))).flatten()
            loss = -(advantages * log_prob.sum(dim=1)).mean()
            take_step(
                loss,
                optimiser,
                where=f"stage {journal.stage}, update {epoch * per_epoch + update}",
                last_good=str(journal.state_path),
            )
            sums += [float(returns.mean()), float(focus.float().mean()), 1]
        values = {"return": float(sums[0] / sums[2]), "share": float(100 * sums[1] / sums[2])}
        for sees in ("classifier", "glance"):
            accuracy, share = measure(parts, val, val_looks, stage.price, sees)  # type: ignore[arg-type]
            values |= {f"val_accuracy_{sees}": accuracy, f"val_share_{sees}": 100 * share}
        journal.save(done=epoch + 1, skip=head, optimiser=optimiser)
        journal.log(done=epoch + 1, total=_EPOCHS, **values)
    return values


def roll_out(
    parts: Parts, looks: Looks, rows: Tensor, price: Tensor, is_seeing: Tensor, *, is_sampled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Focus bool [B,T], its log-probability [B,T] and the classifier's logits [B,T,K] for clips `rows` [B].

    is_seeing bool [B]: whether the head is shown the classifier's state.
    """
    assert looks.contexts is not None
    head, classifier = parts.skip, parts.classifier
    contexts, glances, focuses = looks.contexts[rows], looks.glances[rows], looks.focuses[rows]
    hidden = contexts.new_zeros((len(rows), head.hidden))
    previous = contexts.new_zeros((len(rows), 1))
    state = classifier.initial_state(len(rows))
    taken, log_probs, outputs = [], [], []
    for t in range(contexts.shape[1]):
        logit, hidden = head.step(contexts[:, t], state, price, hidden, previous, is_seeing=is_seeing)
        focus = torch.rand_like(logit) < torch.sigmoid(logit.detach()) if is_sampled else logit > 0
        log_probs.append(F.logsigmoid(torch.where(focus, logit, -logit)))
        with torch.no_grad():
            local = focuses[:, t] * focus.unsqueeze(-1)
            state, logits = classifier.step(state, join_features(glances[:, t], local, local.shape[-1]))
        previous = focus.to(contexts.dtype).unsqueeze(-1)
        taken.append(focus)
        outputs.append(logits)
    return torch.stack(taken, dim=1), torch.stack(log_probs, dim=1), torch.stack(outputs, dim=1)


@torch.no_grad()
def measure(parts: Parts, clips: Clips, looks: Looks, price: float, sees: Sees) -> tuple[float, float]:
    """Accuracy in percent and share of the steps focused, at a price."""
    parts.freeze()
    rows = torch.arange(len(clips))
    prices = torch.full((len(clips),), price, device=parts.device)
    seeing = torch.full((len(clips),), sees == "classifier", device=parts.device)
    focus, _, logits = roll_out(parts, looks, rows, prices, seeing, is_sampled=False)
    best = logits[:, -1].argmax(dim=-1).tolist()
    right = sum(label in clips.labels[v] for v, label in enumerate(best))
    return 100 * right / len(clips), float(focus.float().mean())


def price_tables(
    parts: Parts, settings: TrainSettings, val: Clips, val_glances: Glances | None
) -> dict[str, list[tuple[float, float, float]]]:
    """What the head sees -> rows of (price, share of the steps focused, accuracy), measured on validation
    clips.
    """
    looks = look(parts, settings, val, parts.policy, glances=val_glances)
    tables: dict[str, list[tuple[float, float, float]]] = {}
    for sees in ("classifier", "glance"):
        rows = []
        for price in TABLE_PRICES:
            accuracy, share = measure(parts, val, looks, price, sees)  # type: ignore[arg-type]
            rows.append((price, share, accuracy))
        tables[sees] = rows
    return tables
