"""The scheduler in a world without processes: time is a number, workers are dictionaries, and anything may die."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from typing import Any

from operators.records import ClipLabel, Media
from pipeline.steering.batching import Batcher, PatchRows
from pipeline.steering.deadlines import Deadlines
from pipeline.steering.in_flight import FlowLimits, PlannedCall
from pipeline.steering.scheduler import FOCUS, SINK, STREAM, Scheduler
from tests.support.scheduler_workers import PIECE_BYTES, Hangs, Killed, Payload, Raised, ScriptedWorkers, Video

DEADLINE_S = 30.0

class World:
    """A run over workers that are made up, in which faults strike by chance. Every call is checked on its way."""

    def __init__(
        self,
        videos: list[Video],
        *,
        limits: FlowLimits,
        workers: dict[str, int],
        max_rows: int = 64,
        shapes: tuple[int, ...] = (),
        seed: int = 0,
        deaths: int = 0,
        losses: int = 0,
        stalls: int = 0,
        absences: int = 0,
        pieces_per_read: int = 2,
        done: set[str] | None = None,
        drain_at: int | None = None,
    ) -> None:
        """`stalls`: answers that never come. `absences`: workers made late, or never where others are there."""
        self.random = random.Random(seed)
        self.crew = ScriptedWorkers(
            videos,
            workers=workers,
            rows_per_part=limits.rows_per_part,
            pieces_per_read=pieces_per_read,
            random=self.random,
        )
        self.limits = limits
        self.workers = workers
        self.max_rows = max_rows
        self.deaths_left, self.losses_left = deaths, losses
        self.stalls_left, self.absences_left = stalls, absences
        self.absent: set[tuple[str, int]] = set()
        self.deadlines = Deadlines()
        self.pieces_per_read = pieces_per_read
        self.done = set(done or ())
        self.done_before = set(self.done)
        self.drain_at = drain_at
        self.scheduler = Scheduler(
            workers=workers,
            limits=limits,
            batcher=Batcher(max_rows=max_rows, max_wait_s=0.5, shapes=shapes),
            is_wanted=lambda clip: clip not in self.done,
            on_label=self.on_label,
        )
        self.now_s = 0.0
        self.labels: list[ClipLabel] = []
        self.calls: list[PlannedCall] = []
        self.deaths_alone: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        """How many workers have died, by stage."""
        self.losses: Counter[str] = Counter()
        self.lost: set[int] = set()
        """The ids of payloads that are gone."""
        self.payloads: list[Payload] = []
        self.queues: dict[tuple[str, int], list[tuple[int, PlannedCall]]] = {place: [] for place in self.crew.state}
        self.events: list[tuple[float, int, tuple[str, int], Any, Any]] = []
        self.tickets = itertools.count()
        self.drained = False
        self.max_resident = 0

    # The loop, as the runner has it

    def run(self, *, max_calls: int = 20_000) -> World:
        waiting = list(self.crew.videos.values())
        for place in self.crew.state:
            self.leave_for_a_while(place)
        while not self.scheduler.is_finished:
            if self.drain_at is not None and len(self.calls) >= self.drain_at and not self.drained:
                self.drained = True
                self.scheduler.drain()
            while not self.drained and self.scheduler.wants_source() and waiting:
                self.feed(waiting.pop(0))
            if not waiting and not self.drained:
                self.scheduler.end_sources()
            while (planned := self.scheduler.next_call(self.now_s)) is not None:
                self.check(planned)
                self.submit(planned)
                assert len(self.calls) < max_calls, "it goes on for ever"
            if self.events:
                self.advance()
            elif not self.scheduler.is_finished:
                assert waiting and not self.drained and self.scheduler.wants_source(), "nothing runs and work is left"
        return self

    def feed(self, video: Video) -> None:
        window = 0
        while video.clip(window) in self.done:
            window += 1
        if len(video.rounds) == 1 and video.read_fault is None and window:
            return
        self.scheduler.add_source(video.source, first_window=window)

    def on_label(self, label: ClipLabel) -> None:
        assert label.clip_id not in self.done, "a clip has two labels"
        self.done.add(label.clip_id)
        self.labels.append(label)

    # Calls

    def check(self, planned: PlannedCall) -> None:
        call = planned.call
        place = (call.stage, call.worker)
        assert place not in self.absent, "a worker that is not made is given work"
        depth = self.limits.focus_depth if call.stage == FOCUS else 1
        assert len(self.queues[place]) < depth
        items = self.crew.items(call)
        assert len(set(items)) == len(items) or call.method == "focus"
        suspects = [r for r in planned.readings if r.is_suspect] + [s for s in planned.stays if s.clip.is_suspect]
        if suspects:
            assert planned.is_suspect and len(items) == 1, "a suspect is in company"
            others = [p for (stage, _), queue in self.queues.items() if stage == call.stage for _, p in queue]
            assert not any(p.is_suspect for p in others), "two suspects run at a time"
            assert not self.queues[place]
        assert not any(p.is_suspect for _, p in self.queues[place])
        match call.method:
            case "read":
                assert not self.drained
                are_images = all(request.source.media is Media.IMAGE for request in call.requests)
                most = self.limits.images_per_call if are_images else self.limits.sources_per_call
                assert len(call.requests) <= most
            case "focus":
                assert 0 < len(self.crew.rows(call)) <= self.max_rows
                self.check_order([rows.number for rows in planned.rows], self.scheduler._batcher._waiting, planned)
            case "open":
                self.check_order(
                    [stay.clip.number for stay in planned.stays], self.scheduler._clips._to_open, planned
                )
                resident = len(self.crew.state[place]) + len(items)
                self.max_resident = max(self.max_resident, resident)
                assert resident <= self.limits.max_open_clips

    def check_order(self, chosen: list[int], waiting: list[Any], planned: PlannedCall) -> None:
        """Nobody is overtaken by somebody younger, so whoever waits has a bounded number before him."""
        left = [entry[0] for entry in waiting if not isinstance(entry[-1], PatchRows) or len(entry[-1])]
        if not planned.is_suspect and left:
            assert max(chosen) <= min(left)

    def submit(self, planned: PlannedCall) -> None:
        place = (planned.call.stage, planned.call.worker)
        self.calls.append(planned)
        self.queues[place].append((next(self.tickets), planned))
        if len(self.queues[place]) == 1:
            self.begin(place)

    def begin(self, place: tuple[str, int]) -> None:
        ticket, planned = self.queues[place][0]
        end_s = self.now_s + self.random.choice([0.0, 0.01, 0.1, 1.0])
        try:
            if any(id(payload) in self.lost for payload in planned.call.payloads):
                answer: Any = "lost"
            elif self.dies_by_chance(planned):
                answer = "died"
            elif self.stalls_by_chance(planned):
                answer, end_s = "stalls", self.now_s + self.deadlines.limit_s(place[0]) + 0.1
            else:
                answer = self.crew.do(place, planned.call)
        except Killed:
            answer = "died"
        except Raised:
            answer = "failed"
        except Hangs:
            answer, end_s = "hangs", self.now_s + DEADLINE_S
        heapq.heappush(self.events, (end_s, ticket, place, planned, answer))

    def dies_by_chance(self, planned: PlannedCall) -> bool:
        if not self.deaths_left or self.random.random() > 0.05:
            return False
        if planned.call.method == "read" and any(self.deaths_alone[i] >= 2 for i in self.crew.items(planned.call)):
            return False
        if planned.call.stage == SINK and self.scheduler._stages[SINK].deaths_in_a_row == 2:
            return False
        self.deaths_left -= 1
        return True

    def stalls_by_chance(self, planned: PlannedCall) -> bool:
        if not self.stalls_left or self.random.random() > 0.05:
            return False
        if planned.call.stage == SINK and self.scheduler._stages[SINK].deaths_in_a_row == 2:
            return False
        self.stalls_left -= 1
        return True

    def leave_for_a_while(self, place: tuple[str, int]) -> None:
        """A worker that is to be made, sometimes after the others, sometimes never."""
        if not self.absences_left or self.random.random() > 0.5:
            return
        self.absences_left -= 1
        self.absent.add(place)
        others = [other for other in self.crew.state if other[0] == place[0] and other not in self.absent]
        if not others or self.random.random() < 0.7:
            made_s = self.now_s + self.random.choice([0.1, 5.0, 50.0])
            heapq.heappush(self.events, (made_s, next(self.tickets), place, None, "made"))
        self.scheduler.note_absent(self.absent)

    def advance(self) -> None:
        self.now_s, _, place, planned, answer = heapq.heappop(self.events)
        if answer == "made":
            self.absent.remove(place)
            self.deadlines.made(place, self.now_s)
            self.scheduler.note_absent(self.absent)
            return
        self.queues[place].pop(0)
        if self.payloads and self.losses_left and self.random.random() < 0.05:
            self.losses_left -= 1
            self.lost.add(id(self.random.choice(self.payloads)))
        match answer:
            case "died" | "hangs" | "stalls":
                planned.timed_out = answer == "hangs"
                planned.is_excused = answer == "stalls"
                self.die(place, planned)
            case "lost":
                for item in self.crew.items(planned.call):
                    name = self.crew.video_of[item][0].name if planned.call.method == "open" else item
                    self.losses[name] += 1
                self.scheduler.on_lost(planned, self.now_s)
            case "failed":
                self.scheduler.on_failed(planned, "Traceback\nRaised: by hand", self.now_s)
            case reply, payload:
                if payload is not None:
                    self.payloads.append(payload)
                self.deadlines.ended(place, self.now_s, self.now_s)
                self.scheduler.on_done(planned, reply, payload, self.now_s)
        if planned.call.method == "read":
            over = PIECE_BYTES * self.pieces_per_read
            assert self.scheduler.num_bytes_held < self.limits.max_bytes + over
            assert self.scheduler.num_pieces_held < self.limits.max_pieces + self.pieces_per_read
        if self.queues[place]:
            self.begin(place)

    def die(self, place: tuple[str, int], planned: PlannedCall) -> None:
        self.crew.state[place] = {}
        self.deaths[place[0]] += 1
        behind, self.queues[place] = self.queues[place], []
        items = self.crew.items(planned.call)
        if planned.is_excused:
            self.losses.update(items)
            items = []
        # What comes back for a stay that is over is nobody's fault.
        if len(items) == 1 and not any(stay.is_over for stay in planned.stays):
            self.deaths_alone[items[0]] += 1
        assert self.scheduler.on_died(planned, self.now_s), "the first report of a death replaces the worker"
        for _, other in behind:
            assert not self.scheduler.on_died(other, self.now_s)
        self.leave_for_a_while(place)

    # What has to be true at the end

    def check_end(self) -> None:
        written = [label.clip_id for labels in self.crew.parts.values() for label in labels]
        assert Counter(written) == Counter(label.clip_id for label in self.labels)
        assert len(set(written)) == len(written)
        codes = {label.clip_id: label.error_code for label in self.labels}
        assert self.scheduler.num_bytes_held == 0
        assert self.scheduler.num_pieces_held == 0
        assert self.scheduler.num_patches_waiting == 0
        assert self.scheduler.is_finished
        for place, clips in self.crew.state.items():
            to_close = self.scheduler._clips._to_close[place[1]] if place[0] == STREAM else []
            assert place[0] != STREAM or set(clips) <= set(to_close), "state of a clip stays behind"
        expected: dict[str, str | None] = {}
        for video in self.crew.videos.values():
            expected.update(video.expected)
        for clip in self.done_before:
            expected.pop(clip, None)
        if self.drained:
            assert codes.keys() <= expected.keys()
        else:
            assert codes.keys() == expected.keys()
        for clip, code in codes.items():
            if code == expected[clip]:
                continue
            assert code == "worker_died"
            name = self.crew.video_of[clip][0].name
            assert self.deaths_alone[clip] >= 3 or self.losses[clip] >= 3 or self.losses[name] >= 3
