"""What a figure says of its samples."""

from __future__ import annotations

from pipeline.bench.figures import interval, measured, ratio


def test_the_interval_of_few_samples_is_their_range() -> None:
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert interval([5.0]) == (5.0, 5.0)


def test_the_interval_of_nine_samples_leaves_out_one_at_each_end() -> None:
    # P(median below the 2nd of 9) = (1 + 9) / 512, twice that is 3.9 %; with the 3rd it would be 18 %.
    assert interval([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) == (2.0, 8.0)


def test_a_figure_is_the_median_and_knows_whether_its_goal_is_met() -> None:
    samples = [1.0, 2.0, 6.0]
    assert measured("rate", samples, unit="1/s", goal=2.0).value == 2.0
    assert measured("rate", samples, unit="1/s", goal=2.0).met is True
    assert measured("rate", samples, unit="1/s", goal=2.1).met is False
    assert measured("wait", samples, unit="s", goal=1.9, goal_is="at_most").met is False
    assert measured("rate", samples, unit="1/s").met is None


def test_what_must_not_fall_is_met_unless_its_whole_interval_lies_below() -> None:
    assert measured("share", [0.9, 0.95, 1.01], unit="", goal=1.0, goal_is="no_less").met is True
    assert measured("share", [0.9, 0.95, 0.99], unit="", goal=1.0, goal_is="no_less").met is False


def test_the_share_of_a_limit_is_one_at_best_in_either_direction() -> None:
    assert measured("rate", [45.0], unit="1/s", limit=90.0).share_of_limit == 0.5
    assert measured("time", [4.0], unit="s", limit=1.0, goal_is="at_most").share_of_limit == 0.25


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine was twice as slow in the second round: the medians' ratio would be 3, each round's is 2 or 4.
    assert ratio("speed", [2.0, 8.0, 4.0], [1.0, 2.0, 2.0]).samples == (2.0, 4.0, 2.0)
