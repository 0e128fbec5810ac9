"""What the driver and its workers say to each other: small, and without pixels.

Every call carries a list of requests and the payloads they point into; every reply answers row by row.
Payloads (frames, patches, features) are named by handles, which only an executor can open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from operators.records import ClipLabel, Source


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of a payload: `payload` counts within the call's list of payloads."""

    payload: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """Read a source from `first_window` on, or go on with it if the window that comes next is that one."""

    source: Source
    first_window: int = 0


@dataclass(frozen=True, slots=True)
class ClipRef:
    clip_id: str
    start_s: float
    end_s: float | None
    """None where its source was not read so far."""
    window: int = 0
    """Its number in the source, for reading again from there."""


@dataclass(frozen=True, slots=True)
class PieceInfo:
    """One FrameBatch, at `row` of the reply's payload (a list of FrameBatch)."""

    row: int
    num_bytes: int
    clips: tuple[ClipRef, ...]


@dataclass(frozen=True, slots=True)
class ReadReply:
    """What one call got out of a source. Neither done nor failed: call again to go on."""

    source_id: str
    pieces: tuple[PieceInfo, ...] = ()
    is_done: bool = False
    failed: ClipLabel | None = None


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Glance at a FrameBatch: row `slice.start` of its payload. `clip_ids` are those still wanted."""

    frames: Slice
    clip_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepRequest:
    """The features of all the patches that a clip is waiting for, in order."""

    clip_id: str
    features: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Advance:
    """What became of a clip: a label, or patches start..stop of the reply's payload (a PatchBatch)."""

    clip_id: str
    label: ClipLabel | None = None
    start: int = 0
    stop: int = 0


@dataclass(frozen=True, slots=True)
class WriteRequest:
    sequence: int
    labels: tuple[ClipLabel, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What a call cost, for the figures at the end of a run."""

    busy_s: float = 0.0
    wait_s: float = 0.0
    num_items: int = 0
    num_padded: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    rows: tuple[Any, ...]
    work: Work = Work()
    is_spent: bool = False
    """The worker holds nothing and wants a fresh process in its place."""
