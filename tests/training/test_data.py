"""What a training stage reads: views, crops, labels and truth of the cached frames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from operators.errors import ConfigError
from operators.records import Source
from pipeline.training.clips import Augmentation, Clips, FrameTruth, batches, load_views, make_clips, seeded
from pipeline.training.frame_cache import ClipFrames, FrameCache
from pipeline.training.model import glance_at_all
from pipeline.training.scoring import blank
from pipeline.training.subsets import open_subsets
from tests.support.training_clips import CLASSES, make_data, make_settings, make_surroundings, read
from tests.support.training_parts import fresh_parts


def make_clips_of(pixels: np.ndarray, labels=((0,),)) -> Clips:
    return Clips(pixels=pixels, labels=labels)


def test_the_flip_turns_whole_clips_left_to_right():
    pixels = np.zeros((1, 2, 1, 4, 4, 3), np.uint8)
    pixels[..., 0, :] = 9
    clips = make_clips_of(pixels)
    flips = Augmentation(crop_px=4, is_flipped=True)
    seen = set()
    for seed in range(20):
        views = load_views(
            clips, np.array([0]), np.zeros((1, 2), int), augmentation=flips, rng=np.random.default_rng(seed)
        )
        columns = {tuple(frame[0, :, 0].tolist()) for frame in views[0]}
        assert len(columns) == 1
        seen |= columns
    assert seen == {(9, 0, 0, 0), (0, 0, 0, 9)}


def test_training_crops_have_the_published_sizes_and_the_views_size():
    crops = Augmentation(crop_px=224, is_cropped=True)
    drawn = [crops.draw(256, np.random.default_rng(seed)) for seed in range(300)]
    # 256 times 1, .875, .75, .66; sides differ by one scale at most.
    assert {h for _, _, h, _, _ in drawn} == {256, 224, 192, 168}
    assert (256, 192) not in {(h, w) for _, _, h, w, _ in drawn}
    assert all(top + h <= 256 and left + w <= 256 for top, left, h, w, _ in drawn)
    assert crops.draw(256, None) == (16, 16, 224, 224, False)
    clips = make_clips_of(np.zeros((1, 1, 1, 64, 64, 3), np.uint8))
    views = load_views(
        clips,
        np.array([0]),
        np.zeros((1, 1), int),
        augmentation=Augmentation(crop_px=56, is_cropped=True),
        rng=np.random.default_rng(0),
    )
    assert views.shape == (1, 1, 56, 56, 3)


def test_truth_boxes_are_moved_into_the_view():
    # A frame twice as wide as high: the view is its middle half.
    source = Source(source_id="0" * 32, uri="/a", video_id="a", truth=("red down",))
    cache = FrameCache(
        pixels=np.zeros((1, 2, 1, 4, 4, 3), np.uint8),
        frame_index=np.array([[[0], [5]]], np.int32),
        num_frames=np.array([6], np.int32),
        view_yxhw=np.array([[0, 0.25, 1, 0.5]]),
        errors={},
        fingerprint="",
    )
    box = np.zeros((6, 4))
    box[5] = (0.2, 0.5, 0.1, 0.05)
    truth = {"a": FrameTruth(visible=np.array([False] * 5 + [True]), box_yxhw=box)}
    clips = make_clips(cache, [source], CLASSES, truth)
    assert clips.visible is not None and clips.box_yxhw is not None
    assert clips.visible[0, :, 0].tolist() == [False, True]
    assert clips.box_yxhw[0, 1, 0].tolist() == pytest.approx([0.2, 0.5, 0.1, 0.1])


def test_a_label_that_is_no_class_is_refused_by_name():
    source = Source(source_id="0" * 32, uri="/a", video_id="a", truth=("green",))
    cache = FrameCache(
        pixels=np.zeros((1, 1, 1, 4, 4, 3), np.uint8),
        frame_index=np.zeros((1, 1, 1), np.int32),
        num_frames=np.array([6], np.int32),
        view_yxhw=np.array([[0, 0, 1, 1]]),
        errors={},
        fingerprint="",
    )
    with pytest.raises(ConfigError, match="a is labelled 'green'"):
        make_clips(cache, [source], CLASSES)


def test_a_test_subset_without_labels_is_not_even_read(tmp_path):
    data = make_data(tmp_path, train=16, val=4)
    unlabelled = [dataclasses.replace(s, truth=None, video_id=f"hidden {s.video_id}") for s in data.val]
    seen = []

    def read_and_tell(source: Source) -> ClipFrames:
        seen.append(source.video_id)
        return read(source)

    around = make_surroundings(tmp_path, reader=lambda candidates: read_and_tell)
    data = dataclasses.replace(data, test=[*unlabelled, *data.val[:2]])
    ready = open_subsets(make_settings(), data, around)
    assert ready.test is not None and len(ready.test) == 2
    assert not [name for name in seen if name.startswith("hidden")]
    assert open_subsets(make_settings(), dataclasses.replace(data, test=unlabelled), around).test is None


def test_trainings_that_view_frames_otherwise_share_no_cache(tmp_path):
    data, around = make_data(tmp_path, train=16, val=4), make_surroundings(tmp_path)
    looks = [{}, {"preprocessing.square_pixels": True}, {"preprocessing.interpolation": "bicubic"}]
    assert len({open_subsets(make_settings(**look), data, around).fingerprint for look in looks}) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_labels_are_looked_at_before_hours_of_decoding(tmp_path):
    data = make_data(tmp_path, train=16, val=4)

    def fail(source: Source) -> ClipFrames:
        raise AssertionError("decoded")

    around = make_surroundings(tmp_path, reader=lambda candidates: fail)
    nameless = [dataclasses.replace(s, truth=None) for s in data.val]
    with pytest.raises(ConfigError, match="none of 4 val videos has a label"):
        open_subsets(make_settings(), dataclasses.replace(data, val=nameless), around)
    with pytest.raises(ConfigError, match="is labelled 'blue down', which is not among the 3 class names"):
        open_subsets(make_settings(), dataclasses.replace(data, class_names=CLASSES[:3]), around)


def test_a_video_that_is_left_out_does_not_bring_the_others_into_memory():
    sources = [
        Source(source_id=f"{n:032x}", uri=f"/{n}", video_id=str(n), truth=(CLASSES[n],) if n != 2 else None)
        for n in range(4)
    ]
    pixels = np.arange(4, dtype=np.uint8)[:, None, None, None, None, None] * np.ones((1, 2, 1, 4, 4, 3), np.uint8)
    cache = FrameCache(
        pixels=pixels,
        frame_index=np.zeros((4, 2, 1), np.int32),
        num_frames=np.array([0, 9, 9, 9], np.int32),
        view_yxhw=np.tile([0.0, 0, 1, 1], (4, 1)),
        errors={0: "unreadable"},
        fingerprint="",
    )
    clips = make_clips(cache, sources, CLASSES)
    assert np.shares_memory(clips.pixels, pixels)
    assert clips.labels == ((1,), (3,)) and clips.names == ("1", "3")
    views = load_views(clips, np.array([1, 0]), np.zeros((2, 2), int), augmentation=Augmentation(crop_px=4), rng=None)
    assert views[:, 0, 0, 0, 0].tolist() == [3, 1]
    dark, bright = (Clips(pixels=pixels[[n]], labels=((0,),)) for n in (1, 3))
    parts = fresh_parts(make_settings(), CLASSES)
    seen = glance_at_all(parts, clips, 4).features
    alone = torch.cat([glance_at_all(parts, one, 4).features for one in (dark, bright)])
    torch.testing.assert_close(seen, alone)


def test_an_epoch_takes_every_clip_once_and_leaves_an_incomplete_batch_out():
    taken = np.concatenate(list(batches(10, 4, seeded(0, "1", 0))))
    assert len(taken) == 8 and len(set(taken.tolist())) == 8
    assert [rows.tolist() for rows in batches(5, 2, None, drop_last=False)] == [[0, 1], [2, 3], [4]]
    assert len(list(batches(3, 16, seeded(0, "1", 0)))) == 1
    assert [r.tolist() for r in batches(9, 3, seeded(0, "1", 1))] != [
        r.tolist() for r in batches(9, 3, seeded(0, "1", 0))
    ]


def test_blanking_zeroes_whole_features_in_its_share_of_the_clips():
    kept = blank(torch.ones(2000, 8, 3), 0.4, np.random.default_rng(0))
    assert set(kept.flatten().tolist()) == {0.0, 1.0}
    assert (kept.sum(dim=2) % 3 == 0).all()
    touched = (kept.sum(dim=(1, 2)) < 24).float().mean().item()
    # A rate drawn from [0,1] leaves all 8 steps alone in one clip of nine.
    assert touched == pytest.approx(0.4 * 8 / 9, abs=0.04)
    assert blank(torch.ones(4, 2, 1), 0.0, np.random.default_rng(0)).min() == 1
