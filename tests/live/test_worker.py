"""Cameras in one worker: every frame is looked at once, state runs along the stream, the newest frames win.

The networks are small ones with random weights; the readers are played by the test.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace
from functools import partial
from unittest.mock import patch

import numpy as np
import pytest
import torch

from operators.networks.compiled import CudaGraphs
from operators.networks.focus import Focuser
from operators.networks.glance import Glancer
from operators.records import CameraCounts, CameraFrame, ClipLabel, PatchBatch, SourceFacts
from operators.weights import checkpoints
from pipeline.commands.live_display import label_line
from pipeline.config import Config, load
from pipeline.families.clip import NOT_FINITE
from pipeline.live.camera_process import CameraSpec, Polled
from pipeline.live.camera_state import CameraState, Limits
from pipeline.live.factories import live_worker
from pipeline.live.gaze import LiveGaze, warm_up_sizes
from pipeline.live.worker import CameraPlan, LiveNews, LiveWorker
from pipeline.plan.placement import Machine
from pipeline.plan.resolve import resolve
from tests.support.looking import NAMES, look, make_checkpoint, make_config, make_frames

START_S = 1_700_000_000.0
FPS = 4.0
QUICK = Limits(backoff_s=0.001, max_backoff_s=0.01)
# MACs by hand, batch norms included: glance at 32 px, focus at 24 px and at the whole view of 64 px; policy of nine
# places: 64*48*32 + 2048*256 + 3*256*512 + 256*9; classifier: 3*128*(176+128) + 128*7.
GLANCE, FOCUS, FOCUS_FULL, POLICY, CLASSIFY = 3_981_464, 11_654_200, 82_870_840, 1_018_112, 117_632


class Reader:
    """A reader that says what the test wants it to say."""

    def __init__(self, *, is_ready: bool = True) -> None:
        self.frames: list[CameraFrame] = []
        self.counts = CameraCounts()
        self.ended: str | None = None
        self.is_final = False
        self.is_open = True
        self.is_ready = is_ready
        self.was_killed = False
        self._fds = os.pipe()

    def sends(self, *frames: CameraFrame) -> None:
        self.frames += frames
        num = self.counts.num_decoded + len(frames)
        self.counts = CameraCounts(num_packets=num, num_decoded=num, num_analysed=num)

    def ends(self, reason: str, *, is_final: bool = False) -> None:
        self.ended, self.is_final = reason, is_final

    def poll(self) -> Polled:
        frames, self.frames = tuple(self.frames), []
        return Polled(frames=frames, counts=self.counts, ended=self.ended, is_final=self.is_final)

    def fileno(self) -> int:
        return self._fds[0]

    def kill(self) -> None:
        self.was_killed, self.is_open = True, False

    def is_gone(self) -> bool:
        return self.was_killed


class Studio:
    """A worker, and the readers that it has opened, camera by camera."""

    def __init__(
        self,
        make_worker: Callable[..., LiveWorker],
        cameras: Sequence[str],
        *,
        are_ready: bool = True,
        **plan: float,
    ) -> None:
        """`are_ready`: its readers have started when they are opened."""
        self.worker = make_worker(open_reader=self._open)
        self.are_ready = are_ready
        self.full: set[str] = set()
        """Cameras whose readers cannot be started."""
        self.refused: list[str] = []
        self.readers: dict[str, list[Reader]] = {name: [] for name in cameras}
        self.labels: list[ClipLabel] = []
        self.analysed: list[tuple[str, float]] = []
        plan = {"window_s": 1.0, "stride_s": 0.5} | plan
        specs = (CameraSpec(name=name, uri=f"rtsp://eve:s3cret@{name}/", analysis_fps=FPS) for name in cameras)
        self.worker.begin(tuple(CameraPlan(spec=spec, **plan) for spec in specs), ())
        self.watch()

    def _open(self, spec: CameraSpec) -> Reader:
        if spec.name in self.full:
            self.refused.append(spec.name)
            raise OSError(24, "Too many open files")
        self.readers[spec.name].append(Reader(is_ready=self.are_ready))
        return self.readers[spec.name][-1]

    def reader(self, camera: str = "door") -> Reader:
        return self.readers[camera][-1]

    def watch(self, seconds: float = 0.01) -> LiveNews:
        reply, _ = self.worker.watch((seconds,), ())
        (news,) = reply.rows
        self.labels += news.labels
        for name, camera in news.cameras.items():
            self.analysed += [(name, time_s) for time_s, _ in camera.analysed]
        return news

    def watch_until(self, is_so: Callable[[LiveNews], bool]) -> LiveNews:
        end_s = time.monotonic() + 20
        while not is_so(news := self.watch()):
            assert time.monotonic() < end_s, "waited in vain"
        return news

    def watch_all(self) -> LiveNews:
        """Until nothing waits."""
        return self.watch_until(lambda news: not news.labels and not any(c.waiting for c in news.cameras.values()))


@pytest.fixture
def studio(tmp_path) -> Iterator[Callable[..., Studio]]:
    opened: list[Studio] = []

    def make(
        *cameras: str,
        max_waiting: int = 100,
        max_batch: int = 32,
        limits: Limits = QUICK,
        are_ready: bool = True,
        plan: dict[str, float] | None = None,
        **settings,
    ) -> Studio:
        config = make_config(live__max_waiting_frames=max_waiting, focus__batch_size=max_batch, **settings)
        make_worker = partial(made_worker, config, tmp_path, limits=limits)
        opened.append(Studio(make_worker, cameras or ("door",), are_ready=are_ready, **(plan or {})))
        return opened[-1]

    yield make
    for one in opened:
        one.worker.shutdown()


def made_worker(config: Config, folder, **own) -> LiveWorker:
    """As the run makes it, but for what is given here."""
    checkpoints.save(folder / "small.safetensors", make_checkpoint(config))
    (folder / "classes.txt").write_text("\n".join(NAMES))
    config = config.replaced(
        {
            "model.checkpoint": str(folder / "small.safetensors"),
            "model.classes": str(folder / "classes.txt"),
            "output.logits": True,
            "output.step_logits": True,
        }
    )
    plan = resolve(config, Machine(num_cores=1, memory_bytes=1 << 30))
    with patch("pipeline.live.factories.LiveWorker", lambda **settings: LiveWorker(**(settings | own))):
        return live_worker(**plan.live_arguments())


PICTURES = {seed: make_frames(12, seed=seed).pixels for seed in range(3)}
VIEW_YXHW = (0.0, 0.25, 1.0, 0.5)


def stream(
    *ticks: int,
    views: np.ndarray = PICTURES[0],
    pictures: Sequence[int] | None = None,
    start_s: float = START_S,
    num_corrupt: int = 0,
) -> list[CameraFrame]:
    """Frames of these ticks of one segment. Each shows the view of its tick, or the one that `pictures` says.

    `num_corrupt`: that their reader has met so far.
    """
    return [
        CameraFrame(
            pixels=views[number],
            time_unix_s=start_s + tick / FPS,
            received_unix_s=start_s + tick / FPS + 0.125,
            frame_index=tick * 4,
            segment_start_s=start_s,
            tick=tick,
            view_yxhw=VIEW_YXHW,
            facts=SourceFacts(width=128, height=64, num_corrupt=num_corrupt),
        )
        for tick, number in zip(ticks, ticks if pictures is None else pictures, strict=True)
    ]


def places(label: ClipLabel) -> list[tuple[float, float]]:
    return [(place.y, place.x) for place in label.patches]


def assert_same(ours: Sequence[ClipLabel], theirs: Sequence[ClipLabel]) -> None:
    assert ours and [label.clip_id for label in ours] == [label.clip_id for label in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.step_logits, other.step_logits, atol=1e-4)
        assert [astuple(place) for place in one.patches] == [astuple(place) for place in other.patches]
        assert (one.gmacs, one.frames_skipped) == (other.gmacs, other.frames_skipped)


def test_scores_that_are_not_finite_are_a_failed_row_and_no_label(studio):
    door = studio()
    door.reader().sends(*stream(*range(8)))
    door.watch_all()
    assert door.labels and all(label.error_code is None for label in door.labels)
    before = len(door.labels)
    with torch.no_grad():
        for parameter in door.worker._gaze._classifier.parameters():
            parameter.fill_(float("nan"))
    door.reader().sends(*stream(*range(8), start_s=START_S + 100))
    door.watch_all()
    failed = door.labels[before:]
    assert failed
    for label in failed:
        assert label.error_code == "not_finite" and label.topk == ()
        assert label.label is label.label_id is label.score is None
        assert label.error == NOT_FINITE and label.logits is None and label.step_logits is None
        line = json.loads(label_line(label), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert (line["label"], line["score"], line["error_code"]) == (None, None, "not_finite")


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


def test_a_new_connection_begins_a_segment_of_its_own(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 1.0})
    door.reader().sends(*stream(0, 1, 2))
    door.watch_all()
    door.reader().ends("the camera ended the stream")
    door.watch_until(lambda _: len(door.readers["door"]) == 2)
    door.reader().sends(*stream(0, 1, 2, 3, start_s=START_S + 0.75))
    door.watch_all()
    assert [label.start_s for label in door.labels] == [START_S + 0.75]


def test_a_corrupt_frame_counts_in_the_windows_that_it_came_in_and_in_no_later_one(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 0.5})
    # Two come between the ticks 4 and 5, which costs none.
    door.reader().sends(*stream(*range(5)), *stream(*range(5, 12), num_corrupt=2))
    door.watch_all()
    assert [label.num_corrupt for label in door.labels] == [0, 2, 2, 0, 0]


def test_a_corrupt_frame_before_a_window_counts_once_and_a_new_reader_counts_from_0(studio):
    door = studio(plan={"window_s": 1.0, "stride_s": 1.0})
    # What broke off the first segment lies in no window, and what came before the second in none yet.
    door.reader().sends(*stream(0, 1), *stream(2, num_corrupt=1))
    door.reader().sends(*stream(*range(8), start_s=START_S + 5, num_corrupt=4))
    # Another reader is there before these frames are looked at.
    door.reader().ends("lost")
    door.reader().counts = replace(door.reader().counts, num_corrupt=4)
    door.watch_until(lambda _: len(door.readers["door"]) == 2)
    door.reader().sends(*stream(*range(4), start_s=START_S + 9))
    door.reader().sends(*stream(*range(4, 8), start_s=START_S + 9, num_corrupt=1))
    door.watch_all()
    assert [label.num_corrupt for label in door.labels] == [4, 0, 0, 1]


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


def test_when_behind_the_oldest_frames_of_that_camera_go_and_are_counted(studio):
    run = studio("door", "yard", max_waiting=4, plan={"window_s": 1.0, "stride_s": 1.0})
    run.reader("door").sends(*stream(*range(11)))
    run.reader("yard").sends(*stream(*range(4)))
    news = run.watch_all()
    assert (news.cameras["door"].dropped, news.cameras["yard"].dropped) == (7, 0)
    ticks = [round((time_s - START_S) * FPS) for name, time_s in run.analysed if name == "door"]
    assert ticks == [7, 8, 9, 10]
    # Of the window of ticks 4 to 7 one frame is left; that of 8 to 11 is not complete.
    door, yard = sorted(run.labels, key=lambda label: label.camera)
    assert (door.start_s, door.coverage, door.frames_total) == (START_S + 1.0, 0.25, 1)
    assert (yard.start_s, yard.coverage) == (START_S, 1.0)


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


def test_a_camera_that_never_sends_keeps_waiting_while_the_others_work(studio):
    run = studio("door", "ghost")
    for start in range(0, 60, 2):
        run.reader("ghost").ends("nobody there")
        if start < 12:
            run.reader("door").sends(*stream(start, start + 1))
        run.watch(0.003)
    news = run.watch_all()
    assert news.cameras["door"].state is CameraState.LIVE and len(run.labels) == 5
    ghost = news.cameras["ghost"]
    assert ghost.state in (CameraState.WAITING, CameraState.CONNECTING) and ghost.last_error == "nobody there"
    assert len(run.readers["ghost"]) >= 3 and all(reader.was_killed for reader in run.readers["ghost"][:-1])


def test_a_reader_whose_process_takes_long_to_start_is_not_held_against_the_camera(studio):
    door = studio(limits=Limits(open_s=0.02, start_s=1000.0, backoff_s=0.001), are_ready=False)
    for _ in range(3):
        door.watch(0.03)
    assert len(door.readers["door"]) == 1
    door.reader().is_ready = True
    door.watch_until(lambda _: len(door.readers["door"]) == 2)


def test_a_reader_that_cannot_be_started_costs_the_others_nothing_and_is_tried_again(studio):
    run = studio("door", "yard")
    run.full.add("yard")
    run.reader("yard").ends("lost")
    run.reader("door").sends(*stream(*range(12)))
    news = run.watch_until(lambda news: len(run.refused) >= 3 and news.cameras["yard"].state is CameraState.WAITING)
    assert news.cameras["yard"].last_error == "its reader cannot be started: OSError: [Errno 24] Too many open files"
    run.full.clear()
    run.watch_until(lambda _: len(run.readers["yard"]) == 2)
    run.reader("yard").sends(*stream(*range(4)))
    run.watch_until(lambda news: news.cameras["yard"].state is CameraState.LIVE)
    run.watch_all()
    assert {label.camera for label in run.labels} == {"door", "yard"}


def test_a_reader_that_says_nonsense_is_ended_like_one_that_was_lost(studio):
    def nonsense() -> Polled:
        raise KeyError("rtsp://eve:s3cret@yard/")

    run = studio("door", "yard")
    run.reader("yard").poll = nonsense
    run.reader("door").sends(*stream(*range(4)))
    news = run.watch_until(lambda _: len(run.readers["yard"]) == 2)
    assert run.readers["yard"][0].was_killed
    assert news.cameras["yard"].last_error == (
        "its reader cannot be understood: KeyError: 'rtsp://eve:***@yard/'"
    )
    run.watch_all()
    assert len(run.labels) == 1


def test_a_silent_camera_is_noticed_within_five_seconds_or_as_the_settings_say(tmp_path):
    def limits(*settings: str) -> Limits:
        plan = resolve(load("live", settings=settings), Machine(num_cores=1, memory_bytes=4 << 30))
        return live_worker(**plan.live_arguments())._limits

    # A worker looks at cameras again at least every second.
    assert limits().open_s + 1 <= 5 >= limits().silence_s + 1
    own = limits("live.open_timeout_s=2", "live.watchdog_s=3", "live.keyframe_timeout_s=7")
    assert (own.open_s, own.silence_s, own.keyframe_s) == (2, 3, 7)


def test_counts_outlive_readers_and_a_camera_that_came_back_was_reconnected(studio):
    door = studio()
    door.reader().sends(*stream(0, 1, 2))
    door.watch_all()
    door.reader().ends("rtsp://eve:s3cret@door/: was lost")
    news = door.watch_until(lambda _: len(door.readers["door"]) == 2)
    assert news.cameras["door"].last_error == "rtsp://eve:***@door/: was lost"
    door.reader().sends(*stream(0, start_s=START_S + 9))
    camera = door.watch_until(lambda news: news.cameras["door"].state is CameraState.LIVE).cameras["door"]
    assert (camera.counts.num_decoded, camera.num_connects, camera.num_reconnects) == (4, 2, 1)


def test_stopped_it_still_labels_what_has_arrived_and_lets_the_readers_go(studio):
    run = studio("door", "yard", plan={"window_s": 1.0, "stride_s": 1.0})
    run.reader("door").sends(*stream(*range(8)))
    run.worker.stop((), ())
    news = run.watch_until(lambda news: news.is_over)
    assert [label.start_s - START_S for label in run.labels] == [0.0, 1.0]
    assert {camera.state for camera in news.cameras.values()} == {CameraState.STOPPED}
    assert all(reader.was_killed for readers in run.readers.values() for reader in readers)


def test_a_file_that_is_over_is_not_opened_again(studio):
    run = studio("door", "film")
    run.reader("film").sends(*stream(0, 1, 2, 3))
    run.reader("film").ends("the file is over", is_final=True)
    news = run.watch_until(lambda news: news.cameras["film"].state is CameraState.STOPPED)
    assert news.cameras["film"].last_error == "the file is over" and not news.is_over
    run.watch(0.05)
    assert len(run.readers["film"]) == 1 and len(run.labels) == 1


def test_labels_are_told_of_at_once(studio):
    door = studio(plan={"window_s": 0.25, "stride_s": 0.25})
    door.reader().sends(*stream(*range(6)))
    # Each slice, however long it may last, ends with the first label.
    assert [len(door.watch(1000.0).labels) for _ in range(6)] == [1] * 6


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
