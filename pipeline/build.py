"""From config to operators, policy and stages: the only file that knows both sides."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from operators import checkpoints
from operators.backbones import build as build_network
from operators.checkpoints import Checkpoint, ClassifierSpec, Header, NetworkSpec, PolicySpec, Preprocessing
from operators.classify import GRUClassifier, build_classifier
from operators.cost import CostModel, cost_model, count_macs
from operators.errors import CheckpointError, ConfigError
from operators.focus import Focuser
from operators.glance import Glancer
from operators.records import Observation
from operators.tensors import Normalisation
from pipeline.batching import round_to_shape
from pipeline.config import Config, parse
from pipeline.executor import WorkerSpec
from pipeline.gaze import FrameGaze, TruthAt
from pipeline.inputs import read_class_names
from pipeline.placement import Machine, Placement, place
from pipeline.scheduler import FOCUS, SOURCE, STREAM, Limits
from pipeline.stages import Gaze, LabelForm, StreamWorker
from pipeline.workers import FocusWorker
from policies.base import Policy, Skipping, SkipRule
from policies.fixed import Center, Full, GlanceOnly, Oracle, Random, SkipRandom, SkipUniform
from policies.recurrent import RecurrentPolicy, SkipHead
from policies.stopping import Confidence, OperatingPoint, StopRule, checked_thresholds, for_budget

SMALL = ("small_glance", "small_focus")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHAPES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes of the focus network: a short list, so that kernels made for a shape are used again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, resolved: nothing is `auto` any more."""

    config: Config
    header: Header
    model_id: str
    is_trained: bool
    placement: Placement
    class_names: tuple[str, ...]

    @property
    def config_id(self) -> str:
        return self.config.config_id()

    def opening_line(self) -> str:
        """What a run says of itself before it begins."""
        place, compute = self.placement, self.config.compute
        weights = "" if self.is_trained else ", UNTRAINED weights"
        return (
            f"{self.header.family} {self.model_id[:8]}{weights}: {len(self.class_names)} classes on {compute.device} "
            f"in {compute.precision}, {place.source_workers} source, {place.stream_workers} stream and "
            f"{place.focus_workers} focus worker(s)"
        )

    @property
    def num_cpus(self) -> int:
        """What all workers together take of Ray's CPUs."""
        return math.ceil(sum(spec.count * spec.num_cpus for spec in self.worker_specs()))

    @property
    def patches_per_clip(self) -> int | None:
        """Where a clip's patches have to stay together in one pass; None where each may go alone."""
        return self.header.focus.num_segments or None if self.header.focus else None

    @property
    def rows_per_batch(self) -> int:
        unit = self.patches_per_clip or 1
        return max(unit, self.placement.batch_size // unit * unit)

    @property
    def batch_shapes(self) -> tuple[int, ...]:
        """Sizes of a pass that the batcher fills whole. On a CPU any size does."""
        return SHAPES if self.placement.device == "cuda" and self.patches_per_clip is None else ()

    @property
    def limits(self) -> Limits:
        place = self.placement
        is_whole = self.config.sampling.kind == "whole"
        return Limits(
            max_pieces=place.max_pieces,
            max_bytes=self.config.run.max_frames_mb << 20,
            max_open_clips=place.max_open_clips,
            pieces_per_call=place.clips_per_call,
            rows_per_part=self.config.output.rows_per_part,
            part_age_s=self.config.output.part_age_s,
            focus_depth=place.focus_depth,
            stride_s=0.0 if is_whole else self.config.sampling.stride_s,
        )

    def worker_specs(self) -> list[WorkerSpec]:
        """Every stage but the sink, which is open before the others are made."""
        config, place = self.config.model_dump(mode="json"), self.placement
        models = {"config": config, "model_id": self.model_id, "device": place.device}
        return [
            WorkerSpec(
                stage=SOURCE,
                factory="pipeline.workers:file_worker",
                arguments=source_arguments(self.config, num_threads=place.source_threads),
                count=place.source_workers,
                num_cpus=place.cpus(SOURCE),
            ),
            WorkerSpec(
                stage=STREAM,
                factory="pipeline.build:stream_worker",
                arguments={**models, "num_threads": place.stream_threads, "class_names": self.class_names},
                count=place.stream_workers,
                num_cpus=place.cpus(STREAM),
                num_gpus=place.stream_gpus,
            ),
            WorkerSpec(
                stage=FOCUS,
                factory="pipeline.build:focus_worker",
                arguments={**models, "num_threads": place.focus_threads, "batch_size": place.batch_size},
                count=place.focus_workers,
                num_cpus=place.cpus(FOCUS),
                num_gpus=place.focus_gpus,
            ),
        ]


def resolve(config: Config, machine: Machine, *, remembered: Mapping[str, Any] | None = None) -> Plan:
    """Everything that was left open, decided: by the checkpoint, by the machine, or as an earlier run had it."""
    checkpoint = None if config.model.checkpoint is None else checkpoints.load(Path(config.model.checkpoint))
    if checkpoint is not None:
        config = config.filled_in(header_settings(checkpoint.header))
    if remembered:
        config = config.filled_in({k: v for k, v in remembered.items() if k.startswith("compute.")})
    names = _class_names(config, checkpoint)
    if checkpoint is None:
        config = config.replaced({"model.num_classes": len(names)})
        checkpoint = untrained(config)
        is_trained = False
    else:
        is_trained = True
    if len(names) != checkpoint.header.num_classes:
        raise ConfigError(
            f"{len(names)} class names, but the checkpoint has {checkpoint.header.num_classes} classes; "
            "give the right list with --classes"
        )
    placement = place(
        machine,
        device=config.compute.device,
        threads=config.run.threads,
        source_workers=config.run.source_workers,
        stream_workers=config.run.stream_workers,
        focus_workers=config.run.focus_workers,
        batch_size=config.focus.batch_size,
        clips_per_call=config.glance.clips_per_call,
        max_clips_in_flight=config.run.max_clips_in_flight,
        max_frames_bytes=config.run.max_frames_mb << 20,
        steps_in_rounds=config.stop.kind != "none" or config.skip.kind == "learned",
    )
    auto = {"compute.device": placement.device}
    if config.compute.precision == "auto":
        auto["compute.precision"] = "fp32" if placement.device == "cpu" else "bf16"
    if config.compute.compile == "auto":
        auto["compute.compile"] = "off"
    config = config.replaced(auto)
    _check(config, checkpoint.header)
    return Plan(
        config=config,
        header=checkpoint.header,
        model_id=checkpoint.model_id,
        is_trained=is_trained,
        placement=placement,
        class_names=names,
    )


def header_settings(header: Header) -> dict[str, Any]:
    """What a checkpoint says of how it is run, as settings."""
    settings: dict[str, Any] = {
        "model.family": header.family,
        "sampling.num_frames": header.num_steps,
        "sampling.num_focus_frames": header.num_focus_steps,
        "sampling.pad": header.pad,
        "view.resize_px": header.preprocessing.resize_px,
        "view.crop_px": header.preprocessing.crop_px,
        "view.interpolation": header.preprocessing.interpolation,
    }
    if header.family == "gfnet":
        # An image has one frame; the number of looks at it is the model's own.
        settings["sampling.num_frames"] = 1
    if "square_pixels" in header.training:
        settings["view.square_pixels"] = header.preprocessing.square_pixels
    if header.glance is not None and header.glance.size_px:
        settings["glance.size_px"] = header.glance.size_px
    if header.focus is not None and header.focus.size_px:
        settings["focus.patch_px"] = header.focus.size_px
    return settings


def _class_names(config: Config, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    if config.model.classes is not None:
        return tuple(read_class_names(Path(config.model.classes)))
    if checkpoint is not None and checkpoint.header.class_names:
        return checkpoint.header.class_names
    num_classes = config.model.num_classes if checkpoint is None else checkpoint.header.num_classes
    return tuple(f"class_{i:03d}" for i in range(num_classes))


def _check(config: Config, header: Header) -> None:
    """What cannot be had together, before any work is done."""
    if header.family == "adafocus_tsm" and (config.skip.kind != "none" or config.stop.kind != "none"):
        raise ConfigError(
            "AdaFocus-TSM looks at one place of the whole clip: skip.kind and stop.kind do not apply, leave them none"
        )
    if header.family == "gfnet" and config.skip.kind != "none":
        raise ConfigError("GFNet looks at one image again and again: skip.kind does not apply, leave it at none")
    if config.focus.patch_px > config.view.crop_px:
        raise ConfigError(f"focus.patch_px={config.focus.patch_px} is larger than view.crop_px={config.view.crop_px}")


def untrained(config: Config) -> Checkpoint:
    """Networks with seeded random weights, for trying a pipeline out. The same seed gives the same weights."""
    model, side = config.model, config.glance.size_px
    num_segments = (config.sampling.num_frames, config.sampling.num_focus_frames or 0)
    is_tsm = model.family == "adafocus_tsm"
    state = torch.random.get_rng_state()
    torch.manual_seed(config.compute.seed)
    try:
        own_head = model.num_classes if is_tsm else 0
        glance = build_network(
            model.glance_backbone, num_segments=num_segments[0] if is_tsm else 0, num_classes=own_head
        )
        focus = build_network(model.focus_backbone, num_segments=num_segments[1] if is_tsm else 0)
        with torch.no_grad():
            map_side = glance.eval()(torch.zeros(num_segments[0] if is_tsm else 1, 3, side, side))[0].shape[-1]
        is_small = model.glance_backbone in SMALL
        hidden = 256 if is_small else 1024
        policy_spec = PolicySpec(
            kind="continuous" if is_tsm else "grid",
            encoder="clip" if is_tsm else "conv",
            map_channels=glance.map_channels * (num_segments[0] if is_tsm else 1),
            map_side=map_side,
            hidden=hidden,
            width=64 if is_tsm else 32,
            num_actions=model.num_actions,
        )
        classifier_spec = ClassifierSpec(
            kind="average" if is_tsm else "gru",
            num_classes=model.num_classes,
            in_features=focus.num_features if is_tsm else glance.num_features + focus.num_features,
            hidden=0 if is_tsm else (128 if is_small else 1024),
        )
        policy = learned_policy(policy_spec)
        classifier = build_classifier(
            classifier_spec.kind,
            in_features=classifier_spec.in_features,
            num_classes=classifier_spec.num_classes,
            hidden=classifier_spec.hidden,
        )
    finally:
        torch.random.set_rng_state(state)
    header = Header(
        family=model.family,
        glance=NetworkSpec(
            name=model.glance_backbone,
            size_px=side,
            num_segments=num_segments[0] if is_tsm else 0,
            num_classes=own_head,
        ),
        focus=NetworkSpec(
            name=model.focus_backbone,
            size_px=config.focus.patch_px,
            num_segments=num_segments[1] if is_tsm else 0,
        ),
        classifier=classifier_spec,
        policy=policy_spec,
        preprocessing=Preprocessing(
            resize_px=config.view.resize_px,
            crop_px=config.view.crop_px,
            interpolation=config.view.interpolation,
            square_pixels=config.view.square_pixels,
            glance_resize="antialias" if is_small else "nearest",
        ),
        num_steps=config.sampling.num_frames,
        num_focus_steps=config.sampling.num_focus_frames,
        pad=config.sampling.pad,
    )
    sections = {
        "glancer": glance.state_dict(),
        "focuser": focus.state_dict(),
        "classifier": classifier.state_dict(),
        "policy": policy.state_dict(),
    }
    return Checkpoint(header=header, sections=sections, path="untrained weights")


def learned_policy(spec: PolicySpec) -> RecurrentPolicy:
    return RecurrentPolicy(**dataclasses.asdict(spec))


# Factories of workers: they run in the worker's own process and take plain values.


def source_arguments(config: Config, *, num_threads: int) -> dict[str, Any]:
    """What a source worker is made with; it never sees the config, so that it starts without pydantic or torch."""
    return {
        "sampling": config.sampling.model_dump(),
        "view": config.view.model_dump(),
        "limits": config.decode.model_dump(include={"max_pixels", "max_duration_s", "max_streams"}),
        "max_total_s": config.decode.max_total_s,
        "num_threads": num_threads,
    }


@functools.lru_cache(maxsize=1)
def _checkpoint(path: str | None, config_json: str, model_id: str) -> Checkpoint:
    config = Config.model_validate_json(config_json)
    checkpoint = untrained(config) if path is None else checkpoints.load(Path(path))
    if checkpoint.model_id != model_id:
        raise CheckpointError(f"{checkpoint.path} is not the same file here as where the run was started")
    return checkpoint


def load_checkpoint(config: Config, model_id: str) -> Checkpoint:
    """The run's checkpoint; the last one is kept, because the stages of one process share it."""
    return _checkpoint(config.model.checkpoint, config.model_dump_json(), model_id)


def _prepare(num_threads: int) -> None:
    torch.set_num_threads(num_threads)


def stream_worker(
    *, config: Mapping[str, Any], model_id: str, device: str, num_threads: int, class_names: tuple[str, ...]
) -> StreamWorker:
    _prepare(num_threads)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    form = LabelForm(
        class_names=class_names,
        topk=settings.output.topk,
        logits=settings.output.logits,
        step_logits=settings.output.step_logits,
    )
    gaze = build_gaze(settings, checkpoint, device=device)
    return StreamWorker(gaze=gaze, form=form, seed=settings.compute.seed)


def focus_worker(
    *, config: Mapping[str, Any], model_id: str, device: str, num_threads: int, batch_size: int
) -> FocusWorker:
    _prepare(num_threads)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    header = checkpoint.header
    is_free = header.focus is None or not header.focus.num_segments
    shapes = SHAPES if device == "cuda" and is_free else ()
    focuser = Focuser(
        network=checkpoint.focus_network(),
        normalisation=normalisation(header),
        device=device,
        dtype=_DTYPES[settings.compute.precision],
        max_batch=batch_size,
        shapes=shapes,
        feature_maps=header.policy is not None and header.policy.reads == "patch",
    )
    return FocusWorker(focuser=focuser, round_up=lambda n: round_to_shape(n, shapes))


def normalisation(header: Header) -> Normalisation:
    return Normalisation(mean=header.preprocessing.mean, std=header.preprocessing.std)


def build_gaze(
    config: Config, checkpoint: Checkpoint, *, device: str, truth_at: TruthAt | None = None
) -> Gaze:
    """The networks and rules of a stream worker."""
    header = checkpoint.header
    glancer = Glancer(
        network=checkpoint.glance_network(),
        size_px=config.glance.size_px,
        resize=header.preprocessing.glance_resize,
        normalisation=normalisation(header),
        device=device,
        dtype=_DTYPES[config.compute.precision],
    )
    classifier = checkpoint.classifier_module().to(device).eval().requires_grad_(False)
    policy, skip = build_policy(config, checkpoint, device=device)
    patch_px = config.view.crop_px if config.policy.kind == "full" else config.focus.patch_px
    cost = build_cost(config, header, policy, skip)
    if header.family == "adafocus":
        assert isinstance(classifier, GRUClassifier)
        return FrameGaze(
            glancer=glancer,
            policy=policy if skip is None else Skipping(place=policy, skip=skip),
            classifier=classifier,
            focus_features=classifier.in_features - glancer.num_features,
            stop=stop_rule(config, header),
            cost=cost,
            patch_px=patch_px,
            view_px=config.view.crop_px,
            steps_per_round=steps_per_round(config, header),
            has_skip=config.skip.kind == "learned",
            decides=config.policy.kind == "learned",
            truth_at=truth_at,
        )
    raise CheckpointError(f"{checkpoint.path}: the {header.family} family cannot be run")


def build_policy(config: Config, checkpoint: Checkpoint, *, device: str) -> tuple[Policy, SkipRule | None]:
    """Where to look, and what to skip."""
    header = checkpoint.header
    policy: Policy
    match config.policy.kind:
        case "learned":
            weights = checkpoint.require("policy", "policy.kind=learned")
            assert header.policy is not None
            module = learned_policy(header.policy)
            checkpoints.fill(module, weights, "policy")
            policy = _frozen(module, device)
        case "center":
            policy = Center()
        case "random":
            policy = Random()
        case "full":
            policy = Full()
        case "glance":
            policy = GlanceOnly()
        case "oracle":
            cells = header.policy.num_actions if header.policy and header.policy.kind == "grid" else None
            policy = Oracle(patch_share=config.focus.patch_px / config.view.crop_px, num_actions=cells)
    skip: SkipRule | None = None
    match config.skip.kind:
        case "learned":
            if config.policy.kind != "learned":
                raise ConfigError("skip.kind=learned reads the learned policy's state: it needs policy.kind=learned")
            weights = checkpoint.require("skip", "skip.kind=learned")
            assert header.skip is not None
            spec = header.skip
            head = SkipHead(
                policy_hidden=spec.policy_hidden,
                classifier_hidden=spec.classifier_hidden,
                hidden=spec.hidden,
                sees=spec.sees,
                price=spec.price if config.skip.price is None else config.skip.price,
            )
            checkpoints.fill(head, weights, "skip head")
            skip = _frozen(head, device)
        case "random":
            skip = SkipRandom(share=config.skip.share)
        case "uniform":
            skip = SkipUniform(share=config.skip.share)
    return policy, skip


def _frozen(module: nn.Module, device: str) -> Any:
    return module.to(device).eval().requires_grad_(False)


def build_cost(config: Config, header: Header, policy: Policy, skip: SkipRule | None) -> CostModel:
    """What each part costs, by the published rule."""
    decide = policy_macs(header) if config.policy.kind == "learned" else 0
    return cost_model(header, patch_px=config.focus.patch_px, decide=decide, skip=skip_macs(header) if skip else 0)


def policy_macs(header: Header) -> int:
    """One decision of the learned policy."""
    if header.policy is None:
        return 0
    spec = header.policy
    policy = learned_policy(spec).eval()
    if spec.encoder == "flat":
        maps = torch.zeros(1, spec.map_channels, spec.map_side, spec.map_side)
    else:
        maps = torch.zeros(1, spec.map_channels, spec.map_side, spec.map_side)
    return count_macs(lambda: policy.act(Observation(feature_map=maps), policy.initial_state(1)))


def skip_macs(header: Header) -> int:
    """One decision of the learned skip head."""
    if header.skip is None:
        return 0
    spec = header.skip
    head = SkipHead(
        policy_hidden=spec.policy_hidden,
        classifier_hidden=spec.classifier_hidden,
        hidden=spec.hidden,
        sees=spec.sees,
    ).eval()
    observation = Observation(feature_map=torch.zeros(1, 1, 1, 1))
    return count_macs(lambda: head.decide(observation, torch.zeros(1, spec.policy_hidden), head.initial_state(1)))


def stop_rule(config: Config, header: Header) -> StopRule | None:
    """When a clip is done early; None: never."""
    match config.stop.kind:
        case "none":
            return None
        case "confidence":
            if config.stop.thresholds is None:
                raise ConfigError("stop.kind=confidence needs stop.thresholds: one number, or one per step")
            thresholds = checked_thresholds(config.stop.thresholds, num_steps=header.num_steps)
            return Confidence(thresholds=thresholds, measure=config.stop.confidence)
        case "budget":
            assert config.stop.budget_gmacs is not None
            return for_budget(
                operating_points(header), config.stop.budget_gmacs, measure=header.thresholds.get("measure", "softmax")
            )
    raise ValueError(config.stop.kind)


def operating_points(header: Header) -> list[OperatingPoint]:
    """The calibration that a header holds."""
    return [
        OperatingPoint(
            gmacs=point["gmacs"],
            score=point["score"],
            thresholds=tuple(point["thresholds"]),
            found_by=point.get("found_by", ""),
        )
        for point in header.thresholds.get("points", [])
    ]


def steps_per_round(config: Config, header: Header) -> int:
    if config.stop.steps_per_round is not None:
        return config.stop.steps_per_round
    return int(header.thresholds.get("steps_per_round", 1))


__all__ = ["Plan", "header_settings", "parse", "resolve", "untrained"]
