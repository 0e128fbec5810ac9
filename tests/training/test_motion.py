"""AdaFocus-TSM's stages, on clips made in memory: a coloured square whose stripes move right or left."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from operators.errors import CheckpointError, ConfigError
from operators.media.encode import write_video
from operators.media.frame_plan import sample_indices
from operators.media.view import Viewer
from operators.networks.backbones import build
from operators.records import Source
from operators.weights import checkpoints
from operators.weights.header import Preprocessing
from pipeline.families import family_named
from pipeline.training.clips import Clips, FrameTruth
from pipeline.training.frame_cache import ClipFrames, choose_candidates
from pipeline.training.journal import Journal, read_metrics
from pipeline.training.model import save_parts
from pipeline.training.motion import MotionGlances, motion_score, new_motion_parts
from pipeline.training.optimise import make_optimiser, num_epochs, set_rate
from pipeline.training.read_motion import MotionReader
from pipeline.training.scoring import policy_named
from pipeline.training.sequence import Setting, TrainingData, checkpoint_path, run
from pipeline.training.settings import Networks, Optimiser, PolicyStage, Stage, Supervised, changed
from pipeline.training.settings_motion import MotionSettings, train_synth_motion, train_tsm_something
from pipeline.training.stage_motion import _Batch, _Course, begin_motion, moving_places
from policies.ppo import gaussian_log_prob
from tests.support import looking

torch.set_num_threads(1)

VIEW, PATCH, SIDE, FRAMES = 36, 12, 8, 12
GLANCED, FOCUSED = 3, 4
CLASSES = ("right", "left")
ADAMW = Optimiser(kind="adamw", weight_decay=0.01, schedule="step")


def place_of(number: int) -> tuple[int, int, int]:
    rng = np.random.default_rng([number, 1])
    return int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, VIEW - SIDE + 1)), int(rng.integers(0, 6))


def paint(number: int) -> ClipFrames:
    """FRAMES frames of stripes with a period of 6 that move a pixel every third frame, so by one per focus step."""
    rng = np.random.default_rng(number)
    frames = np.full((FRAMES, VIEW, VIEW, 3), 128, np.float32) + rng.normal(0, 4, (FRAMES, VIEW, VIEW, 3))
    top, left, phase = place_of(number)
    step = 1 if number % 2 == 0 else -1
    for t in range(FRAMES):
        wave = np.sin(2 * np.pi / 6 * (np.arange(SIDE) - phase - step * (t // 3) * 1.5))
        frames[t, top : top + SIDE, left : left + SIDE] = (190, 80, 80)
        frames[t, top : top + SIDE, left : left + SIDE] += 60 * wave[None, :, None]
    rows = [choose_candidates(np.arange(FRAMES), FRAMES, num_steps=n, candidates=1) for n in (GLANCED, FOCUSED)]
    return ClipFrames(
        pixels=np.clip(frames, 0, 255).astype(np.uint8),
        frame_index=np.arange(FRAMES),
        num_frames=FRAMES,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
        rows=np.concatenate(rows),
    )


def make_data(folder: Path, train=96, val=16) -> TrainingData:
    def sources(numbers) -> list[Source]:
        return [
            Source(source_id=f"{n:032x}", uri=str(folder / f"{n}"), video_id=str(n), truth=(CLASSES[n % 2],))
            for n in numbers
        ]

    truth = {}
    for n in range(train + val):
        top, left, _ = place_of(n)
        box = np.array([[top / VIEW, left / VIEW, SIDE / VIEW, SIDE / VIEW]] * FRAMES)
        truth[str(n)] = FrameTruth(visible=np.ones(FRAMES, bool), box_yxhw=box)
    held = sources(range(train, train + val))
    return TrainingData(train=sources(range(train)), val=held, class_names=CLASSES, truth=truth)


def make_settings(**changes) -> MotionSettings:
    settings = MotionSettings(
        preset="test",
        num_steps=GLANCED,
        num_focus_steps=FOCUSED,
        candidates=1,
        device="cpu",
        amp="off",
        is_flipped=False,
        is_cropped=False,
        is_glance_cached=True,
        validate_every=100,
        networks=Networks(
            glance="small_glance", glance_px=12, focus="small_focus", patch_px=PATCH, policy_hidden=32, policy_width=8
        ),
        preprocessing=Preprocessing(resize_px=VIEW, crop_px=VIEW, glance_resize="antialias"),
        glance=Supervised(epochs=1, batch_size=16, lr_glance=1e-3, optimiser=ADAMW),
        focus=Supervised(epochs=0, optimiser=ADAMW),
        warmup=Supervised(
            epochs=5, batch_size=16, lr_focus=3e-3, lr_classifier=3e-3, salient_share=0.8, optimiser=ADAMW
        ),
        policy=PolicyStage(epochs=2, batch_size=32, lr=1e-3),
        finetune=Supervised(epochs=2, batch_size=16, lr_focus=1e-3, lr_classifier=1e-3, optimiser=ADAMW),
    )
    return changed(settings, changes)


ALL: tuple[Stage, ...] = ("0a", "0b", "1", "2", "3")
SHORT = {"warmup.epochs": 2, "policy.epochs": 2, "finetune.epochs": 2}


def make_setting(folder: Path, **changes) -> Setting:
    ticks = itertools.count()
    values: dict[str, Any] = dict(
        out=folder / "out",
        cache=folder / "cache",
        read=lambda source: paint(int(source.video_id)),
        clock=lambda: float(next(ticks)),
    )
    return Setting(**(values | changes))


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    sections = checkpoints.load(path).sections
    return {f"{s}.{k}": v for s, weights in sections.items() for k, v in weights.items()}


class Killed(Exception):
    pass


# ---- the whole course ----


def test_the_loss_falls_and_the_checkpoint_says_how_it_is_run(tmp_path):
    run(("0a", "0b", "1"), settings=make_settings(), data=make_data(tmp_path), setting=make_setting(tmp_path))
    losses = [row["loss"] for row in read_metrics(tmp_path / "out" / "stage_1" / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    header = checkpoints.load(tmp_path / "out" / "checkpoint.safetensors").header
    assert (header.family, header.num_steps, header.num_focus_steps, header.pad) == (
        "adafocus_tsm", GLANCED, FOCUSED, "first",
    )  # fmt: skip
    assert header.class_names == CLASSES
    assert header.glance is not None and header.focus is not None
    assert (header.glance.num_segments, header.focus.num_segments, header.focus.size_px) == (GLANCED, FOCUSED, PATCH)


def test_the_control_sees_every_frame_by_itself(tmp_path):
    for is_shifted in (True, False):
        parts = new_motion_parts(make_settings(is_shifted=is_shifted), CLASSES)
        parts.freeze()
        frames = torch.rand(FOCUSED, 3, PATCH, PATCH)
        with torch.no_grad():
            forward, backward = parts.focuser(frames)[1], parts.focuser(frames.flip(0))[1].flip(0)
        assert torch.allclose(forward, backward, atol=1e-6) is not is_shifted
    data, setting = make_data(tmp_path), make_setting(tmp_path)
    run(("0a", "0b", "1"), settings=make_settings(is_shifted=False), data=data, setting=setting)
    header = checkpoints.load(tmp_path / "out" / "checkpoint.safetensors").header
    assert header.focus is not None and header.focus.num_segments == 0


def test_a_training_that_is_killed_in_every_stage_ends_with_the_same_weights(tmp_path):
    data, settings = make_data(tmp_path, train=16, val=4), make_settings(**SHORT, **{"glance.epochs": 2})
    run(ALL, settings=settings, data=data, setting=make_setting(tmp_path))
    straight = weights_of(tmp_path / "out" / "checkpoint.safetensors")
    assert {name.split(".")[0] for name in straight} == {"glancer", "focuser", "classifier", "policy"}
    killed_in = set()

    def kill_once_per_stage(progress) -> None:
        if progress.stage not in killed_in and progress.done < progress.total:
            killed_in.add(progress.stage)
            raise Killed

    setting = make_setting(tmp_path, out=tmp_path / "again", progress=kill_once_per_stage)
    for _ in range(6):
        try:
            run(ALL, settings=settings, data=data, setting=setting)
            break
        except Killed:
            continue
    assert killed_in == {"0a", "1", "2", "3"}
    resumed = weights_of(tmp_path / "again" / "checkpoint.safetensors")
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)


def test_each_stage_moves_what_it_names_and_nothing_else(tmp_path):
    data, settings = make_data(tmp_path, train=16, val=4), make_settings(**SHORT)
    run(ALL, settings=settings, data=data, setting=make_setting(tmp_path))
    weights = {s: weights_of(checkpoint_path(tmp_path / "out", s)) for s in ("0b", "1", "2", "3")}

    def moved(before: str, after: str) -> set[str]:
        both = weights[before].keys() & weights[after].keys()
        return {k.split(".")[0] for k in both if not torch.equal(weights[before][k], weights[after][k])}

    assert moved("0b", "1") == {"focuser", "classifier"}
    assert moved("1", "2") == set()
    assert moved("2", "3") == {"focuser", "classifier"}


def test_there_is_no_stage_for_skipping(tmp_path):
    with pytest.raises(ConfigError, match=r"no stage 'skip'.*none is skipped"):
        run(("skip",), settings=make_settings(), data=make_data(tmp_path, 8, 4), setting=make_setting(tmp_path))


def test_a_reward_against_the_place_before_is_refused(tmp_path):
    settings = make_settings(**{"policy.reward": "previous", "warmup.epochs": 1})
    with pytest.raises(ConfigError, match="one place only"):
        run(
            ("0a", "0b", "1", "2"),
            settings=settings,
            data=make_data(tmp_path, 16, 4),
            setting=make_setting(tmp_path),
        )


# ---- rates ----


def test_the_published_rates_reach_every_parameter_that_they_name():
    settings = train_tsm_something()
    s = settings
    assert (s.num_steps, s.num_focus_steps, s.networks.patch_px, s.is_flipped) == (8, 12, 144, False)
    assert (s.warmup.lr_focus, s.warmup.lr_classifier, s.warmup.dropout, s.warmup.batch_size) == (1e-5, 0.01, 0.5, 64)
    assert (s.finetune.lr_focus, s.finetune.lr_classifier, s.finetune.batch_size) == (0, 5e-4, 32)
    assert (s.policy.lr, s.policy.gamma, s.policy_std, s.policy.epochs) == (3e-4, 0.7, 0.25, 50)
    parts = new_motion_parts(make_settings(), CLASSES)
    groups = [(parts.focuser, s.warmup.lr_focus), (parts.classifier, s.warmup.lr_classifier)]
    optimiser = make_optimiser(s.warmup.optimiser, groups)
    assert num_epochs(s.warmup) == 11
    set_rate(optimiser, s.warmup, 5, 0, 100)  # half way: cosine factor one half
    rate_of = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert {round(rate_of[id(p)], 9) for p in parts.focuser.parameters()} == {5e-6}
    assert {round(rate_of[id(p)], 9) for p in parts.classifier.parameters()} == {5e-3}


def test_tsm_pretraining_drops_its_rate_twice():
    stage = train_tsm_something().glance
    parts = new_motion_parts(make_settings(), CLASSES)
    optimiser = make_optimiser(stage.optimiser, [(parts.glancer, stage.lr_glance)])
    assert num_epochs(stage) == 50
    rates = {}
    for epoch in (0, 19, 20, 39, 40, 49):
        set_rate(optimiser, stage, epoch, 0, 10)
        rates[epoch] = optimiser.param_groups[0]["lr"]
    assert rates == pytest.approx({0: 0.01, 19: 0.01, 20: 1e-3, 39: 1e-3, 40: 1e-4, 49: 1e-4})


# ---- what is read ----


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
    viewer = Viewer(resize_px=VIEW, crop_px=VIEW, square_pixels=True)
    read = MotionReader(num_glance=GLANCED, num_focus=FOCUSED, candidates=3, viewer=viewer)
    data = TrainingData(train=sources, val=sources, class_names=CLASSES)
    settings = make_settings(**{"candidates": 3, "glance.epochs": 0})
    run(("0a",), settings=settings, data=data, setting=make_setting(tmp_path, read=read))
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


# ---- what is computed ----


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


def make_course(tmp_path, settings: MotionSettings, clips: Clips) -> _Course:
    parts = new_motion_parts(settings, CLASSES)
    journal = Journal(folder=tmp_path, stage="1", identity="x", clock=lambda: 0.0)
    return _Course(parts, settings, clips, clips, journal, None, None)


def test_the_maps_of_a_clip_are_joined_frame_after_frame_and_logits_kept_apart(tmp_path):
    course = make_course(tmp_path, make_settings(), make_clips(range(2)))
    batch = course.read(np.array([0, 1]), np.random.default_rng(0))
    assert batch.glances is not None
    channels = course.parts.glancer.map_channels
    assert batch.glances.maps.shape == (2, GLANCED * channels, 3, 3)
    assert batch.glances.logits.shape == (2, GLANCED, 2)


def test_the_probability_is_of_the_sum_of_both_means(tmp_path):
    course = make_course(tmp_path, make_settings(), make_clips(range(2)))
    course.parts.freeze()
    with torch.no_grad():
        course.parts.classifier.fc.weight.zero_()
        course.parts.classifier.fc.bias.copy_(torch.tensor([1.0, 0.0]))
    logits = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 0.0]]]).repeat(2, 1, 1)
    batch = _Batch(
        course.train.pixels[:, :, 0],
        torch.tensor([0, 1]),
        MotionGlances(torch.zeros(1), logits),
        np.random.default_rng(0),
    )
    with torch.no_grad():
        found = course.probability(batch, np.zeros((2, 2), np.int64))
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
    course = make_course(tmp_path, make_settings(), make_clips(range(1)))
    drawn = course.draw_places(4000, np.random.default_rng(0))
    # floor of draws in [0,1) times 36 - 12 = 24
    assert (drawn.min(), drawn.max()) == (0, 23)


def test_a_gaussian_place_has_the_density_of_two_normals():
    found = gaussian_log_prob(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.5]]), std=0.25)
    # Two normals of spread 0.25, one of them a spread away: 2 * log(1 / (0.25 * sqrt(2 pi))) - 1/2
    assert float(found) == pytest.approx(2 * 0.467356 - 0.5, abs=1e-4)


def test_the_oracle_hits_every_frame_and_no_place_scores_without_the_focus(tmp_path):
    settings, clips = make_settings(), make_clips(range(6))
    parts = new_motion_parts(settings, CLASSES)
    found = motion_score(parts, settings, clips, policy_named("oracle", parts))
    # The patch is half as wide again as the evidence, which may lie in a corner of the view.
    assert (found.hits, found.whole_hits) == (100.0, 100.0)
    assert motion_score(parts, settings, clips, policy_named("glance", parts)).hits is None


def test_a_score_does_not_depend_on_how_clips_are_batched(tmp_path):
    settings, clips = make_settings(), make_clips(range(9))
    parts = new_motion_parts(settings, CLASSES)
    one = motion_score(parts, settings, clips, policy_named("random", parts), batch_size=9)
    few = motion_score(parts, settings, clips, policy_named("random", parts), batch_size=2)
    assert (one.hits, one.accuracy) == (few.hits, few.accuracy)


def test_the_pipeline_answers_as_the_trainings_own_scores_do(tmp_path):
    settings = make_settings(
        **{"num_steps": 4, "num_focus_steps": 6, "networks.glance_px": 32, "networks.patch_px": 24, "num_classes": 7},
        **{"preprocessing.resize_px": looking.SIDE, "preprocessing.crop_px": looking.SIDE},
    )
    parts = new_motion_parts(settings, looking.NAMES)
    frames = [looking.make_frames(10, seed=n, glance_rows=[range(4)], focus_rows=[range(4, 10)]) for n in range(12)]

    def answers() -> np.ndarray:
        save_parts(tmp_path / "c", parts, stage="3", training={})
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


# ---- beginnings ----


def test_tsm_pretraining_files_begin_both_networks_with_their_linear_layers(tmp_path):
    torch.manual_seed(3)
    focus = build("resnet50", num_segments=12).state_dict()
    raw = {}
    for key, value in focus.items():
        is_shifted = key.startswith("layer") and ".conv1." in key
        raw["module.base_model." + (key.replace(".conv1.", ".conv1.net.") if is_shifted else key)] = value
    raw |= {"module.new_fc.weight": torch.full((2, 2048), 0.5), "module.new_fc.bias": torch.tensor([1.0, 2.0])}
    torch.save({"state_dict": raw}, tmp_path / "focus.pth.tar")
    settings = make_settings(
        **{"networks.focus": "resnet50", "networks.focus_weights": str(tmp_path / "focus.pth.tar")}
    )
    settings = changed(settings, {"num_focus_steps": 12})
    parts = new_motion_parts(settings, CLASSES)
    begin_motion(parts, settings)
    now = parts.focuser.state_dict()
    assert all(torch.equal(now[key], value) for key, value in focus.items())
    assert parts.classifier.fc.bias.tolist() == [1.0, 2.0]


def test_weights_to_begin_from_reach_the_stages_after_the_first(tmp_path):
    before = new_motion_parts(make_settings(seed=5), CLASSES)
    save_parts(tmp_path / "before", before, stage="1", training={})
    settings = make_settings(**{"networks.focus_weights": str(tmp_path / "before"), "glance.epochs": 0})
    run(("0a", "0b"), settings=settings, data=make_data(tmp_path, 8, 4), setting=make_setting(tmp_path))
    weights, wanted = weights_of(checkpoint_path(tmp_path / "out", "0b")), weights_of(tmp_path / "before")
    for section in ("focuser", "classifier"):
        names = [name for name in wanted if name.startswith(section)]
        assert names and all(torch.equal(weights[name], wanted[name]) for name in names)
    # The glance network was not named.
    assert not all(torch.equal(weights[name], wanted[name]) for name in wanted if name.startswith("glancer"))


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"nothing of the kind")
    settings = make_settings(**{"networks.glance_weights": str(tmp_path / "x.pth")})
    with pytest.raises(CheckpointError, match=r"x\.pth is no checkpoint"):
        begin_motion(new_motion_parts(settings, CLASSES), settings)


def test_weights_of_another_backbone_are_refused_by_name(tmp_path):
    torch.save(build("small_focus").state_dict(), tmp_path / "x.pth")
    settings = make_settings(**{"networks.glance_weights": str(tmp_path / "x.pth")})
    with pytest.raises(CheckpointError, match=r"x\.pth holds the weights of small_focus, but the backbone is small_gl"):
        begin_motion(new_motion_parts(settings, CLASSES), settings)


def test_the_small_preset_is_whole():
    s = train_synth_motion()
    assert (s.cached_steps, s.pad, s.preprocessing.crop_px, s.networks.patch_px) == (20, "first", 96, 32)
