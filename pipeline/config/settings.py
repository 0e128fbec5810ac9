"""Every setting with its default, its bounds and what it means, in typed sections that are checked once.

A setting that a person gave is never overruled; one that nobody gave is taken from the checkpoint where that knows
better, and else from the defaults below.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from operators.errors import ConfigError
from pipeline.config.sections import Section, validated
from pipeline.families import NAMES
from policies.kinds import KINDS, PolicyKind

if TYPE_CHECKING:
    from pipeline.config.training import TrainSettings

    FamilyName = str
    PolicyName = str
else:
    # The tables of families and of policies say which names there are; there is no second list.
    FamilyName = Literal[NAMES]
    PolicyName = Literal[tuple(KINDS)]


class Sampling(Section):
    """The frames of a source that are looked at."""

    kind: Literal["whole", "window"] = Field("whole", description="whole: one clip per video; window: pieces of it")
    num_frames: int = Field(16, ge=1, le=1024, description="frames per clip")
    num_focus_frames: int | None = Field(
        None, ge=1, le=1024, description="frames that the focus network sees; none: the frames that are glanced at"
    )
    seek: Literal["exact", "keyframe"] = Field(
        "exact",
        description="exact: the frames that the rule asks for; keyframe: the nearest keyframes, much cheaper to decode",
    )
    pad: Literal["last", "first"] = Field("last", description="which frame a video shorter than the sample repeats")
    window_s: float = Field(10.0, gt=0, description="length of a window, in seconds of the video")
    stride_s: float = Field(5.0, gt=0, description="from the start of one window to the next")


class View(Section):
    """The part of a frame that the networks see."""

    resize_px: int = Field(256, ge=16, le=4096, description="short side of the frame after resizing")
    crop_px: int = Field(224, ge=16, le=4096, description="side of the centre crop: the view")
    square_pixels: bool = Field(True, description="whether non-square pixels are made square first")
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="how the frame is resized; antialiased, in one step"
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> View:
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px={self.crop_px} is larger than resize_px={self.resize_px}")
        return self


class Model(Section):
    """Which networks are used. A checkpoint's header says this by itself."""

    family: FamilyName = Field("adafocus", description="the published family of the model")
    checkpoint: str | None = Field(None, description="file of weights, in the project's own form or a published one")
    untrained: bool = Field(
        False, description="whether random weights, made from compute.seed, are taken where no checkpoint is given"
    )
    classes: str | None = Field(None, description="file of class names, one per line")
    glance_backbone: str = Field("mobilenet_v2", description="network that glances at every frame; see training.md")
    focus_backbone: str = Field("resnet50", description="network that sees the patches; see training.md")
    num_classes: int = Field(
        200,
        ge=2,
        le=100_000,
        description="number of classes; used only where neither the checkpoint nor class names say it",
    )
    num_actions: int = Field(
        49, ge=4, le=1024, description="cells of the policy's grid, a square number; used with untrained weights only"
    )
    num_looks: int = Field(5, ge=2, le=64, description="gfnet: most looks at an image, the glance included")

    @model_validator(mode="after")
    def _grid_is_square(self) -> Model:
        if math.isqrt(self.num_actions) ** 2 != self.num_actions:
            raise ValueError(f"num_actions={self.num_actions} is no square number")
        return self


class Glance(Section):
    """What the glance network sees."""

    size_px: int = Field(224, ge=16, le=4096, description="side of the image that the glance network sees")
    clips_per_call: int | None = Field(
        None, ge=1, le=256, description="most clips that one call glances at; none: chosen for the machine"
    )


class Focus(Section):
    """What the focus network sees, and in which passes."""

    patch_px: int = Field(128, ge=8, le=4096, description="side of a patch")
    batch_size: int | None = Field(None, ge=1, le=4096, description="most patches in one forward pass; none: measured")
    max_wait_ms: float = Field(200.0, ge=0, description="how long a patch waits for others that fill the pass")


class Policy(Section):
    """Where to look."""

    kind: PolicyName = Field("learned", description="which policy decides where to look")
    truth: str | None = Field(
        None, description="oracle: the truth.parquet of `synth`, which says where the evidence is"
    )

    @property
    def traits(self) -> PolicyKind:
        """The needs of this policy, and what of a view the focus network sees under it."""
        return KINDS[self.kind]


