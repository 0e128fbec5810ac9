"""A camera's state machine: noticed in time when it falls silent, opened again for ever, never twice at once."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.live.camera_state import (
    CameraLimits,
    CameraState,
    CameraStatus,
    Ended,
    Event,
    Gone,
    Kill,
    Open,
    Preparing,
    ReaderAction,
    ReaderProgress,
    Stop,
    Wait,
    backoff_s,
    step,
)

LIMITS = CameraLimits(open_s=5, silence_s=4, keyframe_s=20, backoff_s=1, max_backoff_s=8, jitter=0.5, stable_s=10)


def after(*observed: tuple[float, list[Event]], draw: float = 0.0) -> tuple[CameraStatus, ReaderAction]:
    """Gives where a new camera stands after these events at these times, and what is to be done."""
    camera: CameraStatus = CameraStatus()
    action: ReaderAction = Wait(until_s=0)
    for now_s, events in observed:
        camera, action = step(camera, events, now_s=now_s, draw=draw, limits=LIMITS)
    return camera, action


def decoded(count: int) -> ReaderProgress:
    return ReaderProgress(num_packets=count, num_decoded=count)


LIVE_AT_1 = [(0.0, []), (1.0, [decoded(1)])]


def test_a_new_camera_is_opened_at_once_and_waits_for_the_limit_of_opening():
    camera, action = after((7.0, []))
    assert camera.state is CameraState.CONNECTING and action == Open()
    camera, action = after((7.0, []), (8.0, []))
    assert action == Wait(until_s=12.0)


def test_it_is_live_with_its_first_decoded_frame():
    camera, action = after(*LIVE_AT_1)
    assert camera.state is CameraState.LIVE and camera.since_s == 1.0
    assert action == Wait(until_s=5.0)


def test_a_camera_that_accepts_and_then_says_nothing_is_killed_when_its_time_is_up():
    camera, action = after((0.0, []), (4.9, []))
    assert camera.state is CameraState.CONNECTING
    camera, action = after((0.0, []), (5.0, []))
    assert camera.state is CameraState.LOST and action == Kill(reason="nothing received within 5 s")


def test_the_time_to_open_begins_when_the_readers_process_is_ready_which_may_take_long_but_not_for_ever():
    starting = [(float(t), [Preparing()]) for t in range(1, 20)]
    camera, action = after((0.0, []), *starting)
    assert camera.state is CameraState.CONNECTING and action == Wait(until_s=24.0)
    assert after((0.0, []), *starting, (24.0, []))[1] == Kill(reason="nothing received within 5 s")
    # With 30 s for the start, it is over 35 s after it was begun.
    stuck = [(float(t), [Preparing()]) for t in range(1, 34)]
    assert after((0.0, []), *stuck)[1] == Wait(until_s=34.0)
    assert after((0.0, []), *stuck, (34.0, [Preparing()]))[1] == Kill(reason="nothing received within 5 s")


def test_packets_keep_a_camera_alive_while_it_has_no_keyframe_but_not_for_ever():
    packets = [(float(t), [ReaderProgress(num_packets=t, num_decoded=0)]) for t in range(1, 20)]
    camera, action = after((0.0, []), *packets)
    assert camera.state is CameraState.CONNECTING and action == Wait(until_s=20.0)
    _, action = after((0.0, []), *packets, (20.0, [ReaderProgress(num_packets=20, num_decoded=0)]))
    assert action == Kill(reason="no keyframe within 20 s")


def test_packets_that_stop_before_a_keyframe_came_are_silence():
    _, action = after((0.0, []), (3.0, [ReaderProgress(num_packets=9, num_decoded=0)]), (7.0, []))
    assert action == Kill(reason="no packet for 4 s")


def test_once_live_only_decoded_frames_count_as_progress():
    camera, action = after(*LIVE_AT_1, (4.0, [ReaderProgress(num_packets=50, num_decoded=1)]), (5.0, []))
    assert camera.state is CameraState.LOST and action == Kill(reason="no frame for 4 s")


def test_a_slow_camera_that_gets_on_is_left_alone():
    camera, _ = after(*LIVE_AT_1, (4.5, [decoded(2)]), (8.0, [decoded(3)]), (11.9, []))
    assert camera.state is CameraState.LIVE


def test_a_lost_camera_is_killed_again_and_again_until_its_process_is_gone():
    camera, action = after(*LIVE_AT_1, (5.0, []), (6.0, []), (7.0, []))
    assert camera.state is CameraState.LOST and action == Kill(reason="no frame for 4 s")


def test_after_its_process_is_gone_a_camera_waits_out_its_backoff_and_is_opened_again():
    lost = [*LIVE_AT_1, (2.0, [Ended(reason="reset")])]
    camera, action = after(*lost, (2.5, [Gone()]))
    assert camera.state is CameraState.WAITING and action == Wait(until_s=3.5)
    assert after(*lost, (2.5, [Gone()]), (3.4, []))[1] == Wait(until_s=3.5)
    camera, action = after(*lost, (2.5, [Gone()]), (3.5, []))
    assert camera.state is CameraState.CONNECTING and action == Open()
    assert camera.last_error == "reset"


def test_backoff_doubles_up_to_its_cap_and_the_draw_takes_up_to_half_of_it():
    assert [backoff_s(n, 0.0, LIMITS) for n in range(1, 7)] == [1, 2, 4, 8, 8, 8]
    assert [backoff_s(n, 0.5, LIMITS) for n in range(1, 5)] == [0.75, 1.5, 3, 6]
    assert backoff_s(10_000, 0.0, LIMITS) == 8


def fail(camera: CameraStatus, now_s: float) -> CameraStatus:
    camera, action = step(camera, [], now_s=now_s, draw=0.0, limits=LIMITS)
    assert action == Open()
    camera, _ = step(camera, [decoded(1)], now_s=now_s, draw=0.0, limits=LIMITS)
    camera, _ = step(camera, [decoded(2)], now_s=now_s, draw=0.0, limits=LIMITS)
    camera, _ = step(camera, [Ended(reason="x"), Gone()], now_s=now_s, draw=0.0, limits=LIMITS)
    return camera


def test_a_camera_that_lives_only_for_a_moment_waits_longer_each_time():
    camera, waits = CameraStatus(), []
    for _ in range(5):
        camera = fail(camera, camera.retry_s)
        waits.append(camera.retry_s - camera.since_s)
    assert waits == [1, 2, 4, 8, 8]


def test_a_camera_that_was_live_for_long_starts_with_the_shortest_wait_again():
    camera = fail(fail(fail(CameraStatus(), 0.0), 10.0), 20.0)
    camera, _ = step(camera, [], now_s=30.0, draw=0.0, limits=LIMITS)
    for now_s, count in ((31.0, 1), (35.0, 2), (38.0, 3), (41.0, 4)):
        camera, _ = step(camera, [decoded(count)], now_s=now_s, draw=0.0, limits=LIMITS)
    camera, action = step(camera, [Ended(reason="x"), Gone()], now_s=42.0, draw=0.0, limits=LIMITS)
    assert action == Wait(until_s=43.0)
    assert camera.num_reconnects == 3 and camera.num_misses == 0


def test_a_camera_that_is_opened_in_vain_was_not_reconnected():
    camera, _ = after((0.0, []), (0.5, [Ended(reason="refused"), Gone()]), (1.5, []), (9.9, []))
    assert camera.state is CameraState.LOST
    assert (camera.num_misses, camera.num_connects, camera.num_reconnects) == (2, 0, 0)


def test_the_death_of_a_reader_that_nobody_killed_is_a_loss():
    camera, _ = after(*LIVE_AT_1, (2.0, [Gone()]))
    assert camera.state is CameraState.WAITING and camera.last_error == "the reader's process died"


def test_a_final_end_stops_the_camera():
    camera, action = after(*LIVE_AT_1, (2.0, [Ended(reason="over", is_final=True)]), (2.1, [Gone()]))
    assert camera.state is CameraState.STOPPED and action == Wait(until_s=math.inf)


def test_stopping_kills_the_reader_first():
    camera, action = after(*LIVE_AT_1, (2.0, [Stop()]))
    assert camera.state is CameraState.LOST and action == Kill(reason="stopped")
    camera, action = after(*LIVE_AT_1, (2.0, [Stop()]), (2.1, [Gone()]))
    assert camera.state is CameraState.STOPPED and action == Wait(until_s=math.inf)


def test_a_camera_that_is_stopped_while_it_is_opened_again_keeps_the_reason_why_it_was_never_live():
    refused = [(0.0, []), (0.5, [Ended(reason="refused"), Gone()]), (1.5, [])]
    camera, action = after(*refused, (1.6, [Stop()]))
    assert camera.state is CameraState.LOST and action == Kill(reason="refused")
    camera, _ = after(*refused, (1.6, [Stop()]), (1.7, [Gone()]))
    assert camera.state is CameraState.STOPPED and camera.last_error == "refused"


def test_a_waiting_camera_stops_at_once():
    camera, action = after(*LIVE_AT_1, (2.0, [Ended(reason="x"), Gone()]), (2.1, [Stop()]))
    assert camera.state is CameraState.STOPPED and action == Wait(until_s=math.inf)


class AnyCamera(RuleBasedStateMachine):
    """Whatever a camera does, in any order: a model of the reader's process checks the machine."""

    def __init__(self) -> None:
        super().__init__()
        self.camera = CameraStatus()
        self.now_s = 0.0
        self.has_process = False
        self.num_packets = self.num_decoded = 0
        self.progress_s = 0.0
        self.is_stopped = False

    def observe(self, *events: Event, draw: float = 0.5) -> None:
        self.camera, action = step(self.camera, events, now_s=self.now_s, draw=draw, limits=LIMITS)
        match action:
            case Open():
                assert not self.has_process, "a second reader of one camera"
                assert not self.is_stopped
                self.has_process, self.num_packets, self.num_decoded = True, 0, 0
                self.progress_s = self.now_s
            case Kill():
                assert self.has_process
            case Wait(until_s=until_s):
                assert until_s > self.now_s

    @rule(seconds=st.floats(0, 12))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.observe()

    @precondition(lambda self: self.has_process)
    @rule(packets=st.integers(0, 3), frames=st.integers(0, 3))
    def it_gets_on(self, packets: int, frames: int) -> None:
        self.num_packets, self.num_decoded = self.num_packets + packets, self.num_decoded + frames
        if frames:
            self.progress_s = self.now_s
        self.observe(ReaderProgress(num_packets=self.num_packets, num_decoded=self.num_decoded))

    @precondition(lambda self: self.has_process)
    @rule()
    def it_ends(self) -> None:
        self.observe(Ended(reason="over"))

    @precondition(lambda self: self.has_process)
    @rule(draw=st.floats(0, 0.999))
    def it_dies(self, draw: float) -> None:
        self.has_process = False
        self.observe(Gone(), draw=draw)

    @rule()
    def it_is_stopped(self) -> None:
        self.is_stopped = True
        self.observe(Stop())

    @invariant()
    def a_silent_camera_is_not_called_live(self) -> None:
        if self.camera.state is CameraState.LIVE:
            assert self.now_s - self.progress_s < LIMITS.silence_s

    @invariant()
    def it_knows_whether_it_has_a_reader(self) -> None:
        assert self.camera.has_reader == self.has_process

    @invariant()
    def it_is_tried_again_within_the_longest_backoff(self) -> None:
        if self.camera.state is CameraState.WAITING:
            # The difference of two sums is not exact.
            assert self.camera.retry_s - self.camera.since_s <= LIMITS.max_backoff_s + 1e-9


AnyCamera.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAnyCamera = AnyCamera.TestCase
