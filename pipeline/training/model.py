"""The networks under training, and their way into and out of checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from operators.errors import CheckpointError, ConfigError
from operators.networks.backbones import fill, normalisation_of
from operators.networks.classify import GRUClassifier
from operators.networks.glance import resize_views
from operators.networks.network import Network
from operators.networks.tensors import IMAGENET, Normalisation
from operators.weights import checkpoints
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import Header, Preprocessing
from pipeline.config.training import Settings, TrainSettings
from pipeline.families.parts import modules_of
from pipeline.training.clips import Clips, batches, normalised
from policies.recurrent import RecurrentPolicy, SkipHead


@dataclass(eq=False)
class Parts:
    """All networks of a model, on the device. Each stage chooses which of them it trains."""

    glancer: Network
    focuser: Network
    classifier: GRUClassifier
    policy: RecurrentPolicy
    skip: SkipHead | None
    """None in a family that skips nothing."""
    header: Header
    device: torch.device

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(mean=self.header.preprocessing.mean, std=self.header.preprocessing.std)

    def module(self, section: str) -> nn.Module:
        return getattr(self, section)

    def modules(self) -> list[nn.Module]:
        """All networks, in the order of a checkpoint's sections."""
        found = [getattr(self, section) for section in checkpoints.SECTIONS]
        return [module for module in found if module is not None]

    def freeze(self, *trained: nn.Module) -> None:
        """Puts everything at rest in eval mode but the modules given, which train."""
        for module in self.modules():
            module.eval().requires_grad_(False)
        for module in trained:
            module.train().requires_grad_(True)


def with_device(settings: Settings) -> Settings:
    """The settings with the device that `auto` stands for on this machine: a stage's identity names what it ran on."""
    has_gpu = torch.cuda.is_available()
    if settings.device == "auto":
        return settings.model_copy(update={"device": "cuda" if has_gpu else "cpu"})
    if settings.device.startswith("cuda") and not has_gpu:
        raise ConfigError(f"train.device={settings.device}: torch sees no GPU here; take auto or cpu")
    return settings


def new_parts(header: Header, settings: TrainSettings) -> Parts:
    """The networks that a header describes, with fresh weights; the same seed gives the same weights."""
    # Weights are drawn on the CPU, so that a seed means the same on every device.
    torch.manual_seed(settings.seed)
    drawn = modules_of(header)
    parts = Parts(
        glancer=drawn.glancer,
        focuser=drawn.focuser,
        # Each course's stages take the classifier of its own family and no other.
        classifier=cast(Any, drawn.classifier),
        policy=drawn.policy,
        skip=drawn.skip,
        header=header,
        device=torch.device(settings.device),
    )
    for module in parts.modules():
        place_on(module, parts.device)
    return parts


def preprocessing_of(settings: TrainSettings) -> Preprocessing:
    """The settings' preprocessing. Where its normalisation is the usual one, it becomes what the weights to begin from
    want."""
    form, networks = settings.preprocessing, settings.networks
    if (form.mean, form.std) != (IMAGENET.mean, IMAGENET.std):
        return form
    pairs = ((networks.glance, networks.glance_weights), (networks.focus, networks.focus_weights))
    names = [name for name, path in pairs if path is not None]
    wanted = normalisation_of(*names)
    if wanted is None:
        raise ConfigError(
            f"the weights of {' and '.join(names)} want different normalisations, and a model has one: begin with "
            "the weights of one of them, or with two networks of one kind"
        )
    return dataclasses.replace(form, mean=wanted.mean, std=wanted.std)


def place_on(module: nn.Module, device: torch.device) -> None:
    """Onto the device, convolutions with channels last: half as long again without."""
    module.to(device)
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def fill_parts(parts: Parts, checkpoint: Checkpoint, sections: Sequence[str], purpose: str) -> None:
    """Takes these sections of a checkpoint over."""
    for section in sections:
        module = parts.module(section)
        fill(module, checkpoint.require(section, purpose), f"the {section} of {checkpoint.path}")
        place_on(module, parts.device)


