"""Settings and a checkpoint that do not go with each other are refused here, before workers start."""

from __future__ import annotations

from pathlib import Path

from operators.errors import CheckpointError, ConfigError
from operators.weights.checkpoints import Checkpoint, Header
from pipeline.config import Config
from pipeline.families import family_named
from pipeline.families.calibrated import skip_price, stop_rule


def check(config: Config, checkpoint: Checkpoint) -> None:
    """Raises ConfigError or CheckpointError where a run could not do what was asked for."""
    header = checkpoint.header
    _check_parts(config, checkpoint)
    _check_networks(config, checkpoint)
    family_named(header.family).check(config, checkpoint)
    _check_sizes(config, header)
    if config.skip.kind == "learned" and not config.policy.traits.is_learned:
        raise ConfigError("skip.kind=learned reads the learned policy's state: it needs policy.kind=learned")
    if config.policy.traits.needs_truth:
        if config.policy.truth is None:
            raise ConfigError(f"policy.kind={config.policy.kind} needs policy.truth: the truth.parquet of `synth`")
        if not Path(config.policy.truth).is_file():
            raise ConfigError(f"policy.truth={config.policy.truth}: there is no such file")
    stop_rule(config, header)
    if config.skip.kind == "learned":
        skip_price(config, header)


def _check_parts(config: Config, checkpoint: Checkpoint) -> None:
    wanted = {"glancer": "every model", "focuser": "every model", "classifier": "a label"}
    if config.policy.traits.is_learned:
        wanted["policy"] = "policy.kind=learned"
    if config.skip.kind == "learned":
        wanted["skip"] = "skip.kind=learned"
    for section, purpose in wanted.items():
        checkpoint.require(section, purpose)
        if getattr(checkpoint.header, {"glancer": "glance", "focuser": "focus"}.get(section, section)) is None:
            raise CheckpointError(f"{checkpoint.path} has weights of a {section} that its header does not describe")


def _check_networks(config: Config, checkpoint: Checkpoint) -> None:
    header = checkpoint.header
    assert header.glance is not None and header.focus is not None
    for setting, wanted, there in (
        ("model.family", config.model.family, header.family),
        ("model.glance_backbone", config.model.glance_backbone, header.glance.name),
        ("model.focus_backbone", config.model.focus_backbone, header.focus.name),
    ):
        if wanted != there:
            raise ConfigError(
                f"{setting} is {wanted}, but {checkpoint.path} holds {there}: "
                "take the preset that belongs to this checkpoint, or none"
            )


def _check_sizes(config: Config, header: Header) -> None:
    glance_px, patch_px = config.glance.size_px, config.focus.patch_px
    if patch_px > config.view.crop_px:
        raise ConfigError(f"focus.patch_px={patch_px} is larger than view.crop_px={config.view.crop_px}")
    assert header.glance is not None
    # The policy's first layer is as large as the maps that it reads.
    if config.policy.traits.is_learned and header.glance.size_px not in (None, glance_px):
        raise ConfigError(
            f"the policy was trained on glances of {header.glance.size_px} px, but glance.size_px={glance_px}: "
            f"set glance.size_px={header.glance.size_px}"
        )
