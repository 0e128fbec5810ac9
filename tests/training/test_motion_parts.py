"""What AdaFocus-TSM's stages read of a video, and what they compute of a batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from operators.media.decode import ReadLimits
from operators.media.encode import write_video
from operators.media.sampling import sample_indices
from operators.media.view import Viewer
from operators.records import Source
from operators.weights import checkpoints
from pipeline.config.training_motion import MotionSettings
from pipeline.families import family_named
from pipeline.training.clips import Clips
from pipeline.training.course_motion import COURSE
from pipeline.training.journal import Journal
from pipeline.training.model import save_parts
from pipeline.training.motion import MotionGlances, motion_score
from pipeline.training.read_motion import MotionReader
from pipeline.training.scoring import policy_named
from pipeline.training.sequence import run
from pipeline.training.stage_motion import MotionStage, _Batch, moving_places
from pipeline.training.subsets import TrainingData
from policies.ppo import gaussian_log_prob
from tests.support import looking
from tests.support.training_motion_clips import (
    CLASSES,
    FOCUSED,
    GLANCED,
    SIDE,
    VIEW,
    make_settings,
    make_surroundings,
    paint,
    place_of,
)
from tests.support.training_parts import fresh_parts


def test_both_samples_of_a_video_are_those_of_inference(tmp_path):
    frames = [np.full((32, 32, 3), 5 * n, np.uint8) for n in range(30)]
    write_video(tmp_path / "a.mp4", frames, fps=10)
    source = Source(source_id="0" * 32, uri=str(tmp_path / "a.mp4"), video_id="a")
    viewer = Viewer(resize_px=32, crop_px=32, square_pixels=True)
    for candidates in (1, 3):
        read = MotionReader(num_glance=8, num_focus=12, candidates=candidates, viewer=viewer)(source)
        assert read.rows is not None and read.rows.shape == (20, candidates)
        taken = read.frame_index[read.rows]
        assert taken[:8, 0].tolist() == sample_indices(30, 8).tolist() == [1, 5, 9, 13, 16, 20, 24, 28]
        assert taken[8:, 0].tolist() == sample_indices(30, 12).tolist()
    # Segments of 30 // 12 = 2 frames: candidates at a quarter and three quarters of each.
    assert taken[8:10].tolist() == [[1, 0, 1], [3, 2, 3]]


def test_candidates_are_kept_for_training_and_held_back_videos_have_none(tmp_path):
    sources = []
    for n in range(2):
        path = tmp_path / f"{n}.mp4"
        write_video(path, [np.full((VIEW, VIEW, 3), 8 * t, np.uint8) for t in range(30)], fps=10)
        sources.append(Source(source_id=f"{n:032x}", uri=str(path), video_id=str(n), truth=(CLASSES[n],)))
    settings = make_settings(**{"candidates": 3, "glance.epochs": 0, "preprocessing.square_pixels": True})
    reader = partial(COURSE.reader, settings, ReadLimits())
    data = TrainingData(train=sources, val=sources, class_names=CLASSES)
    run(("0a",), settings=settings, data=data, around=make_surroundings(tmp_path, reader=reader))
    sizes = sorted(path.stat().st_size for path in (tmp_path / "cache").glob("*/frame_index.i4"))
    assert sizes == [2 * (GLANCED + FOCUSED) * 4 * 1, 2 * (GLANCED + FOCUSED) * 4 * 3]


def test_a_short_video_shows_its_first_frame_throughout(tmp_path):
    write_video(tmp_path / "a.mp4", [np.full((32, 32, 3), 20 * n, np.uint8) for n in range(10)], fps=10)
    source = Source(source_id="0" * 32, uri=str(tmp_path / "a.mp4"), video_id="a")
    viewer = Viewer(resize_px=32, crop_px=32, square_pixels=True)
    for candidates in (1, 3):
        read = MotionReader(num_glance=8, num_focus=12, candidates=candidates, viewer=viewer)(source)
        assert read.rows is not None
        taken = read.frame_index[read.rows]
        assert (taken[8:] == 0).all()  # 10 frames are fewer than 12
        assert taken[:8, 0].tolist() == [0, 1, 3, 4, 5, 6, 8, 9]  # int(10/8/2 + 10/8*i)


def make_clips(numbers) -> Clips:
    found = [paint(n) for n in numbers]
    pixels = np.stack([f.pixels[f.rows] for f in found])
    places = np.array([place_of(n)[:2] for n in numbers]) / VIEW
    boxes = np.concatenate([places, np.full((len(numbers), 2), SIDE / VIEW)], axis=1)
    shape = pixels.shape[:3]
    return Clips(
        pixels=pixels,
        labels=tuple((n % 2,) for n in numbers),
        visible=np.ones(shape, bool),
        box_yxhw=np.broadcast_to(boxes[:, None, None], (*shape, 4)),
    )


def make_stage(tmp_path, settings: MotionSettings, clips: Clips) -> MotionStage:
    parts = fresh_parts(settings, CLASSES)
    journal = Journal(folder=tmp_path, stage="1", identity="x", clock=lambda: 0.0)
    return MotionStage(parts, settings, clips, clips, journal, None, None)


def test_the_maps_of_a_clip_are_joined_frame_after_frame_and_logits_kept_apart(tmp_path):
    stage = make_stage(tmp_path, make_settings(), make_clips(range(2)))
    batch = stage.read(np.array([0, 1]), np.random.default_rng(0))
    assert batch.glances is not None
    channels = stage.parts.glancer.map_channels
    assert batch.glances.maps.shape == (2, GLANCED * channels, 3, 3)
    assert batch.glances.logits.shape == (2, GLANCED, 2)


def test_the_probability_is_of_the_sum_of_both_means(tmp_path):
    stage = make_stage(tmp_path, make_settings(), make_clips(range(2)))
    stage.parts.freeze()
    with torch.no_grad():
        stage.parts.classifier.fc.weight.zero_()
        stage.parts.classifier.fc.bias.copy_(torch.tensor([1.0, 0.0]))
    logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 0.0]]]).repeat(2, 1, 1)
    batch = _Batch(
        stage.train.pixels[:, :, 0],
        torch.tensor([0, 1]),
        MotionGlances(torch.zeros(1), logits),
        np.random.default_rng(0),
    )
    with torch.no_grad():
        found = stage.probability(batch, np.zeros((2, 2), np.int64))
    # Glances say (1,0) on average, patches (1,0): together (2,0), of which softmax is 0.8808.
    assert found.tolist() == pytest.approx([0.8808, 0.1192], abs=1e-4)


def test_salient_places_lie_where_something_moves():
    # Grey frames of which one corner flickers: 24 px, a cell of 3 px about every pixel.
    views = np.full((1, 4, 24, 24, 3), 100, np.uint8)
    views[:, ::2, 18:21, 3:6] = 200
    rng = np.random.default_rng(0)
    drawn = np.concatenate([moving_places(views, patch_px=8, rng=rng) for _ in range(200)])
    # A patch of 8 about the square's middle, (19.5, 4.5), begins at 15.5, no further down than 16; and at 0.5.
    assert np.abs(np.median(drawn, axis=0) - (15.5, 0.5)).max() <= 1
    held = (drawn[:, 0] <= 18) & (drawn[:, 0] >= 13) & (drawn[:, 1] <= 3)
    assert held.mean() > 0.75


def test_places_are_drawn_from_all_pixels_that_a_patch_has_room_at(tmp_path):
    stage = make_stage(tmp_path, make_settings(), make_clips(range(1)))
    drawn = stage.draw_places(4000, np.random.default_rng(0))
    # floor of draws in [0,1) times 36 - 12 = 24
    assert (drawn.min(), drawn.max()) == (0, 23)


def test_a_gaussian_place_has_the_density_of_two_normals():
    found = gaussian_log_prob(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.5]]), std=0.25)
    # Two normals of spread 0.25, one of them a spread away: 2 * log(1 / (0.25 * sqrt(2 pi))) - 1/2
    assert float(found) == pytest.approx(2 * 0.467356 - 0.5, abs=1e-4)


def test_the_oracle_hits_every_frame_and_no_place_scores_without_the_focus(tmp_path):
    settings, clips = make_settings(), make_clips(range(6))
    parts = fresh_parts(settings, CLASSES)
    found = motion_score(parts, settings, clips, policy_named("oracle", parts))
    # The patch is half as wide again as the evidence, which may lie in a corner of the view.
    assert (found.hits, found.whole_hits) == (100.0, 100.0)
    assert motion_score(parts, settings, clips, policy_named("glance", parts)).hits is None


def test_a_score_does_not_depend_on_how_clips_are_batched(tmp_path):
    settings, clips = make_settings(), make_clips(range(9))
    parts = fresh_parts(settings, CLASSES)
    one = motion_score(parts, settings, clips, policy_named("random", parts), batch_size=9)
    few = motion_score(parts, settings, clips, policy_named("random", parts), batch_size=2)
    assert (one.hits, one.accuracy) == (few.hits, few.accuracy)


def test_the_pipeline_answers_as_the_trainings_own_scores_do(tmp_path):
    settings = make_settings(
        **{"num_steps": 4, "num_focus_steps": 6, "networks.glance_px": 32, "networks.patch_px": 24, "num_classes": 7},
        **{"preprocessing.resize_px": looking.SIDE, "preprocessing.crop_px": looking.SIDE},
    )
    parts = fresh_parts(settings, looking.NAMES)
    frames = [looking.make_frames(10, seed=n, glance_rows=[range(4)], focus_rows=[range(4, 10)]) for n in range(12)]

    def answers() -> np.ndarray:
        save_parts(tmp_path / "c", parts, sections=COURSE.sections_after["3"], training={})
        checkpoint = checkpoints.load(tmp_path / "c")
        own = family_named(checkpoint.header.family).settings_of(checkpoint.header)
        told = {k.replace(".", "__"): v for k, v in own.items()}
        labels = looking.look(looking.make_config(**told), frames, checkpoint=checkpoint).labels
        return np.stack([labels[f.windows[0].clip_id].logits for f in frames])  # type: ignore[misc]

    # What all clips share is taken away, so that random weights tell them apart.
    parts.classifier.fc.bias.data -= torch.from_numpy(answers().mean(0))
    told = answers().argmax(1).tolist()
    assert len(set(told)) > 1
    clips = Clips(pixels=np.stack([f.pixels[:, None] for f in frames]), labels=tuple((k,) for k in told))
    assert motion_score(parts, settings, clips, policy_named("learned", parts)).accuracy == 100
    others = Clips(pixels=clips.pixels, labels=tuple(((k + 1) % 7,) for k in told))
    assert motion_score(parts, settings, others, policy_named("learned", parts)).accuracy == 0
