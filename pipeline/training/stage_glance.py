"""Stages 0a and 0b: the glance network on whole views, the focus network on whole views, each with a head of
its own that names the class; logits are averaged over a clip's frames. The heads do not go into the
checkpoint."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.durable import write_durably
from operators.errors import CheckpointError
from operators.networks.network import Network
from pipeline.config.training import Supervised, TrainSettings
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
from pipeline.training.model import Parts, glance_at
from pipeline.training.optimise import half_precision, make_optimiser, make_scaler, num_epochs, set_rate, take_step


def train_alone(
    parts: Parts, settings: TrainSettings, train: Clips, val: Clips, journal: Journal, *, which: str
) -> dict[str, float]:
    """Trains one network by itself and gives its last scores. `which`: `glancer` (0a) or `focuser` (0b)."""
    stage: Supervised = settings.glance if which == "glancer" else settings.focus
    network: Network = parts.glancer if which == "glancer" else parts.focuser
    lr = stage.lr_glance if which == "glancer" else stage.lr_focus
    epochs = num_epochs(stage)
    if epochs == 0:
        return {}
    assert parts.header.classifier is not None
    torch.manual_seed(settings.seed)
    head = nn.Linear(network.num_features, parts.header.classifier.num_classes).to(parts.device)
    parts.freeze(network)
    optimiser = make_optimiser(stage.optimiser, [(network, lr), (head, lr)])
    scaler = make_scaler(settings)
    kept = {"network": network, "head": head, "optimiser": optimiser, "scaler": scaler}
    start = journal.resume(**kept)
    steps = num_batches(len(train), stage.batch_size)
    augmentation = Augmentation(
        crop_px=settings.preprocessing.crop_px, is_flipped=settings.is_flipped, is_cropped=settings.is_cropped
    )
    values: dict[str, float] = {}
    for epoch in range(start, epochs):
        rng = seeded(settings.seed, journal.stage, epoch)
        parts.freeze(network)
        total = 0.0
        for step, rows in enumerate(batches(len(train), stage.batch_size, rng)):
            set_rate(optimiser, stage, epoch, step, steps)
            views = load_views(train, rows, draw_picks(rows, train, rng), augmentation=augmentation, rng=rng)
            labels = train.draw_labels(rows, rng).to(parts.device)
            with half_precision(settings):
                logits = head(_feature(parts, network, views))
            mean = logits.float().unflatten(0, views.shape[:2]).mean(dim=1)
            total += take_step(
                F.cross_entropy(mean, labels),
                optimiser,
                scaler,
                where=f"stage {journal.stage}, epoch {epoch}, step {step}",
                last_good=str(journal.state_path),
            )
        values = {"loss": total / steps, "lr": optimiser.param_groups[0]["lr"]}
        if (epoch + 1) % settings.validate_every == 0 or epoch + 1 == epochs:
            values["val_accuracy"] = _accuracy(parts, settings, network, head, val)
        journal.save(done=epoch + 1, **kept)
        journal.log(done=epoch + 1, total=epochs, asked=stage.epochs, **values)
    save_head(journal.folder / "head.pt", head)
    return values


def save_head(path: Path, head: nn.Linear) -> None:
    """Writes the head beside the checkpoint: inference has no use for it, but stage 1 may take from it where a class is
    seen."""
    content = io.BytesIO()
    torch.save({k: v.detach().cpu() for k, v in head.state_dict().items()}, content)
    write_durably(path, content.getvalue())


def load_head(path: Path) -> Tensor:
    """The weight [K,C] of the head that stage 0a left."""
    if not path.exists():
        raise CheckpointError(
            f"{path} is not there: it comes from stage 0a and says where the glance sees a class. "
            "Train stage 0a, or set train.warmup.salient_share to 0"
        )
    return torch.load(path, map_location="cpu", weights_only=True)["weight"]


def _feature(parts: Parts, network: Network, views: np.ndarray) -> Tensor:
    """The network's features [N,D] of views, uint8 [B,T,S,S,3]."""
    if network is parts.glancer:
        return glance_at(parts, views)[1]
    return network(normalised(views, parts.normalisation, parts.device))[1]


@torch.no_grad()
def _accuracy(parts: Parts, settings: TrainSettings, network: Network, head: nn.Module, val: Clips) -> float:
    parts.freeze()
    augmentation = Augmentation(crop_px=settings.preprocessing.crop_px)
    right = 0
    for rows in batches(len(val), 32, None, drop_last=False):
        views = load_views(val, rows, draw_picks(rows, val, None), augmentation=augmentation, rng=None)
        with half_precision(settings):
            logits = head(_feature(parts, network, views))
        best = logits.float().unflatten(0, views.shape[:2]).mean(dim=1).argmax(dim=1).tolist()
        right += sum(label in val.labels[row] for label, row in zip(best, rows, strict=True))
    return 100 * right / len(val)
