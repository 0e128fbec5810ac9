"""What a person sees of `label`: what it is doing, how fast it goes, what failed, and what it found."""

from __future__ import annotations

import io
from typing import Any

import pytest

from operators.records import ClipLabel, clip_id
from pipeline.commands.label_display import RecentRate, failure_line, failures_query, label_display, summary_rows
from pipeline.run.metrics import RunMetrics, RunSummary, StageTime, summarise
from tests.support.terminals import Terminal, plain


def clip(path: str, **answer: Any) -> ClipLabel:
    return ClipLabel(video_id=path, clip_id=clip_id(path, 0.0), source_uri=path, **answer)


def failed(number: int) -> ClipLabel:
    return clip(f"/in/{number}.mp4", error_code="empty", error=f"/in/{number}.mp4 is empty")


def summary_of(*labels: ClipLabel, **facts: Any) -> RunSummary:
    metrics = RunMetrics(stages={"focus": StageTime(calls=1, busy_s=0.5, wait_s=0.5, items=1)})
    for second, label in enumerate(labels):
        metrics.add_label(label, float(second))
    given = {"run_id": "run", "interrupted": False, "ended_early": None, "is_trained": True, "model_id": "m"}
    return summarise(
        metrics, wall_s=2.0, skipped_files={}, **{**given, "out": "out", "config_id": "c", "total_s": 10.0, **facts}
    )


def labelled(*names: str) -> list[ClipLabel]:
    return [clip(f"{number}.mp4", label=name) for number, name in enumerate(names)]


def test_the_rate_is_that_of_the_last_half_minute() -> None:
    rate = RecentRate()
    # Ten seconds of starting, then two clips a second for a minute, then none for half a minute.
    assert [rate.per_s(float(second), 0) for second in range(10)] == [0.0] * 10
    for second in range(10, 71):
        per_s = rate.per_s(float(second), 2 * (second - 10))
    assert per_s == pytest.approx(2.0)
    for second in range(71, 102):
        per_s = rate.per_s(float(second), 120)
    assert per_s == 0.0


def test_the_rate_is_known_before_half_a_minute_is_over_and_however_often_it_is_asked_for() -> None:
    rate = RecentRate()
    for step in range(201):
        per_s = rate.per_s(step / 20, step // 10)
    assert per_s == pytest.approx(2.0)


def test_the_first_ten_failures_are_shown_while_a_run_goes_on_and_then_that_there_are_more() -> None:
    stream = io.StringIO()
    with label_display(quiet=False, stream=stream) as display:
        display.doing("loading weights")
        for number in range(15):
            display.failed(failed(number))
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["loading weights", "empty /in/0.mp4: is empty"]
    assert len(lines) == 12 and lines[-1].startswith("further failures are not shown here")


def test_a_failure_is_one_line() -> None:
    label = clip("a.mp4", error_code="corrupt", error="odd\nbytes")
    assert failure_line(label) == "corrupt a.mp4: odd bytes"
    assert failure_line(clip("a.mp4", error_code="internal")) == "internal a.mp4: no reason is known"


def test_a_quiet_run_shows_neither_failures_nor_progress() -> None:
    stream = Terminal()
    with label_display(quiet=True, stream=stream) as display:
        display.doing("loading weights")
        display.failed(failed(1))
    assert stream.getvalue() == ""


def test_on_a_terminal_what_a_run_is_doing_stands_beside_its_bar() -> None:
    stream = Terminal()
    with label_display(quiet=False, stream=stream) as display:
        display.doing("starting Ray")
    assert "starting Ray" in plain(stream.getvalue())


def test_the_end_of_a_run_shows_the_ten_most_frequent_labels() -> None:
    labels = labelled(*("cat",) * 3, *(f"class_{n:02d}" for n in range(11)), "dog", "dog")
    summary = summary_of(*labels)
    assert list(summary.labels_by_class.items())[:2] == [("cat", 3), ("dog", 2)]
    assert sum(summary.labels_by_class.values()) == 16
    shown = dict(summary_rows(summary))["most frequent"]
    assert shown.startswith("3 cat, 2 dog, 1 class_00, ") and shown.endswith("1 class_07, and 3 of 3 other(s)")


def test_figures_of_an_engineer_are_shown_only_where_they_are_asked_for() -> None:
    summary = summary_of(*labelled("cat", "dog"))
    engineers = {"  focus", "bottleneck", "focus batches", "focus workers idle"}
    assert not engineers & dict(summary_rows(summary)).keys()
    assert engineers <= dict(summary_rows(summary, stats=True)).keys()


def test_one_clip_has_a_time_and_no_rate_and_no_bottleneck() -> None:
    rows = dict(summary_rows(summary_of(*labelled("cat")), stats=True))
    assert rows["time"] == "10.0 s in all, the start among them"
    assert rows["stats"] == "one clip is too few to say where the time goes"
    assert not {"clips per second", "bottleneck", "focus workers idle"} & rows.keys()


def test_the_time_in_all_is_that_since_the_command_began() -> None:
    rows = dict(summary_rows(summary_of(*labelled("cat", "dog", "dog"))))
    expected = "0.30 (10.0 s in all, the start among them); 1.00 from the first label to the last"
    assert rows["clips per second"] == expected


def test_warnings_stand_in_the_table_of_a_run() -> None:
    assert ("warning", "look out") in summary_rows(summary_of(warnings=["look out"]))


def test_the_query_at_the_end_of_a_run_shows_every_failure() -> None:
    rows = dict(summary_rows(summary_of(failed(1))))
    assert rows["all failures"] == failures_query("out")
    assert "all failures" not in dict(summary_rows(summary_of(*labelled("cat"))))
