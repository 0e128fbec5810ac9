"""How AdaFocus looks at frames one after another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.records import PatchBatch
from operators.weights.checkpoints import Checkpoint
from operators.weights.header import SkipSpec
from pipeline.families.parts import skip_head
from pipeline.families.truth import read_truth_at
from pipeline.synthetic.archive import TRUTH_SCHEMA
from tests.support.looking import SIDE, assert_same, look, make_checkpoint, make_config, make_frames, softmax

# MACs by hand, batch norms included: glance at 32 px, focus at 24 px and at the whole view of 64 px; policy of nine
# places: 64*48*32 + 2048*256 + 3*256*512 + 256*9; classifier: 3*128*(176+128) + 128*7.
GLANCE, FOCUS, FOCUS_FULL, POLICY, CLASSIFY = 3_981_464, 11_654_200, 82_870_840, 1_018_112, 117_632
SKIP = (256 + 128 + 3) * 64 + 3 * 64 * 128 + (64 + 2)


@pytest.fixture
def glanced(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pixels of every view that is glanced at."""
    views: list[np.ndarray] = []

    class Watched(Glancer):
        def __call__(self, pixels: Sequence[np.ndarray]):
            views.extend(view for part in pixels for view in part)
            return super().__call__(pixels)

    monkeypatch.setattr("pipeline.families.parts.Glancer", Watched)
    return views


def with_skip_head(checkpoint: Checkpoint, **fields: object) -> Checkpoint:
    spec = SkipSpec(policy_hidden=256, classifier_hidden=128, price=0.02, **fields)
    torch.manual_seed(4)
    head = skip_head(spec).state_dict()
    for name in ("inputs.weight", "gru.weight_ih_l0", "out.weight"):
        head[name] -= head[name].mean(dim=1, keepdim=True)
        head[name] *= 20
    head["out.bias"] *= 0
    header = dataclasses.replace(checkpoint.header, skip=spec)
    return Checkpoint(header=header, sections={**checkpoint.sections, "skip": head})


def thresholds_between(step_logits: np.ndarray, step: int) -> list[float]:
    """Thresholds that only the confidence of `step` reaches."""
    confidences = softmax(step_logits).max(1)
    return [c - 1e-3 if i == step else 2.0 for i, c in enumerate(confidences.tolist())]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"policy__kind": "random", "skip__kind": "random", "skip__share": 0.6},
        {"stop__kind": "confidence", "stop__thresholds": [0.36], "stop__steps_per_round": 2},
    ],
)
def test_clips_looked_at_together_get_what_each_gets_alone(settings: dict):
    config = make_config(**settings)
    batches = [make_frames(seed=i) for i in range(4)]
    together = look(config, batches)
    assert_same(together, look(config, batches, clips_per_call=1))
    assert_same(together, look(config, list(reversed(batches)), clips_per_call=3))


@pytest.mark.parametrize("steps_per_round", [1, 3, 4, 6])
def test_rounds_change_nothing_where_the_rule_never_fires(steps_per_round: int):
    batches = [make_frames(seed=i) for i in range(2)]
    config = make_config(stop__kind="confidence", stop__thresholds=[2.0], stop__steps_per_round=steps_per_round)
    assert_same(look(make_config(), batches), look(config, batches))


def test_without_a_rule_all_patches_of_a_clip_go_in_one_round():
    seen = look(make_config(), [make_frames()])
    assert [len(batch.pixels) for batch in seen.patches] == [6]


def test_patches_are_cut_from_their_own_frame_at_the_place_that_the_label_names():
    frames = make_frames(view_yxhw=(0.0, 0.25, 1.0, 0.5))
    seen = look(make_config(), [frames])
    for step, place in enumerate(seen.only.patches):
        y, x = round(place.y * SIDE), round((place.x - 0.25) / 0.5 * SIDE)
        np.testing.assert_array_equal(seen.patches[0].pixels[step], frames.pixels[step, y : y + 24, x : x + 24])
        assert (place.frame, place.pts_s) == (10 * step, step / 2)
        assert (place.h, place.w) == pytest.approx((24 / 64, 24 / 64 / 2))
    assert len({(p.y, p.x) for p in seen.only.patches}) > 1


