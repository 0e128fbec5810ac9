"""The settings of the training stages, and their presets: the published numbers, and small networks on two cores."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, field_validator, model_validator

from operators.errors import ConfigError
from operators.weights.header import Preprocessing
from pipeline.config.sections import Section, validated
from policies.rewards import RewardKind

Stage = Literal["0a", "0b", "1", "2", "3", "skip", "full"]
STAGES: tuple[Stage, ...] = ("0a", "0b", "1", "2", "3", "skip")
"""In the order in which they build on one another."""

FULL: Stage = "full"
"""The comparison that looks at whole views; it needs stage 0a only."""

TITLES: dict[str, str] = {
    "0a": "glance network",
    "0b": "focus network",
    "1": "random patches",
    "2": "policy",
    "3": "fine-tuning",
    "skip": "skipping",
    "full": "whole views",
}


class TrainSection(Section):
    # What stands under a field is its description in the reference.
    model_config = ConfigDict(use_attribute_docstrings=True)


class Networks(TrainSection):
    """Which networks are trained, and their sizes."""

    glance: str = "mobilenet_v2"
    glance_px: int = Field(224, ge=8, le=4096)
    """Side of what the glance network sees."""
    focus: str = "resnet50"
    patch_px: int = Field(128, ge=8, le=4096)
    """Side of a patch."""
    classifier_hidden: int = Field(1024, ge=1)
    """State of the classifier's GRU."""
    policy_hidden: int = Field(1024, ge=1)
    policy_width: int = Field(32, ge=1)
    """Channels that the policy makes of the glance's map first."""
    num_actions: int = Field(49, ge=4, le=1024)
    """Places on the policy's grid, a square number."""
    skip_hidden: int = Field(64, ge=1)
    glance_weights: str | None = None
    """A file of weights to begin from, torchvision's and timm's among them; None begins from nothing. Where it wants
    pixels normalised in its own way, so does the model."""
    focus_weights: str | None = None

    @model_validator(mode="after")
    def _grid_is_square(self) -> Networks:
        if math.isqrt(self.num_actions) ** 2 != self.num_actions:
            raise ValueError(f"num_actions={self.num_actions} is no square number")
        return self


