"""The scheduler in a world without processes: time is a number, workers are dictionaries, and anything may die."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from operators.records import ClipLabel, Media, Source, clip_id
from pipeline.steering.batching import Batcher, PatchRows
from pipeline.steering.deadlines import Deadlines
from pipeline.steering.executor import Call
from pipeline.steering.in_flight import FlowLimits, PlannedCall
from pipeline.steering.messages import (
    Advance,
    ClipRef,
    OpenRequest,
    PieceInfo,
    ReadReply,
    ReadRequest,
    Reply,
    StepRequest,
)
from pipeline.steering.read_queue import failed_label
from pipeline.steering.scheduler import FOCUS, SINK, STREAM, Scheduler

STRIDE_S = 4.0
PIECE_BYTES = 10
DEADLINE_S = 30.0


@dataclass(eq=False)
class Video:
    """What is true of a source: its clips, and what goes wrong with it."""

    name: str
    rounds: list[list[int]] = field(default_factory=lambda: [[3]])
    """Per window, the patches of each round."""
    faults: dict[int, str] = field(default_factory=dict)
    """Per window: kill_open, kill_focus, kill_step, raise_open, raise_focus, raise_step."""
    read_fault: str | None = None
    """What happens behind the last window: kill, hang, raise, or an error code."""
    windows_per_piece: int = 1
    is_image: bool = False

    @property
    def source(self) -> Source:
        media = Media.IMAGE if self.is_image else Media.VIDEO
        return Source(source_id=self.name, uri=f"/{self.name}", video_id=self.name, media=media)

    def clip(self, window: int) -> str:
        return clip_id(self.name, window * STRIDE_S)

    @property
    def expected(self) -> dict[str, str | None]:
        """The error code of every row that it has to give."""
        codes = {"kill": "worker_died", "raise": "internal", None: None}
        rows = {
            self.clip(window): codes[(self.faults.get(window) or "_").split("_")[0] or None]
            for window in range(len(self.rounds))
        }
        last = {"kill": "worker_died", "hang": "timeout", "raise": "internal"}
        if self.read_fault is not None:
            rows[self.clip(len(self.rounds))] = last.get(self.read_fault, self.read_fault)
        elif not self.rounds:
            rows[self.clip(0)] = "no_frames"
        return rows


class Raised(Exception):
    pass


class Killed(Exception):
    pass


class Hangs(Exception):
    pass


@dataclass(frozen=True, eq=False)
class Payload:
    """What a handle stands for; `content` may be lost."""

    content: list[Any]


class World:
    """Workers that behave, and faults that do not. Every call is checked on its way."""

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
        self.videos = {video.name: video for video in videos}
        self.video_of = {video.clip(w): (video, w) for video in videos for w in range(len(video.rounds))}
        self.random = random.Random(seed)
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
        self.parts: dict[int, tuple[ClipLabel, ...]] = {}
        self.calls: list[PlannedCall] = []
        self.deaths_alone: Counter[str] = Counter()
        self.deaths: Counter[str] = Counter()
        """By stage."""
        self.losses: Counter[str] = Counter()
        self.clips_read: set[str] = set()
        self.lost: set[int] = set()
        """ids of payloads that are gone"""
        self.payloads: list[Payload] = []
        self.state: dict[tuple[str, int], dict[str, Any]] = {
            (stage, worker): {} for stage, count in workers.items() for worker in range(count)
        }
        self.queues: dict[tuple[str, int], list[tuple[int, PlannedCall]]] = {place: [] for place in self.state}
        self.events: list[tuple[float, int, tuple[str, int], Any, Any]] = []
        self.tickets = itertools.count()
        self.drained = False
        self.max_resident = 0

    # The loop, as the runner has it

    def run(self, *, max_calls: int = 20_000) -> World:
        waiting = list(self.videos.values())
        for place in self.state:
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

    def items(self, call: Call) -> list[str]:
        """The sources or clips that a call is about."""
        match call.method:
            case "read":
                return [request.source.source_id for request in call.requests]
            case "open":
                return [clip for request in call.requests for clip in request.clip_ids]
            case "step":
                return [request.clip_id for request in call.requests]
            case "focus":
                return list(dict.fromkeys(row[0] for row in self.rows(call)))
        return []

    def rows(self, call: Call) -> list[Any]:
        return [row for s in call.requests for row in call.payloads[s.payload].content[s.start : s.stop]]

    def check(self, planned: PlannedCall) -> None:
        call = planned.call
        place = (call.stage, call.worker)
        assert place not in self.absent, "a worker that is not made is given work"
        depth = self.limits.focus_depth if call.stage == FOCUS else 1
        assert len(self.queues[place]) < depth
        items = self.items(call)
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
                assert 0 < len(self.rows(call)) <= self.max_rows
                self.check_order([rows.number for rows in planned.rows], self.scheduler._batcher._waiting, planned)
            case "open":
                self.check_order(
                    [stay.clip.number for stay in planned.stays], self.scheduler._clips._to_open, planned
                )
                resident = len(self.state[place]) + len(items)
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
                answer = getattr(self, planned.call.method)(place, planned.call)
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
        if planned.call.method == "read" and any(self.deaths_alone[i] >= 2 for i in self.items(planned.call)):
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
        others = [other for other in self.state if other[0] == place[0] and other not in self.absent]
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
                for item in self.items(planned.call):
                    name = self.video_of[item][0].name if planned.call.method == "open" else item
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
        self.state[place] = {}
        self.deaths[place[0]] += 1
        behind, self.queues[place] = self.queues[place], []
        items = self.items(planned.call)
        if planned.is_excused:
            self.losses.update(items)
            items = []
        # What comes back for a stay that is over is nobody's fault.
        if len(items) == 1 and not any(stay.is_over for stay in planned.stays):
            self.deaths_alone[items[0]] += 1
        assert self.scheduler.on_died(planned, self.now_s), "the first word of a death replaces the worker"
        for _, other in behind:
            assert not self.scheduler.on_died(other, self.now_s)
        self.leave_for_a_while(place)

    # What the workers do

    def fault(self, clip: str, when: str) -> None:
        video, window = self.video_of[clip]
        match (video.faults.get(window) or "_").split("_"):
            case ["kill", at] if at == when:
                raise Killed
            case ["raise", at] if at == when:
                raise Raised

    def read_one(self, place: tuple[str, int], request: ReadRequest, content: list[Any]) -> ReadReply:
        name = request.source.source_id
        video, readers = self.videos[name], self.state[place]
        window = readers.setdefault(name, request.first_window)
        pieces = []
        for _ in range(self.random.randint(0, self.pieces_per_read)):
            clips: list[ClipRef] = []
            while window < len(video.rounds) and len(clips) < video.windows_per_piece:
                start_s = window * STRIDE_S
                clips.append(ClipRef(video.clip(window), start_s, start_s + STRIDE_S, window))
                window += 1
            if clips:
                pieces.append(PieceInfo(row=len(content), num_bytes=PIECE_BYTES, clips=tuple(clips)))
                content.append(clips)
        readers[name] = window
        if window < len(video.rounds) or len(pieces) == self.pieces_per_read or (pieces and video.read_fault):
            return ReadReply(source_id=name, pieces=tuple(pieces))
        match video.read_fault:
            case "kill":
                raise Killed
            case "raise":
                raise Raised
            case "hang":
                raise Hangs
        del readers[name]
        failed = None
        if video.read_fault is not None:
            window = max(window, request.first_window)
            ref = ClipRef(video.clip(window), window * STRIDE_S, window * STRIDE_S, window)
            failed = failed_label(video.source, code=video.read_fault, message="as told", ref=ref)
        return ReadReply(source_id=name, pieces=tuple(pieces), is_done=failed is None, failed=failed)

    def read(self, place: tuple[str, int], call: Call) -> tuple[Reply, Payload]:
        content: list[Any] = []
        try:
            rows = [self.read_one(place, request, content) for request in call.requests]
        except Raised:
            for request in call.requests:
                self.state[place].pop(request.source.source_id, None)
            raise
        self.clips_read |= {ref.clip_id for clips in content for ref in clips}
        return Reply(rows=tuple(rows)), Payload(content)

    def open(self, place: tuple[str, int], call: Call) -> tuple[Reply, Payload]:
        requests: tuple[OpenRequest, ...] = call.requests
        opened = []
        for request in requests:
            there = {ref.clip_id for ref in call.payloads[request.frames.payload].content[request.frames.start]}
            assert request.clip_ids and set(request.clip_ids) <= there
            for clip in request.clip_ids:
                assert clip not in self.state[place], "a clip is open already"
                self.fault(clip, "open")
                opened.append(clip)
        for clip in opened:
            self.state[place][clip] = [next(self.tickets), 0]
        return self.answer(place, opened)

    def step(self, place: tuple[str, int], call: Call) -> tuple[Reply, Payload]:
        requests: tuple[StepRequest, ...] = call.requests
        for request in requests:
            self.fault(request.clip_id, "step")
            token, number = self.state[place][request.clip_id]
            video, window = self.video_of[request.clip_id]
            rows = [row for s in request.features for row in call.payloads[s.payload].content[s.start : s.stop]]
            num_patches = video.rounds[window][number]
            expected = [("seen", request.clip_id, token, number, patch) for patch in range(num_patches)]
            assert rows == expected, "a clip has other features than those of its patches"
            self.state[place][request.clip_id][1] += 1
        return self.answer(place, [request.clip_id for request in requests])

    def answer(self, place: tuple[str, int], clips: list[str]) -> tuple[Reply, Payload]:
        content: list[Any] = []
        rows = []
        for clip in clips:
            video, window = self.video_of[clip]
            token, number = self.state[place][clip]
            if number == len(video.rounds[window]):
                del self.state[place][clip]
                label = ClipLabel(video_id=video.name, clip_id=clip, source_uri=video.name)
                rows.append(Advance(clip_id=clip, label=label))
                continue
            start = len(content)
            content += [(clip, token, number, patch) for patch in range(video.rounds[window][number])]
            rows.append(Advance(clip_id=clip, start=start, stop=len(content)))
        return Reply(rows=tuple(rows)), Payload(content)

    def close(self, place: tuple[str, int], call: Call) -> tuple[Reply, None]:
        for clip in call.requests:
            self.state[place].pop(clip, None)
        return Reply(rows=()), None

    def focus(self, place: tuple[str, int], call: Call) -> tuple[Reply, Payload]:
        for clip in self.items(call):
            self.fault(clip, "focus")
        return Reply(rows=()), Payload([("seen", *row) for row in self.rows(call)])

    def write(self, place: tuple[str, int], call: Call) -> tuple[Reply, None]:
        (request,) = call.requests
        assert 0 < len(request.labels) <= self.limits.rows_per_part
        assert self.parts.setdefault(request.sequence, request.labels) == request.labels
        return Reply(rows=()), None

    # What has to be true at the end

    def check_end(self) -> None:
        written = [label.clip_id for labels in self.parts.values() for label in labels]
        assert Counter(written) == Counter(label.clip_id for label in self.labels)
        assert len(set(written)) == len(written)
        codes = {label.clip_id: label.error_code for label in self.labels}
        assert self.scheduler.num_bytes_held == 0
        assert self.scheduler.num_pieces_held == 0
        assert self.scheduler.num_patches_waiting == 0
        assert self.scheduler.is_finished
        for place, clips in self.state.items():
            to_close = self.scheduler._clips._to_close[place[1]] if place[0] == STREAM else []
            assert place[0] != STREAM or set(clips) <= set(to_close), "state of a clip stays behind"
        expected: dict[str, str | None] = {}
        for video in self.videos.values():
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
            name = self.video_of[clip][0].name
            assert self.deaths_alone[clip] >= 3 or self.losses[clip] >= 3 or self.losses[name] >= 3
