"""The sampling rule names the wanted frames of a source, as a whole and in windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.media.sampling import SamplingRule, sample_indices, whole_plan, window_plans

# Which frames


def test_frames_are_spread_by_the_published_rule():
    published = [10, 29, 47, 66, 85, 104, 122, 141, 160, 179, 197, 216, 235, 254, 272, 291]  # counted from 1
    assert (sample_indices(300, 16) + 1).tolist() == published


def test_a_short_video_repeats_its_last_frame_at_the_end():
    assert sample_indices(10, 16).tolist() == [*range(10), 9, 9, 9, 9, 9, 9]
    assert sample_indices(16, 16).tolist() == list(range(16))
    assert sample_indices(1, 3).tolist() == [0, 0, 0]


def test_a_short_video_repeats_its_first_frame_where_the_model_was_trained_so():
    assert sample_indices(8, 8, "first").tolist() == [0] * 8
    assert sample_indices(9, 8, "first").tolist() == [
        0,
        1,
        2,
        3,
        5,
        6,
        7,
        8,
    ]  # 9/8/2 = 0.5625, then steps of 1.125


@given(st.integers(1, 5000), st.integers(1, 64))
def test_samples_never_leave_the_video_and_never_go_back(n, steps):
    indices = sample_indices(n, steps)
    assert len(indices) == steps
    assert indices[0] >= 0
    assert indices[-1] <= n - 1
    assert np.all(np.diff(indices) >= 0)


def test_glance_and_focus_are_sampled_apart():
    plan = whole_plan(24, 1.0, SamplingRule(num_frames=8, num_focus_frames=12))
    assert plan.glance.tolist() == [1, 4, 7, 10, 13, 16, 19, 22]  # 24/8/2 = 1.5, then steps of 3
    assert plan.focus.tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    assert plan.frames.tolist() == [1, 3, 4, 5, 7, 9, 10, 11, 13, 15, 16, 17, 19, 21, 22, 23]


def test_without_a_second_sample_focus_is_the_glance():
    plan = whole_plan(24, 1.0, SamplingRule(num_frames=8))
    assert plan.focus is plan.glance


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "all"},
        {"seek": "fast"},
        {"pad": "zero"},
        {"num_frames": 0},
        {"kind": "window", "stride_s": 0.0},
    ],
)
def test_a_sampling_that_cannot_be_is_a_bug(wrong):
    with pytest.raises(ValueError):
        SamplingRule(**wrong)


# Windows


def windows(duration_s: float, window_s: float, stride_s: float, first: int = 0, fps: int = 10):
    sampling = SamplingRule(kind="window", num_frames=2, window_s=window_s, stride_s=stride_s)
    times = np.arange(round(duration_s * fps)) / fps
    return list(window_plans(times, duration_s, sampling, first))


def test_windows_start_at_every_stride_and_the_last_is_cut_short():
    spans = [(plan.start_s, plan.end_s) for plan in windows(25.0, 10.0, 10.0)]
    assert spans == [(0.0, 10.0), (10.0, 20.0), (20.0, 25.0)]


def test_a_video_as_long_as_whole_windows_has_no_empty_one():
    assert len(windows(20.0, 10.0, 10.0)) == 2


def test_a_video_shorter_than_a_window_is_one():
    assert [(plan.start_s, plan.end_s) for plan in windows(3.0, 10.0, 5.0)] == [(0.0, 3.0)]


def test_overlapping_windows_share_frames():
    first, second, _ = windows(4.0, 2.0, 1.0)
    # 20 frames each: 20/2/2 = 5, then 15; the second begins at frame 10.
    assert first.glance.tolist() == [5, 15]
    assert second.glance.tolist() == [15, 25]


def test_windows_that_were_done_before_are_left_out():
    assert [plan.start_s for plan in windows(40.0, 10.0, 10.0, first=2)] == [20.0, 30.0]


def test_a_window_in_which_no_frame_begins_shows_the_one_that_still_stands():
    times = np.array([0.0, 1.0, 9.0])
    plans = list(window_plans(times, 10.0, SamplingRule(kind="window", num_frames=1, window_s=2.0, stride_s=2.0)))
    assert [plan.glance.tolist() for plan in plans] == [[1], [1], [1], [1], [2]]


def test_shown_instead_keeps_the_two_samples_apart():
    plan = whole_plan(16, 1.0, SamplingRule(num_frames=2, num_focus_frames=4))
    shown = plan.showing({2: 0, 4: 4, 6: 4, 10: 12, 12: 12, 14: 12})
    assert plan.glance.tolist() == [4, 12]
    assert shown.glance.tolist() == [4, 12]
    assert shown.focus.tolist() == [0, 4, 12, 12]
