"""How cameras are looked at: every frame once, state along the stream, costs, and the sizes in which frames come."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from operators.networks.compiled import CudaGraphs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.records import PatchBatch
from pipeline.live.gaze import LiveGaze, warm_up_sizes
from tests.live.studio import (
    PICTURES,
    START_S,
    VIEW_YXHW,
    assert_same,
    made_worker,
    places,
    stream,
)
from tests.support.looking import look, make_config, make_frames

# MACs by hand, batch norms included: glance at 32 px, focus at 24 px and at the whole view of 64 px; policy of nine
# places: 64*48*32 + 2048*256 + 3*256*512 + 256*9; classifier: 3*128*(176+128) + 128*7.
GLANCE, FOCUS, FOCUS_FULL, POLICY, CLASSIFY = 3_981_464, 11_654_200, 82_870_840, 1_018_112, 117_632


def test_each_frame_is_glanced_at_and_focused_once_however_many_windows_have_it(studio, monkeypatch):
    glanced: list[np.ndarray] = []
    focused: list[np.ndarray] = []

    class WatchedGlancer(Glancer):
        def __call__(self, pixels):
            glanced.extend(pixels)
            return super().__call__(pixels)

    class WatchedFocuser(Focuser):
        def __call__(self, batch: PatchBatch):
            focused.extend(batch.pixels)
            return super().__call__(batch)

    monkeypatch.setattr("pipeline.families.parts.Glancer", WatchedGlancer)
    monkeypatch.setattr("pipeline.families.parts.Focuser", WatchedFocuser)
    door = studio(plan={"window_s": 1.5, "stride_s": 0.5})
    # What was looked at before cameras were opened was grey.
    assert glanced and focused and all((view == 128).all() for view in [*glanced, *focused])
    glanced.clear()
    focused.clear()
    door.reader().sends(*stream(*range(12)))
    door.watch_all()
    assert [label.start_s - START_S for label in door.labels] == [0.0, 0.5, 1.0, 1.5]
    assert len(glanced) == len(focused) == 12
    assert all((view == picture).all() for view, picture in zip(glanced, PICTURES[0], strict=True))


def test_a_window_that_begins_a_segment_is_labelled_as_the_same_frames_of_an_archive(studio):
    archived = make_frames(6, seed=5, view_yxhw=VIEW_YXHW)
    theirs = look(make_config(), [archived]).only
    door = studio(plan={"window_s": 1.5, "stride_s": 1.5})
    door.reader().sends(*stream(*range(6), views=archived.pixels))
    door.watch_all()
    (ours,) = door.labels
    np.testing.assert_allclose(ours.step_logits, theirs.step_logits, atol=1e-4)
    assert places(ours) == places(theirs)
    assert (ours.gmacs, ours.gmacs_full) == (theirs.gmacs, theirs.gmacs_full)
    assert (ours.frames_total, ours.frames_focused, ours.stopped_at) == (6, 6, 6)
    assert (ours.camera, ours.video_id, ours.source_uri) == ("door", "door", "rtsp://eve:***@door/")
    assert (ours.start_s, ours.end_s, ours.coverage) == (START_S, START_S + 1.5, 1.0)
    # The last frame's arrival.
    assert ours.received_at is not None and ours.received_at.timestamp() == START_S + 5 / 4 + 0.125
    assert [(place.frame, place.pts_s) for place in ours.patches] == [(4 * t, START_S + t / 4) for t in range(6)]


def test_the_policys_state_runs_on_along_the_stream_and_the_classifier_begins_anew_with_each_window(studio):
    shown = [0, 1, 2, 3, 0, 1, 2, 3]
    door = studio(plan={"window_s": 1.0, "stride_s": 1.0})
    door.reader().sends(*stream(*range(8), pictures=shown))
    door.watch_all()
    first, second = door.labels
    assert places(first) != places(second)
    # Where the same places are looked at, the same pictures give the same answer.
    centre = studio(plan={"window_s": 1.0, "stride_s": 1.0}, policy__kind="center")
    centre.reader().sends(*stream(*range(8), pictures=shown))
    centre.watch_all()
    first, second = centre.labels
    np.testing.assert_allclose(first.step_logits, second.step_logits, atol=1e-5)


def test_state_starts_anew_at_a_gap_and_no_window_spans_it(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 0.5})
    before, after = START_S, START_S + 7.25
    door.reader().sends(*stream(0, 1, 2, 3, 4, 5, 6), *stream(*range(5), start_s=after))
    door.watch_all()
    assert [label.start_s for label in door.labels] == [before, before + 0.5, after]
    first, _, anew = door.labels
    assert places(first) == places(anew)
    np.testing.assert_allclose(first.step_logits, anew.step_logits, atol=1e-5)


def test_what_a_frame_costs_counts_in_the_first_window_that_has_it(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 0.5})
    door.reader().sends(*stream(*range(6)))
    door.watch_all()
    first, second = door.labels
    assert first.gmacs * 1e9 == pytest.approx(4 * (GLANCE + FOCUS + POLICY + CLASSIFY))
    # Two of its four frames are new; all four are classified again.
    assert second.gmacs * 1e9 == pytest.approx(2 * (GLANCE + FOCUS + POLICY) + 4 * CLASSIFY)
    assert second.gmacs_full * 1e9 == pytest.approx(2 * (GLANCE + FOCUS_FULL) + 4 * CLASSIFY)


def test_skipped_frames_cost_no_focus_and_are_counted(studio):
    door = studio(
        plan={"window_s": 2.0, "stride_s": 2.0}, skip__kind="uniform", skip__share=0.25, policy__kind="center"
    )
    door.reader().sends(*stream(*range(8)))
    door.watch_all()
    (label,) = door.labels
    assert (label.frames_total, label.frames_focused, label.frames_skipped) == (8, 2, 6)
    # Half a gap comes before the first: the second and the sixth of eight.
    assert [place.frame for place in label.patches] == [4, 20]
    assert label.gmacs * 1e9 == pytest.approx(8 * (GLANCE + CLASSIFY) + 2 * FOCUS)


@pytest.mark.parametrize("settings", [{}, {"policy__kind": "random", "skip__kind": "random", "skip__share": 0.6}])
def test_cameras_looked_at_together_get_what_each_gets_alone(studio, settings):
    cameras = ("door", "yard", "roof")
    together, alone = (studio(*cameras, max_batch=most, **settings) for most in (32, 1))
    for run in (together, alone):
        for i, name in enumerate(cameras):
            run.reader(name).sends(*stream(*range(8 - i), views=PICTURES[i]))
        run.watch_all()
    by_clip = [sorted(run.labels, key=lambda label: (label.camera, label.start_s)) for run in (together, alone)]
    assert {label.camera for label in by_clip[0]} == set(cameras)
    assert_same(*by_clip)


@pytest.mark.parametrize(
    ("num_cameras", "max_batch", "together"), [(6, 32, [4, 2]), (9, 32, [9]), (9, 6, [6, 3]), (3, 2, [2, 1])]
)
def test_few_frames_are_looked_at_in_small_groups_and_many_in_large_ones(
    studio, monkeypatch, num_cameras, max_batch, together
):
    looks: list[int] = []
    real = LiveGaze.look

    def look_on(self, streams, frames):
        looks.append(len(frames))
        return real(self, streams, frames)

    run = studio(*(f"cam{i}" for i in range(num_cameras)), max_batch=max_batch)
    monkeypatch.setattr(LiveGaze, "look", look_on)
    for readers in run.readers.values():
        readers[-1].sends(*stream(0))
    run.watch_all()
    assert looks == together


@pytest.mark.parametrize(
    ("num_cameras", "sizes"), [(1, [1]), (5, [1, 2, 3, 4, 5]), (8, [*range(1, 9)]), (40, [*range(1, 9), 16, 32, 40])]
)
def test_networks_are_warmed_up_in_the_sizes_that_come(num_cameras, sizes):
    assert warm_up_sizes(num_cameras) == sizes


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("cuda", CudaGraphs.RECORDED_AT)])
def test_what_a_gpu_records_is_recorded_before_cameras_are_opened(tmp_path, device, times):
    gaze = made_worker(make_config(), tmp_path)._gaze
    glancer, sizes = gaze._glancer, []

    class Watched:
        def __init__(self) -> None:
            self.device = torch.device(device)

        def __call__(self, pixels: np.ndarray):
            sizes.append(len(pixels))
            return glancer(pixels)

    gaze._glancer = Watched()  # type: ignore[assignment]
    gaze.warm_up(num_cameras=2, window_frames=[2])
    assert sizes == [1] * times + [2] * times


def test_random_choices_of_a_stream_follow_from_the_seed_the_camera_and_the_segment(studio):
    settings = {"policy__kind": "random", "plan": {"window_s": 1.0, "stride_s": 1.0}}
    runs = [studio("door", "yard", **settings) for _ in range(2)]
    runs.append(studio("door", compute__seed=1, **settings))
    for run in runs:
        for readers in run.readers.values():
            readers[-1].sends(*stream(*range(4)))
        run.watch_all()
    chosen = [{label.camera: places(label) for label in run.labels} for run in runs]
    assert chosen[0] == chosen[1]
    assert chosen[0]["door"] != chosen[0]["yard"] and chosen[0]["door"] != chosen[2]["door"]


def test_cameras_take_turns_so_that_one_with_much_waiting_delays_no_other(studio, monkeypatch):
    looks: list[list[str]] = []
    real = LiveGaze.look

    def look_on(self, streams, frames):
        looks.append([stream.name for stream in streams])
        return real(self, streams, frames)

    run = studio("door", "yard", plan={"window_s": 10.0, "stride_s": 10.0})
    monkeypatch.setattr(LiveGaze, "look", look_on)
    run.reader("door").sends(*stream(*range(4)))
    run.reader("yard").sends(*stream(0, 1))
    run.watch_all()
    assert [sorted(names) for names in looks] == [["door", "yard"], ["door", "yard"], ["door"], ["door"]]
