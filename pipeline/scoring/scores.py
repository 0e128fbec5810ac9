"""Top-1, top-5 and mAP as published, and what stopping early costs: arrays in, numbers out. All in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from operators.errors import ConfigError
from policies.thresholds import accuracy_at, exit_steps, geometric_thresholds, mean_cost

BUDGET_QS = tuple(p / 20 for p in range(1, 40))
"""The published row of q for budgeted-batch curves."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """What was answered for N clips, and what is true. Clips that failed are counted, not held."""

    class_names: tuple[str, ...]
    video_ids: tuple[str, ...]
    truth: np.ndarray
    """int64 [N,L], filled up with -1: column 0 is the annotation's first label."""
    logits: np.ndarray
    """float32 [N,K]: of the last step. Where a table has none they are made of its top scores."""
    step_logits: np.ndarray | None = None
    """float32 [N,T,K]; a clip that stopped early keeps its last answer."""
    step_gmacs: np.ndarray | None = None
    """float64 [N,T]: cumulative; a clip that stopped early keeps its last."""
    sources: tuple[str, ...] = ()
    """Tells videos of one name apart; empty: the video ids do."""
    stopped_at: np.ndarray | None = None
    """int64 [N]: steps used."""
    gmacs: np.ndarray | None = None
    """float64 [N]"""
    gmacs_full: np.ndarray | None = None
    """float64 [N]"""
    frames_total: np.ndarray | None = None
    """int64 [N]"""
    frames_focused: np.ndarray | None = None
    """int64 [N]"""
    is_exact: bool = True
    """False: mAP was computed from the top scores alone."""
    num_failed: int = 0
    num_without_truth: int = 0
    unknown_labels: tuple[str, ...] = ()
    """Labels of the truth that the model has no class for: their clips count as wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """In percent. top-1, top-5 and `map_first` go by the truth's first label, `map_all` by all of them."""

    num_clips: int
    top1: float
    top5: float
    map_first: float
    """As ActivityNet and Mini-Kinetics are published for the first AdaFocus."""
    map_all: float
    """As FCVID is published, and every data set from AdaFocusV2 on."""
    map_first_relabelled: float
    """As the published code has it where a class never occurs: true labels are renumbered, scores are not."""
    map_all_relabelled: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassScore:
    """One class by the truth's first label, in percent; nan where there is nothing to divide by."""

    label_id: int
    label: str
    num_clips: int
    num_correct: int
    num_predicted: int
    recall: float
    precision: float
    average_precision: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """Cost against accuracy."""

    gmacs: float
    """Mean per clip."""
    top1: float
    mean_steps: float
    q: float | None = None
    """The exit distribution's parameter; None on an anytime curve."""
    thresholds: tuple[float, ...] = ()


def softmax(logits: np.ndarray) -> np.ndarray:
    """float32, over the last axis."""
    shifted = np.asarray(logits, np.float32)
    shifted = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def average_precisions(probabilities: np.ndarray, is_positive: np.ndarray) -> np.ndarray:
    """float64 [K]: AP without interpolation, in [0,1], of probabilities [N,K] and truth bool [N,K].

    A class without positives has 0. Equal scores keep the order of the rows.
    """
    num_clips, num_classes = probabilities.shape
    ranks = np.arange(1, num_clips + 1, dtype=np.float32)[:, None]
    found = np.zeros(num_classes)
    # Some classes at a time: the sorted copies of 50,000 clips by 1,000 classes would be gigabytes.
    for start in range(0, num_classes, 32):
        some = slice(start, start + 32)
        order = np.argsort(-probabilities[:, some], axis=0, kind="stable")
        hits = np.take_along_axis(is_positive[:, some], order, axis=0).astype(np.float32)
        precision = np.cumsum(hits, axis=0) / ranks
        found[some] = (precision * hits).sum(axis=0, dtype=np.float64) / np.maximum(hits.sum(axis=0), 1)
    return found