def test_a_clip_stops_after_the_first_step_that_is_sure_enough(glanced: list[np.ndarray]):
    frames = make_frames(seed=1)
    full = look(make_config(), [frames]).only
    assert full.step_logits is not None and full.logits is not None
    glanced.clear()
    thresholds = thresholds_between(full.step_logits, 2)
    seen = look(make_config(stop__kind="confidence", stop__thresholds=thresholds), [frames])
    label = seen.only
    assert (label.stopped_at, label.frames_total, label.frames_focused, label.frames_skipped) == (3, 6, 3, 0)
    np.testing.assert_allclose(label.logits, full.step_logits[2], atol=1e-5)
    assert [p.frame for p in label.patches] == [0, 10, 20]
    # The later frames cost nothing: neither network has seen them.
    assert sum(len(batch.pixels) for batch in seen.patches) == 3
    np.testing.assert_array_equal(glanced, frames.pixels[:3])
    assert label.gmacs == pytest.approx(3 * (GLANCE + FOCUS + POLICY + CLASSIFY) / 1e9, rel=1e-12)


def test_the_last_step_of_a_round_decides_and_the_rest_of_its_round_is_paid_for():
    frames = make_frames(seed=1)
    full = look(make_config(), [frames]).only
    assert full.step_logits is not None

    def stopped_at(step: int) -> int:
        thresholds = thresholds_between(full.step_logits, step)
        config = make_config(stop__kind="confidence", stop__thresholds=thresholds, stop__steps_per_round=2)
        return look(config, [frames]).only.stopped_at

    assert [stopped_at(step) for step in range(6)] == [6, 2, 6, 4, 6, 6]


def test_raw_logits_may_be_what_is_compared():
    frames = make_frames(seed=1)
    full = look(make_config(), [frames]).only
    assert full.step_logits is not None
    leading = full.step_logits.max(1).tolist()
    thresholds = [x - 1e-3 if i == 4 else 1e8 for i, x in enumerate(leading)]
    config = make_config(stop__kind="confidence", stop__confidence="logit", stop__thresholds=thresholds)
    assert look(config, [frames]).only.stopped_at == 5


def test_clips_leave_at_steps_of_their_own():
    batches = [make_frames(seed=i) for i in range(5)]
    full = look(make_config(), batches)
    threshold = 0.36
    expected = {}
    for clip_id, label in full.labels.items():
        sure = softmax(label.step_logits).max(1) >= threshold
        sure[-1] = True
        expected[clip_id] = int(sure.argmax()) + 1
    assert len(set(expected.values())) > 2
    seen = look(make_config(stop__kind="confidence", stop__thresholds=[threshold]), batches, clips_per_call=2)
    assert {clip_id: label.stopped_at for clip_id, label in seen.labels.items()} == expected


