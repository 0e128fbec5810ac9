"""Workers without processes for the scheduler's world: videos that are made up, and faults that are planned."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

from operators.records import ClipLabel, Media, Source, clip_id
from pipeline.steering.executor import Call
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

STRIDE_S = 4.0
PIECE_BYTES = 10


@dataclass(eq=False)
class Video:
    """A source as the world knows it: its clips, and what goes wrong with it."""

    name: str
    rounds: list[list[int]] = field(default_factory=lambda: [[3]])
    """For each window, the number of patches of each round."""
    faults: dict[int, str] = field(default_factory=dict)
    """By window: kill_open, kill_focus, kill_step, raise_open, raise_focus or raise_step."""
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
    """A worker raises this where a test wants an exception from our own code."""


class Killed(Exception):
    """A worker raises this where its process is to die."""


class Hangs(Exception):
    """A worker raises this where it is not to come back."""


@dataclass(frozen=True, eq=False)
class Payload:
    """The payload that a handle stands for; it may be lost with its machine."""

    content: list[Any]


class ScriptedWorkers:
    """All workers of a world. Each does its call at once, or raises Killed, Raised or Hangs as its video says."""

    def __init__(
        self,
        videos: list[Video],
        *,
        workers: dict[str, int],
        rows_per_part: int,
        pieces_per_read: int,
        random: random.Random,
    ) -> None:
        self.videos = {video.name: video for video in videos}
        self.video_of = {video.clip(w): (video, w) for video in videos for w in range(len(video.rounds))}
        self.rows_per_part = rows_per_part
        self.pieces_per_read = pieces_per_read
        self.random = random
        self.state: dict[tuple[str, int], dict[str, Any]] = {
            (stage, worker): {} for stage, count in workers.items() for worker in range(count)
        }
        """What each worker holds: open readers, or open clips."""
        self.parts: dict[int, tuple[ClipLabel, ...]] = {}
        """The labels that the sink has written, by the number of their part."""
        self.clips_read: set[str] = set()
        self.tokens = itertools.count()

    def do(self, place: tuple[str, int], call: Call) -> tuple[Reply, Payload | None]:
        done: tuple[Reply, Payload | None] = getattr(self, call.method)(place, call)
        return done

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
            failed = failed_label(video.source, code=video.read_fault, message="as the script says", ref=ref)
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
            self.state[place][clip] = [next(self.tokens), 0]
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
        assert 0 < len(request.labels) <= self.rows_per_part
        assert self.parts.setdefault(request.sequence, request.labels) == request.labels
        return Reply(rows=()), None
