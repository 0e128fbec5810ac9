"""From config to operators, policy and stages: the only file that knows both sides."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from operators import checkpoints
from operators.backbones import fill
from operators.checkpoints import Checkpoint, Header, NetworkSpec, PolicySpec, SkipSpec
from operators.cost import CostModel, cost_model, module_macs, step_macs
from operators.errors import CheckpointError, ConfigError
from operators.focus import Focuser
from operators.glance import Glancer
from operators.records import FrameBatch
from operators.tensors import Normalisation
from pipeline.batching import round_to_shape
from pipeline.config import Config
from pipeline.executor import WorkerSpec
from pipeline.gaze import FrameGaze, TruthAt
from pipeline.gaze_image import ImageGaze
from pipeline.gaze_live import LiveGaze
from pipeline.gaze_motion import MotionGaze
from pipeline.live import Limits as LiveLimits
from pipeline.live_worker import LiveWorker
from pipeline.placement import Machine, Placement, place
from pipeline.rules import check, skip_price, skip_sees, steps_per_round, stop_rule
from pipeline.scheduler import FOCUS, SOURCE, STREAM, Limits
from pipeline.stages import Gaze, LabelForm, StreamWorker
from pipeline.tuning import DTYPES, Choice, by_rule, choose, work_of
from pipeline.untrained import untrained
from pipeline.workers import FocusWorker
from policies.base import Policy, Skipping, SkipRule
from policies.fixed import Center, Full, GlanceOnly, Oracle, Random, SkipRandom, SkipUniform
from policies.recurrent import RecurrentPolicy, SkipHead

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
    tuned: Choice
    class_names: tuple[str, ...]

    @property
    def config_id(self) -> str:
        return self.config.config_id()

    def opening_line(self) -> str:
        """What a run says of itself before it begins."""
        place = self.placement
        weights = "" if self.is_trained else ", UNTRAINED weights"
        return (
            f"{self.header.family} {self.model_id[:8]}{weights}: {len(self.class_names)} classes on {place.device}, "
            f"{place.source_workers} source, {place.stream_workers} stream and {place.focus_workers} focus worker(s); "
            f"{self.tuned.line()}"
        )

    def live_arguments(self) -> dict[str, Any]:
        """What a worker that watches cameras is made with: it has the machine for itself."""
        place = self.placement
        skip = {"skip.sees": "glance"} if self.config.skip.kind == "learned" else {}
        return {
            "config": self.config.replaced(skip).model_dump(mode="json"),
            "model_id": self.model_id,
            "device": place.device,
            "num_threads": place.num_threads,
            "class_names": self.class_names,
            "glance_batch": self.tuned.glance_batch,
            "batch_size": place.batch_size,
        }

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
            shares_cores=place.device == "cpu",
            bytes_per_source=(self.config.sampling.num_frames + (self.config.sampling.num_focus_frames or 0))
            * self.config.view.crop_px**2
            * 3,
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
                arguments={
                    **models,
                    "num_threads": place.stream_threads,
                    "class_names": self.class_names,
                    "glance_batch": self.tuned.glance_batch,
                },
                count=place.stream_workers,
                num_cpus=place.cpus(STREAM),
                num_gpus=place.stream_gpus,
            ),
            WorkerSpec(
                stage=FOCUS,
                factory="pipeline.build:focus_worker",
                arguments={**models, "num_threads": place.focus_threads, "batch_size": self.rows_per_batch},
                count=place.focus_workers,
                num_cpus=place.cpus(FOCUS),
                num_gpus=place.focus_gpus,
            ),
        ]


def resolve(
    config: Config, machine: Machine, *, remembered: Mapping[str, Any] | None = None, cache: Path | None = None
) -> Plan:
    """Everything that was left open, decided: by the checkpoint, by the machine, or as an earlier run had it.

    `cache`: folder of measurements. What is not there yet is measured, which takes seconds; None goes by rules.
    """
    is_trained = config.model.checkpoint is not None
    if config.model.checkpoint is not None:
        checkpoint = checkpoints.load(config.model.checkpoint)
        config = config.filled_in(header_settings(checkpoint.header))
        names = _class_names(config, checkpoint.header)
    else:
        if not config.model.untrained:
            raise ConfigError(
                f"the {config.model.family} model needs --checkpoint FILE; "
                "to try it with random weights: --set model.untrained=true"
            )
        names = _class_names(config, None)
        config = config.replaced({"model.num_classes": len(names)})
        if config.model.family == "gfnet":
            config = config.filled_in({"glance.size_px": config.focus.patch_px, "sampling.num_frames": 1})
        checkpoint = untrained(config)
    if remembered:
        config = config.filled_in({k: v for k, v in remembered.items() if k.startswith("compute.")})
    check(config, checkpoint)
    if len(names) != checkpoint.header.num_classes:
        raise ConfigError(
            f"{len(names)} class names, but the checkpoint has {checkpoint.header.num_classes} classes; "
            "give the right list with --classes"
        )
    header = checkpoint.header
    placed = functools.partial(
        place,
        machine,
        device=config.compute.device,
        threads=config.run.threads,
        source_workers=config.run.source_workers,
        stream_workers=config.run.stream_workers,
        focus_workers=config.run.focus_workers,
        clips_per_call=config.glance.clips_per_call,
        max_clips_in_flight=config.run.max_clips_in_flight,
        max_frames_bytes=config.run.max_frames_mb << 20,
        steps_in_rounds=goes_in_rounds(config, header),
    )
    tuned = _tuned(config, header, placed(), cache)
    placement = placed(batch_size=config.focus.batch_size or tuned.focus_batch)
    auto = {
        "compute.device": placement.device,
        "compute.precision": tuned.precision,
        "compute.compile": tuned.compile,
    }
    # Workers need not run in the folder that the command was given in.
    for name in ("model.checkpoint", "policy.truth"):
        if (path := config.flat()[name]) is not None:
            auto[name] = os.path.abspath(path)
    return Plan(
        config=config.replaced(auto),
        header=header,
        model_id=checkpoint.model_id,
        is_trained=is_trained,
        placement=placement,
        tuned=tuned,
        class_names=names,
    )


def _tuned(config: Config, header: Header, placement: Placement, cache: Path | None) -> Choice:
    """How the networks are run."""
    work = work_of(
        header,
        glance_px=config.glance.size_px,
        patch_px=config.view.crop_px if config.policy.kind == "full" else config.focus.patch_px,
        num_frames=config.sampling.num_frames,
        num_focus_frames=config.sampling.num_focus_frames,
    )
    asked, device = config.compute, placement.device
    if cache is None:
        return by_rule(work, device=device, precision=asked.precision, compile=asked.compile)
    return choose(
        work,
        device=device,
        threads=placement.focus_threads,
        precision=asked.precision,
        compile=asked.compile,
        cache=cache,
    )


def header_settings(header: Header) -> dict[str, Any]:
    """What a checkpoint says of how it is run, as settings."""
    form = header.preprocessing
    is_image = header.family == "gfnet"
    settings: dict[str, Any] = {
        "model.family": header.family,
        # An image has one frame; how often it is looked at is the model's own.
        "sampling.num_frames": 1 if is_image else header.num_steps,
        "sampling.num_focus_frames": header.num_focus_steps,
        "sampling.pad": header.pad,
        "view.resize_px": form.resize_px,
        "view.crop_px": form.crop_px,
        "view.interpolation": form.interpolation,
        "view.square_pixels": form.square_pixels,
    }
    if is_image:
        settings["model.num_looks"] = header.num_steps
    if header.glance is not None:
        settings["model.glance_backbone"] = header.glance.name
        if header.glance.size_px:
            settings["glance.size_px"] = header.glance.size_px
    if header.focus is not None:
        settings["model.focus_backbone"] = header.focus.name
        if header.focus.size_px:
            settings["focus.patch_px"] = header.focus.size_px
    return settings


def _class_names(config: Config, header: Header | None) -> tuple[str, ...]:
    if config.model.classes is not None:
        # Reading them is the driver's work, and its library is not needed in the workers that import this file.
        from pipeline.inputs import read_class_names

        return tuple(read_class_names(Path(config.model.classes)))
    if header is not None and header.class_names:
        return header.class_names
    num_classes = config.model.num_classes if header is None else header.num_classes
    return tuple(f"class_{i:03d}" for i in range(num_classes))


def goes_in_rounds(config: Config, header: Header) -> bool:
    """Whether clips bring few patches at a time, because what they see decides how they go on."""
    if header.family == "gfnet" or config.stop.kind != "none":
        return True
    return config.skip.kind == "learned" and skip_sees(config, header) == "classifier"


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
    *,
    config: Mapping[str, Any],
    model_id: str,
    device: str,
    num_threads: int,
    class_names: tuple[str, ...],
    glance_batch: int = 8,
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
    gaze = build_gaze(settings, checkpoint, device=device, glance_batch=glance_batch)
    return StreamWorker(gaze=gaze, form=form, seed=settings.compute.seed)


def focus_worker(
    *, config: Mapping[str, Any], model_id: str, device: str, num_threads: int, batch_size: int
) -> FocusWorker:
    _prepare(num_threads)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    focuser = build_focuser(settings, checkpoint, device=device, max_batch=batch_size)
    return FocusWorker(focuser=focuser, round_up=lambda n: round_to_shape(n, focuser.shapes))


def live_worker(
    *,
    config: Mapping[str, Any],
    model_id: str,
    device: str,
    num_threads: int,
    class_names: tuple[str, ...],
    batch_size: int,
    glance_batch: int = 8,
) -> LiveWorker:
    """A worker that watches cameras with all networks in one process. What it watches it is told later."""
    _prepare(num_threads)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    header, live = checkpoint.header, settings.live
    glancer = build_glancer(settings, checkpoint, device=device, max_batch=glance_batch)
    policy, skip = build_policy(settings, checkpoint, device=device)
    is_full = settings.policy.kind == "full"
    gaze = LiveGaze(
        glancer=glancer,
        policy=policy if skip is None else Skipping(place=policy, skip=skip),
        focuser=build_focuser(settings, checkpoint, device=device, max_batch=batch_size),
        classifier=_frozen(checkpoint.classifier_module(), device),
        cost=build_cost(settings, header),
        patch_px=settings.view.crop_px if is_full else settings.focus.patch_px,
        view_px=settings.view.crop_px,
        seed=settings.compute.seed,
        has_skip=settings.skip.kind == "learned",
        decides=settings.policy.kind == "learned",
    )
    return LiveWorker(
        gaze=gaze,
        form=LabelForm(
            class_names=class_names,
            topk=settings.output.topk,
            logits=settings.output.logits,
            step_logits=settings.output.step_logits,
        ),
        limits=LiveLimits(
            open_s=live.open_timeout_s,
            silence_s=live.watchdog_s,
            backoff_s=live.backoff_s,
            max_backoff_s=live.max_backoff_s,
        ),
        max_waiting=live.max_waiting_frames,
        max_batch=batch_size,
    )


def build_glancer(config: Config, checkpoint: Checkpoint, *, device: str, max_batch: int) -> Glancer:
    header = checkpoint.header
    return Glancer(
        network=checkpoint.glance_network(),
        size_px=config.glance.size_px,
        resize=header.preprocessing.glance_resize,
        **_how_to_run(config, header, device=device, max_batch=max_batch, spec=header.glance),
    )


def build_focuser(config: Config, checkpoint: Checkpoint, *, device: str, max_batch: int) -> Focuser:
    header = checkpoint.header
    reads_patches = header.policy is not None and header.policy.reads == "patch"
    return Focuser(
        network=checkpoint.focus_network(),
        feature_maps=reads_patches and config.policy.kind == "learned",
        **_how_to_run(config, header, device=device, max_batch=max_batch, spec=header.focus),
    )


def _how_to_run(
    config: Config, header: Header, *, device: str, max_batch: int, spec: NetworkSpec | None
) -> dict[str, Any]:
    """What glance and focus have in common. `max_batch`: a pass on a GPU has one of few sizes up to it."""
    is_free = spec is None or not spec.num_segments
    return {
        "normalisation": Normalisation(mean=header.preprocessing.mean, std=header.preprocessing.std),
        "device": device,
        "dtype": DTYPES[config.compute.precision],
        "max_batch": max_batch,
        "shapes": SHAPES if device == "cuda" and is_free else (),
        "compiled": config.compute.compile == "on",
    }


def build_gaze(
    config: Config, checkpoint: Checkpoint, *, device: str, glance_batch: int = 8, truth_at: TruthAt | None = None
) -> Gaze:
    """The networks and rules of a stream worker. `truth_at`: for the oracle, in place of policy.truth's."""
    header = checkpoint.header
    glancer = build_glancer(config, checkpoint, device=device, max_batch=glance_batch)
    classifier = _frozen(checkpoint.classifier_module(), device)
    policy, skip = build_policy(config, checkpoint, device=device)
    cost = build_cost(config, header)
    if config.policy.kind != "oracle":
        truth_at = None
    elif truth_at is None:
        truth_at = read_truth_at(config.policy.truth)
    patch_px = config.view.crop_px if config.policy.kind == "full" else config.focus.patch_px
    view_px, decides = config.view.crop_px, config.policy.kind == "learned"
    match header.family:
        case "adafocus":
            return FrameGaze(
                glancer=glancer,
                policy=policy if skip is None else Skipping(place=policy, skip=skip),
                classifier=classifier,
                focus_features=classifier.in_features - glancer.num_features,
                stop=stop_rule(config, header),
                cost=cost,
                patch_px=patch_px,
                view_px=view_px,
                steps_per_round=steps_per_round(config, header),
                has_skip=config.skip.kind == "learned",
                decides=decides,
                truth_at=truth_at,
            )
        case "gfnet":
            # Without patches the glance is all; the whole view through the focus network holds all there is to see.
            looks = {"glance": 1, "full": 2}.get(config.policy.kind, config.model.num_looks)
            return ImageGaze(
                glancer=glancer,
                policy=policy,
                classifier=classifier,
                stop=stop_rule(config, header),
                cost=cost,
                num_looks=looks,
                patch_px=patch_px,
                view_px=view_px,
                decides=decides,
                truth_at=truth_at,
            )
        case "adafocus_tsm":
            assert header.focus is not None
            return MotionGaze(
                glancer=glancer,
                policy=policy,
                classifier=classifier,
                cost=cost,
                num_focused=header.focus.num_segments,
                patch_px=patch_px,
                view_px=view_px,
                decides=decides,
                truth_at=truth_at,
            )


