"""Everything that was left open, decided: by the checkpoint, by the machine, or as an earlier run had it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from operators.errors import ConfigError
from operators.networks.compiled import can_compile
from operators.networks.tensors import DTYPES
from operators.weights.checkpoints import Header
from pipeline.config import Config, check_weights
from pipeline.families import family_named
from pipeline.families.calibrated import skip_price, skip_sees, steps_per_round, stop_rule
from pipeline.families.files import load_checkpoint_file
from pipeline.families.untrained import untrained
from pipeline.plan.compatibility import check
from pipeline.plan.placement import Machine, Placement, place
from pipeline.plan.tuning import Choice, Work, by_rule, can_compute, choose, work_of
from pipeline.steering.batching import SHAPES, Batcher
from pipeline.steering.executor import WorkerSpec
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM, Limits
from policies.stopping import Confidence

_REMEMBERED = ("compute.precision", "compute.compile")
"""Settings that a run takes over from the table that it goes on with, where nobody gives them: what the first run's
machine chose and labels depend on. What belongs to a machine is chosen anew on each."""


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

    def identity(self, *, live: bool = False) -> dict[str, Any]:
        """What labels are made with. They lie in one table only with labels of the same `model_id` and `config_id`."""
        settings = self._deciding_settings(live=live)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return {"model_id": self.model_id, "config_id": digest[:16], "config": settings}

    def _deciding_settings(self, *, live: bool) -> dict[str, Any]:
        """The settings that a label depends on; where a file decides, what it says and not where it lies."""
        own = self.config.identity(live=live)
        config = self._live_config if live else self.config
        own |= {f"checkpoint.{name}": value for name, value in self.header.deciding().items()}
        digest = hashlib.sha256("\n".join(self.class_names).encode("utf-8", "surrogateescape")).hexdigest()
        own["model.classes"] = f"{len(self.class_names)} names, {digest[:16]}"
        if config.skip.kind == "learned":
            own["skip.price"] = skip_price(config, self.header)
            own["skip.sees"] = skip_sees(config, self.header)
        if config.stop.kind == "budget" and not live:
            rule = stop_rule(config, self.header)
            assert isinstance(rule, Confidence)
            own["stop.thresholds"], own["stop.confidence"] = list(rule.thresholds), rule.measure
            own["stop.steps_per_round"] = steps_per_round(config, self.header)
        return own

    @property
    def _live_config(self) -> Config:
        """A camera's frames are decided one by one: what is skipped cannot wait for the classifier."""
        return self.config.replaced({"skip.sees": "glance"}) if self.config.skip.kind == "learned" else self.config

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
        return {
            "config": self._live_config.model_dump(mode="json", exclude_unset=True),
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
    def workers(self) -> dict[str, int]:
        """Of each stage."""
        place = self.placement
        return {SOURCE: place.source_workers, STREAM: place.stream_workers, FOCUS: place.focus_workers, SINK: 1}

    def batcher(self) -> Batcher:
        """What puts the patches of a run together."""
        return Batcher(
            max_rows=self.rows_per_batch,
            max_wait_s=self.config.focus.max_wait_ms / 1000,
            shapes=self.batch_shapes,
            rows_per_item=self.patches_per_clip or 1,
        )

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
        # What nobody set stays unset in the workers: a default is not a wish.
        config, place = self.config.model_dump(mode="json", exclude_unset=True), self.placement
        models = {"config": config, "model_id": self.model_id, "device": place.device}
        return [
            WorkerSpec(
                stage=SOURCE,
                factory="pipeline.run.source_worker:file_worker",
                arguments=source_arguments(self.config, num_threads=place.source_threads),
                count=place.source_workers,
                num_cpus=place.cpus(SOURCE),
            ),
            WorkerSpec(
                stage=STREAM,
                factory="pipeline.run.factories:stream_worker",
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
                factory="pipeline.run.factories:focus_worker",
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
        checkpoint = load_checkpoint_file(config.model.checkpoint)
        config = config.filled_in(family_named(checkpoint.header.family).settings_of(checkpoint.header))
        names = _class_names(config, checkpoint.header)
    else:
        check_weights(config)
        names = _class_names(config, None)
        config = config.replaced({"model.num_classes": len(names)})
        config = config.filled_in(family_named(config.model.family).untrained_settings(config))
        checkpoint = untrained(config)
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
    device = _device(config, machine)
    placed = functools.partial(
        place,
        machine,
        device=device,
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
    tuned = _tuned(config, given, header, first, cache)
    placement = placed(batch_size=config.focus.batch_size or tuned.focus_batch)
    auto = {
        "compute.device": placement.device,
        "compute.precision": tuned.precision,
        # A table that was begun with compiled networks stays one where there are no kernels for them.
        "compute.compile": tuned.compile if config.compute.compile == "auto" else config.compute.compile,
    }
    # Workers need not run in the folder that the command was given in.
    for name in ("model.checkpoint", "policy.truth", "stop.calibration"):
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


def network_work(config: Config, header: Header) -> Work:
    """What the networks do for one clip."""
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


def _tuned(config: Config, given: Config, header: Header, placement: Placement, cache: Path | None) -> Choice:
    """How the networks are run. `given`: the config without what an earlier run chose, which is no demand: networks
    are compiled where this machine can."""
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
    )


def _class_names(config: Config, header: Header | None) -> tuple[str, ...]:
    if config.model.classes is not None:
        # Reading them is the driver's work, and its library is not needed in the workers that import this file.
        from pipeline.inputs.sources import read_class_names

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


def source_arguments(config: Config, *, num_threads: int) -> dict[str, Any]:
    """What a source worker is made with; it never sees the config, so that it starts without pydantic or torch."""
    return {
        "sampling": config.sampling.model_dump(),
        "view": config.view.model_dump(),
        "limits": config.decode.model_dump(include={"max_pixels", "max_duration_s", "max_streams"}),
        "max_total_s": config.decode.max_total_s,
        "num_threads": num_threads,
    }