class Skip(Section):
    """At which frames not to look closely."""

    kind: Literal["none", "learned", "random", "uniform"] = Field(
        "none", description="which rule decides at which frames the focus network does not look"
    )
    share: float = Field(
        0.5,
        ge=0.0,
        le=1.0,
        description="share of the frames that are focused on; learned: used only where it is given, and reached by the "
        "price that gave this share when the checkpoint was trained",
    )
    price: float | None = Field(
        None, gt=0.0, description="learned: what a focused frame costs the rule; none: the checkpoint's own price"
    )
    sees: Literal["glance", "classifier"] | None = Field(
        None,
        description="learned: what the rule decides by: the glance, or step by step the "
        "classifier's state; none: the checkpoint's own choice",
    )


class Stop(Section):
    """When a clip has been looked at enough."""

    kind: Literal["none", "confidence", "budget"] = Field("none", description="which rule ends a clip early")
    thresholds: list[float] | None = Field(None, description="confidence: one threshold per step, or one for all steps")
    confidence: Literal["softmax", "logit"] = Field(
        "softmax",
        description="which number is compared with the thresholds: the leading class's probability, or its logit",
    )
    budget_gmacs: float | None = Field(None, gt=0, description="budget: mean GMACs per clip that may be spent")
    steps_per_round: int | None = Field(
        None, ge=1, le=1024, description="steps between two checks; none: the calibration's number, else 1"
    )
    calibration: str | None = Field(None, description="result of `calibrate`, where the checkpoint does not hold it")


class Compute(Section):
    """How the networks are run."""

    seed: int = Field(0, ge=0, lt=2**63, description="number from which every random choice of a clip follows")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one, else the CPU")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="auto: measured, see compute.md")
    compile: Literal["auto", "on", "off"] = Field("auto", description="auto: measured, see compute.md")

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_reads_on_as_true(cls, value: Any) -> Any:
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class Decode(Section):
    """Bounds on what a file may ask for; a file beyond them becomes a row with an error code."""

    timeout_s: float = Field(30.0, gt=0, description="a file is given up when its decoder made no progress for so long")
    max_pixels: int = Field(8192 * 8192, ge=1, description="largest frame size: width times height")
    max_duration_s: float = Field(48 * 3600.0, gt=0, description="longest duration of a file")
    max_streams: int = Field(64, ge=1, description="most streams in a file")
    max_total_s: float = Field(3600.0, gt=0, description="longest time for reading one source")


class Output(Section):
    """What is written."""

    topk: int = Field(5, ge=1, le=1000, description="number of leading classes in the column topk")
    logits: bool = Field(False, description="whether the final logits are written")
    step_logits: bool = Field(False, description="whether logits and costs after each step are written")
    rows_per_part: int = Field(4096, ge=1, description="most labels in one Parquet part")
    part_age_s: float = Field(15.0, gt=0, description="longest time that a label waits for its part to be written")


class Run(Section):
    """Where the work is done, and by how many workers."""

    executor: Literal["ray", "inline"] = Field("ray", description="inline: all stages in the command's own process")
    ray_address: str | None = Field(None, description="address of a running cluster to join")
    max_failed: int | None = Field(None, ge=0, description="the run ends early after so many failed items")
    source_workers: int | None = Field(None, ge=1, le=1024, description="processes that decode; none: by the machine")
    stream_workers: int | None = Field(
        None, ge=1, le=1024, description="workers that glance, decide and classify, and of `live`; none: by the machine"
    )
    focus_workers: int | None = Field(
        None, ge=1, le=1024, description="workers of the focus network; none: by the machine"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads that all workers on this machine may use together"
    )
    max_clips_in_flight: int | None = Field(
        None, ge=1, le=100_000, description="most clips between decoding and label; none: by the machine"
    )
    max_frames_mb: int = Field(512, ge=1, description="most MiB of decoded views that are held at a time")


class Live(Section):
    """How cameras are watched."""

    analysis_fps: float = Field(4.0, gt=0, le=240, description="frames per second that are analysed of each camera")
    window_s: float = Field(4.0, gt=0, description="seconds of video that a label is made from")
    stride_s: float = Field(1.0, gt=0, description="seconds from one label of a camera to its next")
    transport: Literal["tcp", "udp", "auto"] = Field("tcp", description="how RTSP carries the packets")
    watchdog_s: float = Field(4.0, gt=0, description="a camera is lost after so long without a decoded frame")
    open_timeout_s: float = Field(4.0, gt=0, description="longest time from opening a camera to its first packet")
    keyframe_timeout_s: float = Field(
        30.0, gt=0, description="longest time from opening a camera to its first decoded frame, while packets do come"
    )
    gap_s: float = Field(
        1.0, gt=0, description="frames further apart than this have a gap between them, which no window spans"
    )
    backoff_s: float = Field(
        0.5, gt=0, description="first wait before a camera is opened again; it doubles with each failure"
    )
    max_backoff_s: float = Field(30.0, gt=0, description="longest wait before a camera is opened again")
    max_waiting_frames: int = Field(
        4, ge=1, description="most waiting frames of a camera; beyond it the oldest is dropped and counted"
    )
    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port of the metrics; 0: a free one; none: they are not served"
    )
    metrics_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address of the metrics; 0.0.0.0 serves them on all interfaces, without a password",
    )


