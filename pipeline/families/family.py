"""The questions that every family of models answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from operators.errors import ConfigError
from operators.networks.backbones import normalisation_of
from operators.networks.tensors import IMAGENET
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import Header, NetworkSpec, Preprocessing
from operators.weights.published import Sections
from pipeline.config import Config
from pipeline.families.clip import Gaze
from pipeline.families.parts import GazeParts


class Family(ABC):
    """One published family: how its files are read, what its settings may be, how it looks, and what it costs.

    The methods that are not abstract hold for a family that glances at the frames of a video and focuses on the same.
    """

    name: str
    may_be_live: bool = False
    """Whether its clips can be cut out of a camera's stream, whose frames come one by one."""
    training: str | None = None
    """Where the course is by which the family is trained, "module:attribute"; None where it cannot be trained here. It
    is loaded by its name when a training asks for it: training imports families, and never the reverse."""

    @abstractmethod
    def read_published(self, content: Mapping[str, Any], path: str) -> tuple[Header, Sections] | None:
        """The header and the weights in a file as its authors publish it; None where the file is not of this family."""

    @abstractmethod
    def gaze(self, parts: GazeParts, config: Config, header: Header) -> Gaze:
        """Makes the gaze that looks at clips, of networks and rules that are there already."""

    @abstractmethod
    def untrained_header(self, config: Config) -> Header:
        """The header of a model whose weights are random, as the settings describe it."""

    def settings_of(self, header: Header) -> dict[str, Any]:
        """The settings that follow from a checkpoint's header, by their dotted names."""
        form = header.preprocessing
        settings: dict[str, Any] = {
            "model.family": header.family,
            "sampling.num_frames": header.num_steps,
            "sampling.num_focus_frames": header.num_focus_steps,
            "sampling.pad": header.pad,
            "view.resize_px": form.resize_px,
            "view.crop_px": form.crop_px,
            "view.interpolation": form.interpolation,
            "view.square_pixels": form.square_pixels,
        }
        if header.glance is not None:
            settings["model.glance_backbone"] = header.glance.name
            if header.glance.size_px:
                settings["glance.size_px"] = header.glance.size_px
        if header.focus is not None:
            settings["model.focus_backbone"] = header.focus.name
            if header.focus.size_px:
                settings["focus.patch_px"] = header.focus.size_px
        return settings

    def untrained_settings(self, config: Config) -> dict[str, Any]:
        """The values of settings that nobody gave where there is no checkpoint to say them."""
        return {}

    def check(self, config: Config, checkpoint: Checkpoint) -> None:
        """Raises ConfigError where the settings ask for what this family cannot do."""
        sampling = config.sampling
        if sampling.num_focus_frames not in (None, sampling.num_frames):
            raise ConfigError(
                f"sampling.num_focus_frames={sampling.num_focus_frames}: this model focuses on the frames that it "
                "glances at, leave it out"
            )

    def num_steps(self, config: Config) -> int:
        """The number of times that a clip is classified at most."""
        return config.sampling.num_frames

    def num_patches(self, config: Config, header: Header) -> int:
        """The number of patches of a clip that the focus network sees at most."""
        return config.sampling.num_focus_frames or config.sampling.num_frames

    def always_in_rounds(self) -> bool:
        """Whether a clip brings few patches at a time even without a stop rule."""
        return False


def network_specs(config: Config, *, glance_segments: int = 0, focus_segments: int = 0, num_classes: int = 0) -> dict:
    """The `glance` and `focus` of an untrained header. `num_classes`: size of the glance network's own head."""
    model = config.model
    return {
        "glance": NetworkSpec(
            name=model.glance_backbone,
            size_px=config.glance.size_px,
            num_segments=glance_segments,
            num_classes=num_classes,
        ),
        "focus": NetworkSpec(
            name=model.focus_backbone, size_px=config.focus.patch_px, num_segments=focus_segments
        ),
    }


def untrained_preprocessing(config: Config, *, glance_resize: str) -> Preprocessing:
    view, model = config.view, config.model
    # Random weights take any; those that are trained from here on may replace published ones.
    wanted = normalisation_of(model.glance_backbone, model.focus_backbone) or IMAGENET
    return Preprocessing(
        resize_px=view.resize_px,
        crop_px=view.crop_px,
        interpolation=view.interpolation,
        square_pixels=view.square_pixels,
        glance_resize=glance_resize,  # type: ignore[arg-type]
        mean=wanted.mean,
        std=wanted.std,
    )
