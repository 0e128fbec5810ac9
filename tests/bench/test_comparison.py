"""What is said of two reports side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from operators.errors import ConfigError
from pipeline.bench.comparison import Difference, compare, compare_text
from pipeline.bench.figures import measured
from tests.bench.samples import report


def test_figures_that_overlap_are_no_difference() -> None:
    first = report(measured("a", [1.0, 1.1, 0.9, 1.05, 0.95, 1.0], unit="s"), measured("only here", [1.0], unit="s"))
    same = report(measured("a", [1.02, 1.08, 0.92, 1.0, 0.97, 1.01], unit="s"))
    twice = report(measured("a", [2.0, 2.2, 1.8, 2.1, 1.9, 2.0], unit="s"))
    assert [d.verdict for d in compare(first, same)] == ["no difference"]
    (found,) = compare(first, twice)
    assert found.ratio == pytest.approx(2.0)
    assert 1.6 < found.low < 2.0 < found.high < 2.4
    assert found.verdict == "A is better: B has 100.0% more than A"
    header, row = compare_text(first, twice).splitlines()[:2]
    assert header.split() == ["figure", "B", "over", "A", "95", "%", "better", "is"]
    assert row.endswith("less       A is better: B has 100.0% more than A")


def difference(first: list[float], second: list[float]) -> Difference:
    (found,) = compare(report(measured("a", first, unit="s")), report(measured("a", second, unit="s")))
    return found


def test_fewer_than_six_samples_say_nothing_of_a_difference() -> None:
    six = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert difference([1.0], [1.001]).verdict == "cannot say: A has 1 of the 6 samples that it takes"
    assert difference(six, [2.0]).verdict == "cannot say: B has 1 of the 6 samples that it takes"
    five = [1.0, 1.0, 1.1, 1.0, 1.0]
    assert difference(five, six).verdict == "cannot say: A has 5 of the 6 samples that it takes"
    assert difference(six, [2.0] * 6).verdict == "A is better: B has 100.0% more than A"


def test_samples_that_are_not_positive_say_nothing_of_a_ratio() -> None:
    found = difference([-0.5, 0.0, 0.4, 0.6, 0.7, 0.8], [1.0] * 6)
    assert (found.verdict, found.ratio, found.low) == ("cannot say: not all samples of A are above 0", 2.0, None)


def test_a_ratio_lies_in_its_interval_and_is_of_what_the_interval_is_of() -> None:
    # A camera's p95 is of all labels, its samples are of stretches: their median here is half as much.
    samples = (1.0, 1.1, 0.9, 1.0, 1.0, 1.0)
    p95 = replace(measured("p95", samples, unit="ms"), value=2.0, n=999)
    (found,) = compare(report(measured("p95", samples, unit="ms")), report(p95))
    assert found.low is not None and found.high is not None and found.ratio == 1.0
    assert found.low <= found.ratio <= found.high and found.verdict == "no difference"


def test_what_was_not_the_same_when_two_were_measured_is_said() -> None:
    settings = {"lasted_s": 9.0, "rounds": 3, "quick": False, "config": {"compute.precision": "fp32"}}
    first = replace(report(measured("a", [1.0], unit="s")), settings=settings)
    where = {"cpu": "abacus", "cores": 2, "cpu_flags": ["avx2"], "gpu": "H0"}
    how = {"lasted_s": 5.0, "rounds": 4, "quick": True, "config": {"compute.precision": "bf16"}}
    lines = compare_text(first, replace(first, environment=where, settings=how)).splitlines()[2:]
    assert lines == [
        "not the same cpu_flags: nothing in A and avx2 in B",
        "not the same gpu: nothing in A and H0 in B",
        "not the same quick: False in A and True in B",
        "not the same config.compute.precision: fp32 in A and bf16 in B",
    ]
    assert compare_text(first, first).count("\n") == 1


def test_figures_that_cannot_be_compared_are_named() -> None:
    first = report(*(measured(name, [1.0], unit="s") for name in ("a", "b", "c", "d")))
    second = report(*(measured(name, [1.0], unit=unit) for name, unit in (("a", "s"), ("b", "ms"), ("e", "s"))))
    lines = compare_text(first, second).splitlines()[2:]
    assert lines == ["not in one unit: b, s in A and ms in B", "only in A: c, d", "only in B: e"]


def test_figures_that_are_zero_are_compared_too() -> None:
    none, some = (
        report(measured("live.frames_dropped", [n], unit="frames", goal_is="at_most"), what="live") for n in (0.0, 37.0)
    )
    assert compare_text(none, some).splitlines()[1].endswith("A is better: A has 0, B has 37")
    assert [d.verdict for d in compare(some, none)] == ["B is better: A has 37, B has 0"]
    assert [d.verdict for d in compare(none, none)] == ["no difference"]


def test_reports_with_nothing_in_common_cannot_be_compared() -> None:
    with pytest.raises(ConfigError, match="no figure in common"):
        compare_text(report(measured("a", [1.0], unit="s")), report(measured("b", [1.0], unit="s")))


def test_the_better_side_is_the_one_with_more_of_a_rate_and_less_of_a_time() -> None:
    one, two = ([value] * 6 for value in (1.0, 2.0))

    def verdict(unit: str, **form: Any) -> str:
        first, second = (report(measured("a", samples, unit=unit, **form)) for samples in (one, two))
        return compare(first, second)[0].verdict

    assert verdict("clips/s") == verdict("x") == "B is better: B has 100.0% more than A"
    assert verdict("ms/patch") == verdict("B", goal_is="at_most") == "A is better: B has 100.0% more than A"
    assert verdict("", goal_is="neither") == "B has 100.0% more than A"