class Config(Section):
    sampling: Sampling = Sampling()
    view: View = View()
    model: Model = Model()
    glance: Glance = Glance()
    focus: Focus = Focus()
    policy: Policy = Policy()
    skip: Skip = Skip()
    stop: Stop = Stop()
    compute: Compute = Compute()
    decode: Decode = Decode()
    output: Output = Output()
    run: Run = Run()
    live: Live = Live()
    train: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the training stages: a preset, and the settings that differ from it",
    )

    @model_validator(mode="after")
    def _patch_fits(self) -> Config:
        if self.focus.patch_px > self.view.crop_px and "patch_px" in self.focus.model_fields_set:
            raise ValueError(f"focus.patch_px={self.focus.patch_px} is larger than view.crop_px={self.view.crop_px}")
        if self.stop.kind == "budget" and self.stop.budget_gmacs is None:
            raise ValueError("stop.kind=budget needs stop.budget_gmacs")
        return self

    @model_validator(mode="after")
    def _training_is_valid(self) -> Config:
        if self.train:
            self.training()
        return self

    def training(self) -> TrainSettings:
        """The settings of the training stages, whole and checked."""
        # Imported here: what labels has nothing to do with training.
        from pipeline.config.training_presets import settings_of

        return settings_of(self.train)

    @property
    def patch_px(self) -> int:
        """Side of what the focus network sees: a patch, or the whole view where the policy takes all of it."""
        return self.view.crop_px if self.policy.traits.patch == "whole" else self.focus.patch_px

    def given(self) -> dict[str, Any]:
        """The settings that somebody gave, by flat, dotted names."""
        return flatten(self.model_dump(exclude_unset=True))

    def flat(self) -> dict[str, Any]:
        return flatten(self.model_dump())

    def filled_in(self, values: Mapping[str, Any]) -> Config:
        """The config with values for settings that nobody gave, by their dotted names."""
        given = self.given()
        return parse({**{k: v for k, v in values.items() if k not in given}, **given})

    def replaced(self, values: Mapping[str, Any]) -> Config:
        """The config with these values whatever was given, by their dotted names."""
        return parse({**self.given(), **values})

    def identity(self, *, live: bool = False) -> dict[str, Any]:
        """The settings that a label depends on. Where and how fast the work is done is not among them: not the device,
        nor compilation where it changes nothing but the last digit. In half precision it changes as much as the
        precision itself, because compiled networks round less often."""
        sections = ("sampling", "view", "glance", "focus", "policy", "skip", "stop", "compute", "output", "model")
        silent = {
            "model.checkpoint", "model.untrained", "glance.clips_per_call", "focus.batch_size", "focus.max_wait_ms",
            "output.rows_per_part", "output.part_age_s", "stop.calibration", "compute.device",
        }  # fmt: skip
        if self.compute.precision == "fp32":
            silent.add("compute.compile")
        own = {k: v for k, v in self.flat().items() if k.split(".")[0] in sections and k not in silent}
        if live:
            # Cameras are cut by windows of their own.
            own = {k: v for k, v in own.items() if not k.startswith(("sampling.", "stop."))}
            own |= {f"live.{name}": getattr(self.live, name) for name in ("analysis_fps", "window_s", "stride_s")}
        return own

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and not prefix and key in Config.model_fields:
            flat.update(flatten(value, f"{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def known_settings() -> list[str]:
    return list(Config().flat())


def parse(flat: Mapping[str, Any]) -> Config:
    """A config from dotted names. Unknown names are refused with the nearest real one."""
    tree: dict[str, Any] = {}
    known = known_settings()
    for name, value in flat.items():
        section, _, key = name.partition(".")
        if section != "train" and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown setting {name}{hint}")
        tree.setdefault(section, {})[key] = value
    return validated(Config, tree)