class Optimiser(TrainSection):
    kind: Literal["sgd", "adamw"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["epoch", "step", "drops"] = "epoch"
    """Cosine in the first two. `epoch`: as published, one rate per epoch and one more epoch, at rate zero.
    `step`: falls with every step and ends with the last epoch. `drops`: to a tenth after 2/5 and again after 4/5
    of the epochs, as TSM is trained."""


class Supervised(TrainSection):
    """A stage that minimises cross entropy."""

    epochs: int = Field(ge=0)
    """0: the stage leaves its networks as they are."""
    batch_size: int = Field(64, ge=1)
    """Clips."""
    lr_glance: float = Field(0.0, ge=0)
    """Learning rate; at 0 a network rests."""
    lr_focus: float = Field(0.0, ge=0)
    lr_classifier: float = Field(0.0, ge=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    """Before the classifier's linear layer."""
    patch_head_weight: float = Field(0.0, ge=0)
    """Weight of a second loss, of a linear layer that names the class from single patches."""
    salient_share: float = Field(0.0, ge=0, le=1)
    """Stage 1: share of the patches that lie where the glance network's head of stage 0a sees the clip's
    class, instead of anywhere. 0 is published, for networks that begin with ImageNet's weights. From nothing,
    and where other things show other classes' marks, patches from anywhere hold hardly more of the class than
    of the others."""
    blank_share: float = Field(0.0, ge=0, le=1)
    """Share of the clips whose local features are set to zero at a rate drawn anew for each: what skipping
    does.
    """
    optimiser: Optimiser = Optimiser()


class PolicyStage(TrainSection):
    """PPO."""

    epochs: int = Field(50, ge=0)
    batch_size: int = Field(64, ge=1)
    lr: float = Field(3e-4, gt=0)
    gamma: float = Field(0.7, ge=0, le=1)
    """What a reward of the next step counts."""
    clip: float = Field(0.2, gt=0)
    """How far the ratio of old and new probability may leave 1."""
    value_weight: float = Field(0.5, ge=0)
    entropy_weight: float = Field(0.01, ge=0)
    passes: int = Field(1, ge=1)
    """Updates from one roll-out."""
    reward: RewardKind = "random"
    """The true class's probability against that at a random place, against the step before, or by itself."""


class SkipStage(TrainSection):
    """Straight through: decisions are drawn, and pass on the gradient of their probability. Prices are drawn anew for
    each clip."""

    updates: int = Field(800, ge=0)
    batch_size: int = Field(64, ge=1)
    rollouts: int = Field(2, ge=1)
    """Draws per clip and update."""
    lr: float = Field(8e-3, gt=0)
    price_low: float = Field(0.001, gt=0)
    """Prices of a focus are drawn between the two."""
    price_high: float = Field(0.15, gt=0)
    price: float = Field(0.01, gt=0)
    """The price that the checkpoint decides at where no other is set."""

    @model_validator(mode="after")
    def _prices_are_a_range(self) -> SkipStage:
        if self.price_low > self.price_high:
            raise ValueError(f"price_low={self.price_low:g} is above price_high={self.price_high:g}")
        return self


class TrainSettings(TrainSection):
    """Everything that the weights depend on, beside the data."""

    family: ClassVar[str] = "adafocus"
    """The family of models that these settings train; the preset decides it."""

    preset: str
    num_classes: int = Field(0, ge=0)
    """0: as many as there are class names."""
    num_steps: int = Field(16, ge=1, le=1024)
    """Frames of a clip; those glanced at where others are focused."""
    candidates: int = Field(3, ge=1, le=64)
    """Frames kept for each step: the one that inference takes, and others of its segment to draw from."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The seed of first weights, order, draws and augmentation."""
    device: str = "auto"
    """auto: a GPU where torch sees one, else the CPU."""
    amp: Literal["auto", "off"] = "auto"
    """auto: half precision in the stages where it is published: fp16 on a GPU, bf16 on a CPU that computes in it."""
    is_flipped: bool = True
    """Flips half of the training clips left to right; wrong where that changes the class."""
    is_cropped: bool = True
    """Trains on crops of several scales and places; otherwise on the centre, as at inference. Published crops may lie
    anywhere in the frame. Here they lie in its centre square, which is what the frame cache keeps: training never sees
    the sides of a wide video. Neither does inference."""
    is_glance_cached: bool = False
    """Glances at every frame once after stage 0a. Only where frames are not augmented."""
    validate_every: int = Field(5, ge=1)
    """Epochs between two validations."""
    max_cache_gb: float = Field(64.0, gt=0)
    """Disk that the decoded frames of one subset may take. It changes no weight."""
    networks: Networks = Networks()
    preprocessing: Preprocessing = Preprocessing()
    glance: Supervised = Supervised(epochs=15, lr_glance=0.01)
    focus: Supervised = Supervised(epochs=15, lr_focus=0.01)
    warmup: Supervised = Supervised(epochs=50, lr_focus=5e-4, lr_classifier=0.05, dropout=0.8)
    policy: PolicyStage = PolicyStage()
    finetune: Supervised = Supervised(epochs=10, lr_classifier=0.005, dropout=0.8)
    """lr_focus 0, as in the released code, trains the classifier only; above 0 also the focus network, as the
    published table has it."""
    skip: SkipStage = SkipStage()
    full: Supervised = Supervised(epochs=50, lr_focus=5e-4, lr_classifier=0.05, dropout=0.8)

    @property
    def cached_steps(self) -> int:
        """Steps of a clip in the frame cache."""
        return self.num_steps

    @property
    def pad(self) -> Literal["last", "first"]:
        """What a clip shorter than the sample repeats."""
        return "last"

    @property
    def cached_view(self) -> dict[str, Any]:
        """How a frame becomes what the cache keeps: what a Viewer is made with."""
        side = self.preprocessing
        return {
            "resize_px": side.resize_px,
            "crop_px": side.resize_px if self.is_cropped else side.crop_px,
            "square_pixels": side.square_pixels,
            "interpolation": side.interpolation,
        }

    @field_validator("amp", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
            raise ValueError(f"{value} is not known: auto, cpu, cuda or cuda:NUMBER")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> TrainSettings:
        if self.is_glance_cached and (self.is_flipped or self.is_cropped):
            raise ValueError(
                "train.is_glance_cached=true keeps one glance per frame, and augmented frames differ every time: "
                "set is_flipped and is_cropped to false, or is_glance_cached to false"
            )
        side = self.preprocessing
        if side.crop_px > side.resize_px:
            raise ValueError(f"train.preprocessing.crop_px={side.crop_px} is larger than resize_px={side.resize_px}")
        if self.networks.patch_px > side.crop_px:
            raise ValueError(
                f"train.networks.patch_px={self.networks.patch_px} is larger than the view of {side.crop_px} px"
            )
        return self


def train_activitynet(patch_px: int = 128) -> TrainSettings:
    """The published hyper-parameters for ActivityNet. Its 10 024 training videos take 95 GB of decoded frames."""
    return TrainSettings(preset="train_activitynet", max_cache_gb=128.0, networks=Networks(patch_px=patch_px))


def train_synth() -> TrainSettings:
    """Small networks that learn the synthetic archive on two cores in minutes.

    What differs from the published recipe was measured to be needed: AdamW and small batches (16 clips); most
    of stage 1's patches where the glance sees the class (with patches from anywhere, 12 epochs left the
    oracle's places at 21%, the accuracy of the hue alone; so, 5 epochs bring them to 100%); in stage 3 the
    focus network is trained too.
    """
    adamw = Optimiser(kind="adamw", weight_decay=0.01, schedule="step")
    return TrainSettings(
        preset="train_synth",
        num_steps=8,
        is_flipped=False,
        is_cropped=False,
        is_glance_cached=True,
        validate_every=2,
        networks=Networks(
            glance="small_glance",
            glance_px=32,
            focus="small_focus",
            patch_px=32,
            classifier_hidden=128,
            policy_hidden=256,
        ),
        preprocessing=Preprocessing(resize_px=96, crop_px=96, square_pixels=True, glance_resize="antialias"),
        glance=Supervised(epochs=4, batch_size=32, lr_glance=2e-3, optimiser=adamw),
        focus=Supervised(epochs=0, optimiser=adamw),
        warmup=Supervised(
            epochs=5,
            batch_size=16,
            lr_focus=1.5e-3,
            lr_classifier=1.5e-3,
            dropout=0.3,
            patch_head_weight=1.0,
            salient_share=0.7,
            optimiser=adamw,
        ),
        policy=PolicyStage(epochs=10),
        finetune=Supervised(
            epochs=5,
            batch_size=16,
            lr_focus=1e-3,
            lr_classifier=1e-3,
            dropout=0.3,
            blank_share=0.4,
            optimiser=adamw,
        ),
        full=Supervised(
            epochs=22,
            batch_size=16,
            lr_focus=1.5e-3,
            lr_classifier=1.5e-3,
            dropout=0.3,
            patch_head_weight=1.0,
            optimiser=adamw,
        ),
    )


PRESETS = {"train_synth": train_synth, "train_activitynet": train_activitynet}


Settings = TypeVar("Settings", bound=TrainSettings)


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with some replaced by dotted names or nested groups: `policy.lr`, `seed`. What is unknown or out of
    range is refused."""
    tree = settings.model_dump()
    for name, value in values.items():
        _put(tree, name.split("."), value, name)
    return validated(type(settings), tree, "train.")


def _put(tree: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    """Puts a value, or each value of a group, in its place; places that there are not yet are for validation."""
    if len(path) > 1:
        part = tree.setdefault(path[0], {})
        if not isinstance(part, dict):
            raise ConfigError(f"train.{name}: {path[0]} has no parts")
        _put(part, path[1:], value, name)
    elif isinstance(value, Mapping) and isinstance(tree.get(path[0]), dict):
        for key, item in value.items():
            _put(tree[path[0]], [str(key)], item, f"{name}.{key}")
    else:
        tree[path[0]] = copy.deepcopy(value)
