"""A run that is resolved: what its labels depend on, which workers it has, and what each of them is made with."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from operators.weights.checkpoints import Header
from pipeline.config import Config
from pipeline.families.calibrated import skip_price, skip_sees, steps_per_round, stop_rule
from pipeline.plan.network_choice import Choice
from pipeline.plan.placement import Placement
from pipeline.plan.synthetic_weights import knows_only_synthetic, synthetic_warning
from pipeline.steering.batching import SHAPES, Batcher
from pipeline.steering.executor import WorkerSpec
from pipeline.steering.in_flight import FlowLimits
from pipeline.steering.scheduler import FOCUS, SINK, SOURCE, STREAM
from policies.stopping import Confidence


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that a run is made of: its settings, its checkpoint, its workers. Nothing is `auto` any more."""

    config: Config
    header: Header
    model_id: str
    is_trained: bool
    placement: Placement
    tuned: Choice
    class_names: tuple[str, ...]

    def identity(self, *, live: bool = False) -> dict[str, Any]:
        """The identity of what labels are made with: one table holds only labels of one `model_id` and `config_id`."""
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
        """A line that a run prints of itself before it begins."""
        place = self.placement
        weights = "" if self.is_trained else ", UNTRAINED weights"
        return (
            f"{self.header.family} {self.model_id[:8]}{weights}: {len(self.class_names)} classes on {place.device}, "
            f"{place.source_workers} source, {place.stream_workers} stream and {place.focus_workers} focus worker(s); "
            f"{self.tuned.line()}"
        )

    def warnings(self) -> list[str]:
        """Sentences that whoever reads the labels should know."""
        return [synthetic_warning(self.header)] if knows_only_synthetic(self.header) else []

    def live_arguments(self) -> dict[str, Any]:
        """The arguments that make a worker that watches cameras: it has the machine for itself."""
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
        """The number of Ray's CPUs that all workers together take."""
        return math.ceil(sum(spec.count * spec.num_cpus for spec in self.worker_specs()))

    @property
    def patches_per_clip(self) -> int | None:
        """How many patches a clip has, where they have to stay together in one pass; None where each may go alone."""
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
        """The number of workers of each stage."""
        place = self.placement
        return {SOURCE: place.source_workers, STREAM: place.stream_workers, FOCUS: place.focus_workers, SINK: 1}

    def batcher(self) -> Batcher:
        """The batcher that puts the patches of a run together."""
        return Batcher(
            max_rows=self.rows_per_batch,
            max_wait_s=self.config.focus.max_wait_ms / 1000,
            shapes=self.batch_shapes,
            rows_per_item=self.patches_per_clip or 1,
        )

    @property
    def limits(self) -> FlowLimits:
        place = self.placement
        is_whole = self.config.sampling.kind == "whole"
        return FlowLimits(
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


def source_arguments(config: Config, *, num_threads: int) -> dict[str, Any]:
    """The arguments that make a source worker. It never sees the config, and so starts without pydantic or torch."""
    return {
        "sampling": config.sampling.model_dump(),
        "view": config.view.model_dump(),
        "limits": config.decode.model_dump(include={"max_pixels", "max_duration_s", "max_streams"}),
        "max_total_s": config.decode.max_total_s,
        "num_threads": num_threads,
    }