def test_a_skipped_step_has_zeros_for_its_local_feature():
    config = make_config(policy__kind="center", skip__kind="uniform", skip__share=0.5)
    checkpoint, frames = make_checkpoint(config), make_frames(seed=3)
    label = look(config, [frames], checkpoint=checkpoint).only
    focused = [p.frame // 10 for p in label.patches]
    assert (label.frames_focused, label.frames_skipped) == (3, 3)

    glance = Glancer(network=checkpoint.glance_network(), size_px=32, resize="antialias")(frames.pixels)
    middle = frames.pixels[focused, 20:44, 20:44]
    patches = PatchBatch(pixels=middle)
    local = torch.zeros(6, 128)
    local[focused] = torch.from_numpy(Focuser(network=checkpoint.focus_network())(patches).feature)
    with torch.no_grad():
        logits, _ = checkpoint.classifier_module()(torch.cat((glance.feature, local), 1)[None])
    np.testing.assert_allclose(label.step_logits, logits[0], atol=1e-5)


def test_rows_of_skipped_steps_are_not_told_by_number():
    # A GPU would have to be sent such numbers, clip by clip, and the host waits with each copy.
    called: set[str] = set()

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watched():
        look(make_config(skip__kind="uniform", skip__share=0.5), [make_frames()])
    assert "stack" in called and not {name for name in called if "index_put" in name}


def test_a_clip_that_skips_every_step_is_labelled_by_its_glances_at_once():
    batches = [make_frames(seed=i) for i in range(2)]
    skipping = look(make_config(skip__kind="uniform", skip__share=0.0), batches)
    glancing = look(make_config(policy__kind="glance"), batches)
    assert not skipping.patches and not glancing.patches
    for clip_id, label in skipping.labels.items():
        np.testing.assert_array_equal(label.step_logits, glancing.labels[clip_id].step_logits)
        assert (label.frames_focused, label.frames_skipped, label.patches) == (0, 6, ())


def test_skips_within_rounds_are_the_same_as_without_rounds():
    batches = [make_frames(seed=i) for i in range(3)]
    skips = {"skip__kind": "random", "skip__share": 0.4}
    rounds = {"stop__kind": "confidence", "stop__thresholds": [2.0]}
    one = look(make_config(**skips), batches)
    assert_same(one, look(make_config(**skips, **rounds), batches))
    assert_same(one, look(make_config(**skips, **rounds, stop__steps_per_round=4), batches))
    assert 0 < sum(label.frames_focused for label in one.labels.values()) < 18


@pytest.mark.parametrize("kind", ["center", "random"])
def test_fixed_policies_cost_nothing_to_ask(kind: str):
    label = look(make_config(policy__kind=kind), [make_frames()]).only
    assert label.gmacs == pytest.approx(6 * (GLANCE + FOCUS + CLASSIFY) / 1e9, rel=1e-12)


def test_whole_views_cost_what_the_label_compares_itself_with():
    frames = make_frames()
    seen = look(make_config(policy__kind="full"), [frames])
    np.testing.assert_array_equal(seen.patches[0].pixels, frames.pixels)
    assert seen.only.gmacs == pytest.approx(6 * (GLANCE + FOCUS_FULL + CLASSIFY) / 1e9, rel=1e-12)
    assert seen.only.gmacs_full == seen.only.gmacs
    assert (seen.only.patches[3].y, seen.only.patches[3].h) == (0, 1)


def test_learned_places_and_glances_alone_cost_what_they_cost():
    frames = [make_frames()]
    learned, glance = look(make_config(), frames).only, look(make_config(policy__kind="glance"), frames).only
    assert learned.gmacs == pytest.approx(6 * (GLANCE + FOCUS + POLICY + CLASSIFY) / 1e9, rel=1e-12)
    assert glance.gmacs == pytest.approx(6 * (GLANCE + CLASSIFY) / 1e9, rel=1e-12)


def test_random_places_follow_from_the_seed():
    def places(seed: int) -> list[tuple[float, float]]:
        patches = look(make_config(policy__kind="random", compute__seed=seed), [make_frames()]).only.patches
        return [(p.y, p.x) for p in patches]

    assert places(1) == places(1) != places(2)
    assert len(set(places(1))) == 6


def test_frames_that_windows_share_are_glanced_at_once(glanced: list[np.ndarray]):
    frames = make_frames(8, glance_rows=[[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]])
    seen = look(make_config(sampling__num_frames=4), [frames])
    np.testing.assert_array_equal(sorted(v.tobytes() for v in glanced), sorted(v.tobytes() for v in frames.pixels))
    per_frame = FOCUS + POLICY + CLASSIFY
    spent = [label.gmacs * 1e9 for label in seen.labels.values()]
    assert spent == pytest.approx([4 * (GLANCE + per_frame)] + 2 * [2 * GLANCE + 4 * per_frame], rel=1e-12)
    # What it would have cost alone is said of each clip.
    assert len({label.gmacs_full for label in seen.labels.values()}) == 1


def test_frames_that_windows_share_are_glanced_at_once_in_rounds_too(glanced: list[np.ndarray]):
    frames = make_frames(6, glance_rows=[[0, 1, 2, 3], [2, 3, 4, 5]])
    rounds = {"stop__kind": "confidence", "stop__thresholds": [2.0]}
    one = look(make_config(sampling__num_frames=4), [frames])
    glanced.clear()
    other = look(make_config(sampling__num_frames=4, **rounds), [frames], clips_per_call=1)
    assert len(glanced) == 6
    for clip_id, label in one.labels.items():
        np.testing.assert_allclose(label.step_logits, other.labels[clip_id].step_logits, atol=1e-4)


def test_a_frame_that_stands_for_missing_ones_is_glanced_at_once_and_focused_each_time():
    frames = make_frames(3, glance_rows=[[0, 1, 2, 2, 2, 2]])
    label = look(make_config(), [frames]).only
    assert (label.frames_total, label.frames_focused, label.stopped_at) == (6, 6, 6)
    assert [p.frame for p in label.patches] == [0, 10, 20, 20, 20, 20]
    assert label.gmacs == pytest.approx((3 * GLANCE + 6 * (FOCUS + POLICY + CLASSIFY)) / 1e9, rel=1e-12)
    written_out = dataclasses.replace(make_frames(6), pixels=frames.pixels[[0, 1, 2, 2, 2, 2]])
    np.testing.assert_allclose(label.step_logits, look(make_config(), [written_out]).only.step_logits, atol=1e-5)


def test_a_still_image_is_a_clip_of_one_step():
    label = look(make_config(), [make_frames(1)]).only
    assert (label.frames_total, label.frames_focused, label.stopped_at) == (1, 1, 1)


def test_the_oracle_looks_where_the_evidence_is_and_at_the_middle_where_there_is_none():
    truth = {0: (0.5, 0.1), 1: (0.9, 0.9), 2: (math.nan, math.nan), 3: (0.2, 0.5), 4: (-3.0, 7.0)}
    config = make_config(policy__kind="oracle", sampling__num_frames=5)
    label = look(config, [make_frames(5)], truth_at=lambda frames, row: truth[row]).only
    # A grid of 3 x 3 in the 40 px of play: 0, 20 or 40.
    corners = [(round(p.y * SIDE), round(p.x * SIDE)) for p in label.patches]
    assert corners == [(20, 0), (40, 40), (20, 20), (0, 20), (0, 40)]
    assert label.gmacs == pytest.approx(5 * (GLANCE + FOCUS + CLASSIFY) / 1e9, rel=1e-12)


def test_the_truth_is_read_in_units_of_the_view(tmp_path: Path):
    box = {"y": 0.5, "x": 0.5, "h": 0.2, "w": 0.1}
    rows = [
        {"video_id": "video0", "frame": 0, "pts_s": 0.0, "visible": True, "label": "a", **box},
        {"video_id": "video0", "frame": 1, "pts_s": 0.1, "visible": False, "label": "a"},
        *({"video_id": "video0", "frame": n, "pts_s": 0.0, "visible": True, "label": "a", **box} for n in range(2, 12)),
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA), tmp_path / "truth.parquet")
    truth_at = read_truth_at(str(tmp_path / "truth.parquet"))
    frames = make_frames(3, view_yxhw=(0.0, 0.25, 1.0, 0.5))
    # Centre at (0.6, 0.55) of the frame; the view spans columns 0.25 to 0.75.
    assert truth_at(frames, 0) == pytest.approx((0.6, 0.6))
    assert truth_at(frames, 1) == pytest.approx((0.6, 0.6))
    assert np.isnan(truth_at(frames, 2)).all()
    assert np.isnan(truth_at(make_frames(seed=9), 0)).all()