def build_policy(config: Config, checkpoint: Checkpoint, *, device: str) -> tuple[Policy, SkipRule | None]:
    """Where to look, and what to skip."""
    header = checkpoint.header
    policy: Policy
    match config.policy.kind:
        case "learned":
            weights = checkpoint.require("policy", "policy.kind=learned")
            assert header.policy is not None
            module = learned_policy(header.policy)
            fill(module, weights, "the policy")
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
            weights = checkpoint.require("skip", "skip.kind=learned")
            assert header.skip is not None
            head = skip_head(header.skip)
            fill(head, weights, "the skip head")
            head = head.with_price(skip_price(config, header))
            head.sees = skip_sees(config, header)
            skip = _frozen(head, device)
        case "random":
            skip = SkipRandom(share=config.skip.share)
        case "uniform":
            skip = SkipUniform(share=config.skip.share)
    return policy, skip


def learned_policy(spec: PolicySpec) -> RecurrentPolicy:
    return RecurrentPolicy(**dataclasses.asdict(spec))


def skip_head(spec: SkipSpec) -> SkipHead:
    return SkipHead(
        policy_hidden=spec.policy_hidden,
        classifier_hidden=spec.classifier_hidden,
        hidden=spec.hidden,
        price=spec.price,
        sees=spec.sees,
    )