def mean_average_precision(logits: np.ndarray, truth: np.ndarray, *, relabel: bool = False) -> float:
    """mAP in percent over all K classes. logits [N,K]; truth int64 [N,L] with -1 for none, every column counts.

    `relabel` gives the published numbers of sets in which some class never occurs: the labels that occur
    become 0, 1, 2, ... while the columns of the scores stay where they are.
    """
    if relabel:
        occurring = np.unique(truth[truth >= 0])
        truth = np.where(truth >= 0, np.searchsorted(occurring, truth), -1)
    return 100.0 * float(average_precisions(softmax(logits), _multi_hot(truth, logits.shape[1])).mean())


def _multi_hot(truth: np.ndarray, num_classes: int) -> np.ndarray:
    """bool [N,K]. -1 lands in a column that is dropped."""
    hot = np.zeros((len(truth), num_classes + 1), bool)
    np.put_along_axis(hot, np.where(truth >= 0, truth, num_classes), True, axis=1)
    return hot[:, :-1]


def ranks_of_truth(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """int64 [...]: how many classes come before the true one; equal scores go by number.

    logits [N,...,K]; truth int64 [N]. Where there is no truth no rank is good enough.
    """
    num_classes = logits.shape[-1]
    shape = (len(truth),) + (1,) * (logits.ndim - 1)
    at = np.broadcast_to(np.maximum(truth, 0).reshape(shape), (*logits.shape[:-1], 1))
    own = np.take_along_axis(logits, at, axis=-1)
    before = (logits > own) | ((logits == own) & (np.arange(num_classes) < at))
    return np.where(truth.reshape(shape)[..., 0] >= 0, before.sum(axis=-1), np.iinfo(np.int64).max)


def score(logits: np.ndarray, truth: np.ndarray) -> Scores:
    """logits [N,K], truth int64 [N,L] filled up with -1."""
    if len(logits) != len(truth) or truth.ndim != 2:
        raise ValueError(f"need logits [N,K] and truth [N,L], not {logits.shape} and {truth.shape}")
    if not len(logits):
        raise ConfigError("there is no clip to evaluate: none has both a label and a truth")
    ranks = ranks_of_truth(logits, truth[:, 0])
    first = truth[:, :1]
    is_single = bool((truth[:, 1:] < 0).all())
    has_all = len(np.unique(truth[truth >= 0])) == logits.shape[1]
    has_all_first = len(np.unique(first[first >= 0])) == logits.shape[1]
    map_first = mean_average_precision(logits, first)
    map_all = map_first if is_single else mean_average_precision(logits, truth)
    return Scores(
        num_clips=len(logits),
        top1=100.0 * float((ranks < 1).mean()),
        top5=100.0 * float((ranks < 5).mean()),
        map_first=map_first,
        map_all=map_all,
        # Where every class occurs the renumbering changes nothing.
        map_first_relabelled=map_first if has_all_first else mean_average_precision(logits, first, relabel=True),
        map_all_relabelled=map_all if has_all else mean_average_precision(logits, truth, relabel=True),
    )


def score_steps(step_logits: np.ndarray, truth: np.ndarray) -> tuple[Scores, ...]:
    """The same figures after every step. step_logits [N,T,K]."""
    return tuple(score(step_logits[:, step], truth) for step in range(step_logits.shape[1]))


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """int64 [K,K]: rows are the truth's first label, columns the answer."""
    num_classes = len(predictions.class_names)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    known = predictions.truth[:, 0] >= 0
    np.add.at(matrix, (predictions.truth[known, 0], predictions.logits.argmax(axis=1)[known]), 1)
    return matrix


def score_classes(predictions: Predictions) -> list[ClassScore]:
    matrix = confusion_matrix(predictions)
    first = _multi_hot(predictions.truth[:, :1], len(predictions.class_names))
    precisions = average_precisions(softmax(predictions.logits), first)
    answers = np.bincount(predictions.logits.argmax(axis=1), minlength=len(matrix))
    rows = []
    for k, name in enumerate(predictions.class_names):
        num_clips, num_predicted, num_correct = int(matrix[k].sum()), int(answers[k]), int(matrix[k, k])
        rows.append(
            ClassScore(
                label_id=k,
                label=name,
                num_clips=num_clips,
                num_correct=num_correct,
                num_predicted=num_predicted,
                recall=100.0 * num_correct / num_clips if num_clips else float("nan"),
                precision=100.0 * num_correct / num_predicted if num_predicted else float("nan"),
                average_precision=100.0 * float(precisions[k]) if num_clips else float("nan"),
            )
        )
    return rows


def anytime_curve(step_logits: np.ndarray, truth: np.ndarray, gmacs: np.ndarray) -> tuple[CurvePoint, ...]:
    """Accuracy if every clip ends after step k. step_logits [N,T,K]; gmacs cumulative, [T] or [N,T]."""
    right = ranks_of_truth(step_logits, truth[:, 0]) < 1
    cost = np.broadcast_to(gmacs, right.shape).mean(axis=0)
    return tuple(
        CurvePoint(gmacs=float(cost[k]), top1=100.0 * float(right[:, k].mean()), mean_steps=k + 1.0)
        for k in range(right.shape[1])
    )


def searched_thresholds(search_logits: np.ndarray, qs: Sequence[float] = BUDGET_QS) -> np.ndarray:
    """float64 [Q,T]: the published search, a row per exit distribution. search_logits [M,T,K]."""
    search = softmax(search_logits).max(axis=-1).astype(np.float64)
    return np.stack([geometric_thresholds(search, q) for q in qs])


def budgeted_curve(
    *,
    table: np.ndarray,
    step_logits: np.ndarray,
    truth: np.ndarray,
    gmacs: np.ndarray,
    qs: Sequence[float] = BUDGET_QS,
) -> tuple[CurvePoint, ...]:
    """Budgeted-batch accuracy: one point per row of thresholds, which were searched on other clips.

    table [Q,T] and step_logits [N,T,K]: a clip ends at its first step whose softmax probability reaches the
    threshold. gmacs: cumulative, [T] or [N,T].
    """
    sure = softmax(step_logits).max(axis=-1).astype(np.float64)
    right = ranks_of_truth(step_logits, truth[:, 0]) < 1
    points = []
    for q, thresholds in zip(qs, table, strict=True):
        exits = exit_steps(sure, thresholds)
        points.append(
            CurvePoint(
                gmacs=mean_cost(exits, gmacs),
                top1=accuracy_at(exits, right),
                mean_steps=float(exits.mean()) + 1.0,
                q=q,
                thresholds=tuple(thresholds.tolist()),
            )
        )
    return tuple(points)


def by_video(predictions: Predictions) -> Predictions:
    """One row per video: the probabilities of its clips are averaged. Costs add up."""
    keys = predictions.sources or predictions.video_ids
    place: dict[str, int] = {}
    groups = np.array([place.setdefault(key, len(place)) for key in keys], np.int64)
    if len(place) == len(keys):
        return predictions
    firsts = np.unique(groups, return_index=True)[1]
    counts = np.bincount(groups)

    def added(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        total = np.zeros((len(counts), *values.shape[1:]), values.dtype)
        np.add.at(total, groups, values)
        return total

    mean = added(softmax(predictions.logits).astype(np.float64))
    assert mean is not None
    mean /= counts[:, None]
    return replace(
        predictions,
        video_ids=tuple(predictions.video_ids[i] for i in firsts),
        sources=tuple(predictions.sources[i] for i in firsts) if predictions.sources else (),
        truth=predictions.truth[firsts],
        logits=np.log(np.maximum(mean, 1e-30)).astype(np.float32),
        # Steps of different windows are not steps of one answer.
        step_logits=None,
        step_gmacs=None,
        stopped_at=None,
        gmacs=added(predictions.gmacs),
        gmacs_full=added(predictions.gmacs_full),
        frames_total=added(predictions.frames_total),
        frames_focused=added(predictions.frames_focused),
    )