@pytest.mark.parametrize("sees", ["glance", "classifier"])
def test_learned_skips_do_not_depend_on_the_batching(sees: str):
    config = make_config(skip__kind="learned", skip__sees=sees)
    checkpoint = with_skip_head(make_checkpoint(config))
    batches = [make_frames(seed=i) for i in range(4)]
    seen = look(config, batches, checkpoint=checkpoint)
    assert_same(seen, look(config, batches, checkpoint=checkpoint, clips_per_call=1))
    labels = list(seen.labels.values())
    assert all(label.frames_focused + label.frames_skipped == 6 for label in labels)
    assert 0 < sum(label.frames_focused for label in labels) < 24
    for label in labels:
        expected = 6 * (GLANCE + POLICY + SKIP + CLASSIFY) + label.frames_focused * FOCUS
        assert label.gmacs == pytest.approx(expected / 1e9, rel=1e-12)


def test_a_skip_that_sees_the_classifier_goes_step_by_step_and_one_that_does_not_goes_at_once():
    batches = [make_frames(seed=i) for i in range(4)]
    for sees in ("glance", "classifier"):
        config = make_config(skip__kind="learned", skip__sees=sees)
        seen = look(config, batches, checkpoint=with_skip_head(make_checkpoint(config)))
        focused = [label.frames_focused for label in seen.labels.values() if label.frames_focused]
        assert max(focused) > 1
        expected = sorted(focused) if sees == "glance" else [1] * sum(focused)
        assert sorted(len(batch.pixels) for batch in seen.patches) == expected
