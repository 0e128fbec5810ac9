"""The stage after the published ones: whether a frame is worth a focus. Own design; everything else rests.

The loss is the last step's cross entropy and a price per focus. A decision is drawn and multiplies the patch's
feature; its gradient is that of its probability (straight through). REINFORCE with four roll-outs per clip came to the
same place in several times the updates. Prices are drawn anew for each clip, and half of the clips are decided with
the classifier's state in sight and half without, so one head learns it all. Patches do not depend on what is skipped:
all features are computed beforehand, and an update costs a few recurrent steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from operators.networks.classify import join_features
from pipeline.config.training import SkipStage, TrainSettings
from pipeline.training.clips import Clips, batches, seeded
from pipeline.training.journal import Journal
from pipeline.training.model import Glances, Parts
from pipeline.training.optimise import one_thread, take_step
from pipeline.training.scoring import Looks, gather_looks
from policies.recurrent import Sees

_EPOCHS = 4
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
    """Trains the stage and gives its last scores."""
    stage: SkipStage = settings.skip
    if stage.updates == 0:
        return {}
    head = parts.skip
    assert head is not None
    parts.freeze(head)
    optimiser = torch.optim.Adam(head.parameters(), lr=stage.lr)
    start = journal.resume(skip=head, optimiser=optimiser)
    val_looks = gather_looks(parts, settings, val, parts.policy, glances=val_glances)
    values: dict[str, float] = {}
    for epoch in range(start, _EPOCHS):
        rng = seeded(settings.seed, journal.stage, epoch)
        torch.manual_seed(int(rng.integers(2**62)))
        looks = gather_looks(parts, settings, train, parts.policy, glances=train_glances, draw=rng)
        with one_thread():
            values = _updates(epoch, parts, stage, train, looks, journal, optimiser, rng)
            for sees in ("classifier", "glance"):
                accuracy, share = measure(parts, val, val_looks, stage.price, sees)  # type: ignore[arg-type]
                values |= {f"val_accuracy_{sees}": accuracy, f"val_share_{sees}": 100 * share}
        journal.save(done=epoch + 1, skip=head, optimiser=optimiser)
        journal.log(done=epoch + 1, total=_EPOCHS, asked=_EPOCHS, **values)
    return values


def _updates(
    epoch: int,
    parts: Parts,
    stage: SkipStage,
    train: Clips,
    looks: Looks,
    journal: Journal,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
) -> dict[str, float]:
    """An epoch's share of the updates; gives the mean loss and share of the steps focused."""
    labels = train.draw_labels(np.arange(len(train)), rng).to(parts.device)
    assert parts.skip is not None
    parts.freeze(parts.skip)
    # The gradient goes through the classifier, which rests: cuDNN gives one only through a GRU in training mode. It
    # has no dropout of its own, so it computes the same; the dropout after it stays off.
    parts.classifier.gru.train()
    per_epoch = math.ceil(stage.updates / _EPOCHS)
    sums = np.zeros(3)
    for update in range(per_epoch):
        done = (epoch * per_epoch + update) / (_EPOCHS * per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = stage.lr * 0.5 * (1 + math.cos(math.pi * done))
        rows = torch.from_numpy(next(batches(len(train), stage.batch_size, rng)))
        clips = len(rows)
        drawn = rng.uniform(math.log(stage.price_low), math.log(stage.price_high), clips)
        price = torch.from_numpy(np.exp(drawn)).float()
        is_seeing = torch.from_numpy(rng.random(clips) < 0.5)

        # Roll-out, loss, update.
        index = rows.repeat(stage.rollouts)
        prices, seeing = (x.repeat(stage.rollouts).to(parts.device) for x in (price, is_seeing))
        gates, logits = roll_out(parts, looks, index, prices, seeing, is_sampled=True)
        wrong = F.cross_entropy(logits[:, -1], labels[index], reduction="none")
        loss = (wrong + prices * gates.sum(dim=1)).mean()
        value = take_step(
            loss,
            optimiser,
            where=f"stage {journal.stage}, update {epoch * per_epoch + update}",
            last_good=str(journal.state_path),
        )
        sums += [value, float(gates.detach().mean()), 1]
    return {"loss": float(sums[0] / sums[2]), "share": float(100 * sums[1] / sums[2])}


def roll_out(
    parts: Parts, looks: Looks, rows: Tensor, price: Tensor, is_seeing: Tensor, *, is_sampled: bool
) -> tuple[Tensor, Tensor]:
    """Gates [B,T], 1 where focused, and the classifier's logits [B,T,K] for clips `rows` [B].

    is_seeing bool [B]: whether the head is shown the classifier's state. Sampled gates carry the gradient of their
    probability.
    """
    assert looks.contexts is not None and parts.skip is not None
    head, classifier = parts.skip, parts.classifier
    contexts, glances, focuses = looks.contexts[rows], looks.glances[rows], looks.focuses[rows]
    hidden = contexts.new_zeros((len(rows), head.hidden))
    previous = contexts.new_zeros((len(rows), 1))
    state = classifier.initial_state(len(rows))
    gates, outputs = [], []
    for t in range(contexts.shape[1]):
        logit, hidden = head.step(contexts[:, t], state, price, hidden, previous, is_seeing=is_seeing)
        if is_sampled:
            # A logistic draw on top of the logit is positive with the decision's probability.
            noise = torch.rand_like(logit).clamp(1e-6, 1 - 1e-6)
            soft = torch.sigmoid(logit + noise.log() - torch.log1p(-noise))
            gate = (soft > 0.5).to(soft.dtype) + soft - soft.detach()
        else:
            gate = (logit > 0).to(logit.dtype)
        local = focuses[:, t] * gate.unsqueeze(-1)
        state, logits = classifier.step(state, join_features(glances[:, t], local, local.shape[-1]))
        previous = gate.unsqueeze(-1)
        gates.append(gate)
        outputs.append(logits)
    return torch.stack(gates, dim=1), torch.stack(outputs, dim=1)


@torch.no_grad()
def measure(parts: Parts, clips: Clips, looks: Looks, price: float, sees: Sees) -> tuple[float, float]:
    """Accuracy in percent and share of the steps focused, at a price."""
    parts.freeze()
    rows = torch.arange(len(clips))
    prices = torch.full((len(clips),), price, device=parts.device)
    seeing = torch.full((len(clips),), sees == "classifier", device=parts.device)
    gates, logits = roll_out(parts, looks, rows, prices, seeing, is_sampled=False)
    best = logits[:, -1].argmax(dim=-1).tolist()
    right = sum(label in clips.labels[v] for v, label in enumerate(best))
    return 100 * right / len(clips), float(gates.mean())


def price_tables(
    parts: Parts, settings: TrainSettings, val: Clips, val_glances: Glances | None
) -> dict[str, list[tuple[float, float, float]]]:
    """What the head sees -> rows of (price, share of the steps focused, accuracy), measured on validation
    clips.
    """
    looks = gather_looks(parts, settings, val, parts.policy, glances=val_glances)
    tables: dict[str, list[tuple[float, float, float]]] = {}
    with one_thread():
        for sees in ("classifier", "glance"):
            rows = []
            for price in TABLE_PRICES:
                accuracy, share = measure(parts, val, looks, price, sees)  # type: ignore[arg-type]
                rows.append((price, share, accuracy))
            tables[sees] = rows
    return tables
