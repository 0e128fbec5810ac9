"""From settings and a checkpoint to networks, policy and rules: what a gaze is made of, whatever the family."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from operators.networks.backbones import build, fill
from operators.networks.classify import Classifier, build_classifier
from operators.networks.cost import CostModel, cost_model, module_macs, step_macs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.networks.network import Network
from operators.networks.tensors import DTYPES, Normalisation
from operators.records import FrameBatch
from operators.weights.checkpoints import Checkpoint, Header, NetworkSpec, PolicySpec, SkipSpec
from pipeline.config import Config
from pipeline.families.calibrated import skip_price, skip_sees, steps_per_round, stop_rule
from pipeline.families.truth import TruthAt, read_truth_at
from pipeline.steering.batching import SHAPES
from policies.base import Policy, Skipping, SkipRule
from policies.fixed import SkipRandom, SkipUniform
from policies.kinds import fixed_policy
from policies.recurrent import RecurrentPolicy, SkipHead
from policies.stopping import StopRule


@dataclass(eq=False)
class Modules:
    """The networks of a model, with fresh weights."""

    glancer: Network
    focuser: Network
    classifier: Classifier
    policy: RecurrentPolicy
    skip: SkipHead | None


def modules_of(header: Header) -> Modules:
    """The networks that a header describes, drawn one after another: the same seed gives the same weights."""
    glance, focus, classifier, policy = header.glance, header.focus, header.classifier, header.policy
    if glance is None or focus is None or classifier is None or policy is None:
        raise ValueError("the header of a new model describes all of its networks")
    return Modules(
        glancer=build(glance.name, num_segments=glance.num_segments, num_classes=glance.num_classes),
        focuser=build(focus.name, num_segments=focus.num_segments),
        classifier=build_classifier(**dataclasses.asdict(classifier), num_steps=header.num_steps),
        policy=learned_policy(policy),
        skip=None if header.skip is None else skip_head(header.skip),
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
        feature_maps=reads_patches and config.policy.traits.is_learned,
        **_how_to_run(config, header, device=device, max_batch=max_batch, spec=header.focus),
    )


def _how_to_run(
    config: Config, header: Header, *, device: str, max_batch: int, spec: NetworkSpec | None
) -> dict[str, Any]:
    """The arguments that glance and focus share. `max_batch`: a pass on a GPU has one of few sizes up to it."""
    is_free = spec is None or not spec.num_segments
    return {
        "normalisation": Normalisation(mean=header.preprocessing.mean, std=header.preprocessing.std),
        "device": device,
        "dtype": DTYPES[config.compute.precision],
        "max_batch": max_batch,
        "shapes": SHAPES if device == "cuda" and is_free else (),
        "compiled": config.compute.compile == "on",
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class GazeParts:
    """The parts that every gaze is made of: the networks but the heavy one, the rules, and what the work costs."""

    glancer: Glancer
    policy: Policy
    """It decides where to look and what to skip."""
    classifier: Any
    cost: CostModel
    stop: StopRule | None
    """The rule by which a clip is done early; None: never."""
    patch_px: int
    """Side of what the focus network sees: a patch, or the whole view."""
    view_px: int
    steps_per_round: int
    has_skip: bool
    """A learned skip rule decides at every step, and its work costs something."""
    decides: bool
    """The policy is learned, and its work costs something."""
    truth_at: TruthAt | None
    """A function that finds the evidence, for a policy that is given its place."""

    def truths(self, places: Sequence[tuple[FrameBatch, int]]) -> torch.Tensor | None:
        """[n,2] the evidence's places in these rows of FrameBatches, in units of the view; None if no policy asks."""
        if self.truth_at is None:
            return None
        truth = [self.truth_at(frames, row) for frames, row in places]
        return torch.tensor(truth, dtype=torch.float32, device=self.glancer.device)


def gaze_parts(
    config: Config, checkpoint: Checkpoint, *, device: str, glance_batch: int = 8, truth_at: TruthAt | None = None
) -> GazeParts:
    """The parts that settings and a checkpoint describe. `truth_at`: in place of what policy.truth says."""
    header, traits = checkpoint.header, config.policy.traits
    policy, skip = build_policy(config, checkpoint, device=device)
    if not traits.needs_truth:
        truth_at = None
    elif truth_at is None:
        truth_at = read_truth_at(config.policy.truth)
    return GazeParts(
        glancer=build_glancer(config, checkpoint, device=device, max_batch=glance_batch),
        policy=policy if skip is None else Skipping(place=policy, skip=skip),
        classifier=_frozen(checkpoint.classifier_module(), device),
        cost=build_cost(config, header),
        stop=stop_rule(config, header),
        patch_px=config.patch_px,
        view_px=config.view.crop_px,
        steps_per_round=steps_per_round(config, header),
        has_skip=config.skip.kind == "learned",
        decides=traits.is_learned,
        truth_at=truth_at,
    )


def build_policy(config: Config, checkpoint: Checkpoint, *, device: str) -> tuple[Policy, SkipRule | None]:
    """The policy that decides where to look, and the rule that decides what to skip."""
    header = checkpoint.header
    policy: Policy
    if config.policy.traits.is_learned:
        weights = checkpoint.require("policy", "policy.kind=learned")
        assert header.policy is not None
        module = learned_policy(header.policy)
        fill(module, weights, "the policy")
        policy = _frozen(module, device)
    else:
        cells = header.policy.num_actions if header.policy and header.policy.kind == "grid" else None
        patch_share = config.focus.patch_px / config.view.crop_px
        policy = fixed_policy(config.policy.kind, patch_share=patch_share, num_actions=cells)
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
    """The cost of each part, by the published rule."""
    assert header.glance is not None
    sized = dataclasses.replace(
        header,
        glance=dataclasses.replace(header.glance, size_px=config.glance.size_px),
        preprocessing=dataclasses.replace(header.preprocessing, crop_px=config.view.crop_px),
    )
    decide = skip = 0
    if config.policy.traits.is_learned and (spec := header.policy) is not None:
        with torch.device("meta"):
            policy = learned_policy(spec)
        maps = (1, 1, spec.map_channels, spec.map_side, spec.map_side)
        decide = module_macs(policy, maps, method="logits")
    if config.skip.kind == "learned" and header.skip is not None:
        skip = step_macs(skip_head(header.skip))
    return cost_model(sized, patch_px=config.patch_px, decide=decide, skip=skip)
