"""What is in flight and what may be: the limits of a run, its planned calls, and the calls of every worker of a stage.

Everything here is pure: no clock, no process, no pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.steering.batching import PatchRows
from pipeline.steering.clip_table import Stay
from pipeline.steering.executor import Call
from pipeline.steering.read_queue import Reading


@dataclass(frozen=True, kw_only=True)
class FlowLimits:
    """What may be in flight at a time. Bytes are those of views; nothing else that is large is held.

    A call that reads begins only if what it may bring has room; a single one may go over.
    """

    max_pieces: int = 32
    max_bytes: int = 512 << 20
    pieces_per_source: int = 1
    bytes_per_source: int = 0
    """What one call may bring of one source, as far as that is known beforehand; what was seen counts if it is more."""
    max_open_clips: int = 16
    """How many clips may have state on one stream worker."""
    sources_per_call: int = 1
    images_per_call: int = 16
    """How many still images are read in one call, which costs more than a small picture."""
    stride_s: float = 0.0
    """The time from the start of one window of a source to the start of the next."""
    pieces_per_call: int = 1
    rows_per_part: int = 2048
    part_age_s: float = 15.0
    focus_depth: int = 1
    """How many calls are handed to one focus worker at a time."""
    shares_cores: bool = False
    """Whether all stages run on the same cores: a focus worker that waits for a fuller batch then leaves its core to
    the others."""


@dataclass(slots=True, eq=False)
class PlannedCall:
    """A call and the sources, clips and patches that it is about."""

    call: Call
    epoch: int
    """How often its worker had been replaced when the call was made."""
    number: int
    is_suspect: bool = False
    readings: list[Reading] = field(default_factory=list)
    stays: list[Stay] = field(default_factory=list)
    rows: list[PatchRows] = field(default_factory=list)
    num_rows: int = 0
    timed_out: bool = False
    """Set by whoever ends a worker that does not come back."""
    is_excused: bool = False
    """Set where the machine or the network may be at fault: its items start again as if they had been lost."""
    is_doubtful: bool = False
    """Set with timed_out where an answer may have been lost on its way: only the second time makes a row."""
    is_blamed: bool = False
    """Whether the call was being worked on when its worker died."""

    @property
    def is_alone(self) -> bool:
        return len(self.readings) + len(self.stays) <= 1


@dataclass(slots=True)
class StageCalls:
    """The calls in flight of each worker of a stage, oldest first, and how often each worker has been replaced."""

    depth: int
    """How many calls one worker may have at a time."""
    running: list[list[PlannedCall]]
    epochs: list[int]
    idle: set[int]
    """Workers that are made and have no call."""
    absent: set[int] = field(default_factory=set)
    """Workers that are not made: they get no work."""
    suspects_running: int = 0
    deaths_in_a_row: int = 0

    @classmethod
    def of_workers(cls, count: int, *, depth: int) -> StageCalls:
        """A stage of so many workers, all of which are made and have no call."""
        return cls(depth, running=[[] for _ in range(count)], epochs=[0] * count, idle=set(range(count)))

    def enter(self, planned: PlannedCall) -> None:
        worker = planned.call.worker
        self.running[worker].append(planned)
        self.idle.discard(worker)
        self.suspects_running += planned.is_suspect

    def leave(self, planned: PlannedCall) -> None:
        worker = planned.call.worker
        self.running[worker].remove(planned)
        self.suspects_running -= planned.is_suspect
        if not self.running[worker] and worker not in self.absent:
            self.idle.add(worker)

    def note_absent(self, absent: set[int]) -> None:
        """Takes these workers as the ones that are not made, and all others as made."""
        self.absent = absent
        self.idle = {worker for worker, calls in enumerate(self.running) if not calls and worker not in absent}

    def first_to_idle(self) -> int | None:
        """The worker with the fewest calls, and of those the one whose call began first; None where there is none."""
        if self.idle:
            return min(self.idle)
        here = [worker for worker in range(len(self.running)) if worker not in self.absent]
        return min(here, key=lambda w: (len(self.running[w]), self.running[w][0].number), default=None)

    def note_death(self, planned: PlannedCall) -> bool:
        """Blames the call that was being worked on; true for the first call that reports a death."""
        worker = planned.call.worker
        if planned.epoch != self.epochs[worker]:
            return False
        next(call for call in self.running[worker] if call.epoch == planned.epoch).is_blamed = True
        self.epochs[worker] += 1
        self.deaths_in_a_row += 1
        return True
