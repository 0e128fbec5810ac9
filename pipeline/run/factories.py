"""From config to operators, policies and workers: the only file that knows both sides. Runs in the workers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from operators.errors import CheckpointError, ConfigError
from operators.networks.backbones import fill
from operators.networks.cost import CostModel, cost_model, module_macs, step_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.tensors import Normalisation
from operators.records import FrameBatch
from operators.weights import checkpoints
from operators.weights.checkpoints import Checkpoint, Header, NetworkSpec, PolicySpec, SkipSpec
from pipeline.config import Config
from pipeline.families.gaze_frames import FrameGaze, TruthAt
from pipeline.families.gaze_image import ImageGaze
from pipeline.families.gaze_live import LiveGaze
from pipeline.families.gaze_motion import MotionGaze
from pipeline.live.camera_state import Limits as LiveLimits
from pipeline.live.worker import LiveWorker
from pipeline.plan.compatibility import skip_price, skip_sees, steps_per_round, stop_rule
from pipeline.plan.tuning import DTYPES, exact_fp32
from pipeline.plan.untrained import untrained
from pipeline.run.source_worker import FocusWorker
from pipeline.run.stream_worker import Gaze, LabelForm, StreamWorker
from pipeline.steering.batching import SHAPES
from policies.base import Policy, Skipping, SkipRule
from policies.fixed import Center, Full, GlanceOnly, Oracle, Random, SkipRandom, SkipUniform
from policies.recurrent import RecurrentPolicy, SkipHead


@functools.lru_cache(maxsize=1)
def _checkpoint(path: str | None, config_json: str, model_id: str) -> Checkpoint:
    config = Config.model_validate_json(config_json)
    checkpoint = untrained(config) if path is None else checkpoints.load(Path(path))
    if checkpoint.model_id != model_id:
        raise CheckpointError(f"{checkpoint.path} is not the same file here as where the run was started")
    return checkpoint


def load_checkpoint(config: Config, model_id: str) -> Checkpoint:
    """The run's checkpoint; the last one is kept, because the stages of one process share it."""
    return _checkpoint(config.model.checkpoint, config.model_dump_json(exclude_unset=True), model_id)


def _prepare(num_threads: int, device: str) -> None:
    torch.set_num_threads(num_threads)
    exact_fp32(device)


def stream_worker(
    *,
    config: Mapping[str, Any],
    model_id: str,
    device: str,
    num_threads: int,
    class_names: tuple[str, ...],
    glance_batch: int = 8,
) -> StreamWorker:
    _prepare(num_threads, device)
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
    _prepare(num_threads, device)
    settings = Config.model_validate(config)
    checkpoint = load_checkpoint(settings, model_id)
    focuser = build_focuser(settings, checkpoint, device=device, max_batch=batch_size)
    return FocusWorker(focuser=focuser, round_up=lambda n: sum(rows for *_, rows in focuser.passes(n)))


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
    _prepare(num_threads, device)
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
            keyframe_s=live.keyframe_timeout_s,
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
    from pipeline.scoring.read_labels import read_truth

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
