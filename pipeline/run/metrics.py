"""The figures of a run: by stage the time worked and waited, over all the clips and their cost. No clock of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from operators.records import ClipLabel
from pipeline.steering.messages import CallCost


@dataclass(slots=True)
class StageTime:
    """The sums over all calls of one stage."""

    workers: int = 1
    calls: int = 0
    busy_s: float = 0.0
    wait_s: float = 0.0
    items: int = 0
    padded: int = 0
    deaths: int = 0


@dataclass(slots=True)
class RunMetrics:
    """Sums over a run; every figure of its summary is made from them."""

    stages: dict[str, StageTime] = field(default_factory=dict)
    labelled: int = 0
    failed: int = 0
    done_before: int = 0
    failed_before: int = 0
    duplicates: int = 0
    committed: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    """How many clips have each label."""
    frames_total: int = 0
    frames_focused: int = 0
    frames_skipped: int = 0
    steps_used: int = 0
    gmacs: float = 0.0
    gmacs_full: float = 0.0
    with_truth: int = 0
    correct: int = 0
    patches_sent: int = 0
    patches_waited_s: float = 0.0
    """The sum of the times from when a patch was cut until its pass was put together."""
    first_label_s: float | None = None
    last_label_s: float = 0.0

    def add_work(self, stage: str, work: CallCost) -> None:
        time = self.stages.setdefault(stage, StageTime())
        time.calls += 1
        time.busy_s += work.busy_s
        time.wait_s += work.wait_s
        time.items += work.num_items
        time.padded += work.num_padded

    def add_label(self, label: ClipLabel, now_s: float) -> None:
        if self.first_label_s is None:
            self.first_label_s = now_s
        self.last_label_s = now_s
        if label.error_code is not None:
            self.failed += 1
            self.errors[label.error_code] += 1
            return
        self.labelled += 1
        if label.label is not None:
            self.labels[label.label] += 1
        self.frames_total += label.frames_total or 0
        self.frames_focused += label.frames_focused or 0
        self.frames_skipped += label.frames_skipped or 0
        self.steps_used += label.stopped_at or 0
        self.gmacs += label.gmacs or 0.0
        self.gmacs_full += label.gmacs_full or 0.0
        if label.truth:
            self.with_truth += 1
            self.correct += label.label in label.truth

    def shares(self, wall_s: float) -> dict[str, float]:
        """For each stage, the share of its workers' time that they worked."""
        return {name: t.busy_s / (t.workers * wall_s) if wall_s > 0 else 0.0 for name, t in self.stages.items()}

    def bottleneck(self, wall_s: float) -> str | None:
        shares = self.shares(wall_s)
        return max(shares, key=lambda name: shares[name]) if any(shares.values()) else None

    def steady_clips_per_s(self) -> float | None:
        """The rate between the first label and the last: without the start of processes and the loading of weights."""
        ended = self.labelled + self.failed
        if self.first_label_s is None or ended < 2 or self.last_label_s <= self.first_label_s:
            return None
        return (ended - 1) / (self.last_label_s - self.first_label_s)

    def occupancy(self) -> float | None:
        """The share of the rows of the focus network's passes that are not padding."""
        focus = self.stages.get("focus")
        if focus is None or not focus.items:
            return None
        return focus.items / (focus.items + focus.padded)

    def patch_wait_s(self) -> float | None:
        """The mean time that a patch waited until its pass was put together."""
        return self.patches_waited_s / self.patches_sent if self.patches_sent else None

    def focus_idle_share(self) -> float | None:
        """The share of the focus workers' time, from their first pass to their last, that lay between two passes."""
        focus = self.stages.get("focus")
        if focus is None or not focus.busy_s + focus.wait_s:
            return None
        return focus.wait_s / (focus.busy_s + focus.wait_s)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The summary of a run, as it is shown on the terminal and written as JSON."""

    out: str
    run_id: str
    clips: int
    failed: int
    done_before: int
    """How many clips of this command's inputs have their row from an earlier run."""
    failed_before: int
    """How many of those have a row that says that they failed."""
    duplicates: int
    errors: dict[str, int]
    labels_by_class: dict[str, int]
    """How many clips of this run have each label, the most frequent first."""
    skipped_files: dict[str, int]
    unreadable: list[str]
    """The folders that could not be listed, the first hundred of them."""
    empty_patterns: list[str]
    """The globs that matched nothing."""
    wall_s: float
    """Seconds from the first call to the last."""
    total_s: float
    """Seconds from the command's start to its last label, the start of processes among them."""
    clips_per_s: float
    steady_clips_per_s: float | None
    """The rate from the first label to the last."""
    focused_share: float | None
    mean_steps: float | None
    gmacs_per_clip: float | None
    gmacs_full_per_clip: float | None
    accuracy: float | None
    with_truth: int
    stages: dict[str, dict[str, float]]
    bottleneck: str | None
    occupancy: float | None
    patch_wait_s: float | None
    """The mean time that a patch waited until its pass was put together."""
    focus_idle_share: float | None
    """The share of the focus workers' time, from their first pass to their last, that lay between two passes."""
    focus_wait_s: float
    """The sum of that idle time over all focus workers."""
    interrupted: bool
    ended_early: str | None
    is_trained: bool
    warnings: list[str]
    """What whoever reads the labels should know of them."""
    model_id: str
    config_id: str

    @property
    def has_labels(self) -> bool:
        """Whether some clip has its label, from this run or an earlier one."""
        return self.clips + self.done_before > self.failed_before

    @property
    def is_whole(self) -> bool:
        """Whether all that was asked for is labelled, now or before."""
        return not (self.failed or self.failed_before or self.unreadable or self.empty_patterns)

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def summarise(
    metrics: RunMetrics,
    *,
    wall_s: float,
    total_s: float | None = None,
    warnings: Sequence[str] = (),
    skipped_files: Mapping[str, int],
    unreadable: Sequence[str] = (),
    empty_patterns: Sequence[str] = (),
    **facts: object,
) -> RunSummary:
    """The summary of a run; `wall_s` is counted from the first call to the last."""
    num = metrics.labelled
    shares = metrics.shares(wall_s)
    focus = metrics.stages.get("focus")
    return RunSummary(
        clips=num,
        failed=metrics.failed,
        done_before=metrics.done_before,
        failed_before=metrics.failed_before,
        duplicates=metrics.duplicates,
        errors=dict(sorted(metrics.errors.items())),
        labels_by_class=dict(metrics.labels.most_common()),
        skipped_files=dict(skipped_files),
        unreadable=list(unreadable),
        empty_patterns=list(empty_patterns),
        wall_s=wall_s,
        total_s=wall_s if total_s is None else total_s,
        warnings=list(warnings),
        clips_per_s=num / wall_s if wall_s > 0 else 0.0,
        steady_clips_per_s=metrics.steady_clips_per_s(),
        focused_share=metrics.frames_focused / metrics.frames_total if metrics.frames_total else None,
        mean_steps=metrics.steps_used / num if num else None,
        gmacs_per_clip=metrics.gmacs / num if num else None,
        gmacs_full_per_clip=metrics.gmacs_full / num if num else None,
        accuracy=metrics.correct / metrics.with_truth if metrics.with_truth else None,
        with_truth=metrics.with_truth,
        stages={
            name: {
                "workers": t.workers,
                "calls": t.calls,
                "items": t.items,
                "busy_s": t.busy_s,
                "busy_share": shares[name],
                "deaths": t.deaths,
            }
            for name, t in metrics.stages.items()
        },
        bottleneck=metrics.bottleneck(wall_s),
        occupancy=metrics.occupancy(),
        patch_wait_s=metrics.patch_wait_s(),
        focus_idle_share=metrics.focus_idle_share(),
        focus_wait_s=focus.wait_s if focus else 0.0,
        **facts,  # type: ignore[arg-type]
    )
