"""`eval`: scores of labels that are there, or of labels made for it under one policy or several side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from operators.errors import ConfigError
from operators.records import Source
from pipeline.config import Config
from pipeline.families.files import load_checkpoint_file
from pipeline.run.archive import RunReports, label_archive
from pipeline.run.loop import StopRequest
from pipeline.run.metrics import RunSummary
from pipeline.scoring.evaluate import Evaluation, evaluate_labels, write_report
from pipeline.scoring.scores import Predictions
from policies.kinds import KINDS

POLICIES = tuple(KINDS)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What labels are compared with, where the table does not say it itself."""

    boxes: Path | None = None
    """truth.parquet of a synthetic archive"""
    is_per_video: bool = False
    class_names: Sequence[str] | None = None
    search: Path | None = None
    """Labels of other clips, made in the same way: the budgeted curve's thresholds are searched on them"""


def is_labels_table(path: Path) -> bool:
    """Whether a path is the OUT of `label`, or its labels folder. A Parquet file may as well be a list of inputs."""
    return (path / "labels").is_dir() or (path.is_dir() and any(path.glob("*.parquet")))


def evaluate_table(labels: Path, out: Path, *, truth: Truth, checkpoint: str | None = None) -> Evaluation:
    """Scores labels that are there, and writes the report. `checkpoint`: what they were made with."""
    predictions, evaluation = _scored(labels, truth, checkpoint)
    write_report(out, predictions, evaluation)
    return evaluation


def evaluate_policies(
    config: Config,
    list_sources: Callable[[Sequence[str]], Iterator[Source]],
    policies: Sequence[str],
    *,
    out: Path,
    truth: Truth,
    stop: StopRequest,
    told: RunReports,
    full_checkpoint: str | None = None,
    resume: bool = True,
) -> tuple[dict[str, Evaluation], list[RunSummary]]:
    """Labels the same inputs under each policy, into a folder each, and scores them; says how each run went. With
    `resume` labels that are there are kept. A run that ends without a label has no scores, and is the last.
    """
    configs = policy_configs(config, policies, full_checkpoint=full_checkpoint)
    if truth.search is not None and len(configs) > 1:
        raise ConfigError(f"--search holds labels of one policy, but {', '.join(configs)} are compared: give one")
    evaluations: dict[str, Evaluation] = {}
    runs: list[RunSummary] = []
    known: list[str] = []

    def listed(names: Sequence[str]) -> Iterator[Source]:
        known[:] = names
        return list_sources(names)

    for name, labels_as in configs.items():
        folder = out / name
        runs.append(label_archive(labels_as, listed, out=folder, resume=resume, stop=stop, reports=told))
        if stop.is_set or not runs[-1].has_labels:
            break
        # Of few labels not all classes are among the answers; the checkpoint knows them.
        scored_with = truth if truth.class_names is not None else dataclasses.replace(truth, class_names=tuple(known))
        predictions, evaluations[name] = _scored(folder, scored_with, labels_as.model.checkpoint)
        write_report(folder / "report", predictions, evaluations[name])
    return evaluations, runs


def policy_configs(
    config: Config, policies: Sequence[str], *, full_checkpoint: str | None = None
) -> dict[str, Config]:
    """What each policy labels with.

    full_checkpoint: networks that were trained on whole views. Without it `full` shows whole views to networks that
    were trained on patches, which says what they cost and not what they are worth.
    """
    unknown = [name for name in policies if name not in POLICIES]
    if unknown:
        raise ConfigError(f"policy {unknown[0]!r} is not known; there are {', '.join(POLICIES)}")
    configs = {}
    for name in policies:
        settings = {"policy.kind": name, "output.logits": True, "output.step_logits": True}
        if name != "learned" and config.skip.kind == "learned":
            settings["skip.kind"] = "none"
        if name == "full" and full_checkpoint is not None:
            settings["model.checkpoint"] = full_checkpoint
        configs[name] = config.replaced(settings)
    return configs


def _scored(labels: Path, truth: Truth, checkpoint: str | None) -> tuple[Predictions, Evaluation]:
    training = load_checkpoint_file(checkpoint).header.training if checkpoint is not None else {}
    return evaluate_labels(
        labels,
        class_names=truth.class_names,
        truth_boxes=truth.boxes,
        is_per_video=truth.is_per_video,
        search=truth.search,
        published=training.get("published", {}).get("dynamic_threshold"),
    )