def begin_from_files(parts: Parts, settings: TrainSettings) -> None:
    """Weights that the settings name as a beginning, e.g. of image classification."""
    for path, section in ((settings.networks.glance_weights, "glancer"), (settings.networks.focus_weights, "focuser")):
        if path is None:
            continue
        spec = parts.header.glance if section == "glancer" else parts.header.focus
        assert spec is not None
        weights = checkpoints.load_backbone(path, spec.name)
        wanted = parts.module(section).state_dict()
        fill(parts.module(section), {k: v for k, v in weights.items() if k in wanted}, f"the {section} of {path}")
        place_on(parts.module(section), parts.device)


def save_parts(path: Path, parts: Parts, *, sections: Sequence[str], training: dict[str, Any]) -> None:
    """Writes the checkpoint of a finished stage, with the sections that are trained by then."""
    header = parts.header
    header = dataclasses.replace(
        header,
        focus=header.focus if "focuser" in sections else None,
        classifier=header.classifier if "classifier" in sections else None,
        policy=header.policy if "policy" in sections else None,
        skip=header.skip if "skip" in sections else None,
        training=training,
    )
    weights: dict[str, dict[str, Tensor]] = {}
    for section in sections:
        state = parts.module(section).state_dict()
        # Contiguous whatever the layout in training, so that equal weights give equal files.
        weights[section] = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    checkpoints.save(path, Checkpoint(header=header, sections=weights, path=str(path)))


def load_stage(path: Path, wanted_by: str) -> Checkpoint:
    if not path.exists():
        raise CheckpointError(f"stage {wanted_by} begins with {path}, which is not there: train the stage before it")
    return checkpoints.load(path)


def glance_at(parts: Parts, views: np.ndarray) -> tuple[Tensor, Tensor]:
    """uint8 [...,S,S,3] -> map [N,C,h,w] and feature [N,C] of the glance network, as it stands (train or
    eval).
    """
    x = normalised(views, parts.normalisation, parts.device)
    assert parts.header.glance is not None and parts.header.glance.size_px is not None
    x = resize_views(x, parts.header.glance.size_px, parts.header.preprocessing.glance_resize)
    return parts.glancer(x)


@dataclass(frozen=True, eq=False)
class Glances:
    """What the frozen glance network saw of every cached frame of a subset."""

    maps: Tensor
    """half precision [V,T,k,C,h,w] on the CPU: they only feed the policy, and take most of the memory."""
    features: Tensor
    """float32 [V,T,k,C]"""

    def take(self, rows: np.ndarray, picks: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
        """Map [B,T,C,h,w] and feature [B,T,C] of the chosen frames, float32."""
        index = (torch.from_numpy(rows)[:, None], torch.arange(picks.shape[1])[None, :], torch.from_numpy(picks))
        return self.maps[index].to(device).float(), self.features[index].to(device)


@torch.no_grad()
def glance_at_all(parts: Parts, clips: Clips, crop_px: int) -> Glances:
    """Every frame of the clips through the glance network."""
    parts.glancer.eval()
    steps, candidates = clips.num_steps, clips.candidates
    top = round((clips.pixels.shape[3] - crop_px) / 2)
    maps: list[Tensor] = []
    features: list[Tensor] = []
    for rows in batches(len(clips), 8, None, drop_last=False):
        views = clips.pixels[clips.at(rows), :, :, top : top + crop_px, top : top + crop_px]
        for few in np.array_split(views.reshape(-1, *views.shape[3:]), max(1, len(views) * steps * candidates // 256)):
            feature_map, feature = glance_at(parts, few)
            maps.append(feature_map.half().cpu())
            features.append(feature.float().cpu())
    shape = (len(clips), steps, candidates)
    return Glances(maps=torch.cat(maps).unflatten(0, shape), features=torch.cat(features).unflatten(0, shape))