def _frozen(module: nn.Module, device: str) -> Any:
    return module.to(device).eval().requires_grad_(False)


def build_cost(config: Config, header: Header) -> CostModel:
    """What each part costs, by the published rule."""
    assert header.glance is not None
    sized = dataclasses.replace(
        header,
        glance=dataclasses.replace(header.glance, size_px=config.glance.size_px),
        preprocessing=dataclasses.replace(header.preprocessing, crop_px=config.view.crop_px),
    )
    decide = skip = 0
    if config.policy.kind == "learned" and (spec := header.policy) is not None:
        with torch.device("meta"):
            policy = learned_policy(spec)
        maps = (1, 1, spec.map_channels, spec.map_side, spec.map_side)
        decide = module_macs(policy, maps, method="logits")
    if config.skip.kind == "learned" and header.skip is not None:
        skip = step_macs(skip_head(header.skip))
    return cost_model(sized, patch_px=config.focus.patch_px, decide=decide, skip=skip)


def read_truth_at(path: str | None) -> TruthAt:
    """Where the evidence is, from the table that `synth` writes."""
    # The oracle alone needs the library that reads it.
    from pipeline.evaluate import read_truth

    if path is None:
        raise ConfigError("policy.kind=oracle needs policy.truth: the truth.parquet of `synth`")
    videos = read_truth(Path(path))

    def truth_at(frames: FrameBatch, row: int) -> tuple[float, float]:
        known, frame = videos.get(frames.source.video_id), int(frames.frame_index[row])
        if known is None or frame >= len(known.visible) or not known.visible[frame]:
            return math.nan, math.nan
        y, x, h, w = known.boxes[frame]
        top, left, height, width = frames.view_yxhw
        return float((y + h / 2 - top) / height), float((x + w / 2 - left) / width)

    return truth_at
