"""Settings, checkpoint and machine become the plan of a run: whatever was left open is decided here, in one order."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from operators.errors import ConfigError
from operators.networks.compiled import can_compile
from operators.networks.tensors import DTYPES
from operators.weights.checkpoints import Checkpoint, Header
from pipeline.config import Config, check_weights
from pipeline.families import family_named
from pipeline.families.calibrated import skip_sees
from pipeline.families.files import load_checkpoint_file
from pipeline.families.untrained import untrained
from pipeline.plan.compatibility import check
from pipeline.plan.network_choice import Choice, NetworkWork, by_rule, work_of
from pipeline.plan.placement import Machine, Placement, place
from pipeline.plan.processor import can_compute
from pipeline.plan.run_plan import RunPlan
from pipeline.plan.tuning import choose

_REMEMBERED = ("compute.precision", "compute.compile")
"""Settings that a run takes over from the table that it goes on with, where nobody gives them: what the first run's
machine chose and labels depend on. What belongs to a machine is chosen anew on each."""


def resolve(
    config: Config,
    machine: Machine,
    *,
    remembered: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    doing: Callable[[str], None] = lambda text: None,
) -> RunPlan:
    """Everything that was left open, decided: by the checkpoint, by the machine, or as an earlier run had it.

    `cache`: folder of measurements. What is not there yet is measured, which takes seconds; None goes by rules.
    `doing` is called with what is going on before something that takes seconds.
    """
    config, checkpoint, names = _loaded(config)
    given = config
    if remembered:
        config = config.filled_in({k: v for k, v in remembered.items() if k in _REMEMBERED})
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
        device=_device(config, machine),
        threads=config.run.threads,
        source_workers=config.run.source_workers,
        stream_workers=config.run.stream_workers,
        focus_workers=config.run.focus_workers,
        clips_per_call=config.glance.clips_per_call,
        max_clips_in_flight=config.run.max_clips_in_flight,
        max_frames_bytes=config.run.max_frames_mb << 20,
        steps_in_rounds=goes_in_rounds(config, header),
        in_one_process=config.run.executor == "inline",
    )
    first = placed()
    if first.device == "cpu" and config.run.ray_address is None:
        _check_precision(config, given)
    tuned = _tuned(config, given, header, first, cache, doing)
    placement = placed(batch_size=config.focus.batch_size or tuned.focus_batch)
    return RunPlan(
        config=config.replaced(_chosen(config, placement, tuned)),
        header=header,
        model_id=checkpoint.model_id,
        is_trained=config.model.checkpoint is not None,
        placement=placement,
        tuned=tuned,
        class_names=names,
    )


def _loaded(config: Config) -> tuple[Config, Checkpoint, tuple[str, ...]]:
    """The settings with what follows from the checkpoint, the checkpoint, and the names of its classes."""
    if config.model.checkpoint is not None:
        checkpoint = load_checkpoint_file(config.model.checkpoint)
        config = config.filled_in(family_named(checkpoint.header.family).settings_of(checkpoint.header))
        return config, checkpoint, _class_names(config, checkpoint.header)
    check_weights(config)
    names = _class_names(config, None)
    config = config.replaced({"model.num_classes": len(names)})
    config = config.filled_in(family_named(config.model.family).untrained_settings(config))
    return config, untrained(config), names


def _chosen(config: Config, placement: Placement, tuned: Choice) -> dict[str, Any]:
    """The values that replace settings which were `auto`, or which mean something else elsewhere."""
    chosen: dict[str, Any] = {
        "compute.device": placement.device,
        "compute.precision": tuned.precision,
        # A table that was begun with compiled networks stays one where there are no kernels for them.
        "compute.compile": tuned.compile if config.compute.compile == "auto" else config.compute.compile,
    }
    # Workers need not run in the folder that the command was given in.
    for name in ("model.checkpoint", "policy.truth", "stop.calibration"):
        if (path := config.flat()[name]) is not None:
            chosen[name] = os.path.abspath(path)
    return chosen


def network_work(config: Config, header: Header) -> NetworkWork:
    """The work of the networks on one clip."""
    return work_of(
        header,
        glance_px=config.glance.size_px,
        patch_px=config.patch_px,
        glances=config.sampling.num_frames,
        patches=family_named(header.family).num_patches(config, header),
    )


def _device(config: Config, machine: Machine) -> str:
    """The device asked for, if it is there; `auto` where the machines decide."""
    device = config.compute.device
    if config.run.ray_address is not None:
        # What a cluster's machines have installed is not known here; how many GPUs they have is.
        if device == "cuda" and not machine.num_gpus:
            raise ConfigError(f"compute.device=cuda: {config.run.ray_address} has no GPU; take auto or cpu")
    elif not torch.cuda.is_available():
        if device == "cuda":
            raise ConfigError("compute.device=cuda: torch sees no GPU here; take auto or cpu")
        return "cpu"
    return device


def _check_precision(config: Config, given: Config) -> None:
    """Raises ConfigError where this CPU cannot compute in the precision that was asked for or is the table's."""
    precision = config.compute.precision
    if precision == "auto" or can_compute(precision):
        return
    if given.compute.precision == precision:
        raise ConfigError(f"compute.precision={precision}: torch cannot compute in it on this CPU; take auto")
    raise ConfigError(
        f"the labels there were made with compute.precision={precision}, in which torch cannot compute on this CPU: "
        "go on on a machine that can, or begin a new table with --no-resume or another -o"
    )


def _tuned(
    config: Config,
    given: Config,
    header: Header,
    placement: Placement,
    cache: Path | None,
    doing: Callable[[str], None],
) -> Choice:
    """Chooses how the networks are run. `given`: the config without what an earlier run chose, which is no demand:
    networks are compiled where this machine can."""
    work = network_work(config, header)
    asked, device = config.compute, placement.device
    compile = asked.compile
    if compile != given.compute.compile and asked.precision != "auto":
        compile = compile if can_compile(device, DTYPES[asked.precision]) else "off"
    if cache is None:
        return by_rule(work, device=device, precision=asked.precision, compile=compile)
    return choose(
        work,
        device=device,
        threads=placement.focus_threads,
        precision=asked.precision,
        compile=compile,
        cache=cache,
        doing=doing,
    )


def _class_names(config: Config, header: Header | None) -> tuple[str, ...]:
    if config.model.classes is not None:
        # Reading them is the driver's work, and its library is not needed in the workers that import this file.
        from pipeline.inputs.annotations import read_class_names

        return tuple(read_class_names(Path(config.model.classes)))
    if header is not None and header.class_names:
        return header.class_names
    num_classes = config.model.num_classes if header is None else header.num_classes
    return tuple(f"class_{i:03d}" for i in range(num_classes))


def goes_in_rounds(config: Config, header: Header) -> bool:
    """Whether clips bring few patches at a time, because what they see decides how they go on."""
    if family_named(header.family).always_in_rounds() or config.stop.kind != "none":
        return True
    return config.skip.kind == "learned" and skip_sees(config, header) == "classifier"
